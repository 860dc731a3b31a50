"""CIFAR-10 in both published formats, and what hostile archives and pickles must not achieve."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from data_files import CIFAR_CLASSES, cifar_files, cifar_images, python2_batch, write_cifar
from PIL import Image

from convnet.data import DataError, open_dataset
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
    data = open_dataset(path, size=32, seed=0)
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
        open_dataset(write_cifar(tmp_path / f"{kind}.tar.gz", kind), size=40, seed=seed).fingerprint
        for kind, seed in (("bin", 0), ("py", 1))
    }
    files = cifar_files("bin")
    files["data_batch_3.bin"] = files["data_batch_3.bin"][:-1] + b"\x00"
    other = open_dataset(write_cifar(tmp_path / "other", "bin", files), size=40, seed=0).fingerprint
    assert len(prints) == 1
    assert other not in prints


def test_images_are_enlarged_as_pillow_does(tmp_path):
    data = open_dataset(write_cifar(tmp_path / "a", "bin"), size=73, seed=0)
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
        open_dataset(path, size=32, seed=0)
    assert not marker.exists()
    assert str(path) in str(caught.value)


def test_memo_numbers_that_would_cost_gigabytes_are_refused_before_anything_runs():
    with pytest.raises(DataError, match="memo number 268435455"):
        read_plain(b"\x80\x02Nr\xff\xff\xff\x0f.", "here")


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
    assert len(open_dataset(path, size=32, seed=0).train) == 100


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
        open_dataset(path, size=32, seed=0)


def test_a_member_that_occurs_twice_is_refused(tmp_path):
    path = archive_with(tmp_path, (tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin"), b"x"))
    with pytest.raises(DataError, match="twice"):
        open_dataset(path, size=32, seed=0)


def test_an_archive_of_large_or_many_members_is_refused_at_the_header(tmp_path):
    huge = tarfile.TarInfo("cifar-10-batches-bin/anything")
    huge.size = 2**40
    (tmp_path / "huge").write_bytes(huge.tobuf() + bytes(1024))
    many = archive_with(tmp_path, *((tarfile.TarInfo(f"file{k}"), b"") for k in range(200)))
    for path in (tmp_path / "huge", many):
        with pytest.raises(DataError, match="more or larger files"):
            open_dataset(path, size=32, seed=0)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_inflates_is_not_read(tmp_path, kind):
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 80 * 2**20
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf() + bytes(header.size)))
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"a\.tar\.gz.* has a header of 83,886"):
        open_dataset(path, size=32, seed=0)


@pytest.mark.parametrize("size", [-1, -(2**80), 2**80])
def test_a_size_that_no_file_has_is_refused(tmp_path, size):
    header = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    header.size = size
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf() + bytes(10_240))
    with pytest.raises(DataError, match=r"a\.tar.* (this is none|not a readable tar archive)"):
        open_dataset(path, size=32, seed=0)


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
        open_dataset(path, size=32, seed=0)
    assert next(iter(change)) in str(caught.value)


def test_truncated_archives_are_refused_wherever_they_end(tmp_path):
    raw = write_cifar(tmp_path / "whole", "bin").read_bytes()
    for end in (0, 1, 100, len(raw) // 2, len(raw) - len(raw) // 8):
        (tmp_path / "cut").write_bytes(raw[:end])
        with pytest.raises(DataError, match="cut"):
            open_dataset(tmp_path / "cut", size=32, seed=0)


def test_an_incomplete_folder_names_the_missing_file(tmp_path):
    for name, raw in cifar_files("py").items():
        if name != "test_batch":
            (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match="test_batch"):
        open_dataset(tmp_path, size=32, seed=0)
