"""Images that stay on the devices of a network: the same training as from the host, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import reference

import convnet
from convnet.data.planar import to_planes

TINY = "alexnet-tiny"
OPTIONS = {"width": 0.25, "crop": 32, "seed": 3}
SIZE = 37  # odd


def photographs(count, size=SIZE):
    """Colours that change slowly, as a photograph's do."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, size // 8 + 2, size // 8 + 2, 3)).astype(np.float64)
    at = np.arange(size) / 8
    low, part = at.astype(int), at % 1
    rows = coarse[:, low] * (1 - part)[:, None, None] + coarse[:, low + 1] * part[:, None, None]
    images = rows[:, :, low] * (1 - part)[:, None] + rows[:, :, low + 1] * part[:, None]
    return np.round(images).astype(np.uint8)


def planes_of(images):
    return tuple(np.stack(plane) for plane in zip(*map(to_planes, images), strict=True))


def batch(step, n=5, count=11):
    random = np.random.default_rng(step)
    windows = np.stack(
        [random.integers(0, SIZE - 32 + 1, n), random.integers(0, SIZE - 32 + 1, n), np.arange(n) % 2], 1
    )
    noise = random.normal(0, 10, (n, 3)).astype(np.float32)
    return random.integers(0, count, n), random.integers(0, 10, n), windows.astype(np.int32), noise


def kept(devices, images, **options):
    """A network that holds ``images``, stored in two parts."""
    net = convnet.Network(TINY, devices=devices, batch_size=6, **OPTIONS, **options)
    planes = planes_of(images)
    net.keep_images(len(images), SIZE)
    net.store_images(0, *(plane[:4] for plane in planes))
    net.store_images(4, *(plane[4:] for plane in planes))
    return net


def train(net, images=None):
    """Losses of three steps, from kept images or from these."""
    losses = []
    for step in range(3):
        indices, labels, windows, noise = batch(step)
        if images is None:
            losses.append(net.train_batch_kept(indices, labels, windows, noise)[0])
        else:
            losses.append(net.train_batch(images[indices], labels, windows, noise)[0])
        net.step()
    return np.stack(losses), net.weights()


def test_training_from_kept_images(device):
    images = photographs(11)
    with kept(device, images) as net:
        losses, weights = train(net)
    with convnet.Network(TINY, devices=device, batch_size=6, **OPTIONS) as net:
        expected, expected_weights = train(net, reference.planar_colours(*planes_of(images)))
    np.testing.assert_array_equal(losses, expected)
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, expected_weights[name], err_msg=name)
    with convnet.Network(TINY, devices=device, batch_size=6, **OPTIONS) as net:
        original = train(net, images)[0]
    assert (losses != original).any()
    np.testing.assert_allclose(losses, original, rtol=0.01)


def test_steps_at_once_from_kept_images(device):
    images = photographs(11)
    with kept(device, images) as net:
        losses, weights = train(net)
    with kept(device, images) as net:
        results = [net.train_step_kept(*batch(step)) for step in range(3)]
        np.testing.assert_array_equal(np.stack([result.get()[0] for result in results]), losses)
        for name, weight in net.weights().items():
            np.testing.assert_array_equal(weight, weights[name], err_msg=name)


def test_two_devices_hold_a_copy_each():
    images = photographs(11)
    with kept("emu:0,emu:1", images[:5]) as net:
        before = net.memory()
    with kept("emu:0,emu:1", images) as net:
        room = 6 * (37 * 37 + 2 * 19 * 19)  # of the images; a batch has the same room
        assert net.memory() == {name: nbytes + room for name, nbytes in before.items()}
        losses, _ = train(net)
    with kept("emu:0", images) as net:
        np.testing.assert_array_equal(
            losses[0], train(net)[0][0]
        )  # behind a step, gradients are summed in another order


def test_validation_goes_through_the_host(device):
    images = photographs(11)
    windows = np.tile(np.array([[2, 3, 1]], np.int32), (6, 1))
    with kept(device, images) as net:
        train(net)
        planned = net.memory()
        logits = net.evaluate_batch(images[:6], windows)
        assert net.memory() == planned
    with convnet.Network(TINY, devices=device, batch_size=6, **OPTIONS) as net:
        train(net, reference.planar_colours(*planes_of(images)))
        np.testing.assert_array_equal(net.evaluate_batch(images[:6], windows), logits)


def test_images_that_do_not_fit(monkeypatch):
    with convnet.Network(TINY, devices="cpu", batch_size=6, **OPTIONS) as net:
        monkeypatch.setattr(net._sides[0].device, "free", lambda: 2 * 10**9)
        before = net.memory()
        with pytest.raises(
            convnet.DeviceError, match=r"cpu: 40000 images of 256x256 .* take 3.93 GB and 2.00 GB are free; use"
        ):
            net.keep_images(40_000, 256)
        assert net.memory() == before


def test_misuse_is_refused():
    images = photographs(11)
    indices, labels, windows, noise = batch(0)
    with convnet.Network(TINY, devices="cpu", batch_size=6, **OPTIONS) as net:
        with pytest.raises(RuntimeError, match="needs keep_images before it"):
            net.train_batch_kept(indices, labels, windows, noise)
        with pytest.raises(RuntimeError, match="needs keep_images before it"):
            net.store_images(0, *planes_of(images))
    net = kept("cpu", images)
    planes = planes_of(images)
    for wrong in (indices + 11, -indices - 1):
        with pytest.raises(ValueError, match=r"numbers in 0\.\.10"):
            net.train_batch_kept(wrong, labels, windows, noise)
    with pytest.raises(ValueError, match=r"1 to 6 images \(the batch size\), got 7"):
        net.train_batch_kept(np.zeros(7, int), labels, windows, noise)
    with pytest.raises(ValueError, match="window must lie inside its image of 37x37"):
        net.train_batch_kept(indices, labels, windows + 6, noise)
    with pytest.raises(ValueError, match="there are places 0 to 10, got images 1 to 11"):
        net.store_images(1, *planes)
    with pytest.raises(ValueError, match=r"cr must be an array of uint8 of shape \(11, 19, 19\)"):
        net.store_images(0, planes[0], planes[1], planes[2][:, 1:])
    net.close()
    for call in (lambda: net.keep_images(1, 37), lambda: net.train_batch_kept(indices, labels, windows, noise)):
        with pytest.raises(RuntimeError, match="closed"):
            call()
