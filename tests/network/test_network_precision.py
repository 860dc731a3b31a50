"""``Network`` in bfloat16 and tf32: weight copies kept current, the folded first layer, memory, and training."""

from __future__ import annotations

import numpy as np
import pytest

import convnet
from convnet.kernels.precision import PRECISIONS
from convnet.network.assemble import input_fold
from convnet.network.networks import network

TINY = "alexnet-tiny"
DEVICES = pytest.mark.parametrize("device", ["emu", "cuda"], indirect=True)


def images_of(net, n: int, seed: int = 0):
    random = np.random.default_rng(seed)
    return random.standard_normal((n, 3, net.spec.crop, net.spec.crop), dtype=np.float32), random.integers(0, 10, n)


def step(net, seed: int = 0):
    images, labels = images_of(net, 4, seed)
    net.forward(images, train=True)
    net.backward(labels)
    net.step(lr=0.1)


@DEVICES
def test_copies_follow_the_weights(device):
    """A network after a step computes what a new one with the same weights does: the update writes the same copies."""
    with convnet.Network(TINY, devices=device, batch_size=4, precision="bf16") as net:
        step(net)
        images, _ = images_of(net, 4, seed=1)
        logits = net.forward(images)
        with convnet.Network(TINY, devices=device, batch_size=4, precision="bf16", seed=1) as other:
            assert (other.forward(images) != logits).any()
            other.load_weights(net.weights())
            np.testing.assert_array_equal(other.forward(images), logits)


@DEVICES
@pytest.mark.parametrize("layer", ["conv1", "conv4", "fc7"])
def test_a_copy_that_stays_behind_would_show(device, layer):
    """A step that changes one layer alone changes the logits: its copy is read, and was written."""
    with convnet.Network(TINY, devices=device, batch_size=4, precision="bf16") as net:
        images, labels = images_of(net, 4)
        before = net.forward(images)
        net.forward(images, train=True)
        net.backward(labels)
        net.step(lr=1.0, rates={name: float(name == f"{layer}.weight") for name in net.weights()})
        assert (net.forward(images) != before).any()


@pytest.mark.parametrize(
    ("name", "precision", "crop", "fold"),
    [
        ("alexnet", "bf16", 224, 4),
        ("alexnet", "tf32", 224, 4),
        ("alexnet", "fp32", 224, 1),
        ("alexnet-1gpu", "bf16", 224, 4),
        ("alexnet", "bf16", 226, 1),  # no multiple of the stride
        ("alexnet-tiny", "bf16", 64, 2),
    ],
)
def test_which_first_layers_are_folded(name, precision, crop, fold):
    assert input_fold(network(name, crop=crop), precision) == fold


@DEVICES
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_folding_changes_nothing(device, precision, monkeypatch):
    """Activations and gradients equal those without folding but for the order of the sums."""
    found = []
    for fold in (2, 1):
        if fold == 1:
            for module in ("model", "assemble"):
                monkeypatch.setattr(f"convnet.network.{module}.input_fold", lambda spec, precision: 1)
        with convnet.Network(TINY, devices=device, batch_size=4, precision=precision) as net:
            images, labels = images_of(net, 4)
            assert net._intake.slots[0].inputs[0].shape == (1, 3 * fold**2, 64 // fold, 64 // fold, 8)
            net.forward(images, train=True)
            conv1 = net.activation("conv1")
            net.backward(labels)
            found.append((conv1, net.gradients()["conv1.weight"]))
    (folded, gradient), (plain, expected) = found
    assert folded.shape == plain.shape
    if precision == "bf16":  # neighbours where a sum lies between them, equal elsewhere
        assert np.abs(folded - plain).max() <= 2.0**-7 * np.abs(plain).max()
        assert (folded == plain).mean() > 0.99
    else:
        assert np.abs(folded - plain).max() <= 2.0**-20 * np.abs(plain).max()
    assert np.linalg.norm(gradient - expected) < 2.0**-8 * np.linalg.norm(expected)


@DEVICES
@pytest.mark.parametrize("precision", PRECISIONS)
def test_stored_images_are_folded_alike(device, precision):
    """``train_batch`` writes the same folded input as ``forward``: the same losses and gradients, to the bit."""
    with convnet.Network(TINY, devices=device, batch_size=4, dropout=0, precision=precision) as net:
        random, crop = np.random.default_rng(0), net.spec.crop
        stored = random.integers(0, 256, (3, crop + 2, crop + 3, 3), dtype=np.uint8)
        windows = np.array([[0, 3, 0], [2, 0, 1], [1, 2, 1]], np.int32)
        labels = np.array([1, 9, 4])
        losses, _ = net.train_batch(stored, labels, windows, np.zeros((3, 3), np.float32))
        gradients = net.gradients()
        crops = [
            image[top : top + crop, left : left + crop] for image, (top, left, _) in zip(stored, windows, strict=True)
        ]
        crops = [image[:, ::-1] if flip else image for image, flip in zip(crops, windows[:, 2], strict=True)]
        net.forward(np.float32(crops).transpose(0, 3, 1, 2) * np.float32(net.spec.input_scale), train=True)
        assert net.backward(labels) == losses.astype(np.float64).mean()
        for name, gradient in net.gradients().items():
            np.testing.assert_array_equal(gradients[name], gradient, err_msg=name)


@DEVICES
def test_what_users_see_is_float32(device):
    with convnet.Network(TINY, devices=device, batch_size=4, precision="bf16", fused=False) as net:
        images, labels = images_of(net, 4)
        assert net.forward(images, train=True).dtype == np.float32
        net.backward(labels)
        for layer in net.spec.layers:
            assert net.activation(layer.name).dtype == np.float32
        for values in (net.weights(), net.gradients(), net.velocity()):
            assert all(value.dtype == np.float32 for value in values.values())


def test_cpu_has_float32_alone():
    for precision in ("tf32", "bf16"):
        with pytest.raises(ValueError, match=r'cpu computes in fp32 only.*use device "emu" or "cuda"'):
            convnet.Network(TINY, devices="cpu", batch_size=2, precision=precision)


def forward_and_backward(devices: str):
    """Logits and gradients of alexnet-tiny on one whole block of 64 images, but for three that are missing."""
    with convnet.Network(TINY, devices=devices, batch_size=64, precision="bf16") as net:
        images, labels = images_of(net, 61)
        logits = net.forward(images, train=True)
        net.backward(labels)
        return logits, net.gradients()


def test_blocks_of_64_images_take_the_kernels_of_hopper():
    """Other kernels than sm_80 takes, as the bits show (test_model.py holds both against float64), the same bits twice,
    and on one device or two.
    """
    from convnet.kernels import _emu as emulator

    logits, gradients = forward_and_backward("emu")
    again, gradients_again = forward_and_backward("emu")
    np.testing.assert_array_equal(again, logits)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradients_again[name], gradient, err_msg=name)
    np.testing.assert_array_equal(forward_and_backward("emu:0,emu:1")[0], logits)
    emulator.set_architecture(80)
    try:
        _, gradients_other = forward_and_backward("emu")
    finally:
        emulator.set_architecture(90)
    assert (gradients_other["conv2.weight"] != gradients["conv2.weight"]).any()


@pytest.mark.slow
def test_memory_of_alexnet():
    """The plan for training with a batch of 128 in bfloat16: at most 1.1 GB on one device; activations are halved."""
    with convnet.Network("alexnet", devices="emu", batch_size=128, precision="bf16") as net:
        assert 0.7e9 < net.memory()["emu:0"] <= 1.1e9
        assert net._wiring.blocks[0][0].y.nbytes == 128 * 96 * 55 * 55 * 2


@pytest.mark.slow
@DEVICES
def test_all_precisions_learn_alike(device):
    """The losses of a hundred steps from the same weights and images: their means over ten steps agree within a
    twentieth of what is learnt."""
    random = np.random.default_rng(0)
    patterns = random.standard_normal((10, 3, 32, 32), dtype=np.float32)
    options = {"devices": device, "batch_size": 16, "crop": 32, "width": 0.5, "dropout": 0}
    curves = {}
    for precision in PRECISIONS:
        draw = np.random.default_rng(1)
        with convnet.Network(TINY, precision=precision, **options) as net:
            losses = []
            for _ in range(100):
                labels = draw.integers(0, 10, 16)
                noise = draw.standard_normal((16, 3, 32, 32), dtype=np.float32)
                net.forward(patterns[labels] + 0.5 * noise, train=True)
                losses.append(net.backward(labels))
                net.step(lr=0.006)
        curves[precision] = np.array(losses).reshape(10, 10).mean(axis=1)
    learnt = curves["fp32"][0] - curves["fp32"][-1]
    assert learnt > 1.5, curves
    for precision in ("tf32", "bf16"):
        assert np.abs(curves[precision] - curves["fp32"]).max() < learnt / 20, curves
        assert (curves[precision] != curves["fp32"]).any()
