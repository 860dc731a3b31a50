"""CIFAR in its published formats, own batches in its layout, and what hostile archives and pickles must not achieve."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from data_files import CIFAR_CLASSES, cifar_files, cifar_images, cifar_rows, opened, python2_batch, write_cifar
from PIL import Image

from convnet.data import DataError, cifar
from convnet.data.pickles import read_plain


@pytest.mark.parametrize("kind", ["bin", "py"])
@pytest.mark.parametrize("packing", ["w:gz", "w", "folder", "parent"])
def test_every_published_form_gives_the_same_images(tmp_path, kind, packing):
    if packing in ("folder", "parent"):
        path = tmp_path / (f"cifar-10-batches-{kind}" if packing == "parent" else "data")
        path.mkdir()
        for name, raw in cifar_files(kind).items():
            (path / name).write_bytes(raw)
        path = tmp_path if packing == "parent" else path
    else:
        path = write_cifar(tmp_path / "archive", kind, mode=packing)
    before = sorted(tmp_path.rglob("*"))
    data = opened(cifar, path, size=32)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked to disk

    form = "folder" if packing in ("folder", "parent") else "archive"
    version = {"bin": "binary", "py": "Python"}[kind]
    assert data.name == f"CIFAR-10 {form}, {version} version: 10 classes, 100 training and 20 validation images"
    assert data.classes == CIFAR_CLASSES
    for split, batches in ((data.train, range(5)), (data.valid, [5])):
        images, labels = (np.concatenate(parts) for parts in zip(*(cifar_images(20, k) for k in batches), strict=True))
        np.testing.assert_array_equal(split.labels, labels)
        assert split.labels.dtype == np.int32
        for k in range(len(split)):
            np.testing.assert_array_equal(split.image(k), images[k])


def test_both_versions_and_forms_have_one_fingerprint_and_other_pixels_another(tmp_path):
    prints = {
        opened(cifar, write_cifar(tmp_path / f"{kind}.tar.gz", kind), size=40).fingerprint
        for kind, seed in (("bin", 0), ("py", 1))
    }
    files = cifar_files("bin")
    files["data_batch_3.bin"] = files["data_batch_3.bin"][:-1] + b"\x00"
    other = opened(cifar, write_cifar(tmp_path / "other", "bin", files), size=40).fingerprint
    assert len(prints) == 1
    assert other not in prints


def test_images_are_enlarged_as_pillow_does(tmp_path):
    data = opened(cifar, write_cifar(tmp_path / "a", "bin"), size=73)
    expected = Image.fromarray(cifar_images(20, 0)[0][7]).resize((73, 73), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.train.image(7), np.asarray(expected))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_this_python_and_numpy_are_read(protocol):
    array = np.arange(12, dtype=np.uint8).reshape(2, 6)
    read = read_plain(pickle.dumps({b"data": array, "names": ["a", b"b"]}, protocol=protocol), "here")
    np.testing.assert_array_equal(read["data"], array)
    assert read["names"] == ["a", b"b"]


def test_both_of_numpys_module_names_and_fortran_order_are_read():
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(2, 6))
    raw = pickle.dumps({"data": array}, protocol=2)
    modules = (b"numpy.core.multiarray", b"numpy._core.multiarray")
    present = next(name for name in modules if b"c" + name + b"\n" in raw)
    for name in modules:
        np.testing.assert_array_equal(read_plain(raw.replace(present, name), "here")["data"], array)


class Hostile:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile_pickles(marker):
    array = np.zeros((2, 3072), np.uint8)
    plain, shape = python2_batch(*cifar_images(2, 0)), b"K\x02J\x00\x0c\x00\x00\x86"
    assert shape in plain
    return {
        "runs a command": pickle.dumps(Hostile(os.system, f"touch {marker}"), protocol=2),
        "evaluates": pickle.dumps({"data": Hostile(eval, f"open({str(marker)!r}, 'w')"), "labels": [0]}, protocol=2),
        "opens a file": pickle.dumps(Hostile(open, str(marker), "w"), protocol=4),
        "numpy function": pickle.dumps(Hostile(np.load, str(marker)), protocol=2),
        "attribute of ndarray": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "object array": pickle.dumps({"data": np.array([[1]], object), "labels": [0]}, protocol=2),
        "float array": pickle.dumps({"data": array.astype(np.float32), "labels": [0, 0]}, protocol=2),
        "other codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
        "state for a global": b"\x80\x02cnumpy\nndarray\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        "instance opcode": b"(cos\nsystem\nios\nsystem\n.",
        "persistent id": b"Phere\n.",
        "extension": b"\x80\x02\x82\x01.",
        "huge memo": b"\x80\x02Nr\xff\xff\xff\x0f.",
        "huge bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",
        "too few bytes": plain.replace(shape, b"K\x03J\x00\x0c\x00\x00\x86"),
        "negative shape": plain.replace(shape, b"J\xfe\xff\xff\xffJ\x00\xf4\xff\xff\x86"),
        "never filled": b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)Rs.",
        "contains itself": b"\x80\x02}q\x00U\x04datah\x00s.",
        "not a dict": pickle.dumps([1, 2], protocol=2),
        "no data": pickle.dumps({"labels": [1]}, protocol=2),
        "wrong shape": pickle.dumps({"data": array[:, :-1], "labels": [0, 0]}, protocol=2),
        "one label missing": pickle.dumps({"data": array, "labels": [0]}, protocol=2),
        "label 10": pickle.dumps({"data": array, "labels": [0, 10]}, protocol=2),
        "label of text": pickle.dumps({"data": array, "labels": [0, "1"]}, protocol=2),
        "truncated": plain[:-100],
        "empty": b"",
        "text": b"hello",
    }


@pytest.mark.parametrize("name", list(hostile_pickles("")))
def test_hostile_or_broken_pickles_are_refused(tmp_path, name):
    marker = tmp_path / "marker"
    files = cifar_files("py", 2) | {"data_batch_2": hostile_pickles(marker)[name]}
    path = write_cifar(tmp_path / "a", "py", files)
    with pytest.raises(DataError, match=r"data_batch_2") as caught:
        opened(cifar, path, size=32)
    assert not marker.exists()
    assert str(path) in str(caught.value)


def test_memo_numbers_that_would_cost_gigabytes_are_refused_before_anything_runs():
    with pytest.raises(DataError, match="memo number 268435455"):
        read_plain(b"\x80\x02Nr\xff\xff\xff\x0f.", "here")


def test_what_checkpoints_of_2012_may_name_is_refused_elsewhere():
    for name in ("options\nOption", "copy_reg\n_reconstructor", "__builtin__\nobject"):
        with pytest.raises(DataError, match=f"it names {name.replace(chr(10), '[.]')}"):
            read_plain(f"\x80\x02}}U\x04datac{name}\ns.".encode("latin1"), "here")


def test_a_pickle_cannot_change_the_reader():
    attack = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}X\x05\x00\x00\x00_nameX\x0c\x00\x00\x00_reconstructs\x86b."
    )
    with pytest.raises(DataError, match="state"):
        read_plain(attack, "here")
    array = np.arange(4, dtype=np.uint8)
    np.testing.assert_array_equal(read_plain(pickle.dumps({"data": array}, protocol=2), "here")["data"], array)


def archive_with(tmp_path, *members, kind="bin"):
    """A good archive followed by (TarInfo, bytes) members."""
    path = write_cifar(tmp_path / "a", kind, mode="w")
    with tarfile.open(path, "a") as archive:
        for member, raw in members:
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def test_members_outside_the_list_are_never_read(tmp_path):
    names = (
        "../data_batch_1.bin",
        "/etc/data_batch_1.bin",
        "data_batch_1.bin",
        "other/cifar-10-batches-bin/data_batch_1.bin",
    )
    path = archive_with(tmp_path, *((tarfile.TarInfo(name), b"bad") for name in names))
    assert len(opened(cifar, path, size=32).train) == 100


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_do_not_count_as_the_file(tmp_path, kind):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(3073))
    files = cifar_files("bin")
    del files["data_batch_2.bin"]
    path = write_cifar(tmp_path / "a", "bin", files, mode="w")
    member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_2.bin")
    member.type, member.linkname = kind, str(secret)
    with tarfile.open(path, "a") as archive:
        archive.addfile(member)
    with pytest.raises(DataError, match=r"missing are data_batch_2\.bin"):
        opened(cifar, path, size=32)


def test_a_member_that_occurs_twice_is_refused(tmp_path):
    path = archive_with(tmp_path, (tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin"), b"x"))
    with pytest.raises(DataError, match="twice"):
        opened(cifar, path, size=32)


def test_an_archive_of_large_or_many_members_is_refused_at_the_header(tmp_path):
    huge = tarfile.TarInfo("cifar-10-batches-bin/anything")
    huge.size = 2**40
    (tmp_path / "huge").write_bytes(huge.tobuf() + bytes(1024))
    many = archive_with(tmp_path, *((tarfile.TarInfo(f"file{k}"), b"") for k in range(200)))
    for path in (tmp_path / "huge", many):
        with pytest.raises(DataError, match="more or larger files"):
            opened(cifar, path, size=32)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_inflates_is_not_read(tmp_path, kind):
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 80 * 2**20
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf() + bytes(header.size)))
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"a\.tar\.gz.* a header of 83,886"):
        opened(cifar, path, size=32)


@pytest.mark.parametrize("size", [-1, -(2**80), 2**80])
def test_a_size_that_no_file_has_is_refused(tmp_path, size):
    header = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    header.size = size
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf() + bytes(10_240))
    with pytest.raises(DataError, match=r"a\.tar.* (this is none|not a readable tar archive)"):
        opened(cifar, path, size=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_4.bin": bytes(3072)}, "records of 3073 bytes"),
        ({"data_batch_4.bin": b""}, "records of 3073 bytes"),
        ({"test_batch.bin": b"\x0a" + bytes(3072)}, "labels must be 0 to 9, found 10"),
        ({"batches.meta.txt": b"cat\ndog\n"}, "names of 10 classes"),
    ],
)
def test_damaged_binary_files_are_named(tmp_path, change, message):
    path = write_cifar(tmp_path / "a", "bin", cifar_files("bin") | change)
    with pytest.raises(DataError, match=message) as caught:
        opened(cifar, path, size=32)
    assert next(iter(change)) in str(caught.value)


def test_truncated_archives_are_refused_wherever_they_end(tmp_path):
    raw = write_cifar(tmp_path / "whole", "bin").read_bytes()
    for end in (0, 1, 100, len(raw) // 2, len(raw) - len(raw) // 8):
        (tmp_path / "cut").write_bytes(raw[:end])
        with pytest.raises(DataError, match="cut"):
            opened(cifar, tmp_path / "cut", size=32)


@pytest.mark.parametrize("missing", ["test_batch", "data_batch_3", "batches.meta"])
def test_an_incomplete_folder_of_the_published_name_names_the_missing_file(tmp_path, missing):
    files = cifar_files("py")
    del files[missing]
    folder = write_files(tmp_path / "cifar-10-batches-py", files)
    for path in (folder, tmp_path):
        with pytest.raises(DataError, match=f"not a complete CIFAR-10; missing is '{missing}'"):
            cifar.read(path)


def write_files(folder, files):
    folder.mkdir()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_runs_of_before_know_cifar_10_again(tmp_path, kind):
    """The digest that they keep: of names and counts, labels as int32, pixels, and the names of the classes."""
    digest = hashlib.sha256()
    for k, batch in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        images, labels = cifar_images(20, k)
        digest.update(f"{batch} 20 ".encode() + labels.astype("<i4").tobytes() + images.tobytes())
    digest.update("\0".join(CIFAR_CLASSES).encode())
    found = cifar.read(write_cifar(tmp_path / "a", kind))
    assert found.known == digest.hexdigest()
    assert opened(cifar, tmp_path / "a", size=32).fingerprint == found.known
    assert (found.parts["train"].names[5], found.parts["val"].names[7]) == ("CIFAR-10 train 5", "CIFAR-10 test 7")


# ---- CIFAR-100 ----


FINE = [f"fine_{k}" for k in range(100)]


def hundred(kind, count=120):
    """Its files; the labels of part k are 0, 1, ... + k."""
    files = {}
    for k, part in enumerate(("train", "test")):
        images = np.random.default_rng(k).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        fine = (np.arange(count) + k) % 100
        if kind == "py":
            batch = {"data": cifar_rows(images), "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
            files[part] = pickle.dumps(batch, protocol=2)
        else:
            rows = zip(fine.tolist(), cifar_rows(images), strict=True)
            files[f"{part}.bin"] = b"".join(bytes([label // 5, label]) + row.tobytes() for label, row in rows)
    if kind == "py":
        names = {"fine_label_names": FINE, "coarse_label_names": [f"coarse_{k}" for k in range(20)]}
        return files | {"meta": pickle.dumps(names, protocol=2)}
    return files | {"fine_label_names.txt": "\n".join(FINE).encode() + b"\n", "coarse_label_names.txt": b"x\n" * 20}


@pytest.mark.parametrize("kind", ["bin", "py"])
@pytest.mark.parametrize("packing", ["w:gz", "w", "folder", "parent"])
def test_cifar_100(tmp_path, kind, packing):
    name = {"bin": "cifar-100-binary", "py": "cifar-100-python"}[kind]
    folder = write_files(tmp_path / (name if packing != "folder" else "data"), hundred(kind))
    path = {"folder": folder, "parent": tmp_path}.get(packing, tmp_path / "archive")
    if packing.startswith("w"):
        with tarfile.open(path, packing) as archive:
            archive.add(folder, name)
    assert recognised(path)
    found = cifar.read(path)
    version = {"bin": "binary", "py": "Python"}[kind]
    assert found.kind == f"CIFAR-100 {'archive' if packing.startswith('w') else 'folder'}, {version} version"
    assert found.classes == FINE
    assert found.parts["train"].names[5] == "CIFAR-100 train 5"
    assert "coarse" in found.notes[0]
    data = opened(cifar, path, size=32)
    for k, split in enumerate((data.train, data.valid)):
        images = np.random.default_rng(k).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
        assert split.labels.tolist() == [(j + k) % 100 for j in range(120)]
        for j in (0, 7, 119):
            np.testing.assert_array_equal(split.image(j), images[j])


def test_a_part_of_cifar_100_keeps_its_classes(tmp_path):
    """As those who try with a few hundred pictures have it: not all classes are among them."""
    files = hundred("py", count=60)  # the last class of the test set is none of the training set
    data = opened(cifar, write_files(tmp_path / "cifar-100-python", files), size=32)
    assert data.classes == FINE
    assert (
        "40 of 100 classes have no picture to train on: fine_60, fine_61, fine_62, fine_63, fine_64, ..." in data.notes
    )
    assert data.valid.labels.max() == 60


def test_of_two_sets_in_a_folder_one_must_be_named(tmp_path):
    write_files(tmp_path / "cifar-100-python", hundred("py"))
    write_files(tmp_path / "cifar-10-batches-bin", cifar_files("bin"))
    assert recognised(tmp_path)
    with pytest.raises(DataError, match="has folders of CIFAR-10 and CIFAR-100; name one of them"):
        cifar.read(tmp_path)
    assert len(cifar.read(tmp_path / "cifar-10-batches-bin").classes) == 10


def test_versions_of_cifar_100_are_one_data_set(tmp_path):
    known = {cifar.read(write_files(tmp_path / kind, hundred(kind))).known for kind in ("bin", "py")}
    assert len(known) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}, 2)},
            "0 to 99, found 100",
        ),
        ({"train": pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}, 2)}, "'labels' must be a list or an array"),
        ({"meta": pickle.dumps({"fine_label_names": FINE[:20]}, 2)}, "expected the names of 100 classes"),
        ({"meta": b"<html>"}, "file 'meta': not a pickle"),
        ({"test": b""}, "file 'test': not a pickle"),
    ],
)
def test_damaged_files_of_cifar_100(tmp_path, change, message):
    folder = write_files(tmp_path / "cifar-100-python", hundred("py") | change)
    with pytest.raises(DataError, match=message):
        cifar.read(folder)


# ---- own batches ----


def own(count, size, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) % classes


def rows_of(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def recognised(path):
    return cifar.recognises(path, tuple(sorted(os.listdir(path))) if path.is_dir() else ())


LABELS = {
    "list": lambda labels: labels.tolist(),
    "list of NumPy integers": lambda labels: list(labels.astype(np.int64)),
    "list of small NumPy integers": lambda labels: list(labels.astype(np.uint8)),
    **{
        f"{kind} array": lambda labels, kind=kind: labels.astype(kind)
        for kind in ("u1", "i2", "<i4", ">i4", "<i8", ">u8")
    },
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("labels", list(LABELS))
def test_own_batches_of_any_size_and_number_of_classes(tmp_path, labels, protocol):
    files, expected = {}, []
    for k in (1, 2, 10):
        images, numbers = own(13, 20, 13, k)
        expected.append(images)
        batch = {"data": rows_of(images), "labels": LABELS[labels](numbers), "mean": np.ones(3)}
        files[f"data_batch_{k}"] = pickle.dumps(batch, protocol=protocol)
    folder = write_files(tmp_path / "mine", files)
    assert recognised(folder)
    found = cifar.read(folder)
    assert found.kind == "CIFAR batches, Python version"
    assert found.classes == [f"{k:02}" for k in range(13)]
    assert list(found.parts) == ["all"]
    assert found.parts["all"].labels.tolist() == [*range(13)] * 3
    np.testing.assert_array_equal(found.parts["all"].images, np.concatenate(expected))  # 10 comes behind 2
    data = opened(cifar, folder, size=20)
    assert (len(data.train), len(data.valid)) == (26, 13)
    assert data.fingerprint != opened(cifar, folder, size=20, seed=1).fingerprint


@pytest.mark.parametrize(("names", "used"), [(3, True), (5, True), (2, False), (0, False)])
def test_names_of_own_batches_are_used_where_every_label_has_one(tmp_path, names, used):
    images, labels = own(9, 8, 3)
    batch = pickle.dumps({"data": rows_of(images), "labels": labels})
    meta = {"label_names": [f"name{k}" for k in range(names)]}
    files = {"data_batch_1": batch, "test_batch": batch, "batches.meta": pickle.dumps(meta)}
    found = cifar.read(write_files(tmp_path / "mine", files))
    assert found.classes == (meta["label_names"] if used else ["0", "1", "2"])
    assert sorted(found.parts) == ["train", "val"]
    assert ["numbers are used" in note for note in found.notes] == [True] * (names == 2)


def test_own_batches_with_the_file_names_of_cifar_10_are_not_taken_for_it(tmp_path):
    for size, classes, names, title in ((32, 10, 10, "CIFAR-10 folder"), (16, 10, 10, "CIFAR batches"),
                                        (32, 43, 43, "CIFAR batches")):  # fmt: skip
        batch = pickle.dumps({"data": rows_of(own(50, size, classes)[0]), "labels": own(50, size, classes)[1].tolist()})
        files = {name: batch for name in cifar_files("py")}
        files["batches.meta"] = pickle.dumps({"label_names": [str(k) for k in range(names)]})
        found = cifar.read(write_files(tmp_path / f"{size}-{names}", files))
        assert found.kind == f"{title}, Python version"
        assert len(found.classes) == classes


def test_ten_names_for_more_classes_are_refused_with_the_remedy(tmp_path):
    batch = pickle.dumps({"data": rows_of(own(50, 32, 43)[0]), "labels": own(50, 32, 43)[1].tolist()})
    files = {name: batch for name in cifar_files("py")} | {"batches.meta": cifar_files("py")["batches.meta"]}
    with pytest.raises(DataError, match=r"found 10; for own classes write all names into 'batches.meta', or remove it"):
        cifar.read(write_files(tmp_path / "mine", files))


def test_the_small_imagenet_in_batches(tmp_path):
    images, labels = own(20, 16, 10)
    batch = pickle.dumps({"data": rows_of(images), "labels": (labels + 1).tolist(), "mean": np.zeros(768)})
    found = cifar.read(write_files(tmp_path / "mine", {"train_data_batch_1": batch, "val_data": batch}))
    assert {part: len(of) for part, of in found.parts.items()} == {"train": 20, "val": 20}
    assert found.classes == [f"{k:02}" for k in range(1, 11)]


def test_own_binary_batches(tmp_path):
    files = {f"data_batch_{k}.bin": cifar_files("bin")[f"data_batch_{k}.bin"] for k in (1, 2)}
    found = cifar.read(write_files(tmp_path / "mine", files))
    assert found.kind == "CIFAR batches, binary version"
    np.testing.assert_array_equal(found.parts["all"].images[20:], cifar_images(20, 1)[0])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"data": np.zeros((2, 3 * 64 + 3), np.uint8), "labels": [0, 1]},
            r"rows of 3 S S bytes .*found uint8 \(2, 195\)",
        ),
        ({"data": np.zeros((2, 192), np.float32), "labels": [0, 1]}, r"found float32 \(2, 192\)"),
        ({"data": np.zeros((2, 8, 8, 3), np.uint8), "labels": [0, 1]}, r"found uint8 \(2, 8, 8, 3\)"),
        ({"data": [[1] * 192], "labels": [0]}, "found none"),
        ({"data": np.zeros((0, 192), np.uint8), "labels": []}, "has no picture"),
        ({"data": np.zeros((2, 192), np.uint8), "labels": [0, True]}, "list or an array of numbers"),
        ({"data": np.zeros((2, 192), np.uint8), "labels": [0, 2**40]}, "list or an array of numbers"),
        ({"data": np.zeros((2, 192), np.uint8), "labels": np.zeros((2, 2), int)}, "list or an array of numbers"),
        ({"data": np.zeros((2, 192), np.uint8), "labels": np.zeros(2)}, "list or an array of numbers"),
        ({"data": np.zeros((2, 192), np.uint8), "labels": np.array([-2, 1])}, "list or an array of numbers"),
        ({"data": np.zeros((2, 192), np.uint8), "labels": [-1, 1]}, "label -1 of picture 0"),
        ({"data": np.zeros((2, 192), np.uint8), "labels": np.zeros(3, int)}, "3 labels for 2 rows"),
    ],
)
def test_own_batches_that_are_none(tmp_path, batch, message):
    folder = write_files(tmp_path / "mine", {"data_batch_1": pickle.dumps(batch)})
    assert recognised(folder)
    with pytest.raises(DataError, match=message) as caught:
        cifar.read(folder)
    assert str(folder) in str(caught.value)


def test_batches_of_two_sizes_are_refused(tmp_path):
    files = {f"data_batch_{s}": pickle.dumps({"data": rows_of(own(2, s, 2)[0]), "labels": [0, 1]}) for s in (8, 9)}
    with pytest.raises(DataError, match="'data_batch_9': pictures 9 pixels wide, and 8 in the files before"):
        cifar.read(write_files(tmp_path / "mine", files))


def test_a_batch_that_is_a_pipe_or_a_dangling_link_is_not_passed_over(tmp_path):
    batch = pickle.dumps({"data": rows_of(own(4, 8, 2)[0]), "labels": [0, 1, 0, 1]})
    for name, make in (("pipe", os.mkfifo), ("link", lambda path: os.symlink("nowhere", path))):
        folder = write_files(tmp_path / name, {"data_batch_1": batch})
        make(folder / "data_batch_2")
        assert recognised(folder)
        with pytest.raises(DataError, match="data_batch_2"):
            cifar.read(folder)


def test_what_does_not_fit_into_memory_is_not_read(tmp_path, monkeypatch):
    batch = pickle.dumps({"data": rows_of(own(4, 8, 2)[0]), "labels": [0, 1, 0, 1]})
    folder = write_files(tmp_path / "mine", {"data_batch_1": batch})
    monkeypatch.setattr("convnet.data.published.free_memory", lambda: 3 * len(batch) - 1)
    with pytest.raises(DataError, match="GB of memory to read"):
        cifar.read(folder)


def test_other_things_are_not_taken_for_cifar(tmp_path):
    write_files(tmp_path / "pictures", {"1.jpg": b"x", "data_batch.txt": b"x", "train": b"x"})
    (tmp_path / "folders").mkdir()
    for name in ("train", "test", "meta", "data_batch_1"):
        (tmp_path / "folders" / name).mkdir()
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "pictures", "pictures")
    (tmp_path / "text").write_bytes(b"cifar-10-batches-py")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pictures", "folders", "other.tar.gz", "text", "pipe", "nothing"):
        assert not recognised(tmp_path / name), name


# ---- pickles ----


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["u1", "i1", "<u2", ">i2", "<i4", "<i8", ">u8", "f4", "f8", "?"])
def test_arrays_and_scalars_of_numbers_are_read(kind, protocol):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
    for values in (array, np.asfortranarray(array), array[:0]):
        read = read_plain(pickle.dumps({"a": values, "b": [array[0, 1]]}, protocol=protocol), "here")
        assert read["a"].dtype == array.dtype
        np.testing.assert_array_equal(read["a"], values)
        assert read["b"] == [1]


def nested(empty, entry, depth=60):
    """Opcodes for something that has the one before twice in it, and so on; the last one is memo 60."""
    program = empty + b"q\x000"
    for k in range(depth):
        program += empty + b"q" + bytes([k + 1]) + entry.replace(b"?", b"h" + bytes([k])) + b"0"
    return program


def test_what_has_a_text_without_an_end_is_not_written_out():
    lists = nested(b"]", b"(??e")
    for call in (b"c_codecs\nencode\nh<X\x06\x00\x00\x00latin1\x86R.", b"cnumpy\ndtype\nh<\x85R."):
        with pytest.raises(DataError, match="of list"):
            read_plain(b"\x80\x02" + lists + call, "here")
    shape = (
        nested(b"]", b"(??e")
        + b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01h<\x85cnumpy\ndtype\nU\x02u1\x85R\x89U\x00tb."
    )
    with pytest.raises(DataError, match="of another size"):
        read_plain(b"\x80\x02" + shape, "here")
    assert len(read_plain(b"\x80\x02" + nested(b"}", b"(K\x00?K\x01?u") + b"h<.", "here")) == 2
