"""Networks from the definition files of cuda-convnet, of the program of 2012, and of cuda-convnet2."""

from __future__ import annotations

import os

from ..definitions.files import read
from ..definitions.start import from_start as begun
from ..network.defined import defined
from ..network.spec import NetworkSpec


def read_definition(
    layer_def: str | os.PathLike[str],
    layer_params: str | os.PathLike[str] | None = None,
    *,
    crop: int | None = None,
    from_start: bool = False,
) -> NetworkSpec:
    """The network that a layer definition file and a parameter file describe: ``Network`` takes it.

    ``crop`` is the side of the input images, which the files do not say: by default 224 where the first convolution
    takes strides, else 32. Without ``layer_params`` rates and the constants of norms are usual ones. ``from_start``
    begins where the comments of a parameter file say that its run began, in place of where it ended. Nothing that the
    files name is imported or run. Raises ``ValueError``, with file, line and layer, for what no layer can be, and for
    layers that are not built.
    """
    definition = read(layer_def, layer_params)
    return defined(begun(definition) if from_start else definition, crop).spec
