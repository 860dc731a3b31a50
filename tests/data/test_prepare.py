"""What ``convnet-prepare`` writes: pixels, order, statistics, and what becomes of every kind of image."""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib

import numpy as np
import pytest
from data_files import cifar_files, cifar_images, picture, write_cifar, write_folder
from PIL import Image
from preparing import contents, here, run

from convnet.data import DataError, jpeg, load_square, open_dataset
from convnet.data.images import fitted
from convnet.data.jpeg import decode_reduced
from convnet.data.packing import Sums, Task, pack
from convnet.data.recognise import open_source
from convnet.data.source import Place
from convnet.data.statistics import from_sums
from convnet.prepare import prepare

SIZE = 32


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(prepare, "SHARD", 8)
    monkeypatch.setattr(prepare, "CHUNK", 3)


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "source", classes=3, train=6, valid=3)


@pytest.fixture
def store(source, tmp_path, small):
    assert here(source, tmp_path / "store", "--size", SIZE, "-j", 1) == 0
    return tmp_path / "store"


def plain(path, size, quality=95):
    """The JPEG bytes that plain Pillow makes of an image."""
    image = Image.open(path).convert("RGB")
    shorter = min(image.size)
    image = image.resize(
        (round(image.width * size / shorter), round(image.height * size / shorter)), Image.Resampling.BILINEAR
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    file = io.BytesIO()
    image.crop((left, top, left + size, top + size)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_pixels_are_those_of_plain_pillow(source, store):
    data = open_dataset(store, size=SIZE, seed=0)
    for split in (data.train, data.valid):
        for k in range(len(split)):
            expected = plain(source / split.name(k), SIZE)
            assert split.read(k) == expected
            np.testing.assert_array_equal(split.image(k), np.asarray(Image.open(io.BytesIO(expected))))


def test_every_image_is_there_once_with_its_label_and_the_training_images_are_shuffled(source, store):
    data, folder = open_dataset(store, size=SIZE, seed=0), open_source(source)
    assert data.classes == folder.classes == ["class0", "class1", "class2"]
    for split, part in ((data.train, folder.train), (data.valid, folder.valid)):
        names = [split.name(k) for k in range(len(split))]
        assert sorted(names) == part.names
        assert [f"class{label}" for label in split.labels] == [name.split("/")[1] for name in names]
    assert [data.valid.name(k) for k in range(len(data.valid))] == folder.valid.names
    assert [data.train.name(k) for k in range(len(data.train))] != folder.train.names
    assert len(np.unique(data.train.labels[:8])) == 3


def test_the_seed_decides_the_order(source, tmp_path, store):
    orders = {(store / "train-names.txt").read_text()}
    for seed in (1, 2**63):
        assert here(source, tmp_path / str(seed), "--size", SIZE, "--seed", seed, "-j", 1) == 0
        orders.add((tmp_path / str(seed) / "train-names.txt").read_text())
    assert len(orders) == 3


def test_files_of_a_store(store):
    shards = ["train-00000.bin", "train-00001.bin", "train-00002.bin", "val-00000.bin", "val-00001.bin"]
    index = ["train.npy", "val.npy", "train-names.txt", "val-names.txt", "mean.npy", "bad.csv", "store.json"]
    assert sorted(contents(store)) == sorted(shards + index)
    assert (store / "bad.csv").read_text() == "source,reason\n"
    told = json.loads((store / "store.json").read_text())
    assert (told["train"], told["val"], told["bad"], told["size"], told["quality"]) == (18, 9, 0, SIZE, 95)


def test_four_workers_write_the_same_bytes_as_one(source, tmp_path):
    for workers in (1, 4):
        assert "prepared in" in run(source, tmp_path / f"j{workers}", "--size", SIZE, "-j", workers)
    assert contents(tmp_path / "j1") == contents(tmp_path / "j4")


def test_pillow_alone_writes_the_same_images(source, tmp_path, store, monkeypatch):
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert here(source, tmp_path / "pillow", "--size", SIZE, "-j", 1) == 0
    found, expected = contents(tmp_path / "pillow"), contents(store)
    told = [json.loads(files.pop("store.json")) for files in (found, expected)]
    assert found == expected
    assert told[0].pop("decoder") == "Pillow"
    assert told[1].pop("decoder") in ("simplejpeg", "Pillow")
    assert told[0] == told[1]


@pytest.mark.parametrize("aspect", [[], ["--keep-aspect"]])
def test_statistics_are_numpys_over_the_decoded_store(source, tmp_path, small, aspect):
    assert here(source, tmp_path / "store", "--size", SIZE, "-j", 1, *aspect) == 0
    data = open_dataset(tmp_path / "store", size=SIZE, seed=0)
    images = np.stack([data.train.image(k) for k in range(len(data.train))]).astype(np.float64)
    pixels = images.reshape(-1, 3)
    found = data.statistics
    np.testing.assert_array_equal(found.mean, images.mean(axis=0).transpose(2, 0, 1).astype(np.float32))
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-6)
    variances, directions = np.linalg.eigh(np.cov(pixels.T, bias=True))
    np.testing.assert_allclose(found.deviations, np.sqrt(variances[::-1]), rtol=1e-5)
    np.testing.assert_allclose(np.abs(found.directions.T @ directions[:, ::-1]), np.eye(3), atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 32, 33, 73])
def test_sums_are_exact(size):
    """Also where every product is as large as it can be, and where pixels do not fill blocks of 1024."""
    random = np.random.default_rng(size)
    images = random.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    images[0] = 255
    sums = Sums(size)
    for image in images:
        sums.add(image)
    pixels = images.reshape(-1, 3).astype(object)
    np.testing.assert_array_equal(sums.total, images.sum(axis=0, dtype=np.int64))
    assert sums.products() == (pixels.T @ pixels).tolist()
    statistics = from_sums(sums.total, np.array(sums.products(), float), 3)
    np.testing.assert_allclose(statistics.std, images.reshape(-1, 3).std(axis=0), rtol=1e-5, atol=1e-5)


def test_whole_images_are_stored_on_request_and_their_centre_is_used(source, tmp_path, store, small):
    assert here(source, tmp_path / "whole", "--size", SIZE, "--keep-aspect", "-j", 1) == 0
    whole, square = (open_dataset(folder, size=SIZE, seed=0) for folder in (tmp_path / "whole", store))
    shapes = set()
    for k in range(len(whole.train)):
        stored = np.asarray(Image.open(io.BytesIO(whole.train.read(k))))
        shapes.add(stored.shape[:2])
        assert min(stored.shape[:2]) == SIZE
        top, left = (stored.shape[0] - SIZE) // 2, (stored.shape[1] - SIZE) // 2
        np.testing.assert_array_equal(whole.train.image(k), stored[top : top + SIZE, left : left + SIZE])
        # the same picture, but for what JPEG makes of other blocks
        assert np.abs(whole.train.image(k).astype(int) - square.train.image(k)).mean() < 3
    assert len(shapes) > 3
    assert whole.fingerprint != square.fingerprint


def saved(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def huge_header():
    header = struct.pack(">IIBBBBB", 8001, 8000, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


BAD = {
    "cut.jpg": (saved(picture(90, 70))[:-300], "not a readable JPEG image"),
    "cut.png": (saved(picture(90, 70), "PNG")[:-300], "not a readable"),
    "text.jpg": (b"<html>not found</html>", "this is a page of HTML, not a picture"),
    "empty.jpg": (b"", "an empty file"),
    "huge.png": (huge_header(), "8001 x 8000 pixels; the limit is 64,000,000"),
    "strip.png": (saved(Image.new("L", (60_000, 1)), "PNG"), "too long a strip"),
    "cut.gif.jpg": (saved(picture(90, 70), "GIF")[:-300], "not a readable GIF image"),
}


def test_unusable_images_are_listed_with_reasons_and_left_out(source, tmp_path, small, capsys):
    bad = {**BAD, 'a "name", with\nbreaks.jpg': (b"x", "this is text, not a picture")}
    for name, (raw, _) in bad.items():
        (source / "train/class1" / name).write_bytes(raw)
    (source / "val/class2/gone.jpg").write_bytes(b"")
    assert here(source, tmp_path / "store", "--size", 256, "-j", 1) == 0
    empty = 2  # seen before anything is read, and left out as what is no picture is
    said = capsys.readouterr().err
    assert f"{len(bad) + 1 - empty} of {27 + len(bad) + 1 - empty} images cannot be used" in said
    with open(tmp_path / "store/bad.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["source", "reason"]
    reasons = dict(rows)
    assert len(reasons) == len(rows) == len(bad) + 1
    assert "val/class2/gone.jpg" in reasons
    for name, (_, reason) in bad.items():
        listed = "train/class1/" + name.replace("\n", "\\n")
        assert any(word in reasons[listed] for word in reason.split("|")), (name, reasons[listed])
    data = open_dataset(tmp_path / "store", size=256, seed=0)
    assert (len(data.train), len(data.valid)) == (18, 9)
    names = {data.train.name(k) for k in range(18)}
    assert names == {f"train/class{c}/{k:03}.jpg" for c in range(3) for k in range(6)}


def test_unusual_images_are_converted_as_written(source, tmp_path, small):
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (40, 50), colour) for colour in ("red", "blue")]
    unusual = {
        "cmyk.jpg": saved(Image.new("CMYK", (48, 40), (0, 255, 255, 0)), quality=95),
        "grey.jpg": saved(Image.new("L", (48, 40), 77), quality=95),
        "palette.png": saved(Image.new("RGB", (48, 40), (10, 200, 30)).quantize(4), "PNG"),
        "sixteen.png": saved(Image.fromarray(np.full((40, 48), 0x4DFF, np.uint16)), "PNG"),
        "animated.png": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "turned.jpg": saved(picture(60, 90), quality=95, exif=exif),
    }
    for name, raw in unusual.items():
        (source / "val/class0" / name).write_bytes(raw)
    assert here(source, tmp_path / "store", "--size", SIZE, "-j", 1, "--quality", 100) == 0
    data = open_dataset(tmp_path / "store", size=SIZE, seed=0)
    images = {data.valid.name(k).split("/")[-1]: data.valid.image(k).astype(int) for k in range(len(data.valid))}
    flat = {"grey.jpg": (77, 77, 77), "palette.png": (10, 200, 30), "sixteen.png": (77, 77, 77)}
    flat |= {"animated.png": (255, 0, 0), "cmyk.jpg": (254, 0, 0)}
    for name, colour in flat.items():
        assert np.abs(images[name] - colour).max() <= 3, name
    upright = source / "upright.png"
    Image.open(io.BytesIO(unusual["turned.jpg"])).transpose(Image.Transpose.ROTATE_270).save(upright)
    expected = np.asarray(Image.open(io.BytesIO(plain(upright, SIZE, 100))))
    np.testing.assert_array_equal(images["turned.jpg"], expected)


def test_a_file_that_vanishes_or_shrinks_is_a_bad_image(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(picture(40, 40)))
    length = path.stat().st_size
    places = [Place(str(path), 0, length), Place(str(path), 0, length + 1), Place(str(tmp_path / "none"), 0, 9)]
    packed = pack(Task([*places, Place(str(path), 0, 10**9)], 32, 95, False, 16, True))
    good, *reasons = packed.images
    assert isinstance(good, bytes)
    assert "cut short" in reasons[0]
    assert "No such file" in reasons[1]
    assert "1,000,000,000 bytes; the limit is" in reasons[2]


@pytest.mark.parametrize("aspect", [False, True])
def test_a_store_holds_what_is_read_from_the_files_themselves(tmp_path, aspect):
    """Also of large JPEG files, which are decoded smaller, and of grey values of more than 8 bits."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 4096, (70, 70)).astype(np.uint16))
    files = {"large.jpg": saved(picture(500, 390)), "deep.png": saved(grey, "PNG")}
    places = []
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
        places.append(Place(str(tmp_path / name), 0, len(raw)))
    assert decode_reduced(files["large.jpg"], 64).by == 2
    packed = pack(Task(places, 64, 95, aspect, 12, False))
    for name, image in zip(files, packed.images, strict=True):
        expected = io.BytesIO()
        fitted(files[name], 64, 12, square=not aspect).save(expected, "JPEG", quality=95)
        assert image == expected.getvalue()
        if not aspect:
            again = Image.fromarray(load_square(tmp_path / name, 64, 12))
            assert saved(again, quality=95) == image


def test_a_source_that_is_gone_does_not_make_its_images_bad(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(picture(40, 40)))
    good, gone = Place(str(path), 0, path.stat().st_size), Place(str(tmp_path / "none"), 0, 9)
    packed = pack(Task([gone] * 15 + [good] + [gone] * 15, 32, 95, False, 16, True))
    assert sum(isinstance(image, str) for image in packed.images) == 30
    with pytest.raises(DataError, match=r"16 images in a row cannot be read, the last one in '.*none' \(No such file"):
        pack(Task([good] + [gone] * 16, 32, 95, False, 16, True))


@pytest.mark.parametrize(("part", "what"), [("train/class1", "class 'class1' has no"), ("val", "no usable validation")])
def test_nothing_usable_ends_with_the_list_of_reasons(source, tmp_path, part, what, capsys):
    for path in (source / part).rglob("*.jpg"):
        path.write_bytes(b"x")
    assert here(source, tmp_path / "store", "-j", 1) == 3
    assert what in capsys.readouterr().err
    assert (tmp_path / "store/bad.csv").read_text().count("\n") > 5
    assert not (tmp_path / "store/store.json").exists()


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar(tmp_path, kind, small):
    archive = write_cifar(tmp_path / "cifar.tar.gz", kind)
    assert here(archive, tmp_path / "store", "--size", 32, "-j", 1, "--quality", 100) == 0
    data = open_dataset(tmp_path / "store", size=32, seed=0)
    assert (len(data.train), len(data.valid), len(data.classes)) == (100, 20, 10)
    images, labels = cifar_images(20, 5)
    assert cifar_files(kind)
    np.testing.assert_array_equal(data.valid.labels, labels)
    assert data.valid.name(3) == "CIFAR-10 test 3"
    file = io.BytesIO()
    Image.fromarray(images[3]).save(file, "JPEG", quality=100)
    assert data.valid.read(3) == file.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0"], "--size must be 1 to 4096, got 0"),
        (["--quality", "101"], "--quality must be 1 to 100, got 101"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["-j", "0"], "-j must be at least 1, got 0"),
    ],
)
def test_wrong_options(source, tmp_path, options, message, capsys):
    assert here(source, tmp_path / "store", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
