"""Networks that are graphs of any layers: against float64, fused and not, at once and in parts, frozen, and paced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import test_model
from conftest import TENSOR_CORES, Arithmetic
from graphs import CLASSES, SPECS, conv, out, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from strong import strong_weights

import convnet
from convnet.network.plan import Plan
from convnet.network.spec import (
    IMAGES,
    Activation,
    AvgPool,
    Blur,
    Concat,
    ContrastNorm,
    Conv,
    Dropout,
    Layer,
    Linear,
    Local,
    Lrn,
    Max,
    Pace,
    Pool,
    RandPool,
    Scale,
    SpatialNorm,
    Sum,
    Term,
    paces,
    parameter_shapes,
)

N = 6
NETS = pytest.mark.parametrize("net", SPECS, ids=lambda net: net.name)
# What is the same in every arithmetic is looked at in two, on each kind of device.
FEW = [Arithmetic("cpu", "fp32"), *(a for a in TENSOR_CORES if a.precision == "bf16" and a.architecture in (None, 90))]
SOME = pytest.mark.parametrize("arithmetic", FEW, ids=str, indirect=True)


def opened(net, devices: str = "cpu", precision: str = "fp32", **options) -> convnet.Network:
    found = convnet.Network(net, devices, batch_size=N, precision=precision, seed=5, **options)
    found.load_weights(strong_weights(found))
    found.set_input(np.full((3, net.crop, net.crop), 128, np.float32))
    return found


def batches(net, count: int, n: int = N):
    """Stored images, labels, windows and noise."""
    random = np.random.default_rng(0)
    side = net.spec.crop + 2
    for _ in range(count):
        windows = np.stack([random.integers(0, 3, n), random.integers(0, 3, n), random.integers(0, 2, n)], 1)
        noise = random.normal(0, 5, (n, 3)).astype(np.float32)
        images = random.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        yield images, random.integers(0, CLASSES, n), windows.astype(np.int32), noise


def named(name: str):
    return next(net for net in SPECS if net.name == name)


def in_parts(net, count: int, **constants):
    """Losses of steps taken apart, and weights and velocities behind them."""
    losses = []
    for batch in batches(net, count):
        losses.append(net.train_batch(*batch)[0])
        net.step(**constants)
    return state(net) | {"losses": np.array(losses)}


def at_once(net, count: int, **constants):
    results = [net.train_step(*batch, **constants) for batch in batches(net, count)]
    losses = [result.get()[0] for result in results]
    return state(net) | {"losses": np.array(losses)}


def state(net):
    return net.weights() | {f"velocity of {name}": value for name, value in net.velocity().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_every_type_of_layer_is_among_them():
    found = {RandPool, *(type(layer) for net in SPECS for layer in net.layers)}  # what is drawn is in test_maps.py
    assert found == set(Layer.__args__)


@NETS
def test_against_float64(arithmetic, within, net):
    """Logits, loss and all gradients, dropout on; a batch smaller than the network's."""
    with opened(net, arithmetic.device, arithmetic.precision) as network:
        assert parameter_shapes(net) == {name: value.shape for name, value in network.weights().items()}
        test_model.compare(network, 5, within)


@NETS
@SOME
def test_fused_is_unfused(arithmetic, net):
    """Bit for bit where activations are float32; in bfloat16 the forward pass, and gradients but for roundings."""
    found = []
    for fused in (True, False):
        with opened(net, arithmetic.device, arithmetic.precision, fused=fused) as network:
            (batch,) = batches(network, 1)
            losses, ranks = network.train_batch(*batch)
            found.append({"losses": losses, "ranks": ranks} | network.gradients())
    fused, apart = found
    if arithmetic.precision != "bf16":
        assert_same(fused, apart)
        return
    for name in ("losses", "ranks"):
        np.testing.assert_array_equal(fused[name], apart[name])
    for name, value in apart.items():
        assert np.linalg.norm(fused[name] - value) <= 2.0**-7 * np.linalg.norm(value), name


def changed(net, kind, **values):
    return replace(
        net, layers=tuple(replace(layer, **values) if isinstance(layer, kind) else layer for layer in net.layers)
    )


# Small mistakes in networks, of one type of layer each: which network, and what the reference says instead.
MISTAKES = {
    "activation": ("local", lambda net: changed(net, Local, activation=None)),
    "local connections": ("local-connections", lambda net: changed(net, Local, connections=(5, 0, 3, 3, 2, 1))),
    "window": ("avgpool", lambda net: replace(net, layers=(net.layers[0], AvgPool("pool1", 2, 2), *net.layers[2:]))),
    "rnorm k": ("spatialnorm", lambda net: changed(net, SpatialNorm, k=1.5)),
    "rnorm size": ("spatialnorm", lambda net: changed(net, SpatialNorm, size=3)),
    "cnorm is no rnorm": (
        "contrastnorm",
        lambda net: replace(
            net,
            layers=tuple(
                SpatialNorm(x.name, x.size, x.alpha, x.beta, x.k) if isinstance(x, ContrastNorm) else x
                for x in net.layers
            ),
        ),
    ),
    "bound": ("activation-brelu", lambda net: changed(net, Activation, a=2.0)),
    "slope": ("activation-tanh", lambda net: changed(net, Activation, b=0.5)),
    "factor": ("scale-and-dropout", lambda net: changed(net, Scale, factor=0.4)),
    "order": ("concat-with-images", lambda net: changed(net, Concat, inputs=("conv1", IMAGES))),
    "coefficients": ("sum", lambda net: changed(net, Sum, coefficients=())),
    "one input": ("max", lambda net: changed(net, Max, inputs=("conv2", "conv3"))),
    "blur": ("low-resolution", lambda net: changed(net, Blur, std=1.0)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_networks_fail(mistake):
    """The comparison with float64 notices them."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    import network_oracle as oracle

    name, wrong = MISTAKES[mistake]
    net = named(name)
    with opened(net) as network:
        images, labels = test_model.batch(network, 5)
        results = test_model.run(network, images, labels)
        outputs = test_model.activations(network, images)
        masks = oracle.dropout_masks(net, 5, network.seed, step=0)

        def worst(spec) -> float:
            expected = oracle.run(spec, network.weights(), images, labels, outputs, masks=masks)
            return max(test_model.ratios(network, 5, images, labels, results, expected).values())

        assert worst(net) <= 1
        assert not worst(wrong(net)) <= 1  # nor is it a number where a window has no pixel


CONSTANTS = {"lr": 0.002, "momentum": 0.8, "weight_decay": 0.01}
PACES = [
    Pace(),
    Pace(lr=2.0, decay=0.0),
    Pace(lr=0.5, decay=3.0, momentum=0.5),
    Pace(lr=1.0, decay=1.0, momentum=0.0),
    Pace(lr=0.0),
]


def paced(net, first: int = 0):
    """Every tensor with a pace of its own."""
    count = iter(range(first, 1000))

    def pace() -> Pace:
        return PACES[next(count) % len(PACES)]

    layers = []
    for layer in net.layers:
        if isinstance(layer, (Conv, Local, Linear)):
            layer = replace(layer, pace=pace(), bias_pace=pace())
            if getattr(layer, "terms", ()):
                layer = replace(layer, terms=tuple(replace(term, pace=pace()) for term in layer.terms))
        layers.append(layer)
    return replace(net, layers=tuple(layers))


@pytest.mark.parametrize(
    "net",
    [net for net in SPECS if not any(isinstance(layer, RandPool) for layer in net.layers)],
    ids=lambda net: net.name,
)
@SOME
def test_scores_in_test_mode_are_those_of_training_where_nothing_is_drawn(arithmetic, net):
    """Losses, sums of all costs, and ranks, bit for bit, also of a batch in parts."""
    layers = tuple(replace(layer, p=0.0) if isinstance(layer, Dropout) else layer for layer in net.layers)
    for shards in (1, 2):
        with opened(replace(net, layers=layers), arithmetic.device, arithmetic.precision, shards=shards) as network:
            ((images, labels, windows, noise),) = batches(network, 1)
            noise = np.zeros_like(noise)
            scored = network.score_batch(images, labels, windows)
            trained = network.train_step(images, labels, windows, noise).get()
            for one, other in zip(scored, trained, strict=True):
                np.testing.assert_array_equal(one, other)


@NETS
@SOME
def test_a_step_at_once_is_the_step_in_parts(arithmetic, net):
    """Bit for bit, weights and velocities, with a pace for every tensor; later steps are launched as a whole."""
    net = paced(net)
    with opened(net, arithmetic.device, arithmetic.precision) as one:
        parts = in_parts(one, 3, **CONSTANTS)
    with opened(net, arithmetic.device, arithmetic.precision) as other:
        assert_same(parts, at_once(other, 3, **CONSTANTS))
        assert other._graphs.launched == 1


@pytest.mark.parametrize("first", [0, 2, 4])
@pytest.mark.parametrize("name", ["local", "products-added-up", "connections", "untied-and-added-up"])
@SOME
def test_every_tensor_at_its_pace(name, first, arithmetic):
    """Two steps of ``train_step`` beside the update rule in NumPy, bit for bit; a rate of 0 keeps the velocity too."""
    net = paced(named(name), first)
    with opened(net, arithmetic.device, arithmetic.precision) as network:
        random = np.random.default_rng(3)
        started = {name: random.normal(0, 0.01, w.shape).astype(np.float32) for name, w in network.weights().items()}
        network.load_velocity(started)
        expected = {name: (value, started[name]) for name, value in network.weights().items()}
        with opened(net, arithmetic.device, arithmetic.precision) as other:
            other.load_velocity(started)
            for batch in batches(network, 2):
                other.train_batch(*batch)
                for name, pace in paces(net):
                    if pace.lr:
                        constants = (
                            np.float32(CONSTANTS[key]) * np.float32(factor)
                            for key, factor in zip(CONSTANTS, (pace.lr, pace.momentum, pace.decay), strict=True)
                        )
                        expected[name] = reference.sgd(*expected[name], other.gradients()[name], *constants)
                other.step(**CONSTANTS)
        at_once(network, 2, **CONSTANTS)
        weights, velocity = network.weights(), network.velocity()
        assert {name for name, _ in paces(net)} == set(weights)
        for name, (value, speed) in expected.items():
            np.testing.assert_array_equal(weights[name], value, err_msg=name)
            np.testing.assert_array_equal(velocity[name], speed, err_msg=name)


@NETS
@SOME
def test_frozen_layers_stay(arithmetic, net):
    """Every layer with weights frozen in turn: it stays, and all others take the first step that they take without."""
    with opened(net, arithmetic.device, arithmetic.precision) as network:
        weights, names = network.weights(), network.layers
        free = in_parts(network, 1, **CONSTANTS)
        for name in names[:-1]:
            network.load_weights(weights)
            network.load_velocity({key: np.zeros_like(value) for key, value in weights.items()})
            network.steps_done = 0  # which decides what is dropped
            network.freeze([name])
            found = at_once(network, 1, **CONSTANTS)
            for key, value in found.items():
                if key.removeprefix("velocity of ").partition(".")[0] != name:
                    np.testing.assert_array_equal(value, free[key], err_msg=f"{key} with {name} frozen")
                elif key in weights:
                    np.testing.assert_array_equal(value, weights[key], err_msg=key)
                else:
                    assert not value.any(), key


def test_all_below_what_is_frozen_stays():
    """Of two branches one is frozen, and learns nothing; the other goes on."""
    net = named("concat")
    with opened(net) as network:
        before = network.weights()
        network.freeze(["conv1", "left", "out"])
        at_once(network, 2)
        for name, value in network.weights().items():
            stays = name.partition(".")[0] in ("conv1", "left", "out")
            assert (value == before[name]).all() == stays, name


def without_sharing(patch):
    """From now on every tensor of a network has memory of its own."""
    patch.setattr(Plan, "__init__", lambda self, shared: vars(self).update(shared=False, wishes=[]))


@NETS
@pytest.mark.parametrize("device", ["cpu", "emu"], indirect=True)
def test_nothing_that_is_needed_is_overwritten(device, net, monkeypatch):
    """Three steps with activations and gradients in shared memory are those with memory of its own for everything."""
    found = []
    for shared in (True, False):
        if not shared:
            without_sharing(monkeypatch)
        with opened(net, device) as network:
            assert all(side.plan.shared == shared for side in network._sides)
            found.append(at_once(network, 3, **CONSTANTS))
    assert_same(*found)


@st.composite
def any_graph(draw):
    """Layers that read any of those in front of them; all maps have 6 x 6 pixels, or 3 x 3."""
    shapes = {IMAGES: (3, 6)}
    layers = []
    for index in range(draw(st.integers(2, 9))):
        name = f"layer{index}"
        read = draw(st.sampled_from(sorted(shapes)))
        C, side = shapes[read]
        alike = st.lists(st.sampled_from(sorted(n for n in shapes if shapes[n] == (C, side))), max_size=2)
        of_side = st.lists(st.sampled_from(sorted(n for n in shapes if shapes[n][1] == side)), max_size=2)
        activation = draw(st.sampled_from(["relu", "relu", "tanh", None]))
        kinds = ["conv", "conv", "pool", "mean", "lrn", "norm", "relu", "drop", "concat", "sum", "max"]
        kind = draw(st.sampled_from(kinds))
        inputs = (read,)
        if kind == "conv":
            terms = tuple(Term(other, 1) for other in draw(of_side))
            layer = Conv(name, 4, 3, padding=1, activation=activation, inputs=inputs, terms=terms)
            C = 4
        elif kind in ("pool", "mean") and side == 6:
            layer = (Pool if kind == "pool" else AvgPool)(name, inputs=inputs)
            side = 3
        elif kind == "lrn":
            layer = Lrn(name, 3, 0.1, inputs=inputs)
        elif kind == "norm":
            layer = SpatialNorm(name, 3, 0.1, 0.75, inputs=inputs)
        elif kind == "drop":
            layer = Dropout(name, 0.25, scaled=draw(st.booleans()), inputs=inputs)
        elif kind == "concat":
            inputs += tuple(draw(of_side))
            layer = Concat(name, inputs=inputs)
            C = sum(shapes[other][0] for other in inputs)
        elif kind == "sum":
            layer = Sum(name, inputs=(*inputs, *draw(alike)))
        elif kind == "max":
            layer = Max(name, inputs=(*inputs, *draw(alike)))
        else:
            layer = Activation(name, inputs=inputs)
        layers.append(layer)
        shapes[name] = C, side
    read = {name for layer in layers for name in (*layer.inputs, *(term.input for term in getattr(layer, "terms", ())))}
    first, *others = [layer.name for layer in layers if layer.name not in read] + draw(
        st.lists(st.sampled_from(sorted(shapes)), max_size=2)
    )
    hidden = Linear("hidden", 8, inputs=(first,), terms=tuple(Term(other) for other in others))
    return spec("drawn", *layers, hidden, Dropout("drop"), out(), crop=6)


@settings(max_examples=40, deadline=None)
@given(any_graph())
def test_any_graph_is_the_same_fused_and_shared_and_apart(net):
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for fused, shared in ((True, True), (True, False), (False, False)):
            if not shared:
                without_sharing(patch)
            with opened(net, fused=fused) as network:
                found.append(at_once(network, 2, **CONSTANTS))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


@pytest.mark.parametrize("name", ["sum", "two-towers-in-a-graph"])
def test_graphs_lie_on_one_device(name):
    net = named(name)
    why = {
        "sum": '"sum" has 1 towers, which cannot be shared by 2 devices; use a number of devices that divides it',
        "two-towers-in-a-graph": '"two-towers-in-a-graph" has layers with several inputs, or several readers: its '
        "towers must lie on one device; got emu:0, emu:1: name one of them",
    }
    with pytest.raises(ValueError, match=f"^{why[name]}$"):
        convnet.Network(net, "emu:0,emu:1", batch_size=2)
    assert net.parts == 1


def test_towers_that_a_whole_layer_reads_lie_on_one_device():
    """In front of the first convolution and behind a layer that is not cut: chains, of which a device has no part."""
    first = (Blur("blur", 3, 1.0), conv("conv1", joins=True))
    behind = (conv("conv1", joins=True), Linear("fc2", 8, split=False), Activation("act2", "logistic"))
    for layers, name in ((first, "blur"), (behind, "act2")):
        net = spec("whole", *layers, out(), towers=2)
        with pytest.raises(ValueError, match=f'"whole" has a layer, {name}, whose input is not cut into towers: its'):
            convnet.Network(net, "emu:0,emu:1", batch_size=2)
        with opened(net) as network:
            at_once(network, 1)


def test_inputs_that_do_not_fit_are_refused():
    """By one sentence that names the layer."""
    one, two = conv("conv1"), conv("conv2", 4, inputs=("conv1",))
    small = Pool("pool", inputs=("conv1",))
    for layers, message in {
        (one, Sum("sum", inputs=("conv1", "conv3"))): 'sum: its input "conv3" is no layer in front of it',
        (one, two, Sum("sum", inputs=("conv1", "conv2"))): "sum: its inputs have shapes 8 x 12 x 12, 4 x 12 x 12: not",
        (one, Sum("sum", inputs=("conv1",), coefficients=(1.0, 2.0))): "sum: it has 1 inputs and 2 coefficients",
        (one, small, Concat("all", inputs=("conv1", "pool"))): "all: its inputs have 12 x 12, 6 x 6 pixels: they must",
        (one, small, conv("conv2", terms=(Term("conv1"),))): "conv2: its inputs give 6 x 6 and 12 x 12 pixels: they",
        (one, Pool("pool", inputs=("conv1", IMAGES))): "pool: it reads one layer, got 2",
        (one, two, small): "conv2: neither a layer nor a cost reads it",
        (one, one): "conv1: two layers have this name",
        (one, conv("conv2", activation="logistic")): 'conv2: activation must be relu or tanh, got "logistic"',
        (one, conv("conv2", groups=3)): "conv2: 8 outputs of 8 inputs cannot be cut into 3 groups",
        (one, conv("conv2", connections=(1, 8), groups=2)): "conv2: connections are numbers of the 8 maps",
    }.items():
        with pytest.raises(ValueError, match=f'network "wrong"( with crop 12)?, layer {message}'):
            convnet.Network(spec("wrong", *layers, out()), "cpu", batch_size=2)
    with pytest.raises(ValueError, match="layer pool: the last one computes logits, of one pixel each, not 6 x 6"):
        convnet.Network(spec("wrong", one, small), "cpu", batch_size=2)
