"""What a network makes of a picture, beside the network itself and plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import convnet
import convnet.functional as F
from convnet.explore import looks
from convnet.network.networks import network
from convnet.network.spec import placed_layers


@pytest.fixture(scope="module")
def net():
    with convnet.Network("alexnet-tiny", "cpu", 4, num_classes=7, crop=32, width=0.5, seed=3, fused=False) as opened:
        opened.set_input(np.full((3, 32, 32), 110, np.float32))
        yield opened


def picture(seed: int = 0, size: int = 36) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def direct(net, pictures: np.ndarray) -> np.ndarray:
    """Probabilities of the centres by the plain way into a network."""
    pixels = pictures[:, 2:34, 2:34].transpose(0, 3, 1, 2).astype(np.float32)
    return looks.softmax(net.forward((pixels - 110) * np.float32(net.spec.input_scale)))


def first_weights(net):
    return net.weights()["conv1.weight"]


def test_guesses_and_maps_are_the_networks(net):
    shown = picture()
    found = looks.look(net, first_weights(net), shown)
    expected = direct(net, shown[None])[0]
    assert [k for k, _ in found.guesses] == np.argsort(-expected)[:5].tolist()
    np.testing.assert_allclose([p for _, p in found.guesses], np.sort(expected)[::-1][:5], rtol=1e-4)
    np.testing.assert_array_equal(found.seen, shown[2:34, 2:34])
    assert [layer.name for layer in found.layers] == [layer.name for layer in net.spec.layers]
    direct(net, shown[None])
    for layer in found.layers:
        whole = net.activation(layer.name)[0]
        together = np.concatenate([block.values for block in layer.blocks]).reshape(whole.shape)
        np.testing.assert_allclose(together, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
        assert len(layer.blocks) == (1 if layer.name == "fc8" else 2)
        assert len({block.values.shape for block in layer.blocks}) == 1


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("alexnet-tiny", {"activation": "tanh"}),
        ("alexnet-tiny", {"towers": 1}),
        ("alexnet", {}),
        ("alexnet-6conv", {}),
        ("alexnet-1gpu", {}),
        ("alexnet-torchvision", {}),
        ("bvlc_alexnet", {}),
        ("caffenet", {}),
        ("cifar-11pct", {}),
        ("cifar-18pct", {}),
        ("lenet5", {}),
    ],
    ids=str,
)
def test_every_network_can_be_looked_at(name, changes):
    """Every layer in as many blocks as it has towers, and the layer by which pictures are alike."""
    options = {"width": 0.125, "num_classes": 3, **changes}
    with convnet.Network(name, "cpu", 2, fused=False, **options) as opened:
        found = looks.look(opened, first_weights(opened), picture(9, opened.spec.image_size))
        assert opened.activation(opened.spec.features_layer).shape[0] == 2
    assert [layer.name for layer in found.layers] == [layer.name for layer in opened.spec.layers]
    assert all(len(layer.blocks) == opened.spec.towers for layer in found.layers[:-1])
    assert len(found.drawn) == opened.spec.towers
    assert sum(p for _, p in found.guesses) == pytest.approx(1)


def test_shares_and_strongest_maps(net):
    for layer in looks.look(net, first_weights(net), picture(1)).layers:
        sizes = [np.abs(block.values).sum(dtype=np.float64) for block in layer.blocks]
        np.testing.assert_allclose([block.share for block in layer.blocks], np.array(sizes) / sum(sizes), rtol=1e-5)
        for block in layer.blocks:
            own = np.abs(block.values).mean(axis=(1, 2))
            rest = np.delete(own, block.strongest)
            assert len(block.strongest) == min(3, np.count_nonzero(own))
            assert len(rest) == 0 or own[block.strongest].min() >= rest.max() * (1 - 1e-6)


def test_colour_is_how_much_answers_change_in_grey(net):
    shown = picture(2)
    found = looks.look(net, first_weights(net), shown)
    direct(net, looks.in_grey(shown)[None])
    for layer in found.layers:
        whole = net.activation(layer.name)[0].astype(np.float64)
        for block, grey in zip(layer.blocks, np.split(whole, len(layer.blocks)), strict=True):
            own = block.values.astype(np.float64)
            other = grey.reshape(own.shape)
            expected = ((own - other) ** 2).sum() / ((own**2).sum() + (other**2).sum())
            assert block.colour == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert max(block.colour for block in found.layers[0].blocks) > 0.05
    grey = looks.look(net, first_weights(net), looks.in_grey(shown))
    assert all(block.colour == 0 for layer in grey.layers for block in layer.blocks)


def test_grey_has_the_brightness_and_no_colour():
    shown = picture(3)
    grey = looks.in_grey(shown)
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()
    luma = 0.299 * shown[..., 0] + 0.587 * shown[..., 1] + 0.114 * shown[..., 2]
    assert np.abs(grey[..., 0] - luma).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(looks.in_grey(grey), grey)


def test_colour_of_filters():
    rng = np.random.default_rng(4)
    form = np.repeat(rng.normal(size=(1, 1, 5, 5)), 3, axis=1)
    opponents = rng.normal(size=(1, 1, 5, 5)) * np.array([1, -1, 0]).reshape(1, 3, 1, 1)
    random = rng.normal(size=(400, 3, 5, 5))
    found = looks.colour_of_filters(np.concatenate([form, opponents, random]))
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found[1] == pytest.approx(1)
    assert found[2:].mean() == pytest.approx(2 / 3, abs=4 * found[2:].std() / 20)
    assert looks.colour_of_filters(np.zeros((1, 3, 2, 2))).tolist() == [0]


@pytest.mark.parametrize(("name", "crop"), [("alexnet-tiny", 64), ("alexnet", 224), ("alexnet-torchvision", 224)])
def test_what_is_put_back_is_the_transpose_of_the_convolution(name, crop):
    """The product of answers and maps is that of the picture and what the maps put back, whatever both are."""
    first = placed_layers(network(name))[0]
    layer, rng = first.layer, np.random.default_rng(5)
    x = rng.normal(size=(1, 3, crop, crop)).astype(np.float32)
    w = rng.normal(size=(4, 3, layer.size, layer.size)).astype(np.float32)
    y = F.conv2d(x, w, np.zeros(4, np.float32), stride=layer.stride, padding=layer.padding, ceil_mode=layer.ceil_mode)
    assert y.shape[2:] == (first.P, first.Q)
    maps = rng.normal(size=y.shape[1:])
    back = looks.put_back(maps, w, first, crop)
    products = y[0] * maps
    assert (back * x[0]).sum() == pytest.approx(products.sum(), abs=1e-5 * np.abs(products).sum())


def test_a_drawing_is_scaled_around_grey(net):
    found = looks.look(net, first_weights(net), picture(6))
    first = placed_layers(net.spec)[0]
    for block, drawn, w in zip(found.layers[0].blocks, found.drawn, np.split(first_weights(net), 2), strict=True):
        back = looks.put_back(block.values, w, first, 32).transpose(1, 2, 0)
        np.testing.assert_allclose(drawn, 127.5 + 127.5 * back / np.abs(back).max(), atol=0.51)
        assert 0 in drawn or 255 in drawn


@pytest.mark.parametrize("changes", [{}, {"width": 0.5}], ids=str)
def test_what_crosses_is_what_two_devices_exchange(changes):
    options = {"num_classes": 5, "crop": 32, **changes}
    with convnet.Network("alexnet-tiny", "emu:0,emu:1", 4, **options) as two:
        rng = np.random.default_rng(7)
        two.forward(rng.normal(size=(2, 3, 32, 32)).astype(np.float32), train=True)
        two.backward(np.array([0, 1]))
        exchanged = two.exchanges()
        images = two._N  # with those that fill a block of lanes
        told = {placed.layer.name: looks.crossing(placed, two.spec) for placed in placed_layers(two.spec)}
    crossing = {name: nbytes * images for name, nbytes in told.items() if nbytes}
    assert {name: nbytes for name, way, nbytes in exchanged if way == "forward"} == crossing
    assert {name: nbytes for name, way, nbytes in exchanged if way == "backward"} == crossing
    assert list(crossing) == ["conv3", "fc6", "fc7", "fc8"]


def test_nothing_crosses_where_there_is_one_tower():
    spec = network("alexnet-1gpu")
    assert not any(looks.crossing(placed, spec) for placed in placed_layers(spec))


@pytest.mark.parametrize("crop", [1, 16, 27, 32, 64, 224, 227])
def test_squares_cover_every_pixel_and_stay_inside(crop):
    side, starts = looks.places(crop)
    covered = {k for start in starts for k in range(start, start + side)}
    assert covered == set(range(crop))


@dataclass
class OnePixel:
    """A "network" whose first logit is the red of one pixel of the crop."""

    spec: object
    row: int
    column: int
    batch_size: int = 7

    def evaluate_batch(self, images, windows):
        logits = np.zeros((len(images), 3), np.float32)
        for k, (image, (top, left, _)) in enumerate(zip(images, windows, strict=True)):
            logits[k, 0] = image[top + self.row, left + self.column, 0] / 64
        return logits


def test_only_squares_over_the_pixel_that_matters_make_a_difference():
    spec = network("alexnet-tiny", crop=32)
    shown = np.full((36, 36, 3), 250, np.uint8)
    fake = OnePixel(spec, 9, 20)
    falls = looks.occlusion(fake, shown, [0, 1])
    side, starts = looks.places(32)
    whole, covered = (looks.softmax(np.array([[value / 64, 0, 0]]))[0] for value in (250, looks.GREY))
    over = [[y <= 9 < y + side and x <= 20 < x + side for x in starts] for y in starts]
    for row, column in ((9, 20), (0, 0), (9, 12), (31, 31)):
        squares = [
            over[i][j]
            for i, y in enumerate(starts)
            for j, x in enumerate(starts)
            if y <= row < y + side and x <= column < x + side
        ]
        np.testing.assert_allclose(falls[:, row, column], (whole - covered)[:2] * np.mean(squares), atol=1e-12)
    assert falls[0, 9, 20] == falls[0].max() > 0.1
    assert falls[1].min() < 0  # the others gain what the first one loses


def test_occlusion_is_what_the_network_says_of_covered_pictures(net):
    shown = picture(8)
    falls = looks.occlusion(net, shown, [2, 5])
    side, starts = looks.places(32)
    sums, times = np.zeros((2, 32, 32)), np.zeros((32, 32))
    whole = direct(net, shown[None])[0]
    for y in starts:
        for x in starts:
            covered = shown.copy()
            covered[2 + y : 2 + y + side, 2 + x : 2 + x + side] = 128
            sums[:, y : y + side, x : x + side] += (whole - direct(net, covered[None])[0])[[2, 5], None, None]
            times[y : y + side, x : x + side] += 1
    np.testing.assert_allclose(falls, sums / times, atol=2e-6)
    assert np.abs(falls).max() > 1e-4
