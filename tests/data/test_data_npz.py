"""NumPy archives with pictures and labels under the names that people use, damaged, and hostile."""

from __future__ import annotations

import io
import os
import struct
import zipfile

import numpy as np
import pytest
from data_files import opened
from PIL import Image

from convnet.data import DataError, npz, open_dataset, store

COUNT = 12


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape or (COUNT, 9, 7, 3), dtype=np.uint8)


def labels(count=COUNT, classes=3):
    return np.arange(count) % classes


def save(path, *, packed=False, **arrays):
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def recognised(path):
    return npz.recognises(path, tuple(sorted(os.listdir(path))) if path.is_dir() else ())


PAIRS = [("images", "labels"), ("x", "y"), ("X", "y"), ("data", "labels"), ("image", "label"), ("imgs", "targets")]


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("packed", [False, True])
def test_one_set_under_usual_names(tmp_path, names, packed):
    path = save(tmp_path / "mine.npz", packed=packed, **dict(zip(names, (images(), labels()), strict=True)))
    for where in (path, tmp_path):
        assert recognised(where)
        found = npz.read(where)
        assert found.kind == "NumPy archive"
        assert found.classes == ["0", "1", "2"]
        assert list(found.parts) == ["all"]
        np.testing.assert_array_equal(found.parts["all"].images, images())
        assert found.parts["all"].labels.tolist() == labels().tolist()
        assert found.parts["all"].names[3] == f"{names[0]} 3"
        assert not found.notes


SPLIT = ["x_{}|y_{}", "X_{}|y_{}", "{}_images|{}_labels", "{}-images|{}-labels", "images_{}|labels_{}"]


@pytest.mark.parametrize("form", SPLIT)
@pytest.mark.parametrize("valid", ["val", "valid", "validation"])
def test_parts_under_usual_names(tmp_path, form, valid):
    arrays = {}
    for k, part in enumerate(("train", valid, "test")):
        for name, array in zip(
            form.format(part, part).split("|"), (images(COUNT, 6, 6, seed=k), labels()), strict=True
        ):
            arrays[name] = array
    found = npz.read(save(tmp_path / "mine.npz", **arrays))
    assert sorted(found.parts) == ["test", "train", "val"]
    for k, part in enumerate(("train", "val", "test")):
        np.testing.assert_array_equal(found.parts[part].images, images(COUNT, 6, 6, seed=k))


def test_it_is_found_by_who_asks_for_a_data_set(tmp_path):
    save(
        tmp_path / "mnist.npz", x_train=images(COUNT, 8, 8), y_train=labels(), x_test=images(6, 8, 8), y_test=labels(6)
    )
    (tmp_path / "README.md").write_text("MNIST")
    data = open_dataset(tmp_path, size=8, seed=0)
    assert data.name == "NumPy archive: 3 classes, 12 training and 6 validation images"
    np.testing.assert_array_equal(data.train.image(5), np.repeat(images(COUNT, 8, 8)[5][..., None], 3, axis=2))


def test_a_file_for_each_part(tmp_path):
    for k, part in enumerate(("train", "val")):
        save(tmp_path / f"{part}.npz", x=images(COUNT, 6, 6, seed=k), y=labels())
    assert recognised(tmp_path)
    found = npz.read(tmp_path)
    assert sorted(found.parts) == ["train", "val"]
    np.testing.assert_array_equal(found.parts["val"].images, images(COUNT, 6, 6, seed=1))
    assert found.parts["val"].names[3] == "val.npz x 3"


def test_a_file_for_each_array_as_kuzushiji_has_them(tmp_path):
    for k, part in enumerate(("train", "test")):
        save(tmp_path / f"kmnist-{part}-imgs.npz", arr_0=images(COUNT, 6, 6, seed=k))
        save(tmp_path / f"kmnist-{part}-labels.npz", arr_0=labels())
    found = npz.read(tmp_path)
    assert sorted(found.parts) == ["test", "train"]
    np.testing.assert_array_equal(found.parts["test"].images, images(COUNT, 6, 6, seed=1))


RGBA = images(COUNT, 9, 7, 4)
SHAPES = {
    "grey": (images(COUNT, 9, 7), images(COUNT, 9, 7)),
    "grey last": (images(COUNT, 9, 7, 1), images(COUNT, 9, 7, 1)[..., 0]),
    "grey first": (images(COUNT, 1, 9, 7), images(COUNT, 1, 9, 7)[:, 0]),
    "colour last": (images(COUNT, 9, 7, 3), images(COUNT, 9, 7, 3)),
    "colour first": (images(COUNT, 3, 9, 7), images(COUNT, 3, 9, 7).transpose(0, 2, 3, 1)),
    "in Fortran's order": (np.asfortranarray(images(COUNT, 9, 7, 3)), images(COUNT, 9, 7, 3)),
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", ["u1", "<i2", ">i8", "u8", "f2", "f4", ">f8", "unit f4", "unit f8", "?"])
def test_shapes_and_types_of_pixels(tmp_path, shape, kind):
    given, expected = SHAPES[shape]
    if kind.startswith("unit"):
        given = (given / 255).astype(kind.split()[1])
    elif kind == "?":
        given, expected = given > 99, np.uint8(255) * (expected > 99)
    else:
        given = given.astype(kind)
    found = npz.read(save(tmp_path / "a.npz", images=given, labels=labels()))
    assert found.parts["all"].images.dtype == np.uint8
    np.testing.assert_array_equal(found.parts["all"].images, expected)
    assert [("times 255" in note) for note in found.notes] == [True] * (kind[0] in "u?" and kind not in ("u1", "u8"))


@pytest.mark.parametrize("unit", [False, True])
def test_transparency_lies_over_white(tmp_path, unit):
    found = npz.read(save(tmp_path / "a.npz", images=RGBA / 255 if unit else RGBA, labels=labels()))
    for k in range(COUNT):
        whole = Image.new("RGB", (7, 9), "white")
        whole.paste(Image.fromarray(RGBA[k]), mask=Image.fromarray(RGBA[k]))
        np.testing.assert_array_equal(found.parts["all"].images[k], np.asarray(whole))


def test_pictures_are_converted_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "BLOCK", 1000)
    values = images(COUNT, 9, 7, 3) / 255
    found = npz.read(save(tmp_path / "a.npz", images=values, labels=labels()))
    np.testing.assert_array_equal(found.parts["all"].images, images(COUNT, 9, 7, 3))
    values[-1, 0, 0, 0] = 1.5
    with pytest.raises(DataError, match=r"float64 \(12, 9, 7, 3\) with fractions between 0 and 1.5"):
        npz.read(save(tmp_path / "a.npz", images=values, labels=labels()))


def test_fractions_of_all_parts_have_one_scale(tmp_path):
    """A test set of nearly black pictures, from 0 to 1 where others go to 255, is not made brighter."""
    dark = (images(COUNT, 4, 4) > 99).astype(np.float32)
    arrays = {
        "x_train": images(COUNT, 4, 4).astype(np.float32),
        "y_train": labels(),
        "x_test": dark,
        "y_test": labels(),
    }
    found = npz.read(save(tmp_path / "a.npz", **arrays))
    assert found.parts["test"].images.max() == 1
    assert not found.notes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (images(COUNT, 63), r"uint8 \(12, 63\) are no pictures"),
        (images(COUNT, 9, 7, 2), r"uint8 \(12, 9, 7, 2\) are no pictures"),
        (images(COUNT, 4, 9, 7), r"are no pictures"),
        (images(COUNT, 4, 4, 4, 3), r"are no pictures"),
        (images(COUNT, 0, 7), r"are no pictures"),
        (images(COUNT, 9, 7).astype("c8"), r"complex64 \(12, 9, 7\) are no pictures"),
        (images(COUNT, 9, 7).astype("U3"), r"are no pictures"),
        (images(COUNT, 9, 7).astype("i2") - 1, "values from -1 to"),
        (images(COUNT, 9, 7).astype("u2") + 1, "values from 1 to 256"),
        (images(COUNT, 9, 7) / 127.5 - 1, "values from -1 to"),
        (np.full((COUNT, 9, 7), np.nan), "values from nan to nan"),
        (np.full((COUNT, 9, 7), np.inf), "values from inf to inf"),
        (images(COUNT, 9, 7) / 2, "with fractions between 0 and 127.5; .* save the pixels as uint8"),
    ],
)
def test_what_are_no_pictures(tmp_path, given, message):
    path = save(tmp_path / "a.npz", x=given, y=labels())
    with pytest.raises(DataError, match=message) as caught:
        npz.read(path)
    assert f"{str(path)!r}, array 'x'" in str(caught.value)


ONE_HOT = np.eye(3)[labels()]
GOOD = {
    "column": labels()[:, None],
    "small": labels().astype(np.uint8),
    "wide": labels().astype(np.uint64),
    "other order": labels().astype(">i4"),
    "float": labels().astype(np.float32),
    "one-hot": ONE_HOT,
    "one-hot of integers": ONE_HOT.astype(np.int8),
    "one-hot of bools": ONE_HOT.astype(bool),
}


@pytest.mark.parametrize("kind", list(GOOD))
def test_labels(tmp_path, kind):
    found = npz.read(save(tmp_path / "a.npz", images=images(), labels=GOOD[kind]))
    assert found.classes == ["0", "1", "2"]
    assert found.parts["all"].labels.tolist() == labels().tolist()
    assert found.parts["all"].labels.dtype == np.int32


@pytest.mark.parametrize("kind", ["U", "S"])
def test_labels_of_text(tmp_path, kind):
    texts = np.array(["emu", "cat", "dog"] * 4).astype(kind)
    found = npz.read(save(tmp_path / "a.npz", images=images(), labels=texts))
    assert found.classes == ["cat", "dog", "emu"]
    assert found.parts["all"].labels.tolist() == [2, 0, 1] * 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (labels(COUNT - 1), r"int64 \(11,\), for 12 pictures; one label each"),
        (np.zeros((COUNT, 2, 2)), r"float64 \(12, 2, 2\), for 12 pictures"),
        (ONE_HOT * 0.5, r"row 0 of float64 \(12, 3\) is not all 0 but for a single 1"),
        (np.ones((COUNT, 3)), "row 0 of"),
        (np.zeros((COUNT, 3), int), "row 0 of"),
        (labels() + 0.5, "label 0.5 of picture 0; labels are whole numbers"),
        (np.where(labels() == 1, np.nan, 0), "label nan of picture 1"),
        (labels() - 2, "label -2 of picture 0"),
        (labels().astype("c8"), "labels are whole numbers or text"),
        (np.array([["a", "b"]] * COUNT), "labels are whole numbers or text"),
        (labels().astype(object), r"holds objects of Python, .* save it as numbers or as text \(.astype\(str\)\)"),
    ],
)
def test_what_are_no_labels(tmp_path, given, message):
    with pytest.raises(DataError, match=message):
        npz.read(save(tmp_path / "a.npz", images=images(), labels=given))


def test_a_part_without_labels_is_left_out_with_a_word(tmp_path):
    arrays = {"x_train": images(), "y_train": labels(), "x_test": images()}
    for more in ({}, {"y_test": np.full(COUNT, -1)}):
        found = npz.read(save(tmp_path / "a.npz", **arrays, **more))
        assert list(found.parts) == ["train"]
        assert len(found.notes) == 1
        assert "left out" in found.notes[0]


@pytest.mark.parametrize("name", ["classes", "class_names", "label_names"])
def test_names_of_classes(tmp_path, name):
    """They are the classes, also those that have no picture here."""
    path = save(tmp_path / "a.npz", images=images(), labels=labels(), **{name: np.array(["a", "b", "c", "d"])})
    data = opened(npz, path, size=7)
    assert data.classes == ["a", "b", "c", "d"]
    assert "1 of 4 classes have no picture to train on: d" in data.notes


def test_other_arrays_are_named(tmp_path):
    found = npz.read(save(tmp_path / "a.npz", images=images(), labels=labels(), weights=np.ones(3)))
    assert found.notes == ["arrays that are not used: weights"]
    with pytest.raises(DataError, match="has the arrays weights, bias; needed are 'images' and 'labels', or"):
        npz.read(save(tmp_path / "a.npz", weights=np.ones(3), bias=np.ones(3)))
    with pytest.raises(DataError, match="'images', 'data' may all be the images; leave one of them in"):
        npz.read(save(tmp_path / "a.npz", images=images(), data=images(), labels=labels()))


def test_flat_copies_beside_the_pictures_are_passed_over(tmp_path):
    """As scikit-learn's digits have them."""
    arrays = {"data": images(COUNT, 64), "images": images(COUNT, 8, 8), "target": labels()}
    found = npz.read(save(tmp_path / "a.npz", **arrays, target_names=np.array(["a", "b", "c"])))
    assert found.parts["all"].images.shape == (COUNT, 8, 8)
    assert found.classes == ["a", "b", "c"]


def test_equal_data_is_known_again(tmp_path):
    first = opened(npz, save(tmp_path / "a.npz", images=images(), labels=labels()), size=7)
    again = opened(npz, save(tmp_path / "b.npz", packed=True, x=images() / 255, y=labels()), size=7)
    other = images()
    other[-1, -1, -1, -1] ^= 1
    changed = opened(npz, save(tmp_path / "c.npz", images=other, labels=labels()), size=7)
    assert first.fingerprint == again.fingerprint != changed.fingerprint


# ---- damaged and hostile archives ----


def member(array=None, header=None, data=b""):
    """An .npy file with any header."""
    if array is not None:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, raw in members.items():
            file.writestr(f"{name}.npy", raw)
    return path


def head(shape, kind="|u1"):
    return f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()


@pytest.mark.parametrize(
    "raw",
    [
        member(header=head((2**40, 2**20, 3))),
        member(header=head((12, 9, 7)), data=bytes(755)),
        member(header=head((12, 9, 7)), data=bytes(757)),
        member(header=head((-12, -9, 7)), data=bytes(756)),
        member(header=b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"1," * 5000 + b")}"),
        member(header=b"(" * 9000),
        member(header=b"__import__('os').abort()"),
        member(header=head((12, 9, 7), "V0")),
        member(header=b"{'descr': 0xg, 'shape': 1or 2}"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(5000),
        b"\x93NUMPY\x03\x00" + struct.pack("<I", 10) + bytes(1000),
        b"",
        b"hello",
    ],
)
def test_hostile_headers(tmp_path, raw):
    path = archive(tmp_path / "a.npz", images=raw, labels=member(labels()))
    with pytest.raises(DataError, match=r"a\.npz"):
        npz.read(path)


def test_what_a_few_bytes_cannot_become_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    """Header and directory agree on 4 GB, and the archive has a few bytes."""
    header = member(header=head((4 * 10**5, 100, 100)))
    path = archive(tmp_path / "a.npz", images=header + bytes(10**5), labels=member(labels()))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")  # the directory, with the entry of the first array
    raw[at + 24 : at + 28] = struct.pack("<I", len(header) + 4 * 10**9)
    path.write_bytes(raw)

    def taken(*_, **__):
        raise AssertionError("memory was taken")

    monkeypatch.setattr(np, "empty", taken)
    with pytest.raises(DataError, match=r"images.npy: \d+ bytes cannot become 4,000,000,\d+"):
        npz.read(path)


def test_what_does_not_fit_into_memory_is_not_read(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz", images=images(), labels=labels())
    monkeypatch.setattr("convnet.data.published.free_memory", lambda: 2000)
    monkeypatch.setattr(npz, "_load", None)
    with pytest.raises(DataError, match="GB of memory to read"):
        npz.read(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_text_that_is_none(tmp_path, order):
    texts = np.array(["cat", "dog"] * 6).astype(f"{order}U3")
    raw = member(texts)
    assert npz.read(archive(tmp_path / "a.npz", images=member(images()), labels=raw)).classes == ["cat", "dog"]
    for name in ("labels", "classes"):
        arrays = {"images": member(images()), "labels": member(labels()), name: raw[:-4] + b"\xee" * 4}
        with pytest.raises(DataError, match="is no character"):
            npz.read(archive(tmp_path / "a.npz", **arrays))


def test_headers_of_python_2_are_read_without_a_word(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (12L, 9L, 7L), }\n"
    raw = member(header=header, data=images(COUNT, 9, 7).tobytes())
    found = npz.read(archive(tmp_path / "a.npz", images=raw, labels=member(labels())))
    np.testing.assert_array_equal(found.parts["all"].images, images(COUNT, 9, 7))


@pytest.mark.parametrize("end", [0, 3, 10, 30, 200, 1000, -30, -1])
def test_archives_that_are_cut_short(tmp_path, end):
    path = save(tmp_path / "a.npz", images=images(), labels=labels())
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataError, match=r"a\.npz"):
        npz.read(path)


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_pixels_are_noticed(tmp_path, packed):
    path = save(tmp_path / "a.npz", packed=packed, images=images(), labels=labels())
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a damaged .npz archive"):
        npz.read(path)


def test_encrypted_and_strangely_packed_archives(tmp_path):
    path = save(tmp_path / "a.npz", images=images(), labels=labels())
    raw = bytearray(path.read_bytes())
    for mark, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + flag] |= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a damaged .npz archive .*encrypted"):
        npz.read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("images.npy", member(images()))
    with pytest.raises(DataError, match="packed in a way that NumPy does not use"):
        npz.read(path)


def test_a_header_that_numpy_would_compute_over_for_long(tmp_path):
    """Nine seconds in Python's tokenizer, before it was refused."""
    text = b"{'descr': '<f8'" + b" " * 4500 + b"\0" + b" " * 4500 + b"\n"
    array = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", array)
    with pytest.raises(DataError, match="an array's header is no text"):
        npz.read(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="an array's header is no text"):
        store._array(array)


def test_other_things_are_not_taken_for_it(tmp_path):
    path = save(tmp_path / "a.npz", images=images(), labels=labels())
    (tmp_path / "sub").mkdir()
    assert not recognised(tmp_path)  # pictures may lie in the folder beside
    assert not npz.recognises(path.rename(tmp_path / "a.zip"), ())
    (tmp_path / "b.npz").write_bytes(b"<html>")
    (tmp_path / "link.npz").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.npz")
    for name in ("b.npz", "link.npz", "pipe.npz", "nothing.npz"):
        assert not npz.recognises(tmp_path / name, ()), name
    (tmp_path / "other").mkdir()
    save(tmp_path / "other" / "a.npz", images=images(), labels=labels())
    assert recognised(tmp_path / "other")
    (tmp_path / "other" / "1.jpg").write_bytes(b"x")
    assert not recognised(tmp_path / "other")
