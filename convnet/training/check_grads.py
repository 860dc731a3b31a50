"""Are gradients those of the costs? As cuda-convnet's ``--check-grads`` asks: weights are moved one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..network.spec import Dropout, Layer, Linear, NetworkSpec, Scale

if TYPE_CHECKING:
    from ..data import Batch
    from ..network.model import Network

Values = np.ndarray[Any, Any]

LARGEST_ERROR = 0.02
ROUNDING = 2.0**-24  # of a mean of costs in float32, as a share of it
MOST = 200  # values of a tensor that are moved: of larger ones so many, drawn
# Where differences are not those of a straight line, steps of a tenth, a hundredth, ... are taken: a gradient that is
# wrong agrees with none of them.
SMALLER = 4
# how far weights and biases are moved: those of fully-connected layers, and of others
STEPS = {"V1": ((0.1, 0.01), (0.001, 0.002)), "A": ((0.01, 0.01), (0.02, 0.05)), "C2": ((0.01, 0.01), (0.02, 0.05))}


@dataclass(frozen=True)
class Checked:
    """Of ``values`` values of a tensor, each moved by ``step``: norms of the analytic gradient, of its difference to
    the numeric one, and of what rounding of the costs may do to that one.
    """

    tensor: str
    values: int
    step: float
    difference: float
    analytic: float
    noise: float

    @property
    def tells(self) -> bool:
        """Whether differences say anything: a gradient may be too small for costs in float32 to show it."""
        return self.error < LARGEST_ERROR or self.noise < LARGEST_ERROR * self.analytic

    @property
    def error(self) -> float:
        """Relative, as cuda-convnet has it."""
        if self.analytic:
            return self.difference / self.analytic
        return np.inf if self.difference else 0.0


def without_chance(spec: NetworkSpec) -> NetworkSpec:
    """The network with its values times 1 - p in place of what is dropped, or as they are where that is scaled."""
    layers: list[Layer] = [
        Scale(layer.name, 1.0 if layer.scaled else 1 - layer.p, layer.inputs) if isinstance(layer, Dropout) else layer
        for layer in spec.layers
    ]
    return replace(spec, layers=tuple(layers))


def check_gradients(network: Network, batch: Batch, dialect: str, seed: int) -> Iterator[Checked]:
    """For every tensor of a network without chance: one-sided differences of the mean cost over the batch, beside the
    gradient, by the step that agrees best. Raises ``RuntimeError`` where the network has closed."""
    random = np.random.default_rng(seed)
    weights = network.weights()
    linear = {layer.name for layer in network.spec.layers if isinstance(layer, Linear)}

    def cost(changed: dict[str, Values]) -> float:
        network.load_weights(changed)
        losses, _ = network.train_batch(batch.images, batch.labels, batch.windows, batch.noise)
        return float(losses.mean(dtype=np.float64))

    before = cost(weights)
    gradients = network.gradients()
    for name, gradient in gradients.items():
        layer, _, kind = name.partition(".")
        flat = random.choice(gradient.size, min(MOST, gradient.size), replace=False)
        analytic = gradient.reshape(-1)[flat].astype(np.float64)
        best: Checked | None = None
        for power in range(SMALLER):
            step = STEPS[dialect][layer not in linear][kind == "bias"] / 10**power
            numeric = np.empty(flat.size)
            moved = weights[name].copy()
            for k, place in enumerate(flat):
                old = moved.flat[place]
                moved.flat[place] = old + np.float32(step)
                numeric[k] = (cost({**weights, name: moved}) - before) / (float(moved.flat[place]) - float(old))
                moved.flat[place] = old
            norms = np.linalg.norm(numeric - analytic), np.linalg.norm(analytic)
            noise = ROUNDING * abs(before) / step * flat.size**0.5
            found = Checked(name, flat.size, step, float(norms[0]), float(norms[1]), noise)
            best = min(best or found, found, key=lambda checked: (not checked.tells, checked.error))
            if found.error < LARGEST_ERROR:
                break
        assert best is not None
        yield best
    network.load_weights(weights)
