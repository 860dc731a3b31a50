"""``train_step``: fused, captured and overlapped, against the same step taken apart."""

from __future__ import annotations

import numpy as np
import pytest
from steps import TINY, N, assert_same, at_once, batches, in_parts, opened
from test_network import pair  # noqa: F401

import convnet
from convnet.devices import host
from convnet.devices import protocol as backend
from convnet.kernels.precision import PRECISIONS
from convnet.network import intake

OPTIONS = [
    {},
    {"rates": {"fc8.weight": 5.0, "conv2.bias": 0.0}, "lr": 0.05, "momentum": 0.5, "weight_decay": 0.1},
]


@pytest.mark.parametrize("constants", OPTIONS, ids=["plain", "rates"])
def test_a_step_at_once_is_the_step_in_parts(arithmetic, constants):
    """Bit for bit, over steps of which the first two are queued, and later ones launched."""
    with (
        opened(arithmetic.device, arithmetic.precision) as one,
        opened(arithmetic.device, arithmetic.precision) as other,
    ):
        assert_same(in_parts(one, 5, **constants), at_once(other, 5, **constants))
        assert other._graphs.launched == 3


@pytest.mark.parametrize("frozen", [("conv1",), ("fc6", "conv3")], ids=" ".join)
def test_frozen_layers_stay(device, frozen):
    with opened(device, frozen=frozen) as one, opened(device, frozen=frozen) as other:
        before = other.weights()
        assert_same(in_parts(one, 4), at_once(other, 4))
        for name, values in other.weights().items():
            assert (values == before[name]).all() == (name.partition(".")[0] in frozen), name


def test_partial_batches_and_changes_between_steps(device):
    """Smaller batches, other rates, other frozen layers, an evaluation in between: nothing else changes."""
    found = []
    for run in (in_parts, at_once):
        with opened(device) as net:
            parts = [run(net, 3), run(net, 3, n=4), run(net, 3, lr=0.001), run(net, 2, rates={"fc8.weight": 3.0})]
            images, _, windows, _ = next(batches(1))
            parts.append(([(net.evaluate_batch(images, windows), np.empty(0))], {}))
            net.freeze(["conv1"])
            parts.append(run(net, 3))
            found.append(parts)
    for a, b in zip(*found, strict=True):
        assert_same(a, b)


def test_inference_is_launched_as_a_whole(arithmetic):
    """From the second pass on, of any number of images, whatever weights there are by then: the bits of work that is
    queued piece by piece, with a training step in between."""
    found = []
    for capturing in (True, False):
        with opened(arithmetic.device, arithmetic.precision) as net:
            net._passes.capturing = capturing
            passes = []
            for k, (images, labels, windows, noise) in enumerate(batches(5)):
                passes.append(net.evaluate_batch(images[: N - k], windows[: N - k]))
                if k == 3:
                    net.train_step(images, labels, windows, noise).get()
            passes.append(net.forward(np.full((1, 3, 32, 32), 0.5, np.float32)))
            found.append(passes)
            assert net._passes.launched == (5 if capturing else 0)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(found[0][3][:2], found[0][4][:2])  # the step was felt


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_steps_of_a_folded_layer(precision, fused, pair):  # noqa: F811
    """Steps at once take its gradient as it lies, and write the copy that products read. Among steps in parts, with
    other weights, frozen or with no rate of its own it learns to the same bits."""
    found = []
    for run in (in_parts, at_once):
        with opened(pair[0], precision, fused) as net:
            assert net._wiring.blocks[0][0].folds
            start, (batch,) = net.weights(), batches(1)
            parts = [run(net, 3)]
            losses = net.train_batch(*batch)
            parts.append(([losses], net.gradients()))
            parts.append(run(net, 2))
            parts.append(in_parts(net, 1, lr=0.05))
            parts.append(run(net, 2))
            net.load_weights(start)
            parts.append(run(net, 2))
            net.freeze(["conv1"])
            parts.append(run(net, 2))
            net.freeze([])
            parts.append(run(net, 3, rates={"conv1.weight": 0.0}))
            parts.append(run(net, 2))
            found.append(parts)
    for a, b in zip(*found, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_devices(precision, pair):  # noqa: F811
    """What two devices do at once is what they do in parts, with all exchanges inside of one graph."""
    with opened(pair[1], precision) as one, opened(pair[1], precision) as other:
        assert_same(in_parts(one, 4), at_once(other, 4))
        assert other.exchanges() == one.exchanges() != []
        assert other._graphs.launched == 2
        (batch,) = batches(1)
        other.evaluate_batch(batch[0], batch[2])
        evaluated = other.exchanges()
        assert evaluated != one.exchanges()
        other.train_step(*batch).get()  # launched as a whole: what crossed is known from when it was queued
        assert other.exchanges() == one.exchanges()
        for _ in range(3):
            other.evaluate_batch(batch[0], batch[2])
        assert other._passes.launched == 3
        assert other.exchanges() == evaluated


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_fused_is_unfused(precision, pair):  # noqa: F811
    """Where activations are float32 bit for bit: fusing changes where values lie, not what they are."""
    with opened(pair[0], precision) as one, opened(pair[0], precision, fused=False) as other:
        assert_same(at_once(one, 3), in_parts(other, 3))


def test_fused_is_unfused_on_cpu():
    with opened("cpu") as one, opened("cpu", fused=False) as other:
        assert_same(at_once(one, 3), in_parts(other, 3))


def test_fused_in_bfloat16_saves_a_rounding(pair):  # noqa: F811
    """Between pooling and normalisation the gradient is not rounded: by half of 2^-8 at most in the unfused network.
    All else has the same bits, the forward pass and the gradients above included."""
    with opened(pair[0], "bf16") as one, opened(pair[0], "bf16", fused=False) as other:
        (batch,) = batches(1)
        for a, b in zip(one.train_batch(*batch), other.train_batch(*batch), strict=True):
            np.testing.assert_array_equal(a, b)
        gradients = other.gradients()
        for name, gradient in one.gradients().items():
            if name.startswith(("conv1", "conv2")):
                error = np.linalg.norm(gradient - gradients[name]) / np.linalg.norm(gradients[name])
                assert 0 < error < 2.0**-8, name
            else:
                np.testing.assert_array_equal(gradient, gradients[name], err_msg=name)


def test_order_of_work_changes_nothing():
    runs = []
    for seed in (1, 2, 3):
        host.seed_order(seed)
        with opened("emu:0,emu:1") as net:
            runs.append(at_once(net, 4))
    for other in runs[1:]:
        assert_same(runs[0], other)


@pytest.mark.parametrize("missing", ["arrival", "use"])
def test_a_missing_wait_shows(monkeypatch, missing):
    """Without the wait for a batch's arrival, or for the last use of its slot, some order gives other results."""
    with opened("emu") as net:
        right = at_once(net, 5)

    def differs() -> bool:
        with opened("emu") as net:
            net.weights()  # nothing is left in the queues
            found = at_once(net, 5)
        return any((a != b).any() for a, b in zip(right[1].values(), found[1].values(), strict=True))

    if missing == "arrival":
        monkeypatch.setattr(intake.Intake, "take", lambda self, slot: self.slots[slot].inputs)
    else:
        monkeypatch.setattr(intake.Intake, "give_back", lambda self, slot: None)
    wrong = []
    for seed in range(6):
        host.seed_order(seed)
        wrong.append(differs())
    assert any(wrong)


def test_a_hundred_steps_allocate_nothing(device):
    """After the first three: one of each slot is queued, and captured when it comes again."""
    with opened(device) as net:
        (batch,) = batches(1)
        for _ in range(4):
            net.train_step(*batch).get()
        devices = [side.device for side in net._sides]
        before = [one.allocations for one in devices], net.memory()
        for _ in range(100):
            net.train_step(*batch).get()
        assert ([one.allocations for one in devices], net.memory()) == before


def test_a_loss_that_is_not_finite_teaches_nothing(device):
    with opened(device) as net:
        at_once(net, 2)
        broken = net.weights()
        broken["fc8.bias"][:] = np.nan
        net.load_weights(broken)
        velocity = net.velocity()
        (batch,) = batches(1)
        losses, _ = net.train_step(*batch).get()
        assert not np.isfinite(losses).any()
        for name, values in net.weights().items():
            np.testing.assert_array_equal(values, broken[name], err_msg=name)
        for name, values in net.velocity().items():
            np.testing.assert_array_equal(values, velocity[name], err_msg=name)


def trap(net) -> dict:
    """Weights whose loss is finite, and whose gradient of fc7.weight is not."""
    weights = net.weights()
    weights["fc6.bias"][:] = 3e38  # what fc7 reads, and what its slopes of some ten are multiplied by
    weights["fc7.weight"][:], weights["fc7.bias"][:] = 0, 1
    weights["fc8.weight"][:] = 100 * np.sign(weights["fc8.weight"])
    return weights


@pytest.mark.parametrize("devices", ["cpu", "emu", "emu:0,emu:1"])
@pytest.mark.parametrize("at_once", [True, False], ids=["train_step", "step"])
def test_a_gradient_that_is_not_finite_spoils_no_weight(devices, at_once):
    with opened(devices) as net:
        weights, velocity = trap(net), net.velocity()
        net.load_weights(weights)
        (batch,) = batches(1)
        if at_once:
            result = net.train_step(*batch)
            losses, _ = result.get()
            assert not result.gradients_finite()
        else:
            losses, _ = net.train_batch(*batch)
            assert not np.isfinite(net.gradients()["fc7.weight"]).all()
            net.step()
        assert np.isfinite(losses).all()
        for name, values in [*net.weights().items(), *net.velocity().items()]:
            assert np.isfinite(values).all(), name
        kept = net.velocity()["fc7.weight"] == velocity["fc7.weight"]
        assert kept.any()
        np.testing.assert_array_equal(net.weights()["fc7.weight"][kept], weights["fc7.weight"][kept])
        assert (net.weights()["fc8.weight"] != weights["fc8.weight"]).any()  # what was finite took its step
        net.load_weights(convnet.Network(TINY, devices="cpu", batch_size=1, seed=3).weights())
        result = net.train_step(*batch)
        assert result.gradients_finite()  # nothing of it stays for the next step


@pytest.mark.parametrize("devices", ["cpu", "emu:0,emu:1"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, None),
        ({"conv3.weight": np.nan, "fc7.bias": np.inf}, "conv3.weight"),
        ({"conv2.weight": 3e38}, "the output of conv2"),
        ({"fc8.bias": 3e38}, "the loss"),
        (None, "the gradient of fc7.weight"),
    ],
    ids=["nothing", "weight", "output", "loss", "gradient"],
)
def test_the_first_that_is_not_finite_is_named(devices, fused, change, place):
    (batch,) = batches(1)
    with opened(devices, fused=fused) as net:
        weights = trap(net) if change is None else net.weights()
        for name, value in (change or {}).items():
            weights[name].flat[::2] = value
        if place == "the loss":
            weights["fc8.bias"][1::2] = -3e38  # logits are finite, but not the differences between them
        net.load_weights(weights)
        with np.errstate(all="ignore"):
            net.train_batch(*batch)
            assert net.first_not_finite(batch[1]) == place


def test_an_input_that_is_not_finite_is_named():
    images, labels, windows, noise = next(batches(1))
    noise[2, 1] = np.inf
    with opened("cpu") as net:
        with pytest.raises(RuntimeError, match="first_not_finite: there are no gradients"):
            net.first_not_finite(labels)
        with np.errstate(all="ignore"):
            net.train_batch(images, labels, windows, noise)
            assert net.first_not_finite(labels) == "the input"


def test_steps_keep_no_gradients():
    with opened("cpu") as net:
        at_once(net, 1)
        with pytest.raises(RuntimeError, match="there are no gradients"):
            net.gradients()
        with pytest.raises(RuntimeError, match="step: there are no gradients"):
            net.step()
        with pytest.raises(RuntimeError, match="activation"):
            net.activation("conv3")
        (batch,) = batches(1)
        net.train_batch(*batch)
        assert np.isfinite(net.gradients()["fc6.weight"]).all()


def test_fused_layers_say_what_they_are():
    with opened("cpu") as net:
        net.forward(np.zeros((1, 3, 32, 32), np.float32))
        with pytest.raises(ValueError, match="norm1 is computed together with pool1"):
            net.activation("norm1")
        assert net.activation("pool1").shape[0] == 1
    with opened("cpu", fused=False) as net:
        net.forward(np.zeros((1, 3, 32, 32), np.float32), train=True)
        net.backward(np.array([3]))
        assert net.activation("norm1").shape[0] == 1


def test_memory_is_shared():
    """Gradients lie where activations lay that nobody needs any more; unfused, everything has its own place."""
    with opened("emu") as fused, opened("emu", fused=False) as apart:
        assert fused.memory()["emu:0"] < apart.memory()["emu:0"]


def test_devices_that_cannot_capture_do_without(monkeypatch, caplog):
    def refuse(self, streams):
        raise backend.DeviceError("cannot reach")

    with opened("cpu") as one:
        right = at_once(one, 5)
    monkeypatch.setattr(host.HostStream, "_begin_capture", refuse)
    with opened("cpu") as other:
        assert_same(right, at_once(other, 5))
        assert other._graphs.launched == 0
    assert "cannot reach" in caplog.text


NAN = np.full((N, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [1, 2]}, "images must be an array of uint8 of shape .*, got list"),
        ({"images": np.zeros((N, 36, 36, 3), np.float32)}, "images must be an array of uint8 .*, got float32"),
        ({"images": np.zeros((N, 36, 36, 3), np.int64)}, "images must be an array of uint8 .*, got int64"),
        ({"images": np.zeros((0, 36, 36, 3), np.uint8)}, r"images must be .* of shape \(n, H, W, 3\), got uint8"),
        ({"images": np.zeros((N + 1, 36, 36, 3), np.uint8)}, "there must be 1 to 6 images .*, got 7"),
        ({"windows": NAN}, r"windows must be an array of integers of shape \(6, 3\), got float32"),
        ({"windows": np.full((N, 3), 2**31)}, "every 32x32 window must lie inside its image"),
        ({"windows": np.full((N, 3), -1)}, "every 32x32 window must lie inside its image"),
        ({"windows": None}, "windows must be .*, got NoneType"),
        ({"noise": np.zeros((N, 3), object)}, "noise must be an array of real numbers .*, got object"),
        ({"labels": np.zeros(N)}, "labels must be integers"),
        ({"lr": None}, "lr must be a finite number, got None"),
        ({"lr": 1e39}, r"lr must be a finite number, got 1e\+39"),
        ({"momentum": float("nan")}, "momentum must be a finite number, got nan"),
        ({"weight_decay": "5e-4"}, "weight_decay must be a finite number, got '5e-4'"),
        ({"rates": {"fc8.weigth": 1.0}}, r'no parameter is called "fc8.weigth"; there are conv1.weight'),
        ({"rates": {"fc8.weight": None}}, r"rates\['fc8.weight'\] must be a finite number, got None"),
    ],
)
def test_wrong_arguments_of_a_step_are_refused(change, message):
    """By one sentence, before anything is queued: kernels read where windows say, and constants reach every weight."""
    names = ("images", "labels", "windows", "noise")
    with opened("emu") as net:
        weights = net.weights()
        arguments = dict(zip(names, next(batches(1)), strict=True)) | change
        with pytest.raises(ValueError, match=message):
            net.train_step(**arguments)
        of_batch = {name: arguments[name] for name in names}
        if change.keys() <= of_batch.keys():
            with pytest.raises(ValueError, match=message):
                net.train_batch(**of_batch)
        else:
            net.train_batch(**of_batch)
            with pytest.raises(ValueError, match=message):
                net.step(**change)
        for name, values in net.weights().items():
            np.testing.assert_array_equal(values, weights[name], err_msg=name)


def test_places_of_kept_images_are_checked():
    _, labels, windows, noise = next(batches(1))
    plane, half = np.zeros((3, 36, 36), np.uint8), np.zeros((3, 18, 18), np.uint8)
    with opened("emu") as net:
        for count, size in ((0, 36), (-1, 36), (10, 31), (10, None), (2.5, 36)):
            with pytest.raises(ValueError, match=r"keep_images: (count|size) must"):
                net.keep_images(count, size)
        net.keep_images(10, 36)
        for first in (-1, 8, 2**40, 1.5):
            with pytest.raises(ValueError, match=r"store_images: (there are places 0 to 9|first must)"):
                net.store_images(first, plane, half, half)
        for planes in ((plane, half, half[:2]), (plane, half, plane), (plane[:, 0], half, half), (None, half, half)):
            with pytest.raises(ValueError, match=r"store_images: (luma|cb|cr) must be an array of uint8"):
                net.store_images(0, *planes)
        for indices in (NAN[:, 0], np.arange(N) - 1, np.arange(N) + 5, [0, 1], np.zeros(0, np.int64)):
            with pytest.raises(ValueError, match="indices must be"):
                net.train_step_kept(indices, labels, windows, noise)
