"""Our weights under the names of a ``torch.nn.Sequential`` of the same layers, and the code that makes one.

The modules are numbered as they stand: ``0.weight`` is conv1's, and every activation, normalisation, pooling and
dropout counts. ``alexnet-torchvision`` is named as torchvision names its AlexNet. PyTorch's Dropout is scaled in
training and does nothing at test: where ours is not, its factor 1 - p is in the weights behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..network.networks import network
from ..network.spec import Conv, Dropout, Linear, Lrn, NetworkSpec, Placed, Pool, parameter_shapes, placed_layers
from .onnx_out import end_padding, unlike_others
from .weights import TORCHVISION

Values = np.ndarray[Any, Any]


def is_torchvision(spec: NetworkSpec) -> bool:
    """Whether torchvision's ``alexnet(num_classes=...)`` takes these weights."""
    name = "alexnet-torchvision"
    return spec.name == name and parameter_shapes(spec) == parameter_shapes(network(name, num_classes=spec.classes))


def torch_weights(spec: NetworkSpec, weights: Mapping[str, Values]) -> dict[str, Values]:
    """``weights`` by PyTorch's names."""
    names = {ours: theirs for theirs, ours in TORCHVISION.items()} if is_torchvision(spec) else _places(spec)
    factor, found = 1.0, {}
    for layer in spec.layers:
        if isinstance(layer, Dropout) and not layer.scaled:
            factor *= 1 - layer.p
        elif isinstance(layer, (Conv, Linear)):
            name = names[layer.name]
            found[f"{name}.weight"] = weights[f"{layer.name}.weight"] * np.float32(factor)
            found[f"{name}.bias"] = weights[f"{layer.name}.bias"]
            factor = 1.0
        elif isinstance(layer, Lrn) and factor != 1:
            raise ValueError(
                f"--names torch: the dropout in front of {layer.name} is not scaled in training, as PyTorch's is, and "
                "normalisation does not let its factor through; take --names convnet"
            )
    return found


def torch_code(spec: NetworkSpec) -> str:
    """Python that makes ``network``, with random weights."""
    if is_torchvision(spec):
        return f"import torch, torchvision\n\nnetwork = torchvision.models.alexnet(num_classes={spec.classes})"
    modules = [module for module, _ in _modules(spec)]
    lines = "".join(f"    {module},\n" for module in modules)
    code = f"network = torch.nn.Sequential(\n{lines})"
    if any(module.startswith("Towers(") for module in modules):
        code = (
            "class Towers(torch.nn.Module):  # the same for every tower by itself\n"
            "    def __init__(self, towers, inner):\n"
            "        super().__init__()\n"
            "        self.towers, self.inner = towers, inner\n\n"
            "    def forward(self, x):\n"
            "        return torch.cat([self.inner(part) for part in x.chunk(self.towers, 1)], 1)\n\n\n" + code
        )
    return f"import torch\n\n\n{code}" if code.startswith("class") else f"import torch\n\n{code}"


def _places(spec: NetworkSpec) -> dict[str, str]:
    """The number of the module that holds a layer's weights, by the layer's name."""
    return {layer: str(place) for place, (_, layer) in enumerate(_modules(spec)) if layer}


def _modules(spec: NetworkSpec) -> Iterator[tuple[str, str]]:
    """Each as code, and the name of the layer whose weights it holds, if any."""
    flat = False
    if odd := unlike_others(spec):
        raise ValueError(
            f"--names torch: {odd} does not read the layer in front of it alone, or not its maps in their order, or "
            "has a bias for every pixel; take --names convnet"
        )
    for placed in placed_layers(spec):
        layer = placed.layer
        if isinstance(layer, Conv):
            yield from _conv(placed, layer)
        elif isinstance(layer, Lrn):
            alpha = layer.alpha * layer.size
            module = f"torch.nn.LocalResponseNorm({layer.size}, alpha={alpha:.9g}, beta={layer.beta:g}, k={layer.k:g})"
            yield (module if layer.across or spec.towers == 1 else f"Towers({spec.towers}, {module})"), ""
        elif isinstance(layer, Pool):
            yield f"torch.nn.MaxPool2d({layer.size}, {layer.stride}, ceil_mode={layer.ceil_mode})", ""
        elif isinstance(layer, Linear):
            if not flat:
                yield "torch.nn.Flatten()", ""
            flat = True
            yield f"torch.nn.Linear({placed.C * placed.H * placed.W}, {placed.K})", layer.name
        elif isinstance(layer, Dropout):
            yield f"torch.nn.Dropout({layer.p:g})", ""
        else:
            raise ValueError(f"--names torch: {layer.name} has no module of PyTorch's; take --names convnet")
        if isinstance(layer, (Conv, Linear)) and layer.activation is not None:
            yield {"relu": "torch.nn.ReLU()", "tanh": "torch.nn.Tanh()"}[layer.activation], ""


def _conv(placed: Placed, layer: Conv) -> Iterator[tuple[str, str]]:
    before, end = layer.padding, end_padding(placed, layer.size, layer.stride, layer.padding)
    if end > before:  # where sizes round up
        yield f"torch.nn.ZeroPad2d(({before}, {end}, {before}, {end}))", ""
        before = 0
    options = f"stride={layer.stride}, padding={before}, groups={placed.groups}"
    yield f"torch.nn.Conv2d({placed.C}, {placed.K}, {layer.size}, {options})", layer.name
