"""A whole network in PyTorch, written from the paper, for comparison with ``convnet.Network``.

Where rounding decides which side of a kink a value falls on (a ReLU at almost 0, two almost equal maxima), gradients of
two right programs differ a lot. So the oracle takes the sides from the network under test, and reports how far any of
these choices is from its own: that must be within rounding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import reference
import torch

from convnet.network.spec import (
    IMAGES,
    Activation,
    AvgPool,
    Blur,
    Concat,
    ContrastNorm,
    Conv,
    Dropout,
    Linear,
    Local,
    Lrn,
    Max,
    Mirror,
    Nailbed,
    NetworkSpec,
    Pool,
    Scale,
    SpatialNorm,
    Sum,
    placed_layers,
)

F = torch.nn.functional
torch.set_num_threads(1)  # small problems; its threads would wait for each other


@dataclass
class Result:
    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]
    disputed: float  # the largest difference between a value as chosen and as the oracle would choose, over the largest
    activations: dict[str, np.ndarray] = field(default_factory=dict)


def run(
    spec: NetworkSpec, weights, images, labels, outputs, *, masks=None, dtype=torch.float64, lrn_towers=None
) -> Result:
    """``outputs`` are the activations of the network under test by layer name; ``masks`` those of the dropout layers.

    Without masks dropout layers do as at test: they multiply by 1 - p, or nothing. ``lrn_towers`` makes a wrong network
    on purpose. The loss is the cross-entropy of the last layer.
    """
    oracle = _Oracle(spec, weights, {IMAGES: images} | outputs, masks, dtype, lrn_towers)
    values = {IMAGES: torch.tensor(images, dtype=dtype)}
    for i, layer in enumerate(spec.layers):
        names = [*(layer.inputs or (spec.layers[i - 1].name if i else IMAGES,))]
        names += [term.input for term in getattr(layer, "terms", ())]
        values[layer.name] = oracle.layer(layer, names, [values[name] for name in names])
    logits = values[spec.layers[-1].name]
    loss = F.cross_entropy(logits, torch.tensor(labels))
    found = torch.autograd.grad(loss, list(oracle.parameters.values()))
    gradients = {name: g.numpy() for name, g in zip(oracle.parameters, found, strict=True)}
    activations = {layer.name: values[layer.name].detach().numpy() for layer in spec.layers}
    return Result(logits.detach().numpy(), loss.item(), gradients, oracle.disputed, activations)


class _Oracle:
    """Every layer by what it does to tensors of NCHW, or (n, features). ``cut``: whether an output is in towers."""

    def __init__(self, spec: NetworkSpec, weights, outputs, masks, dtype, lrn_towers):
        self.parameters = {
            name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in weights.items()
        }
        self.spec, self.masks, self.lrn_towers = spec, masks, lrn_towers
        self.outputs = {name: torch.tensor(value) for name, value in outputs.items()}
        self.cut = {IMAGES: False}
        self.disputed = 0.0

    def choose(self, own, chosen):
        """What was chosen at a kink, and how far that is from the oracle's own choice."""
        self.disputed = max(self.disputed, ((own - chosen).abs().max() / own.abs().max()).item())
        return chosen

    def layer(self, layer, names, xs):
        self.cut[layer.name] = self.cut[names[0]] and not isinstance(layer, Concat)
        x = xs[0]
        if isinstance(layer, (Conv, Local, Linear)):
            return self.weighted(layer, names, xs)
        if isinstance(layer, Lrn):
            alpha = layer.alpha * layer.size  # PyTorch divides it by the size
            towers = x.chunk(self.lrn_towers or (1 if layer.across else self.spec.towers), dim=1)
            return torch.cat([F.local_response_norm(t, layer.size, alpha, layer.beta, layer.k) for t in towers], dim=1)
        if isinstance(layer, (SpatialNorm, ContrastNorm)):
            u = x
            if isinstance(layer, ContrastNorm):  # the gradient of the means is left out, as in 2012
                u = x - (window_sums(x, layer.size) / window_sums(torch.ones_like(x), layer.size)).detach()
            return x * (layer.k + layer.alpha * window_sums(u**2, layer.size)) ** -layer.beta
        if isinstance(layer, Pool):
            ours = self.outputs[names[0]]
            geometry = {"kernel_size": layer.size, "stride": layer.stride, "ceil_mode": layer.ceil_mode}
            places = F.max_pool2d(ours, **geometry, return_indices=True)[1]
            own = F.max_pool2d(x, **geometry)
            return self.choose(own, x.flatten(2).gather(2, places.flatten(2)).view(places.shape))
        if isinstance(layer, AvgPool):
            size, stride = layer.size, layer.stride
            over = -(x.shape[2] + layer.padding - size) % stride if layer.ceil_mode else 0
            frame = (layer.padding, over) * 2
            sums, counts = (
                F.avg_pool2d(F.pad(value, frame), size, stride, divisor_override=1) for value in (x, torch.ones_like(x))
            )
            return sums / counts
        if isinstance(layer, Dropout):
            if self.masks is None:
                return x if layer.scaled else x * (1 - layer.p)
            return x * torch.tensor(self.masks[layer.name]).view(x.shape) / (1 - layer.p if layer.scaled else 1)
        if isinstance(layer, Activation):
            return self.activation(layer, x, self.outputs[names[0]])
        if isinstance(layer, Scale):
            return x * layer.factor
        if isinstance(layer, Concat):
            return torch.cat(xs, dim=1)
        if isinstance(layer, Sum):
            return sum(c * value for c, value in zip(layer.coefficients or [1] * len(xs), xs, strict=True))
        if isinstance(layer, Max):
            ours = torch.stack([self.outputs[name] for name in names])
            largest = torch.where(ours == ours.amax(0), torch.stack(xs), 0)
            summed = largest.sum(0)  # the gradient goes to all that are as large
            mean = summed / (ours == ours.amax(0)).sum(0)
            return self.choose(torch.stack(xs).amax(0), summed + (mean - summed).detach())
        if isinstance(layer, Blur):
            at = torch.arange(layer.size, dtype=x.dtype) - layer.size // 2
            taps = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * float(np.float32(layer.std)) ** 2))
            taps = (taps / taps.sum()).expand(x.shape[1], 1, -1, -1)
            return F.conv2d(x, taps, padding=layer.size // 2, groups=x.shape[1])
        if isinstance(layer, Mirror):
            return x.flip(3)
        assert isinstance(layer, Nailbed)
        count = -(-x.shape[2] // layer.stride)
        first = (x.shape[2] - layer.stride * (count - 1)) // 2
        return x[:, :, first :: layer.stride, first :: layer.stride][:, :, :count, :count]

    def weighted(self, layer, names, xs):
        """The sum of the products of all inputs, the bias, and the activation."""
        several = len(xs) > 1
        terms = [layer, *getattr(layer, "terms", ())]
        y = 0
        for i, (term, name, x) in enumerate(zip(terms, names, xs, strict=True)):
            weight = self.parameters[f"{layer.name}.weight{i if several else ''}"]
            if isinstance(layer, Linear):
                y = y + F.linear(x.flatten(1), weight)
                continue
            apart = self.cut[name] and not (isinstance(layer, Conv) and term.joins)
            groups = term.groups * (self.spec.towers if apart else 1)
            if term.connections:
                x = x[:, list(term.connections)]
            x = F.pad(x, (term.padding,) * 4)
            if isinstance(layer, Local) or layer.ceil_mode:  # the last window reads zeros below and to the right
                over = -(x.shape[2] - term.size) % term.stride
                x = F.pad(x, (0, over, 0, over))
            product = local if isinstance(layer, Local) else F.conv2d
            y = y + product(x, weight, stride=term.stride, groups=groups)
        self.cut[layer.name] = self.spec.towers > 1 and (not isinstance(layer, Linear) or layer.split)
        bias = self.parameters[f"{layer.name}.bias"]
        y = y + (bias[:, None, None] if y.ndim == 4 and bias.ndim == 1 else bias)
        if layer.activation == "relu":
            return self.choose(F.relu(y), y * (self.outputs[layer.name] > 0))
        return torch.tanh(y) if layer.activation == "tanh" else y

    def activation(self, layer, x, ours):
        """``ours`` is what the network under test applies it to."""
        if layer.kind == "relu":
            return self.choose(F.relu(x), x * (ours > 0))
        if layer.kind == "brelu":
            inside = torch.where(ours < layer.a, x, layer.a)
            return self.choose(x.clamp(0, layer.a), torch.where(ours > 0, inside, 0))
        if layer.kind == "abs":
            return self.choose(x.abs(), torch.where(ours > 0, x, -x))
        if layer.kind == "softrelu":
            return self.choose(torch.where(x > 4, x, F.softplus(x)), torch.where(ours > 4, x, F.softplus(x)))
        formulas = {
            "tanh": lambda: layer.a * torch.tanh(layer.b * x),
            "logistic": lambda: torch.sigmoid(x),
            "linear": lambda: layer.a * x + layer.b,
            "square": lambda: x**2,
            "sqrt": lambda: torch.sqrt(x),
        }
        return formulas[layer.kind]()


def local(x, weight, *, stride: int, groups: int):
    """A convolution with weights (P, Q, K, C/groups, R, S) of every pixel's own."""
    P, Q, K, c, R, S = weight.shape
    windows = x.unfold(2, R, stride).unfold(3, S, stride)[:, :, :P, :Q]  # (n, C, P, Q, R, S)
    windows = windows.unflatten(1, (groups, c))
    y = torch.einsum("ngcpqrs,pqgkcrs->ngkpq", windows, weight.unflatten(2, (groups, K // groups)))
    return y.flatten(1, 2)


def window_sums(x, size: int):
    """Over the windows of ``size`` x ``size`` pixels around every one that lie in the image."""
    front = size // 2
    return F.avg_pool2d(F.pad(x, (front, size - 1 - front) * 2), size, 1, divisor_override=1)


def dropout_masks(spec: NetworkSpec, N: int, seed: int, step: int) -> dict[str, np.ndarray]:
    """What every dropout layer keeps: Philox, the layer's place in the network as the layer number."""
    return {
        p.layer.name: reference.dropout_mask(N, p.C * p.H * p.W, p.layer.p, seed, step, p.index)
        for p in placed_layers(spec)
        if isinstance(p.layer, Dropout)
    }


def relative_error(actual, expected) -> float:
    """Root mean square of the error over that of the values."""
    return float(np.linalg.norm((actual - expected).ravel()) / np.linalg.norm(expected.ravel()))


# half a unit in the last place of 1
UNITS = {"fp32": reference.UNIT, "tf32": 2.0**-11, "bf16": 2.0**-8}


def rounding(placed, n: int, precision: str = "fp32") -> dict[str, float]:
    """How large the relative errors of the logits and of every gradient may be.

    A float32 sum of T random terms has a relative error of about 2^-24 sqrt(T) or less. The errors of the layers that
    a value passes are independent of each other, so that their squares, hence the T, add up: all forward sums, for a
    gradient also the backward sums above its layer and the sum over images and pixels of its own.

    On tensor cores the operands' rounding outweighs that of the sums. Rounding to nearest has an error of 0.4 units on
    average, a product of two such operands of 0.6; those of a sum's terms are independent, hence the sum's error is
    0.6 units too, however many they are. 1 leaves room by a factor of 1.7, and for storing LRN's output in bfloat16.
    In bfloat16 tanh costs one rounding more each way: of what it is applied to, and of the value its slope comes from.
    So do a sum that further inputs are added to, and an output that several layers read, whose gradients are added up.

    Where layers are no chain, all of them count as if they were: no value passes more.
    """
    readers = Counter(place for p in placed for place in p.inputs)
    sums = {}
    for p in placed:
        layer, pixels = p.layer, p.P * p.Q
        again = max(readers[p.index] - 1, 0)  # additions of gradients
        if isinstance(layer, (Conv, Local, Linear)):
            per_output = p.macs // (p.K * pixels)
            per_input = max(max(t.macs // (t.C * t.H * t.W) for t in p.terms), 1)
            over = n * (pixels if isinstance(layer, Conv) else 1)
            sums[layer.name] = (per_output, per_input + again, over)
            if precision != "fp32":
                sums[layer.name] = (1, 1, 1)
            if precision == "bf16":
                tanh, added = (
                    layer.activation == "tanh",
                    len(p.terms) - 1 + (isinstance(layer, Conv) and not layer.tied),
                )
                sums[layer.name] = (1 + tanh + added, 1 + tanh + again, 1)
            continue
        few = len(p.inputs)
        if isinstance(layer, Lrn):
            few = 100  # a power costs about ten roundings, that is sqrt(100)
        elif isinstance(layer, (SpatialNorm, ContrastNorm)):
            few = 100 + layer.size**2
        elif isinstance(layer, (AvgPool, Blur)):
            few = layer.size**2
        elif isinstance(layer, Activation):
            few = 16  # of a function: four roundings
        elif isinstance(layer, (Pool, Concat, Nailbed, Mirror, Dropout)) and not again:
            continue  # nothing is rounded
        sums[layer.name] = (few, few + again, 0) if precision != "bf16" else (len(p.inputs), 1 + again, 0)
        if precision == "tf32":
            sums[layer.name] = (0, 0, 0) if not isinstance(layer, Lrn) else (1, 1, 0)
    unit = UNITS[precision]
    forward = sum(terms[0] for terms in sums.values())
    limits = {"logits": unit * np.sqrt(forward)}
    above, names = forward, {p.layer.name: p.weight_names for p in placed if p.terms}
    for name, (_, backward, pixels) in reversed(list(sums.items())):
        for kind in (*names.get(name, ()), "bias"):
            limits[f"{name}.{kind}"] = unit * np.sqrt(above + pixels)
        above += backward
    return limits
