"""Local convolution, and biases for every pixel, against float64 and PyTorch: in every arithmetic, and references that
are wrong."""

from __future__ import annotations

import cases
import fused
import numpy as np
import pytest
import reference
from cases import LocalCase
from conftest import Machine

from convnet import functional
from convnet.ops import ops
from convnet.ops.layout import pack_local_weight, unpack_local_weight


def by_id(case):
    return case.id


def named(id: str) -> LocalCase:
    return next(case for case in cases.LOCAL if case.id == id)


def computed(arithmetic, case, x, weight, bias, dy):
    """y, and dx, dweight, dbias."""
    options = {"device": arithmetic.device, "precision": arithmetic.precision, **case.options}
    y = functional.local2d(x, weight, bias, relu=case.relu, **options)
    return y, functional.local2d_backward(dy, x, weight, **options)


def forward_ratio(case, y, x, weight, bias, expected=None) -> float:
    if expected is None:
        expected = reference.local_forward(x, weight, bias, relu=case.relu, **case.geometry)
    magnitude = reference.local_forward(abs(x), abs(weight), abs(bias), **case.geometry)
    if expected.shape != magnitude.shape:
        return np.inf
    return reference.ratio(y, expected, reference.sum_limit(magnitude, weight[0, 0, 0].size + 1))


def backward_ratios(case, gradients, dy, x, weight, expected=None) -> dict[str, float]:
    if expected is None:
        expected = reference.local_backward(dy, x, weight, **case.geometry)
    magnitudes = reference.local_backward(abs(dy), abs(x), abs(weight), **case.geometry)
    windows = -(-case.R // case.stride) * -(-case.S // case.stride)
    terms = (case.K // case.groups * windows, case.N, case.N)
    return {
        name: reference.ratio(actual, right, reference.sum_limit(magnitude, count))
        for name, actual, right, magnitude, count in zip(
            ("dx", "dweight", "dbias"), gradients, expected, magnitudes, terms, strict=True
        )
    }


@pytest.mark.parametrize("case", cases.LOCAL, ids=by_id)
def test_forward_and_backward(device, case, within):
    x, weight, bias, dy = case.inputs()
    y = functional.local2d(x, weight, bias, relu=case.relu, device=device, **case.options)
    within("local forward", forward_ratio(case, y, x, weight, bias))
    gradients = functional.local2d_backward(dy, x, weight, device=device, **case.options)
    for name, ratio in backward_ratios(case, gradients, dy, x, weight).items():
        within(f"local {name}", ratio)


@pytest.mark.parametrize("case", cases.LOCAL, ids=by_id)
def test_integers_are_exact(arithmetic, case):
    """Small integers leave nothing to round, whatever the order: one missing or doubled term shows. In bfloat16 the
    exact sums are rounded once, when they are stored."""
    x, weight, bias, dy = case.inputs(integers=True)
    y, (dx, dweight, dbias) = computed(arithmetic, case, x, weight, bias, dy)
    expected = reference.local_forward(x, weight, bias, relu=case.relu, **case.geometry)
    np.testing.assert_array_equal(y, reference.held(expected, arithmetic.precision))
    expected = reference.local_backward(dy, x, weight, **case.geometry)
    np.testing.assert_array_equal(dx, reference.held(expected[0], arithmetic.precision))
    np.testing.assert_array_equal(dweight, expected[1])
    np.testing.assert_array_equal(dbias, expected[2])


def unfolded(torch, case, x, weight, bias):
    """The same in PyTorch: windows by ``unfold``, then a product for every pixel."""
    shape, F = case.shape(), torch.nn.functional
    top, left = shape.pad_top, shape.pad_left
    rows = (shape.P - 1) * case.stride + case.R - top - case.H
    columns = (shape.Q - 1) * case.stride + case.S - left - case.W
    framed = F.pad(x, (left, columns, top, rows))  # negative: what no window reads is cut off
    windows = F.unfold(framed, (case.R, case.S), stride=case.stride)
    windows = windows.view(case.N, case.groups, -1, shape.P, shape.Q)
    filters = weight.reshape(shape.P, shape.Q, case.groups, case.K // case.groups, -1)
    y = torch.einsum("ngcpq,pqgkc->ngkpq", windows, filters).reshape(case.N, case.K, shape.P, shape.Q) + bias
    return y.relu() if case.relu else y


@pytest.mark.parametrize("case", cases.LOCAL, ids=by_id)
def test_against_pytorch(case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, weight, bias, dy = case.inputs()
    theirs = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (x, weight, bias)]
    y = unfolded(torch, case, *theirs)
    assert forward_ratio(case, functional.local2d(x, weight, bias, relu=case.relu, **case.options), x, weight, bias,
                         y.detach().numpy()) <= 1  # fmt: skip
    unfolded(torch, cases.replace(case, relu=False), *theirs).backward(torch.tensor(dy, dtype=torch.float64))
    gradients = functional.local2d_backward(dy, x, weight, **case.options)
    expected = [tensor.grad.numpy() for tensor in theirs]
    assert max(backward_ratios(case, gradients, dy, x, weight, expected).values()) <= 1


def test_filters_that_all_pixels_share_are_a_convolution(arithmetic):
    case = named("groups2-stride2-N6")
    x, weight, bias, dy = case.inputs(integers=True)
    weight, bias = np.broadcast_to(weight[0, 0], weight.shape), np.broadcast_to(bias[:, :1, :1], bias.shape)
    options = {"device": arithmetic.device, "precision": arithmetic.precision, "ceil_mode": True, **case.options}
    y, (dx, dweight, dbias) = computed(arithmetic, case, x, weight, bias, dy)
    expected = functional.conv2d(x, weight[0, 0], bias[:, 0, 0], relu=case.relu, **options)
    np.testing.assert_array_equal(y, expected)
    expected = functional.conv2d_backward(dy, x, weight[0, 0], **options)
    for actual, right in zip((dx, dweight.sum((0, 1)), dbias.sum((1, 2))), expected, strict=True):
        np.testing.assert_array_equal(actual, right)


@pytest.mark.parametrize("id", ["primes-N5", "maps-33-64-N16", "batch-65-N65"])
def test_same_call_gives_the_same_bits(arithmetic, id):
    case = named(id)
    first, again = (computed(arithmetic, case, *case.inputs()) for _ in range(2))
    for a, b in zip((first[0], *first[1]), (again[0], *again[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_padded_lanes_do_not_leak(arithmetic):
    """65 images (two blocks on a GPU, the second with 63 empty lanes) equal 64 images and one more."""
    case = named("batch-65-N65")
    x, weight, bias, dy = case.inputs(integers=True)
    y, (dx, dweight, dbias) = computed(arithmetic, case, x, weight, bias, dy)
    split = [computed(arithmetic, case, x[part], weight, bias, dy[part]) for part in (slice(0, 64), slice(64, 65))]
    np.testing.assert_array_equal(y, np.concatenate([y for y, _ in split]))
    np.testing.assert_array_equal(dx, np.concatenate([gradients[0] for _, gradients in split]))
    np.testing.assert_array_equal(dweight, split[0][1][1] + split[1][1][1])
    np.testing.assert_array_equal(dbias, split[0][1][2] + split[1][1][2])


def test_images_are_independent(arithmetic):
    """Other images in the batch change no bit of the output of one, and their order is no matter."""
    case = named("primes-N5")
    # BLAS may round otherwise in another column
    x, weight, bias, dy = case.inputs(integers=arithmetic.device == "cpu")
    order = np.array([3, 0, 4, 1, 2])
    y, (dx, _, _) = computed(arithmetic, case, x, weight, bias, dy)
    np.testing.assert_array_equal(computed(arithmetic, case, x[order], weight, bias, dy)[0], y[order])
    spoiled = dy.copy()
    spoiled[1:] = np.nan
    np.testing.assert_array_equal(computed(arithmetic, case, x, weight, bias, spoiled)[1][0][0], dx[0])


def test_pixels_and_groups_do_not_see_each_other(arithmetic):
    """What is not a number stays where it was put: in its group, and in what reads it."""
    case = named("groups2-stride2-N6")
    x, weight, bias, dy = case.inputs(integers=True)
    sound = computed(arithmetic, case, x, weight, bias, dy)
    spoiled = weight.copy()
    spoiled[1, 2, case.K // 2 :] = np.nan
    y, (dx, _, _) = computed(arithmetic, case, x, spoiled, bias, dy)
    nothing = np.isnan(y)
    assert nothing[:, case.K // 2 :, 1, 2].all()
    assert nothing.sum() == case.N * case.K // 2
    # under the window of (1, 2) from pixel (1, 3) on
    touched = np.isnan(dx)
    assert touched[:, case.C // 2 :, 1:4, 3:6].all()
    assert touched.sum() == case.N * case.C // 2 * 9
    broken = x.copy()
    broken[:, : case.C // 2] = np.nan
    y, (_, dweight, _) = computed(arithmetic, case, broken, weight, bias, dy)
    np.testing.assert_array_equal(y[:, case.K // 2 :], sound[0][:, case.K // 2 :])
    np.testing.assert_array_equal(dweight[:, :, case.K // 2 :], sound[1][1][:, :, case.K // 2 :])


@pytest.mark.parametrize("id", ["groups2-stride2-N6", "groups2-maps-80-N8"])
def test_one_tower_gives_the_bits_of_both(arithmetic, id):
    """A tower alone on a device (groups 1) must give the bits it gives beside another one (groups 2)."""
    case = named(id)
    x, weight, bias, dy = case.inputs()
    y, (dx, dweight, dbias) = computed(arithmetic, case, x, weight, bias, dy)
    alone = cases.replace(case, groups=1)
    for tower in range(2):
        C, K = (slice(tower * size // 2, (tower + 1) * size // 2) for size in (case.C, case.K))
        found, gradients = computed(arithmetic, alone, x[:, C], weight[:, :, K], bias[K], dy[:, K])
        np.testing.assert_array_equal(found, y[:, K])
        for actual, expected in zip(gradients, (dx[:, C], dweight[:, :, K], dbias[K]), strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.fixture
def on(arithmetic):
    """The device, and the precision with it."""
    machine = Machine(arithmetic.device)
    yield machine, arithmetic.precision
    machine.device.close()


@pytest.mark.parametrize("id", ["groups3-N3", "gaps-between-windows-N3", "windows-outside-N2", "maps-65-63-N9"])
def test_the_mask_is_that_of_a_relu(on, id):
    """Zeros of both signs, infinities and NaN included."""
    machine, precision = on
    case = named(id)
    x, weight, _, dy = case.inputs()
    strange = case.random.choice(np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32), x.shape)
    x = np.where(case.random.random(x.shape) < 0.2, strange, x)
    dx, parts = fused.conv_backward_data(machine, precision, case, dy, weight, x)
    fused.assert_same_bits(dx, parts)
    found = machine.images(dx, case.N)
    assert (found != 0).any()
    assert (found[~(x > 0)] == 0).all()


@pytest.mark.parametrize("id", ["groups3-N3", "windows-outside-N2"])
def test_bias_and_its_gradient_may_be_left_out(on, id):
    machine, precision = on
    case = named(id)
    x, weight, _, dy = case.inputs(integers=True)
    shape = machine.padded(case.shape(N=case.N))
    images, gradient = (machine.put_images(values, precision) for values in (x, dy))
    filters = fused.put_weight(machine, pack_local_weight(weight, case.groups), precision)
    y, dw = machine.activations(shape.y, precision), machine.empty(shape.weight)
    ops.local_forward(machine.stream, shape, precision, images, filters, None, y)
    expected = reference.local_forward(x, weight, None, **case.geometry)
    np.testing.assert_array_equal(machine.images(y, case.N), reference.held(expected, precision))
    ops.local_backward_filter(machine.stream, shape, precision, gradient, images, dw, None)
    expected = reference.local_backward(dy, x, weight, **case.geometry)[1]
    np.testing.assert_array_equal(unpack_local_weight(dw.download()), expected)


@pytest.mark.parametrize("lanes", [8, 16, 48])
def test_several_blocks_of_any_lanes_on_a_cpu(lanes):
    """Where nothing but the lanes are others, sums over blocks are added up."""
    case = named("groups3-N3")
    machine = Machine("cpu")
    case = cases.replace(case, N=48)
    x, weight, bias, dy = case.inputs(integers=True)
    shape = case.shape(lanes, 48)

    def blocks(values):
        return machine.put(np.moveaxis(values.reshape(48 // lanes, lanes, *values.shape[1:]), 1, -1))

    def images(array):
        found = np.moveaxis(array.download(), -1, 1)
        return found.reshape(48, *found.shape[2:])

    y, dx, dw, db = (machine.empty(s) for s in (shape.y, shape.x, shape.weight, shape.position_bias))
    filters = machine.put(pack_local_weight(weight, case.groups))
    ops.local_forward(machine.stream, shape, "fp32", blocks(x), filters, machine.put(bias), y)
    ops.local_backward_data(machine.stream, shape, "fp32", blocks(dy), filters, dx, None)
    ops.local_backward_filter(machine.stream, shape, "fp32", blocks(dy), blocks(x), dw, db)
    np.testing.assert_array_equal(images(y), reference.local_forward(x, weight, bias, **case.geometry))
    expected = reference.local_backward(dy, x, weight, **case.geometry)
    found = (images(dx), unpack_local_weight(dw.download()), db.download())
    for actual, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(actual, right)
    ops.add_position_bias(machine.stream, shape, "fp32", y, machine.put(bias), y)
    np.testing.assert_array_equal(images(y), reference.local_forward(x, weight, 2 * bias, **case.geometry))
    machine.device.close()


# Mistakes that a kernel could make, as wrong references: name -> (does it change this case?, wrong operands).


def _changed(case, **changes):
    return {**case.geometry, **changes}


MUTANTS = {
    "window one row off": (lambda c: True, lambda c, x, w: (x, w, _changed(c, top=c.geometry["top"] + 1))),
    "window one column off": (lambda c: True, lambda c, x, w: (x, w, _changed(c, left=c.geometry["left"] + 1))),
    "filter turned round": (
        lambda c: c.R * c.S > 1 and c.H * c.W > 1,
        lambda c, x, w: (x, w[..., ::-1, ::-1], c.geometry),
    ),
    "filters of the next pixel": (
        lambda c: c.shape().Q > 1,
        lambda c, x, w: (x, np.roll(w, 1, axis=1), c.geometry),
    ),
    "rows and columns of pixels exchanged": (
        lambda c: c.shape().P == c.shape().Q > 1,
        lambda c, x, w: (x, w.swapaxes(0, 1), c.geometry),
    ),
    "the same filters for all": (
        lambda c: c.shape().P * c.shape().Q > 1,
        lambda c, x, w: (x, np.broadcast_to(w[:1, :1], w.shape), c.geometry),
    ),
    "groups exchanged": (lambda c: c.groups > 1, lambda c, x, w: (np.roll(x, c.C // c.groups, 1), w, c.geometry)),
    "last channel missing": (
        lambda c: True,
        lambda c, x, w: (x * (np.arange(c.C) < c.C - 1)[:, None, None], w, c.geometry),
    ),
    "last image as the first": (
        lambda c: c.N > 1,
        lambda c, x, w: (np.concatenate([x[:-1], x[:1]]), w, c.geometry),
    ),
}


@pytest.mark.parametrize("case", cases.LOCAL, ids=by_id)
def test_wrong_references_fail(case):
    """The comparison notices every mistake: the right result is far outside the limits around a wrong reference."""
    x, weight, bias, dy = case.inputs()
    y = functional.local2d(x, weight, bias, relu=case.relu, **case.options)
    gradients = functional.local2d_backward(dy, x, weight, **case.options)
    done = 0
    for name, (applies, mutate) in MUTANTS.items():
        if not applies(case):
            continue
        wrong_x, wrong_weight, geometry = mutate(case, x, weight)
        wrong = reference.local_forward(wrong_x, wrong_weight, bias, relu=case.relu, **geometry)
        assert forward_ratio(case, y, x, weight, bias, wrong) > 1, f"forward does not notice: {name}"
        ratios = backward_ratios(
            case, gradients, dy, x, weight, reference.local_backward(dy, wrong_x, wrong_weight, **geometry)
        )
        assert max(ratios["dx"], ratios["dweight"]) > 1, f"backward does not notice: {name}"
        done += 1
    assert done >= 3
    for other in (None, np.roll(bias, 1, axis=0) if case.K > 1 else -bias):
        wrong = reference.local_forward(x, weight, other, relu=case.relu, **case.geometry)
        assert forward_ratio(case, y, x, weight, bias, wrong) > 1
    short = dy.copy()
    short[-1, :, -1, -1] = 0
    wrong = reference.local_backward(short, x, weight, **case.geometry)
    assert backward_ratios(case, gradients, dy, x, weight, wrong)["dbias"] > 1


# ---- biases for every pixel ----


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 2, 3), (9, 2, 7, 1), (65, 3, 2, 2), (130, 33, 4, 5)], ids=str)
def test_position_bias(arithmetic, shape):
    random = np.random.default_rng(sum(shape))
    y, dy = (random.standard_normal(shape, dtype=np.float32) for _ in range(2))
    bias = random.standard_normal(shape[1:], dtype=np.float32)
    options = {"device": arithmetic.device, "precision": arithmetic.precision}
    y, dy = (reference.held(values, arithmetic.precision) for values in (y, dy))
    kept = y.copy()
    found = functional.add_position_bias(y, bias, **options)
    np.testing.assert_array_equal(found, reference.held(y + bias, arithmetic.precision))
    np.testing.assert_array_equal(y, kept)
    found = functional.add_position_bias_backward(dy, **options)
    limit = reference.sum_limit(np.abs(dy.astype(np.float64)).sum(0), shape[0])
    assert reference.ratio(found, dy.astype(np.float64).sum(0), limit) <= 1


def test_a_convolution_whose_biases_pixels_do_not_share(arithmetic):
    """That of filters that they share, then the biases: to the bits of a local layer where nothing is rounded."""
    case = named("primes-N5")
    x, weight, bias, _ = case.inputs(integers=True)
    shared = np.broadcast_to(weight[0, 0], weight.shape)
    options = {"device": arithmetic.device, "precision": arithmetic.precision}
    y = functional.conv2d(x, weight[0, 0], ceil_mode=True, **case.options, **options)
    expected = reference.held(reference.local_forward(x, shared, **case.geometry), arithmetic.precision)
    np.testing.assert_array_equal(y, expected)
    found = functional.add_position_bias(y, bias, **options)
    np.testing.assert_array_equal(found, reference.held(expected + bias, arithmetic.precision))
