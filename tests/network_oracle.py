"""A whole network in PyTorch, written from the paper, for comparison with ``convnet.Network``.

Where rounding decides which side of a kink a value falls on (a ReLU at almost 0, two almost equal maxima), gradients of
two right programs differ a lot. So the oracle takes the sides from the network under test, and reports how far any of
these choices is from its own: that must be within rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import reference
import torch

from convnet.network.spec import Conv, Dropout, Linear, Lrn, NetworkSpec, Pool, placed_layers

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
    on purpose.
    """
    parameters = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in weights.items()}
    x, previous, split, disputed = torch.tensor(images, dtype=dtype), "", False, 0.0
    activations = {}

    def choose(own, chosen):
        nonlocal disputed
        disputed = max(disputed, ((own - chosen).abs().max() / own.abs().max()).item())
        return chosen

    def activate(x, layer):
        if layer.activation == "relu":
            return choose(F.relu(x), x * torch.tensor(outputs[layer.name] > 0))
        return torch.tanh(x) if layer.activation == "tanh" else x

    for layer in spec.layers:
        if isinstance(layer, Conv):
            groups = 1 if layer.joins or not split else spec.towers
            if layer.ceil_mode:  # the last window reads zeros below and to the right of the image
                over = -(x.shape[2] - layer.size) % layer.stride
                x = F.pad(x, (0, over, 0, over))
            weight, bias = parameters[f"{layer.name}.weight"], parameters[f"{layer.name}.bias"]
            x = F.conv2d(x, weight, bias, layer.stride, layer.padding, groups=groups)
            x = activate(x, layer)
            split = True
        elif isinstance(layer, Lrn):
            alpha = layer.alpha * layer.size  # PyTorch divides it by the size
            towers = x.chunk(lrn_towers or (1 if layer.across else spec.towers), dim=1)
            x = torch.cat([F.local_response_norm(t, layer.size, alpha, layer.beta, layer.k) for t in towers], dim=1)
        elif isinstance(layer, Pool):
            ours = torch.tensor(outputs[previous])
            geometry = {"kernel_size": layer.size, "stride": layer.stride, "ceil_mode": layer.ceil_mode}
            places = F.max_pool2d(ours, **geometry, return_indices=True)[1]
            own = F.max_pool2d(x, **geometry)
            x = choose(own, x.flatten(2).gather(2, places.flatten(2)).view(places.shape))
        elif isinstance(layer, Linear):
            weight, bias = parameters[f"{layer.name}.weight"], parameters[f"{layer.name}.bias"]
            x = F.linear(x.flatten(1), weight, bias)
            x = activate(x, layer)
        else:
            assert isinstance(layer, Dropout)
            keep = 1 - layer.p
            if masks is None:
                x = x if layer.scaled else x * keep
            else:
                x = x * torch.tensor(masks[layer.name]).view(x.shape) / (keep if layer.scaled else 1)
        activations[layer.name], previous = x.detach().numpy(), layer.name
    loss = F.cross_entropy(x, torch.tensor(labels))
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    gradients = {name: g.numpy() for name, g in gradients.items()}
    return Result(x.detach().numpy(), loss.item(), gradients, disputed, activations)


def dropout_masks(spec: NetworkSpec, N: int, seed: int, step: int) -> dict[str, np.ndarray]:
    """What every dropout layer keeps: Philox, the layer's place in the network as the layer number."""
    return {
        p.layer.name: reference.dropout_mask(N, p.C * p.H * p.W, p.layer.p, seed, step, p.index)
        for p in placed_layers(spec)
        if isinstance(p.layer, Dropout)
    }


def strong_weights(net, seed: int = 1) -> dict[str, np.ndarray]:
    """Random weights that keep the size of activations and gradients (He et al. 2015) and random biases.

    With the paper's own initial weights most gradients are so small that errors would drown.
    """
    random = np.random.default_rng(seed)
    weights = {}
    for name, value in net.weights().items():
        fan_in = np.prod(value.shape[1:]) if value.ndim > 1 else 100
        weights[name] = random.standard_normal(value.shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
    return weights


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
    """
    sums = {}
    for p in placed:
        if isinstance(p.layer, (Conv, Linear)):
            outputs = p.P * p.Q
            per_output = p.macs // (p.K * outputs)
            per_input = max(p.macs // (p.C * p.H * p.W), 1)
            sums[p.layer.name] = (per_output, per_input, n * outputs) if precision == "fp32" else (1, 1, 1)
            if precision == "bf16" and p.layer.activation == "tanh":
                sums[p.layer.name] = (2, 2, 1)
        elif isinstance(p.layer, Lrn):
            # a power costs about ten roundings, that is sqrt(100)
            sums[p.layer.name] = (100, 100, 0) if precision == "fp32" else (1, 1, 0)
    unit = UNITS[precision]
    forward = sum(terms[0] for terms in sums.values())
    limits = {"logits": unit * np.sqrt(forward)}
    above = forward
    for name, (_, backward, pixels) in reversed(list(sums.items())):
        limits[f"{name}.weight"] = limits[f"{name}.bias"] = unit * np.sqrt(above + pixels)
        above += backward
    return limits
