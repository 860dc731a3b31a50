"""What a definition file describes, in one form for all dialects: a node per layer, in the order of the file.

Numbers are as the file has them: ``filters`` is per group, the ``scale`` of a norm is not divided by its window. What
only a parameter file says is None where none was read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How a rate falls while a run makes progress: ``kind`` is linear, exp, dexp or jdexp, and ``target_factor`` what
    the rate is divided by in the end. A rate is multiplied by 1 + ``noise`` |N(0, 1)|, drawn anew for every minibatch
    and tensor. ``steps`` is None but for dexp and jdexp."""

    kind: str
    target_factor: float
    noise: float = 0.0
    steps: int | None = None

    def factor(self, progress: float) -> float:
        """What the rate is multiplied by at ``progress`` from 0 to 1, without the noise.

        Progress is (data batches done - 1) / (epochs * data batches), constant within a data batch.
        """
        if self.kind == "linear":
            return 1 - progress + progress / self.target_factor
        if self.steps is None:
            return float(self.target_factor**-progress)
        n = self.steps
        i = min(max(0, math.ceil(progress * n) - 1), n - 1)
        if i > 0 and progress <= i / n:  # the product was rounded up
            i -= 1
        exponent = i / (n - 1)
        if self.kind == "jdexp" and i > 0 and 0.2 < progress < 0.9 and progress > (i + 0.5) / n:
            exponent = (i - 0.5) / (n - 1)  # the geometric mean of this step and the one before it
        return float(self.target_factor**-exponent)


@dataclass(frozen=True)
class Rate:
    """Of one tensor: increment = momentum * increment + eps * (gradient - decay * value); eps 0 freezes it."""

    eps: float
    momentum: float
    decay: float = 0.0
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Source:
    """The weights of input ``index`` of ``layer``, which shares them."""

    layer: str
    index: int


@dataclass(frozen=True)
class Kernel:
    """How a convolution, shared or not, reads one of its inputs. Each of ``groups`` has ``filters`` filters of ``size``
    x ``size`` pixels and ``filter_channels`` channels: neighbours, or drawn ones where it is ``sparse``. They begin as
    ``std`` * N(0, 1)."""

    channels: int
    filters: int
    size: int
    padding: int
    stride: int
    groups: int
    filter_channels: int
    sparse: bool
    std: float


@dataclass(frozen=True, kw_only=True)
class Node:
    """``line`` of the definition file opens the section; ``gpu`` is what it says itself, () where it says nothing."""

    name: str
    line: int
    inputs: tuple[str, ...] = ()
    gpu: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Data(Node):
    """Matrix ``index`` of the data: 0 pixels, 1 labels, 2 labels as one-hot vectors; rows ``start`` to ``end``."""

    index: int
    start: int = 0
    end: int | None = None


@dataclass(frozen=True, kw_only=True)
class Weighted(Node):
    """One weight matrix per input, whose products are added, and one bias, ``init_b`` at first.

    ``weight_sources`` has None for an input with weights of its own. ``weights_from``, ``bias_from`` and
    ``connections_from`` name the layer of a checkpoint that they begin as.
    """

    init_b: float
    weight_sources: tuple[Source | None, ...]
    weights_from: str | None = None
    bias_from: str | None = None
    weights: tuple[Rate, ...] | None = None
    bias: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class Conv(Weighted):
    """``tied``: one bias per filter, not one per filter and pixel. ``modules`` 0: as many as cover the picture."""

    kernels: tuple[Kernel, ...]
    tied: bool = True
    modules: int = 0
    connections_from: str | None = None

    @property
    def filters(self) -> int:
        """Of all groups together: the channels of the output."""
        return self.kernels[0].filters * self.kernels[0].groups


@dataclass(frozen=True, kw_only=True)
class Local(Conv):
    """A convolution whose filters are different at every pixel, and so is the bias."""


@dataclass(frozen=True, kw_only=True)
class FullyConnected(Weighted):
    outputs: int
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TreeFC(Weighted):
    """A classifier over a tree of classes, which the data brings along."""

    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Pool(Node):
    """``kind``: max, avg, sum, maxabs or rand. Windows of ``size`` begin at ``start`` and are clipped to the picture.
    ``outputs`` 0: as many a side as cover it. ``do_max``: a rand that takes the maximum."""

    kind: str
    channels: int
    size: int
    stride: int
    start: int
    outputs: int
    do_max: bool = False


@dataclass(frozen=True, kw_only=True)
class Norm(Node):
    """``kind``: cmrnorm, over ``size`` maps (blocks of them where ``blocked``); rnorm and cnorm, over ``size`` x
    ``size`` pixels of a map."""

    kind: str
    channels: int
    size: int
    blocked: bool
    scale: float | None
    pow: float | None
    min_div: float | None


@dataclass(frozen=True, kw_only=True)
class Neuron(Node):
    """``kind`` of ``a`` and ``b``, where it has any. NAME_neuron is what ``neuron=`` of the layer NAME has made."""

    kind: str
    a: float | None = None
    b: float | None = None


@dataclass(frozen=True, kw_only=True)
class Dropout(Node):
    """``scaled``: what is kept is divided by ``keep`` in training; else everything is multiplied by it at test, and
    in training too where it is not ``enabled``."""

    keep: float
    enabled: bool
    scaled: bool


@dataclass(frozen=True, kw_only=True)
class Softmax(Node):
    pass


@dataclass(frozen=True, kw_only=True)
class EltSum(Node):
    """``coeffs``: None where only the parameter file says them."""

    coeffs: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class EltMax(Node):
    pass


@dataclass(frozen=True, kw_only=True)
class Concat(Node):
    """All inputs, one behind the other; of one input, that input (``pass``)."""


@dataclass(frozen=True, kw_only=True)
class Blur(Node):
    channels: int
    size: int
    std: float


@dataclass(frozen=True, kw_only=True)
class Nailbed(Node):
    channels: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class Href(Node):
    """Mirrored pictures."""

    channels: int


@dataclass(frozen=True, kw_only=True)
class Unknown(Node):
    """A layer of a type that those programs or their forks have, and that nothing is known about here."""

    type: str


@dataclass(frozen=True, kw_only=True)
class Cost(Node):
    """``kind``: logreg, whose inputs are labels and a softmax, sum2, crossent, ..."""

    kind: str
    coeff: float | None
    topk: int


@dataclass(frozen=True)
class Definition:
    """``dialect``: "V1", cuda-convnet; "A", the program of 2012; "C2", cuda-convnet2. ``notes`` are sentences about
    what the files say that is ignored or not built; ``comments`` those of the parameter file, with their lines."""

    file: str
    parameter_file: str | None
    dialect: str
    nodes: tuple[Node, ...]
    notes: tuple[str, ...]
    comments: tuple[tuple[int, str], ...]
