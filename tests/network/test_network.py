"""``Network`` on its own: towers on one device and on two, exchanges, updates, memory, and misuse."""

from __future__ import annotations

import numpy as np
import pytest
import reference

import convnet
from convnet.devices import host
from convnet.kernels.precision import PRECISIONS
from convnet.network.networks import network
from convnet.network.spec import Pool

TINY = "alexnet-tiny"
JOINS = ["conv3", "fc6", "fc7", "fc8"]


def batch(net, n: int, seed: int = 0):
    random = np.random.default_rng(seed)
    images = random.standard_normal((n, 3, net.spec.crop, net.spec.crop), dtype=np.float32)
    return images, random.integers(0, net.spec.classes, n)


def steps(devices: str, count: int = 2, n: int = 5, batch_size: int = 6, **options):
    """Logits, loss and gradients of some training steps, and the weights behind them."""
    with convnet.Network(TINY, devices=devices, batch_size=batch_size, seed=3, **options) as net:
        found = []
        for step in range(count):
            images, labels = batch(net, n, seed=step)
            found.append((net.forward(images, train=True), net.backward(labels), net.gradients()))
            net.step(lr=0.01)
        return found, net.weights(), net.exchanges()


def assert_same(a, b):
    """Bit for bit, to the last weight."""
    for (logits, loss, gradients), (other_logits, other_loss, other_gradients) in zip(a[0], b[0], strict=True):
        np.testing.assert_array_equal(logits, other_logits)
        assert loss == other_loss
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, other_gradients[name], err_msg=name)
    for name, weight in a[1].items():
        np.testing.assert_array_equal(weight, b[1][name], err_msg=name)


def relative(actual, expected) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.fixture(params=["emu", pytest.param("cuda", marks=pytest.mark.two_gpu)])
def pair(request) -> tuple[str, str]:
    """One device of a kind, and two."""
    request.node.user_properties.append(("device", request.param))
    return f"{request.param}:0", f"{request.param}:0,{request.param}:1"


# What the sums' other grouping may change. In tf32, whose neighbours are 2^-10 apart, a difference of 1e-6 takes one
# operand in 500 to another neighbour, in each of the two layers below the first sum that shows. In bfloat16 the parts
# and their sum are rounded where there was one rounding, and all below in another way: 0.6 units of 2^-8 per layer.
REGROUPED = {"fp32": 1e-6, "tf32": 2 * (1e-6 * 2**11) ** 0.5 * 2.0**-10, "bf16": 3 * 2.0**-8}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_devices_equal_one(pair, precision):
    """Forward bit for bit; gradients differ by the one sum in front of every joining layer, hence not at all above."""
    one, two = (steps(devices, count=1, precision=precision) for devices in pair)
    (logits, loss, gradients), (logits2, loss2, gradients2) = one[0][0], two[0][0]
    np.testing.assert_array_equal(logits, logits2)
    assert loss == loss2
    for name in ("fc8.weight", "fc8.bias", "fc7.weight", "fc7.bias"):
        np.testing.assert_array_equal(gradients[name], gradients2[name], err_msg=name)
    for name, gradient in gradients.items():
        assert relative(gradients2[name], gradient) < REGROUPED[precision], name
    assert any((gradients[name] != gradients2[name]).any() for name in gradients), "the sum was not split at all"


def test_activations_are_whole_on_two_devices(pair):
    nets = [convnet.Network(TINY, devices=devices, batch_size=3, seed=1, fused=False) for devices in pair]
    images, _ = batch(nets[0], 3)
    for net in nets:
        net.forward(images)
    for layer in nets[0].spec.layers:
        a, b = (net.activation(layer.name) for net in nets)
        assert a.shape[0] == 3
        np.testing.assert_array_equal(a, b, err_msg=layer.name)
    for net in nets:
        net.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_exchanges_only_in_front_of_joining_layers(pair, precision):
    """All that crosses between devices: half of the activation each way, forward and backward."""
    _, _, exchanges = steps(pair[1], count=1, precision=precision)
    assert [(name, way) for name, way, _ in exchanges] == [
        *((name, "forward") for name in JOINS),
        *((name, "backward") for name in reversed(JOINS)),
    ]
    images = 8 * (2 if precision == "bf16" else 4)  # bytes of the batch of 6 padded to lanes
    half = {"conv3": 32 * 7 * 7, "fc6": 32 * 3 * 3, "fc7": 128, "fc8": 128}
    for name, way, nbytes in exchanges:
        # the first device alone has fc8: one half comes to it, and one goes back
        assert nbytes == half[name] * images * (1 if name == "fc8" else 2), (name, way)


def test_one_device_exchanges_nothing():
    assert steps("cpu", count=1)[2] == []


def sides(net) -> list:
    """On which side of every kink the last forward pass fell: the signs of ReLUs, the places of maxima."""
    found, previous = [], np.empty(0)
    for layer in net.spec.layers:
        value = net.activation(layer.name)
        if isinstance(layer, Pool):
            P, Q = value.shape[2:]
            geometry = {"size": layer.size, "stride": layer.stride, "top": 0, "left": 0, "P": P, "Q": Q}
            found.append(reference.pool_forward(previous, **geometry)[1])
        else:
            found.append(value > 0)
        previous = value
    return found


@pytest.mark.parametrize("devices", ["emu:0", "emu:0,emu:1"])
def test_emulator_agrees_with_cpu(devices, request):
    """Within rounding; gradients on the first batch where rounding moves no value across a kink."""
    request.node.user_properties.append(("device", "emu"))
    nets = [convnet.Network(TINY, devices=name, batch_size=6, seed=3, fused=False) for name in ("cpu", devices)]
    for seed in range(5):
        images, labels = batch(nets[0], 5, seed)
        logits, logits2 = (net.forward(images, train=True) for net in nets)
        loss, loss2 = (net.backward(labels) for net in nets)
        assert relative(logits2, logits) < 5e-6
        assert abs(loss - loss2) < 5e-6
        if all((a == b).all() for a, b in zip(sides(nets[0]), sides(nets[1]), strict=True)):
            break
    else:
        pytest.fail("in each of five batches a ReLU or a maximum differs: more than rounding explains")
    gradients = nets[1].gradients()
    for name, gradient in nets[0].gradients().items():
        assert relative(gradients[name], gradient) < 5e-6, name
    for net in nets:
        net.close()


def test_order_of_work_changes_nothing():
    """Streams that run as late and in as odd an order as events allow give the same bits; so do other thread orders."""
    from convnet.kernels import _emu

    runs = []
    for seed in (1, 2, 3):
        host.seed_order(seed)
        _emu.seed_order(seed)
        runs.append(steps("emu:0,emu:1"))
    for other in runs[1:]:
        assert_same(runs[0], other)


def test_a_missing_wait_shows(monkeypatch):
    """Without the waits in front of the exchanges some order gives other results: the test above can fail."""
    right = steps("emu:0,emu:1", count=1)[0][0][0]
    monkeypatch.setattr(host.HostStream, "wait", lambda self, event: None)
    wrong = []
    for seed in range(4):
        host.seed_order(seed)
        wrong.append(steps("emu:0,emu:1", count=1)[0][0][0])
    assert any((logits != right).any() for logits in wrong)


def test_same_seed_same_bits(arithmetic):
    first, again = (steps(arithmetic.device, count=1, precision=arithmetic.precision) for _ in range(2))
    assert_same(first, again)


def test_seeds_choose_weights_and_masks():
    with convnet.Network(TINY, devices="cpu", batch_size=2, seed=0) as a:
        with convnet.Network(TINY, devices="cpu", batch_size=2, seed=1) as b:
            assert (a.weights()["conv1.weight"] != b.weights()["conv1.weight"]).mean() > 0.99
            b.load_weights(a.weights())
            images, _ = batch(a, 2)
            np.testing.assert_array_equal(a.forward(images), b.forward(images))
            assert (a.forward(images, train=True) != b.forward(images, train=True)).any()
        dropped = a.forward(images, train=True)
        np.testing.assert_array_equal(a.forward(images, train=True), dropped)  # no step between: the same masks
        a.steps_done = 1
        assert (a.forward(images, train=True) != dropped).any()


def test_step_is_the_papers_update(device):
    """Weights decay, biases do not; momentum carries over; rates of single parameters; the count of steps."""
    constants = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    with convnet.Network(TINY, devices=device, batch_size=4) as net:
        weights, velocity = net.weights(), {name: np.zeros_like(w) for name, w in net.weights().items()}
        for step in range(2):
            images, labels = batch(net, 4, seed=step)
            net.forward(images, train=True)
            net.backward(labels)
            gradients = net.gradients()
            net.step(**constants, rates={"fc8.weight": 10.0, "conv1.weight": 0.0})
            for name, gradient in gradients.items():
                rate = {"fc8.weight": 10.0, "conv1.weight": 0.0}.get(name, 1.0) * 0.05
                decay = 0.01 if name.endswith("weight") else 0.0
                weights[name], velocity[name] = reference.sgd(weights[name], velocity[name], gradient, rate, 0.9, decay)
        for name in weights:
            np.testing.assert_array_equal(net.weights()[name], weights[name], err_msg=name)
            np.testing.assert_array_equal(net.velocity()[name], velocity[name], err_msg=name)
        assert net.steps_done == 2


def test_a_loss_that_is_not_finite_changes_nothing(pair):
    """On no device: the one that computes the loss tells the other."""
    for devices in pair:
        with convnet.Network(TINY, devices=devices, batch_size=2, width=0.25) as net:
            images, labels = batch(net, 2)
            weights = net.weights()
            net.forward(np.where(images == images.max(), np.float32(np.nan), images), train=True)
            assert np.isnan(net.backward(labels))
            net.step(lr=0.1)
            for name, weight in net.weights().items():
                np.testing.assert_array_equal(weight, weights[name], err_msg=name)
            assert not any(v.any() for v in net.velocity().values())
            net.forward(images, train=True)
            net.backward(labels)
            net.step(lr=0.1)
            assert all((weight != weights[name]).any() for name, weight in net.weights().items())


def test_gradients_against_finite_differences():
    """The loss really changes as the gradient says, along every parameter's own gradient."""
    with convnet.Network(TINY, devices="cpu", batch_size=4, width=0.5, crop=48) as net:
        images, labels = batch(net, 4)
        weights = net.weights()
        weights["fc8.weight"] *= 10  # larger gradients: shorter steps meet fewer kinks
        net.load_weights(weights)

        def loss():
            net.forward(images, train=True)  # the same masks, as no step is made
            return net.backward(labels)

        loss()
        for name, gradient in net.gradients().items():
            norm = float(np.linalg.norm(gradient))
            step = 1e-4 / norm  # changes the loss by about 0.0001 each way
            losses = []
            for sign in (1, -1):
                direction = np.float32(sign * step / norm) * gradient
                net.load_weights({**weights, name: weights[name] + direction})
                losses.append(loss())
            difference = (losses[0] - losses[1]) / (2 * step)
            assert abs(difference - norm) < 0.02 * norm, name


def test_stored_images(device):
    """``train_batch`` = crop, flip, mean, noise and scale, then what ``forward`` and ``backward`` do; and ranks.

    Whole numbers and a scale that is a power of two are exact in float32, hence all bits are equal.
    """
    with convnet.Network(TINY, devices=device, batch_size=4, dropout=0) as net:
        random, crop = np.random.default_rng(0), net.spec.crop
        images = random.integers(0, 256, (3, crop + 7, crop + 4, 3), dtype=np.uint8)
        windows = np.array([[0, 4, 0], [7, 0, 1], [3, 2, 1]], np.int32)
        noise = random.integers(-9, 9, (3, 3)).astype(np.float32)
        mean = random.integers(80, 160, (3, crop, crop)).astype(np.float32)
        labels, scale = np.array([1, 9, 4]), (1 / 32, 1 / 64, 1 / 128)
        net.set_input(mean, scale)
        losses, ranks = net.train_batch(images, labels, windows, noise)
        gradients = net.gradients()
        x = reference.ingest(images, windows, noise, mean, crop, scale).astype(np.float32)
        logits = net.forward(x, train=True)
        loss = net.backward(labels)
        assert losses.shape == ranks.shape == (3,)
        assert losses.astype(np.float64).mean() == loss
        np.testing.assert_array_equal(ranks, [reference.rank(row, k) for row, k in zip(logits, labels, strict=True)])
        for name, gradient in net.gradients().items():
            np.testing.assert_array_equal(gradients[name], gradient, err_msg=name)
        plain = reference.ingest(images, windows, noise * 0, mean, crop, scale).astype(np.float32)
        np.testing.assert_array_equal(net.evaluate_batch(images, windows), net.forward(plain))
        for same in (None, net.spec.input_scale, [net.spec.input_scale] * 3):
            net.set_input(mean, same)
            plain = reference.ingest(images, windows, noise * 0, mean, crop, net.spec.input_scale).astype(np.float32)
            np.testing.assert_array_equal(net.evaluate_batch(images, windows), net.forward(plain))


@pytest.mark.parametrize("scale", [(1.0, 2.0), np.ones((3, 1)), float("nan"), (1.0, np.inf, 1.0)])
def test_impossible_scales_are_refused(scale):
    with convnet.Network(TINY, devices="cpu", batch_size=1, width=0.1) as net:
        mean = np.zeros((3, net.spec.crop, net.spec.crop), np.float32)
        with pytest.raises(ValueError, match="scale must be a finite number, or one for each of the 3 channels"):
            net.set_input(mean, scale)


@pytest.mark.parametrize("name", ["alexnet-1gpu", "alexnet-tiny"])
def test_other_networks_and_options(name):
    with convnet.Network(name, devices="cpu", batch_size=2, num_classes=7, width=0.25) as net:
        images, labels = batch(net, 2)
        assert net.forward(images, train=True).shape == (2, 7)
        assert np.isfinite(net.backward(labels))
        assert net.parameters == sum(value.size for value in net.weights().values())
        assert net.devices == ["cpu"]


@pytest.mark.slow
def test_memory_of_alexnet():
    """The plan for a batch of 128 in fp32: at most 2.0 GB on one device, 1.2 GB on each of two."""
    with convnet.Network("alexnet", devices="cpu", batch_size=128) as net:
        assert list(net.memory()) == ["cpu"]
        assert 0.7e9 < net.memory()["cpu"] <= 2.0e9
    with convnet.Network("alexnet", devices="emu:0,emu:1", batch_size=128) as net:
        assert list(net.memory()) == ["emu:0", "emu:1"]
        assert all(0.35e9 < nbytes <= 1.2e9 for nbytes in net.memory().values()), net.memory()


def test_memory_does_not_grow(device):
    with convnet.Network(TINY, devices=device, batch_size=4) as net:
        images, labels = batch(net, 4)
        planned = []
        for _ in range(3):
            net.forward(images, train=True)
            net.backward(labels)
            net.step()
            planned.append(net.memory())  # the first backward brings memory for gradients
        assert planned[0] == planned[1] == planned[2]
        weights = net.weights()
        with pytest.raises(ValueError, match="missing"):
            net.load_weights({name: w for name, w in weights.items() if name != "fc8.bias"})
        with pytest.raises(ValueError, match="unknown"):
            net.load_weights({**weights, "fc9.bias": weights["fc8.bias"]})
        with pytest.raises(ValueError, match=r"conv1.weight must be float32 of shape \(32, 3, 7, 7\)"):
            net.load_weights({**weights, "conv1.weight": weights["conv1.weight"].swapaxes(0, 1)})
        with pytest.raises(ValueError, match="float64"):
            net.load_weights({**weights, "fc8.bias": weights["fc8.bias"].astype(np.float64)})
        for name, weight in net.weights().items():  # a refused call changes nothing
            np.testing.assert_array_equal(weight, weights[name])


def test_misuse_is_refused():
    with convnet.Network(TINY, devices="cpu", batch_size=4) as net:
        images, labels = batch(net, 4)
        with pytest.raises(RuntimeError, match="forward"):
            net.backward(labels)
        for wrong in (images[:, :2], images[..., 1:], images.astype(np.float64), images[:0], images[0]):
            with pytest.raises(ValueError, match="forward: images must be an array of float32 of shape"):
                net.forward(wrong)
        with pytest.raises(ValueError, match="batch size"):
            net.forward(np.concatenate([images, images]))
        net.forward(images)
        with pytest.raises(RuntimeError, match="train=True"):
            net.backward(labels)
        net.forward(images, train=True)
        for wrong in (labels[:3], labels + 10, labels - 10, labels.astype(np.float32)):
            with pytest.raises(ValueError, match="labels"):
                net.backward(wrong)
        assert np.isfinite(net.backward(labels))
        with pytest.raises(ValueError, match="no layer is called"):
            net.activation("conv9")
    net.close()
    closed = (
        net.weights,
        net.gradients,
        net.velocity,
        net.step,
        net.memory,
        lambda: net.forward(images),
        lambda: net.backward(labels),
        lambda: net.activation("conv1"),
        lambda: net.load_weights({}),
        lambda: net.set_input(np.zeros((3, 64, 64), np.float32)),
    )
    for call in closed:
        with pytest.raises(RuntimeError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "alexnet-tinny"}, 'did you mean "alexnet-tiny"'),
        ({"devices": "tpu"}, "device must be"),
        ({"devices": "cpu,cpu"}, "differ"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"precision": "fp16"}, "precision must be"),
        ({"num_classes": 0}, "num_classes"),
        ({"seed": -1}, "seed"),
        ({"dropout": 1.0}, "dropout"),
        ({"width": 0.0}, "width"),
        ({"crop": 8}, "crop 8"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        convnet.Network(**{"model": TINY, "devices": "cpu", "batch_size": 2, **options})


def test_unknown_activations_are_refused():
    with pytest.raises(ValueError, match='layer conv1: activation must be relu or tanh, got "gelu"'):
        network(TINY, activation="gelu")


def test_towers_must_divide_among_devices():
    with pytest.raises(ValueError, match="cannot be shared by 3 devices"):
        convnet.Network(TINY, devices="emu:0,emu:1,emu:2", batch_size=2)
    with pytest.raises(ValueError, match="1 towers"):
        convnet.Network("alexnet-1gpu", devices="emu:0,emu:1", batch_size=2, width=0.1)
