"""Costs beside the softmax's in networks: losses, ranks and gradients against float64, alone and several at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
from network_oracle import relative_error
from strong import strong_weights

import convnet
from convnet.network.spec import Activation, Conv, Cost, Linear, NetworkSpec, TrainDefaults, placed_layers

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
torch.set_num_threads(1)  # small problems; its threads would wait for each other

N, CROP, CLASSES = 5, 6, 7
DEFAULTS = TrainDefaults(batch_size=8, epochs=1, lr=0.01)
BODY = (Conv("conv1", 6, 3, activation="tanh"), Linear("hidden", 9, activation="tanh"))
SCORES = Linear("scores", CLASSES, activation=None, split=False)
LOGISTIC = Activation("y", "logistic")
# between 0.1 and 0.9: as good as a logistic one, but another one
NARROW = replace(SCORES, activation="tanh"), Activation("y", "linear", 0.4, 0.5)
# of a relative error: sums of a few dozen terms, of operands that are rounded so; in bfloat16 also what lies in memory
LIMITS = {"fp32": 64 * 2.0**-24, "tf32": 4 * 2.0**-11, "bf16": 4 * 2.0**-8}

NETS: dict[str, tuple[tuple, tuple[Cost, ...]]] = {
    kind: ((*BODY, SCORES), (Cost(kind, "scores", 0.7),))
    for kind in ("softmax", "squared-error", "log-squared-error", "logistic-cross-entropy")
}
NETS |= {
    "cross-entropy of a logistic": ((*BODY, SCORES, LOGISTIC), (Cost("cross-entropy", "y"),)),
    "cross-entropy of others": ((*BODY, *NARROW), (Cost("cross-entropy", "y", 0.7),)),
    "rflickr": ((*BODY, SCORES, LOGISTIC), (Cost("log-squared-error", "y"),)),
    "squared error of a logistic": ((*BODY, SCORES, LOGISTIC), (Cost("squared-error", "y"),)),
    "squares of maps": ((*BODY, SCORES), (Cost("softmax", "scores"), Cost("squares", "conv1", 0.02))),
    "squares alone": ((*BODY, SCORES), (Cost("squares", "hidden", 2.0),)),
    "four": (
        (*BODY, SCORES, LOGISTIC),
        (
            Cost("squares", "hidden", 0.1),
            Cost("log-squared-error", "y", 3.0),
            Cost("cross-entropy", "y", 0.25),
            Cost("softmax", "scores", 0.5),
        ),
    ),
    "two softmaxes": (
        (*BODY, SCORES, Linear("more", CLASSES, activation=None, split=False)),
        (Cost("softmax", "scores", 0.3), Cost("softmax", "more")),
    ),
}


def spec(layers, costs) -> NetworkSpec:
    return NetworkSpec("small", CROP, 1, layers, DEFAULTS, input_scale=1 / 128, surround=1.0, costs=costs)


def batch():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (N, CROP, CROP, 3), dtype=np.uint8), random.integers(0, CLASSES, N)


def oracle(layers, costs, weights, images, labels):
    """Losses per image, outputs by layer and gradients, in float64."""
    p = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in weights.items()}
    x = torch.tensor(images.transpose(0, 3, 1, 2) / 128, dtype=torch.float64)
    outputs = {}
    for layer in layers:
        if isinstance(layer, Conv):
            x = F.conv2d(x, p[f"{layer.name}.weight"], p[f"{layer.name}.bias"])
        elif isinstance(layer, Linear):
            x = F.linear(x.flatten(1), p[f"{layer.name}.weight"], p[f"{layer.name}.bias"])
        else:
            x = torch.sigmoid(x) if layer.kind == "logistic" else layer.a * x + layer.b
        x = torch.tanh(x) if getattr(layer, "activation", None) == "tanh" else x
        outputs[layer.name] = x
    t = F.one_hot(torch.tensor(labels), CLASSES).double()
    losses = torch.zeros(len(labels), dtype=torch.float64)
    for cost in costs:
        y = outputs[cost.input]
        losses = losses + cost.coefficient * {
            "softmax": lambda y: F.cross_entropy(y, torch.tensor(labels), reduction="none"),
            "squares": lambda y: (y**2).flatten(1).sum(1),
            "squared-error": lambda y: ((y - t) ** 2).sum(1),
            "log-squared-error": lambda y: torch.log1p((y - t) ** 2).sum(1),
            "cross-entropy": lambda y: F.binary_cross_entropy(y, t, reduction="none").sum(1),
            "logistic-cross-entropy": lambda y: F.binary_cross_entropy_with_logits(y, t, reduction="none").sum(1),
        }[cost.kind](y)
    found = torch.autograd.grad(losses.mean(), list(p.values()), allow_unused=True)
    gradients = {name: None if g is None else g.numpy() for name, g in zip(p, found, strict=True)}
    return losses.detach().numpy(), {name: y.detach().numpy() for name, y in outputs.items()}, gradients


def step_of(net, images, labels):
    """Losses and ranks of a batch whose gradients are kept."""
    return net.train_batch(images, labels, np.zeros((len(labels), 3), np.int32), np.zeros((len(labels), 3), np.float32))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_losses_ranks_and_gradients(arithmetic, within, name, fused):
    (layers, costs), (images, labels) = NETS[name], batch()
    options = {"devices": arithmetic.device, "precision": arithmetic.precision, "fused": fused}
    with convnet.Network(spec(layers, costs), batch_size=8, **options) as net:
        weights = strong_weights(net)
        net.load_weights(weights)
        losses, ranks = step_of(net, images, labels)
        gradients = net.gradients()
    expected, outputs, slopes = oracle(layers, costs, weights, images, labels)
    limit = LIMITS[arithmetic.precision]
    within(f"costs {arithmetic.precision}", relative_error(losses, expected) / limit)
    ranked = next((cost.input for cost in costs if cost.kind != "squares"), layers[-1].name)
    y, own = outputs[ranked], outputs[ranked][np.arange(N), labels][:, None]
    clear = np.abs(y - own) > 4 * limit * np.abs(y).max()  # of what lies closer rounding may change the order
    clear[np.arange(N), labels] = True
    assert clear.all(1).sum() >= 2
    np.testing.assert_array_equal(ranks[clear.all(1)], (y > own).sum(1)[clear.all(1)])
    known = [parameter for parameter, slope in slopes.items() if slope is not None]  # a cost looks at what it makes
    for parameter in known:
        error = relative_error(gradients[parameter], slopes[parameter])
        within(f"gradients of costs {arithmetic.precision}", error / limit)
    for cost in costs:  # its share shows
        changed = [replace(cost, coefficient=2 * cost.coefficient) if other is cost else other for other in costs]
        wrong, _, others = oracle(layers, changed, weights, images, labels)
        assert relative_error(losses, wrong) > limit
        assert any(relative_error(gradients[p], others[p]) > limit for p in known)


def test_the_softmax_alone_is_what_was_there(device, precision):
    """Named or not, to the bit; and beside another cost of coefficient 0."""
    images, labels = batch()
    found = []
    for costs in ((), (Cost("softmax", "scores"),), (Cost("softmax", "scores"), Cost("squares", "hidden", 0.0))):
        with convnet.Network(spec((*BODY, SCORES), costs), devices=device, batch_size=8, precision=precision) as net:
            found.append((*step_of(net, images, labels), net.gradients()))
    for losses, ranks, gradients in found[1:]:
        np.testing.assert_array_equal(losses, found[0][0])
        np.testing.assert_array_equal(ranks, found[0][1])
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, found[0][2][name])


@pytest.mark.parametrize("name", ["four", "rflickr", "two softmaxes"])
def test_a_step_is_what_its_parts_are(device, name):
    """As one that is captured and launched again, too; and losses fall."""
    images, labels = batch()
    rows = np.zeros((N, 3), np.int32), np.zeros((N, 3), np.float32)
    found = []
    for whole in (False, True):
        with convnet.Network(spec(*NETS[name]), devices=device, batch_size=8) as net:
            losses = []
            for _ in range(4):
                if whole:
                    losses.append(net.train_step(images, labels, *rows, lr=0.05).get()[0])
                else:
                    losses.append(step_of(net, images, labels)[0])
                    net.step(lr=0.05)
            found.append((losses, net.weights()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    for parameter, value in found[0][1].items():
        np.testing.assert_array_equal(value, found[1][1][parameter])
    assert found[0][0][-1].mean() < found[0][0][0].mean()


def test_certain_outputs_learn_where_the_cross_entropy_is_that_of_a_logistic(device):
    """y is rounded to 1 for a class that is wrong: 1 / (1 - y) is none, y - t is 1."""
    images, labels = batch()
    gradients = []
    for layers in ((*BODY, SCORES, LOGISTIC), (*BODY, SCORES)):
        kind, name = ("cross-entropy", "y") if len(layers) == 4 else ("logistic-cross-entropy", "scores")
        with convnet.Network(spec(layers, (Cost(kind, name),)), devices=device, batch_size=8) as net:
            weights = net.weights()
            weights["scores.bias"][:] = 40
            net.load_weights(weights)
            step_of(net, images, labels)
            gradients.append(net.gradients()["scores.bias"])
    np.testing.assert_array_equal(*gradients)
    counts = np.bincount(labels, minlength=CLASSES)
    np.testing.assert_allclose(gradients[0], 1 - counts / N, rtol=8 * reference.UNIT, atol=8 * reference.UNIT)


@pytest.mark.parametrize(
    ("costs", "text"),
    [
        ((Cost("hinge", "scores"),), 'cost "hinge" of scores: there are softmax, squares, '),
        ((Cost("softmax", "score"),), "of score: no layer is called so"),
        ((Cost("squares", "images"),), "of images: no layer is called so"),
        ((Cost("softmax", "hidden"),), "of hidden: it reads a feature for each of the 7 classes, got 9 x 1 x 1"),
        ((Cost("squared-error", "conv1"),), "of conv1: .* 7 classes, got 6 x 4 x 4"),
    ],
)
def test_impossible_costs(costs, text):
    with pytest.raises(ValueError, match=text):
        placed_layers(spec((*BODY, SCORES), costs))
