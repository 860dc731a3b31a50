"""IDX files as MNIST and its likes are published, packed and not, damaged, and hostile."""

from __future__ import annotations

import gzip
import os
import struct

import numpy as np
import pytest
from data_files import opened

from convnet.data import DataError, idx, open_dataset

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def as_idx(array):
    code = CODES[array.dtype.str[1:]]
    head = struct.pack(">HBB", 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def images(count, seed=0, shape=(9, 7)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count, classes=3):
    return (np.arange(count) % classes).astype(np.uint8)


def mnist(prefix="", count=12, shape=(9, 7), form="{}-{}-idx{}-ubyte", first=0):
    """Names and contents of a set's four files."""
    files = {}
    for k, (part, n) in enumerate((("train", count), ("t10k", count // 2))):
        pictures = images(n, k, shape)
        files[prefix + form.format(part, "images", pictures.ndim)] = as_idx(pictures)
        files[prefix + form.format(part, "labels", 1)] = as_idx(labels(n) + np.uint8(first))
    return files


def write(folder, files, pack=False):
    folder.mkdir(exist_ok=True)
    for name, raw in files.items():
        (folder / (name + ".gz" * pack)).write_bytes(gzip.compress(raw) if pack else raw)
    return folder


def recognised(path):
    return idx.recognises(path, tuple(sorted(os.listdir(path))) if path.is_dir() else ())


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("form", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}_{}_idx{}_ubyte"])
def test_grey_pictures_become_rgb(tmp_path, pack, form):
    folder = write(tmp_path / "mnist", mnist(form=form), pack)
    for path in (folder, *folder.iterdir()):
        assert recognised(path)
        found = idx.read(path)
        assert found.kind == "IDX files"
        assert found.classes == ["0", "1", "2"]
        assert {part: len(of) for part, of in found.parts.items()} == {"train": 12, "test": 6}
        assert found.parts["train"].images.shape == (12, 9, 7)
    data = opened(idx, folder, size=7)
    assert data.name == "IDX files: 3 classes, 12 training and 6 validation images"
    for k, split in enumerate((data.train, data.valid)):
        for j in range(len(split)):
            expected = np.repeat(images(12 if k == 0 else 6, k)[j, 1:8, :, None], 3, axis=2)  # the centre square
            np.testing.assert_array_equal(split.image(j), expected)
    assert data.train.name(3) == form.format("train", "images", 3) + ".gz" * pack + " 3"


def test_it_is_found_by_who_asks_for_a_data_set(tmp_path):
    data = open_dataset(write(tmp_path / "mnist", mnist()), size=9, seed=0)
    assert (len(data.train), len(data.valid)) == (12, 6)


def test_colour_pictures(tmp_path):
    folder = write(tmp_path / "svhn", mnist(shape=(8, 8, 3)))
    data = opened(idx, folder, size=8)
    np.testing.assert_array_equal(data.train.image(5), images(12, 0, (8, 8, 3))[5])


@pytest.mark.parametrize("missing", ["train", "t10k"])
def test_a_part_may_be_missing(tmp_path, missing):
    files = {name: raw for name, raw in mnist().items() if missing not in name}
    found = idx.read(write(tmp_path / "mnist", files))
    assert list(found.parts) == ["test" if missing == "train" else "train"]


def test_without_parts_all_is_one(tmp_path):
    files = {"images.idx3-ubyte": as_idx(images(4)), "labels.idx1-ubyte": as_idx(labels(4))}
    assert list(idx.read(write(tmp_path / "mnist", files)).parts) == ["all"]


def test_what_is_no_part_is_for_training_beside_a_test_set(tmp_path):
    files = {"images.idx3-ubyte": as_idx(images(4)), "labels.idx1-ubyte": as_idx(labels(4))}
    files |= {"test-images.idx3-ubyte": as_idx(images(2)), "test-labels.idx1-ubyte": as_idx(labels(2))}
    folder = write(tmp_path / "mnist", files)
    assert sorted(idx.read(folder).parts) == ["test", "train"]
    write(folder, {"train-images.idx3-ubyte": as_idx(images(2)), "train-labels.idx1-ubyte": as_idx(labels(2))})
    with pytest.raises(DataError, match="nothing says the purpose of"):
        idx.read(folder)


def test_emnist_is_put_upright_and_its_mapping_names_the_classes(tmp_path):
    files = mnist("emnist-letters-", form="{}-{}-idx{}-ubyte", first=1)
    files = {name.replace("t10k", "test"): raw for name, raw in files.items()}
    folder = write(tmp_path / "gzip", files, pack=True)
    (folder / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n4 68 100\n")
    found = idx.read(folder)
    assert found.classes == ["Aa", "Bb", "Cc", "Dd"]
    np.testing.assert_array_equal(found.parts["train"].images, images(12, 0).transpose(0, 2, 1))
    assert any("EMNIST" in note for note in found.notes)
    assert "1 of 4 classes have no picture to train on: Dd" in opened(idx, folder, size=9).notes


def test_the_sets_of_emnist_are_not_mixed(tmp_path):
    folder = write(tmp_path / "gzip", mnist("emnist-letters-"))
    write(folder, mnist("emnist-digits-", count=8))
    with pytest.raises(
        DataError, match=r"has 2 sets of IDX files \(emnist-digits, emnist-letters\); name a file of one"
    ):
        idx.read(folder)
    assert len(idx.read(folder / "emnist-digits-t10k-labels-idx1-ubyte").parts["train"]) == 8


def test_an_unpacked_file_goes_before_the_packed_one(tmp_path):
    folder = write(tmp_path / "mnist", mnist(), pack=True)
    write(folder, mnist())
    assert idx.read(folder).parts["train"].names[0] == "train-images-idx3-ubyte 0"


@pytest.mark.parametrize(
    ("text", "classes"),
    [("cat\ndog\n\nemu\n", ["cat", "dog", "emu"]), ("cat\ndog\n", ["0", "1", "2"]),
     ("a\na\nb\n", ["a (0)", "a (1)", "b"]), ("\ufeffcat\r\n\x1b[31m\r\nemu", ["cat", "\\x1b[31m", "emu"])],
)  # fmt: skip
def test_names_of_classes_one_a_line(tmp_path, text, classes):
    folder = write(tmp_path / "mnist", mnist())
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    found = idx.read(folder)
    assert found.classes == classes
    assert any("classes.txt" in note for note in found.notes)


def test_numbers_of_classes_sort_as_numbers(tmp_path):
    files = {"images-idx3-ubyte": as_idx(images(3)), "labels-idx1-ubyte": as_idx(np.array([100, 2, 30], np.uint8))}
    found = idx.read(write(tmp_path / "mnist", files))
    assert found.classes == ["002", "030", "100"]
    assert found.parts["all"].labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", ["i1", "i2", "i4"])
def test_labels_of_other_whole_numbers(tmp_path, kind):
    files = {"images-idx3-ubyte": as_idx(images(3)), "labels-idx1-ubyte": as_idx(np.array([1, 0, 1]).astype(kind))}
    assert idx.read(write(tmp_path / "mnist", files)).parts["all"].labels.tolist() == [1, 0, 1]


TRAIN, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
HUGE = struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({TRAIN: as_idx(images(12))[:-1]}, r"771 bytes, where \(12, 9, 7\) are 772; get it again"),
        ({TRAIN: as_idx(images(12)) + b"x"}, "773 bytes, where"),
        ({TRAIN: HUGE + bytes(100)}, r"116 bytes, where .* are 79,[0-9,]+,391; get it again"),
        ({TRAIN: b""}, "does not begin like one"),
        ({TRAIN: b"<html>" + bytes(100)}, "does not begin like one"),
        ({TRAIN: as_idx(images(11))}, "has 11 pictures, and 'train-labels-idx1-ubyte' 12 labels"),
        ({TRAIN: as_idx(images(12, 0, (4, 4, 4)))}, r"uint8 \(12, 4, 4, 4\); needed are bytes"),
        ({TRAIN: as_idx(images(12, 0, (0, 4)))}, "needed are bytes"),
        ({TRAIN: as_idx(images(12).astype("f4"))}, r"float32 \(12, 9, 7\); needed are bytes"),
        ({TRAIN: as_idx(labels(12))}, r"uint8 \(12,\); needed are bytes"),
        ({LABELS: as_idx(images(12))}, "needed is a whole number each"),
        ({LABELS: as_idx(labels(12).astype("f8"))}, "needed is a whole number each"),
        ({LABELS: as_idx(np.full(12, -2, "i2"))}, "label -2 of picture 0"),
        ({LABELS: None}, "'.*train-images-idx3-ubyte' has no file of labels beside it"),
        ({TRAIN: None}, "'.*train-labels-idx1-ubyte' has no file of images beside it"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files(tmp_path, change, message):
    files = {name: raw for name, raw in (mnist() | change).items() if raw is not None}
    with pytest.raises(DataError, match=message) as caught:
        idx.read(write(tmp_path / "mnist", files))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("end", [1, 3, 12, 200, -4, -1])
def test_packed_files_that_are_cut_short(tmp_path, end):
    folder = write(tmp_path / "mnist", mnist(), pack=True)
    raw = (folder / f"{TRAIN}.gz").read_bytes()
    (folder / f"{TRAIN}.gz").write_bytes(raw[:end])
    with pytest.raises(DataError, match="get it again"):
        idx.read(folder)


def test_a_packed_file_with_a_wrong_sum(tmp_path):
    folder = write(tmp_path / "mnist", mnist(), pack=True)
    raw = bytearray((folder / f"{TRAIN}.gz").read_bytes())
    raw[-6] ^= 1
    (folder / f"{TRAIN}.gz").write_bytes(raw)
    with pytest.raises(DataError, match="damaged or cut short"):
        idx.read(folder)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_packed_file_with_other_than_what_its_header_says(tmp_path, more):
    files = mnist()
    files[TRAIN] = files[TRAIN][:more] if more < 0 else files[TRAIN] + b"x"
    with pytest.raises(DataError, match=r"fewer|more"):
        idx.read(write(tmp_path / "mnist", files, pack=True))


def test_what_a_few_bytes_cannot_become_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    """Nothing but zeros packs best, a thousandfold; a header that claims more than that lies."""
    folder = write(tmp_path / "mnist", mnist(), pack=True)
    hostile = folder / "t10k-images-idx3-ubyte.gz"  # the first one that is read
    hostile.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 10**6, 100, 100) + bytes(10**6)))

    def taken(*_, **__):
        raise AssertionError("memory was taken")

    monkeypatch.setattr(np, "empty", taken)
    with pytest.raises(DataError, match=r"where \(1000000, 100, 100\) are 10,000,000,016; get it again"):
        idx.read(folder)


def test_what_does_not_fit_into_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("convnet.data.published.free_memory", lambda: 755)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte': takes 0.00 GB of memory"):
        idx.read(write(tmp_path / "mnist", mnist()))


def test_other_things_are_not_taken_for_it(tmp_path):
    folder = tmp_path / "things"
    (folder / "images").mkdir(parents=True)
    for name, raw in (("images.txt", b"\0\0\x08\x03"), ("1_image.jpg", b"\xff\xd8\xff"), ("images.gz", b"\x1f\x8b\x08"),
                      ("image", b"")):  # fmt: skip
        (folder / name).write_bytes(raw)
    os.mkfifo(folder / "images-pipe")
    (folder / "image-link").symlink_to("nowhere")
    assert not recognised(folder)
    for path in folder.iterdir():
        assert not idx.recognises(path, ()), path


def test_a_pipe_in_the_place_of_a_file(tmp_path):
    folder = write(tmp_path / "mnist", mnist())
    (folder / LABELS).unlink()
    os.mkfifo(folder / LABELS)
    with pytest.raises(DataError, match="not a regular file"):
        idx.read(folder)
