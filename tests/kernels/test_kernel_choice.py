"""Every layer and pass of ``alexnet`` takes the kernel that is meant for it, on every architecture."""

from __future__ import annotations

import re

import pytest

from convnet.analysis import selection
from convnet.devices.opening import open_device
from convnet.devices.protocol import DeviceError, padded
from convnet.kernels.shapes import ConvShape, LinearShape, LocalShape
from convnet.network.networks import network


@pytest.fixture(scope="module")
def emulator():
    try:
        device = open_device("emu")
    except DeviceError as error:
        pytest.skip(str(error))
    yield device
    device.close()


# On an sm_90 GPU in bf16, by batch size where that matters. Names: image lanes x filters (forward), channels (backward
# data); filters x taps x channels (backward filter).
MEANT = {
    ("conv1", "conv_forward"): "wgmma-512x96",
    ("conv1", "conv_backward_filter"): "wgmma-3x3x48x96",
    ("conv2", "conv_forward"): "wgmma-256x128",
    ("conv2", "conv_backward_data"): "wgmma-512x48",
    ("conv2", "conv_backward_filter"): "wgmma-128x5x48",
    ("conv3", "conv_forward"): "wgmma-192x192",
    ("conv3", "conv_backward_data"): "wgmma-192x128",
    ("conv3", "conv_backward_filter"): "wgmma-192x3x64",
    ("conv4", "conv_forward"): "wgmma-192x192",
    ("conv4", "conv_backward_data"): "wgmma-192x192",
    ("conv4", "conv_backward_filter"): "wgmma-192x3x64",
    ("conv5", "conv_forward"): {64: "wgmma-192x128", 1024: "wgmma-256x128"},
    ("conv5", "conv_backward_data"): "wgmma-192x192",
    ("conv5", "conv_backward_filter"): "wgmma-128x3x64",
    ("fc6", "linear_forward"): {64: "wgmma-128x128", 256: "wgmma-256x128"},
    ("fc6", "linear_backward_data"): {64: "wgmma-128x80", 256: "wgmma-256x128"},
    ("fc7", "linear_forward"): {64: "wgmma-128x128", 256: "wgmma-256x128"},
    ("fc7", "linear_backward_data"): {64: "wgmma-128x32", 256: "wgmma-256x128"},
    ("fc8", "linear_forward"): {64: "wgmma-128x64", 256: "wgmma-256x128"},
    ("fc8", "linear_backward_data"): {64: "wgmma-128x32", 256: "wgmma-256x128"},
    **{
        (layer, "linear_backward_filter"): {64: "wgmma-128x128", 256: "wgmma-128x256"}
        for layer in ("fc6", "fc7", "fc8")
    },
}


# The same in tf32; what is not here takes the kernels of its precision. A third number is that of columns of taps.
MEANT_TF32 = {
    ("conv1", "conv_forward"): "wgmma_tf32-384x96x3",
    ("conv1", "conv_backward_filter"): "wgmma_tf32-128x3x48",
    ("conv2", "conv_forward"): "wgmma_tf32-256x128x5",
    ("conv2", "conv_backward_data"): "wgmma_tf32-512x48x5",
    ("conv2", "conv_backward_filter"): "wgmma_tf32-128x5x48",
    ("conv3", "conv_forward"): "wgmma_tf32-192x192x3",
    ("conv3", "conv_backward_data"): "wgmma_tf32-192x128x3",
    ("conv3", "conv_backward_filter"): "wgmma_tf32-192x3x64",
    ("conv4", "conv_forward"): "wgmma_tf32-192x192x3",
    ("conv4", "conv_backward_data"): "wgmma_tf32-192x192x3",
    ("conv4", "conv_backward_filter"): "wgmma_tf32-192x3x64",
    ("conv5", "conv_forward"): "wgmma_tf32-192x128x3",
    ("conv5", "conv_backward_data"): "wgmma_tf32-192x192x3",
    ("conv5", "conv_backward_filter"): "wgmma_tf32-128x3x64",
}


def meant(layer: str, op: str, N: int) -> str:
    names = MEANT[layer, op]
    return names if isinstance(names, str) else names[max(least for least in names if least <= N)]


def choices(emulator, precision: str, N: int, architecture: int) -> dict[tuple[str, str], str]:
    problems = selection.network_problems(network("alexnet"), precision, N, emulator.lanes(N))
    return {
        (layer, op): selection.choice(emulator, op, shape, precision, architecture) for layer, op, shape in problems
    }


@pytest.mark.parametrize("N", [64, 128, 256, 1024])
def test_bf16_on_hopper(emulator, N):
    found = choices(emulator, "bf16", N, 90)
    assert found == {(layer, op): meant(layer, op, N) for layer, op in MEANT}


@pytest.mark.parametrize("N", [64, 128, 256, 1024])
def test_tf32_on_hopper(emulator, N):
    found = choices(emulator, "tf32", N, 90)
    assert set(found) == set(MEANT)
    assert {key: found.pop(key) for key in MEANT_TF32} == MEANT_TF32
    assert all(name.startswith("tf32") for name in found.values()), found


@pytest.mark.parametrize("N", [64, 128, 256, 1024])
@pytest.mark.parametrize(("precision", "architecture"), [("bf16", 80), ("tf32", 80), ("fp32", 90)])
def test_everything_else_takes_the_kernels_of_its_precision(emulator, N, precision, architecture):
    found = choices(emulator, precision, N, architecture)
    assert set(found) == set(MEANT)
    assert all(name.startswith(precision) for name in found.values()), found


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_a_few_images_take_small_tiles(emulator, precision):
    """Of eight images the layers behind conv2 have at most 33 tiles of 128 x 128, for 132 multiprocessors."""
    found = choices(emulator, precision, 8, 90)
    small = {f"conv{k}" for k in (3, 4, 5)}
    assert {layer for (layer, op), name in found.items() if name == f"{precision}-64x64"} == small
    assert all(op == "conv_forward" for (layer, op), name in found.items() if name == f"{precision}-64x64")
    assert found["conv2", "conv_forward"] == f"{precision}-128x128"


LOCAL_PASSES = ("local_forward", "local_backward_data", "local_backward_filter")


def conv(N: int = 64, **sizes: int) -> ConvShape:
    lanes = 64 if N >= 64 else -(-N // 8) * 8
    options = {"stride": 1, "padding": 1, "groups": 1, **sizes}
    shape = {name: options.pop(name, default) for name, default in zip("CHWKRS", (64, 9, 9, 64, 3, 3), strict=True)}
    return ConvShape.of(padded(N, lanes), **shape, lanes=lanes, **options)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("conv_forward", conv(N=32)),  # no whole block of 64 images
        ("conv_forward", conv(C=3)),  # tensor copies of 16 channels, 13 of which do not exist
        ("conv_forward", conv(C=48, groups=2)),  # chunks of 16 channels reach into the next group
        ("conv_forward", conv(R=3, S=61, H=9, W=80)),  # so wide that no two stages fit
        ("conv_forward", conv(R=1, H=1, W=40_000, padding=(0, 0, 1, 1))),  # more columns than its indices take
        ("conv_backward_data", conv(R=1, H=1, W=40_000, padding=(0, 0, 1, 1))),
        ("conv_backward_data", conv(stride=2)),
        ("conv_backward_data", conv(K=8)),
        ("conv_backward_filter", conv(N=8)),
    ],
    ids=str,
)
def test_what_no_tuned_kernel_takes_a_generic_one_takes(emulator, op, shape):
    assert selection.choice(emulator, op, shape, "bf16", 90).startswith("bf16")


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("conv_forward", conv(N=32)),
        ("conv_forward", conv(C=8)),  # half of a chunk of 16 channels does not exist
        ("conv_forward", conv(C=48, groups=2)),  # it reaches into the next group
        ("conv_forward", conv(K=40)),  # filters come in boxes of 32
        ("conv_forward", conv(stride=2)),
        ("conv_forward", conv(R=2, S=2)),  # a tile has a width of its own
        ("conv_forward", conv(R=1, S=3, H=1, W=40_000, padding=(0, 0, 1, 1))),
        ("conv_backward_data", conv(N=32)),
        ("conv_backward_data", conv(K=8)),
        ("conv_backward_data", conv(K=30)),  # rows of weights at no multiple of 16 bytes
        ("conv_backward_data", conv(stride=2)),
        ("conv_backward_data", conv(R=4, S=4)),
        ("conv_backward_filter", conv(N=8)),
        ("conv_backward_filter", conv(C=3)),  # most of a tile of channels does not exist
        ("conv_backward_filter", conv(R=2, S=2)),  # most of its taps
    ],
    ids=str,
)
def test_what_no_tuned_kernel_takes_in_tf32(emulator, op, shape):
    assert selection.choice(emulator, op, shape, "tf32", 90).startswith("tf32")


def local_shape(shape: ConvShape) -> LocalShape:
    return LocalShape(**vars(shape))


def said(when: str, sizes: dict[str, int]) -> bool:
    """Whether words such as "K/g <= 64 or 129..192" hold, or "128x128 tiles <= 63"."""
    size = 0
    for words in when.split(" or "):
        name, most, low, high = re.fullmatch(
            r"(?:(\S+(?: tiles)?) )?(?:<= (\d+)|(?:in )?(\d+)\.\.(\d+))|any", words
        ).groups()
        size = sizes[name] if name else size
        if words == "any" or int(low or 0) <= size <= int(most or high):
            return True
    return False


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("op", [*sorted({op for _, op in MEANT}), *LOCAL_PASSES])
def test_the_tables_do_what_they_say(emulator, op, precision):
    """The first row whose words hold, at every size that is said, one less and one more."""
    rows = [row for row in emulator.kernels.variants() if (row["op"], row["precision"]) == (op, precision)]
    rows = [row for row in rows if row["architecture"] == 80]
    edges = {int(number) + by for row in rows for number in re.findall(r"\d+", row["when"]) for by in (-1, 0, 1)}
    for size in sorted(edges | {8}):
        many = -(-max(size, 72) // 8) * 8  # images, where these do not count
        channels = [{"C": size, "K": 8}, {"C": 8, "K": size}, {"C": 2 * size, "K": 2 * size, "groups": 2}]
        shapes = [conv(N=8, H=H, W=H, **some) for some in channels for H in (9, 36)]
        shapes.append(conv(N=8, H=16, W=size, C=8, K=128))  # so many tiles of 128 x 128
        if op in LOCAL_PASSES:
            shapes = [local_shape(shape) for shape in shapes]
        if op.startswith("linear"):
            shapes = [LinearShape(N, C, K, 8) for N, C, K in ((many, size, 9), (many, 9, size), (many, 9999, 9999))]
            shapes += [LinearShape(size, 9999, 9999, 8)] * (size % 8 == 0)
        for shape in shapes:
            groups = getattr(shape, "groups", 1)
            sizes = {"N": shape.N, "C": shape.C, "K": shape.K, "C/g": shape.C // groups, "K/g": shape.K // groups}
            if isinstance(shape, ConvShape):
                tiles = -(-shape.N * shape.P * shape.Q // 128) * -(-sizes["K/g"] // 128) * groups
                sizes["128x128 tiles"] = tiles
            meant = next(row["name"] for row in rows if said(row["when"], sizes))
            assert selection.choice(emulator, op, shape, precision, 80) == meant, shape


@pytest.mark.parametrize(
    ("op", "shape", "name"),
    [
        ("conv_forward", conv(K=64), "wgmma-256x64"),
        ("conv_forward", conv(K=72), "wgmma-512x96"),
        ("conv_forward", conv(K=96), "wgmma-512x96"),
        ("conv_forward", conv(K=104), "wgmma-256x128"),
        ("conv_forward", conv(K=192), "wgmma-192x192"),
        ("conv_forward", conv(K=384), "wgmma-192x192"),
        ("conv_forward", conv(K=256), "wgmma-256x128"),
        ("conv_backward_data", conv(C=48), "wgmma-512x48"),
        ("conv_backward_data", conv(C=56), "wgmma-256x64"),
        ("conv_backward_data", conv(C=64), "wgmma-256x64"),
        ("conv_backward_data", conv(C=72), "wgmma-192x128"),
        ("conv_backward_data", conv(C=192), "wgmma-192x192"),
        ("conv_backward_filter", conv(C=48, S=3), "wgmma-3x3x48x96"),
        ("conv_backward_filter", conv(C=48, S=3, K=97), "wgmma-128x3x48"),
        ("conv_backward_filter", conv(C=48, S=4), "wgmma-128x5x48"),
        ("conv_backward_filter", conv(C=56, S=4), "wgmma-128x3x64"),
        ("conv_backward_filter", conv(C=48, S=1), "wgmma-128x1x128"),
        ("conv_backward_filter", conv(K=192), "wgmma-192x3x64"),
        ("conv_backward_filter", conv(K=384), "wgmma-192x3x64"),
        ("conv_backward_filter", conv(K=256), "wgmma-128x3x64"),
    ],
    ids=str,
)
def test_tiles_on_hopper_follow_the_extents(emulator, op, shape, name):
    assert selection.choice(emulator, op, shape, "bf16", 90) == name


@pytest.mark.parametrize(
    ("op", "shape", "name"),
    [
        ("conv_forward", conv(R=5, S=5), "wgmma_tf32-256x128x5"),
        ("conv_forward", conv(K=96), "wgmma_tf32-384x96x3"),
        ("conv_forward", conv(K=128), "wgmma_tf32-192x128x3"),
        ("conv_forward", conv(K=192), "wgmma_tf32-192x192x3"),
        ("conv_forward", conv(K=256), "wgmma_tf32-192x128x3"),
        ("conv_backward_data", conv(C=48, R=5, S=5), "wgmma_tf32-512x48x5"),
        ("conv_backward_data", conv(C=56, R=5, S=5), "wgmma_tf32-256x128x5"),
        ("conv_backward_data", conv(C=48), "wgmma_tf32-192x128x3"),
        ("conv_backward_data", conv(C=192, K=12), "wgmma_tf32-192x192x3"),
        ("conv_backward_filter", conv(C=48, S=3), "wgmma_tf32-128x3x48"),
        ("conv_backward_filter", conv(C=48, S=4), "wgmma_tf32-128x5x48"),
        ("conv_backward_filter", conv(C=56, S=4), "wgmma_tf32-128x3x64"),
        ("conv_backward_filter", conv(K=192, stride=2), "wgmma_tf32-192x3x64"),
        ("conv_backward_filter", conv(K=256), "wgmma_tf32-128x3x64"),
    ],
    ids=str,
)
def test_tiles_in_tf32_follow_the_extents(emulator, op, shape, name):
    assert selection.choice(emulator, op, shape, "tf32", 90) == name


@pytest.mark.parametrize(
    ("N", "C", "K", "name"),
    [
        (128, 4096, 4096, "wgmma-128x32"),  # of one part: narrow tiles are one each for most of 132 multiprocessors
        (64, 4096, 4096, "wgmma-128x32"),
        (128, 4096, 4097, "wgmma-128x128"),  # in four parts
        (128, 4224, 4096, "wgmma-128x32"),
        (128, 4225, 4096, "wgmma-128x128"),
        (128, 2113, 4096, "wgmma-128x32"),
        (128, 2112, 4096, "wgmma-128x80"),  # in four parts
        (128, 2112, 1024, "wgmma-128x32"),  # of one part, however few they are
        (128, 2112, 1025, "wgmma-128x80"),
        (192, 2112, 4096, "wgmma-128x32"),
    ],
)
def test_narrow_tiles_of_linear_layers(emulator, N, C, K, name):
    assert selection.choice(emulator, "linear_backward_data", LinearShape(N, C, K, 64), "bf16", 90) == name


def test_a_kernel_can_be_forced(emulator):
    kernels = emulator.kernels
    shape = conv()
    assert kernels.conv_variant("conv_forward", shape, "bf16") == "wgmma-256x64"
    kernels.force_variant("conv_forward", "bf16-128x128")
    try:
        assert kernels.conv_variant("conv_forward", shape, "bf16") == "bf16-128x128"
        kernels.force_variant("conv_forward", "wgmma-256x64")
        with pytest.raises(ValueError, match="wgmma-256x64 does not take this shape"):
            kernels.conv_variant("conv_forward", conv(N=8), "bf16")
    finally:
        kernels.force_variant("conv_forward", "")
    assert kernels.conv_variant("conv_forward", shape, "bf16") == "wgmma-256x64"
    with pytest.raises(ValueError, match="no variant nonsense"):
        kernels.force_variant("conv_forward", "nonsense")
