"""Tar shards as WebDataset has them, tar archives of class folders, damaged, odd, and hostile ones."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest
from data_files import member, opened, picture

from convnet.data import DataError, open_dataset, webdataset
from convnet.data.images import decode_square

SIZE = 24


def encoded(seed, form="JPEG"):
    file = io.BytesIO()
    picture(30 + seed % 4, 26, seed).save(file, form)
    return file.getvalue()


def tar(path, *members, form=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for entry in members:
            info, raw = entry if isinstance(entry[0], tarfile.TarInfo) else member(*entry)
            archive.addfile(info, io.BytesIO(raw))
    return path


def samples(first, count=6, classes=3, suffix="cls", form=str):
    """Members KEY.jpg and KEY.cls; the label of picture k is k modulo ``classes``."""
    for k in range(first, first + count):
        yield f"{k:06}.jpg", encoded(k)
        yield f"{k:06}.{suffix}", form(k % classes).encode()


def recognised(path):
    return webdataset.recognises(path, tuple(sorted(os.listdir(path))) if path.is_dir() else ())


def pixels(raw):
    return decode_square(io.BytesIO(raw), SIZE)


def test_a_shard_is_read_where_it_lies(tmp_path):
    path = tar(tmp_path / "shard-000000.tar", *samples(0))
    before = sorted(tmp_path.rglob("*"))
    assert recognised(path)
    found = webdataset.read(path)
    assert found.kind == "WebDataset, 1 shard"
    assert found.classes == ["0", "1", "2"]
    assert found.parts["all"].labels.tolist() == [0, 1, 2] * 2
    assert found.parts["all"].names[3] == "shard-000000.tar/000003.jpg"
    for k, image in enumerate(found.parts["all"].images):
        assert image.read() == encoded(k)
    assert not found.left_out
    assert sorted(tmp_path.rglob("*")) == before


LAYOUTS = {
    "names": ("train-{:06}.tar", "val-{:06}.tar", "test-{:06}.tar"),
    "names of many": ("imagenet1k-train-{:04}.tar", "imagenet1k-validation-{:02}.tar", "imagenet1k-test-{:02}.tar"),
    "folders": ("train/{:06}.tar", "val/{:06}.tar", "test/{:06}.tar"),
    "folders in any case": ("Train/a{:06}.tar", "Validation/b{:06}.tar", "TEST/c{:06}.tar"),
    "other spellings": ("trainset-{}.tar", "val2017_{}.tar", "eval.{}.tar"),
    "in data": ("data/train-{}.tar", "data/valid-{}.tar", "data/test/{}.tar"),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_shards_of_several_parts(tmp_path, layout):
    for k, form in enumerate(LAYOUTS[layout]):
        for shard in range(2):
            tar(tmp_path / form.format(shard), *samples(100 * k + 10 * shard))
    (tmp_path / "README.md").write_text("shards")
    assert recognised(tmp_path)
    found = webdataset.read(tmp_path)
    assert found.kind == "WebDataset, 6 shards"
    assert sorted(found.parts) == ["test", "train", "val"]
    for k, part in enumerate(("train", "val", "test")):
        wanted = [encoded(100 * k + 10 * shard + j) for shard in range(2) for j in range(6)]
        assert [image.read() for image in found.parts[part].images] == wanted
    data = open_dataset(tmp_path, size=SIZE, seed=0)
    assert (len(data.train), len(data.valid), len(data.test)) == (12, 12, 12)
    np.testing.assert_array_equal(data.valid.image(7), pixels(encoded(111)))


def test_shards_of_one_set_without_parts(tmp_path):
    for shard in range(3):
        tar(tmp_path / f"{shard:05}.tar", *samples(10 * shard))
    found = webdataset.read(tmp_path)
    assert {part: len(of) for part, of in found.parts.items()} == {"all": 18}
    assert len(opened(webdataset, tmp_path, size=SIZE).valid) == 3


@pytest.mark.parametrize(
    ("suffix", "form", "classes"),
    [
        ("cls", str, ["0", "1", "2"]),
        ("cls", lambda k: f" {k}\n", ["0", "1", "2"]),
        ("cls", lambda k: ("emu", "cat", "dog")[k], ["cat", "dog", "emu"]),
        ("json", lambda k: json.dumps({"label": k, "width": 30}), ["0", "1", "2"]),
        ("json", lambda k: json.dumps({"cls": str(k)}), ["0", "1", "2"]),
        ("json", lambda k: json.dumps({"class": ("emu", "cat", "dog")[k]}), ["cat", "dog", "emu"]),
        ("json", str, ["0", "1", "2"]),
        ("CLS", str, ["0", "1", "2"]),
        ("cls", lambda k: str(9 + k), ["09", "10", "11"]),
        ("cls", lambda k: ("7", "cat", "08")[k], ["7", "8", "cat"]),
        ("cls", lambda k: "two\nlines" if k else "one", ["one", "two\\nlines"]),
    ],
)
def test_forms_of_labels(tmp_path, suffix, form, classes):
    path = tar(tmp_path / "a.tar", *samples(0, suffix=suffix, form=form))
    assert webdataset.read(path).classes == classes


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_with_folders_and_members_in_any_order(tmp_path, form):
    """Labels before or behind, captions between, PNG and JPEG, long names."""
    long = "x" * 90 + "/" + "y" * 120 if form != tarfile.USTAR_FORMAT else "x" * 90 + "/" + "y" * 20
    members = [
        ("./a/1.cls", b"1"), ("a/1.txt", b"a caption"), ("a/1.png", encoded(1, "PNG")),
        ("b/1.JPG", encoded(2)), ("b/1.json", b'{"label": 0}'), ("b/1.cls", b"0"),
        (f"{long}.jpg", encoded(3)), (f"{long}.cls", b"1"),
    ]  # fmt: skip
    found = webdataset.read(tar(tmp_path / "a.tar", *members, form=form))
    assert found.parts["all"].labels.tolist() == [1, 0, 1]
    assert [image.read() for image in found.parts["all"].images] == [encoded(1, "PNG"), encoded(2), encoded(3)]
    assert found.parts["all"].names[0] == "a.tar/a/1.png"


def test_what_is_left_out_is_told(tmp_path):
    members = [
        *samples(0), ("lonely.jpg", encoded(50)), ("empty.jpg", encoded(51)), ("empty.cls", b" \n"), ("gone.cls", b"1"),
        ("bare.jpg", encoded(52)), ("bare.json", b'{"caption": "x"}'), ("._000001.jpg", b"x"), ("__MACOSX/1.jpg", b"x"),
        member("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard.jpg", type=tarfile.LNKTYPE, linkname="000001.jpg"), member("folder", type=tarfile.DIRTYPE),
        member("device.jpg", type=tarfile.CHRTYPE),
    ]  # fmt: skip
    found = webdataset.read(tar(tmp_path / "a.tar", *members))
    assert len(found.parts["all"]) == 6
    assert {(entry.name, entry.reason) for entry in found.left_out} == {
        ("a.tar/lonely", "a picture without a label"),
        ("a.tar/empty", "a picture without a label"),
        ("a.tar/bare", "a picture without a label"),
        ("a.tar/gone", "a label without a picture"),
        ("a.tar/link.jpg", "a link or a special file"),
        ("a.tar/hard.jpg", "a link or a special file"),
        ("a.tar/device.jpg", "a link or a special file"),
    }


def test_a_part_that_is_not_labelled_is_left_out(tmp_path):
    tar(tmp_path / "train-0.tar", *samples(0))
    tar(tmp_path / "test-0.tar", *samples(50, form=lambda k: "-1"))
    found = webdataset.read(tmp_path)
    assert list(found.parts) == ["train"]
    assert "have no labels" in found.notes[0]


def test_a_picture_that_is_damaged_is_replaced_as_any(tmp_path):
    members = [*samples(0, count=30), ("x.jpg", b"no picture"), ("x.cls", b"1")]
    data = opened(webdataset, tar(tmp_path / "train.tar", *members), size=SIZE)
    split = data.train if any("x.jpg" in data.train.name(k) for k in range(len(data.train))) else data.valid
    (bad,) = [k for k in range(len(split)) if "x.jpg" in split.name(k)]
    assert split.image(bad).shape == (SIZE, SIZE, 3)
    assert list(split.bad) == [bad]


# ---- archives of class folders ----


def by_class(*below, seed=0):
    for k, name in enumerate(below):
        yield f"{name}/{k}.jpg", encoded(seed + k)


FOLDERS = {
    "CLASS": (["cat", "cat", "dog"], {"all": 3}),
    "TOP/CLASS": (["top/cat", "top/cat", "top/dog"], {"all": 3}),
    "TOP/TOP/CLASS": (["a/b/cat", "a/b/cat", "a/b/dog"], {"all": 3}),
    "CLASS/SESSION": (["cat/2023", "cat/2024", "dog/2023"], {"all": 3}),
    "PART/CLASS": (["train/cat", "train/dog", "val/cat"], {"train": 2, "val": 1}),
    "TOP/PART/CLASS": (["set/Train/cat", "set/Train/dog", "set/TEST/cat"], {"train": 2, "test": 1}),
    "one PART": (["train/cat", "train/cat", "train/dog"], {"train": 3}),
    "a class called train": (["bus/cat", "train/cat", "train/dog"], {}),
}


@pytest.mark.parametrize("layout", list(FOLDERS))
@pytest.mark.parametrize("before", ["", "./"])
def test_folders_of_classes(tmp_path, layout, before):
    below, counts = FOLDERS[layout]
    path = tar(tmp_path / "pictures.tar", *((before + name, raw) for name, raw in by_class(*below)))
    assert recognised(path)
    found = webdataset.read(path)
    assert found.kind == "tar archive of class folders, 1 shard"
    if counts:
        assert found.classes == ["cat", "dog"]
        assert {part: len(of) for part, of in found.parts.items()} == counts
    else:
        assert found.classes == ["bus", "train"]
    names = [name for part in found.parts.values() for name in part.names]
    assert sorted(names) == sorted(f"pictures.tar/{name}/{k}.jpg" for k, name in enumerate(below))


def test_an_archive_of_folders_for_each_part(tmp_path):
    tar(tmp_path / "train.tar", *by_class("train/cat", "train/dog"))
    tar(tmp_path / "val.tar", *by_class("val/cat", "val/dog", seed=50))
    found = webdataset.read(tmp_path)
    assert found.kind == "tar archive of class folders, 2 shards"
    assert {part: len(of) for part, of in found.parts.items()} == {"train": 2, "val": 2}


def test_what_is_no_picture_in_such_an_archive_is_told(tmp_path):
    members = [*by_class("cat", "dog"), ("readme.txt", b"x"), ("info.json", b"{}"), ("cover.jpg", encoded(9)),
               ("cat/.DS_Store", b"x"), member("cat/link.jpg", type=tarfile.SYMTYPE, linkname="0.jpg")]  # fmt: skip
    found = webdataset.read(tar(tmp_path / "a.tar", *members))
    assert found.classes == ["cat", "dog"]
    assert {(entry.name, entry.reason) for entry in found.left_out} == {
        ("a.tar/readme.txt", "not a picture, by its name"),
        ("a.tar/info.json", "not a picture, by its name"),
        ("a.tar/cover.jpg", "in no folder that would be its class"),
        ("a.tar/cat/link.jpg", "a link or a special file"),
    }


# ---- hostile and damaged archives ----


def test_odd_names_are_printable_and_their_pictures_used(tmp_path):
    odd = ["../../outside", "/etc/passwd", "line\nbreak", "escape\x1b[31m", "-rf", "\udcff\udcfe", "näme"]
    members = [
        entry for k, name in enumerate(odd) for entry in ((f"{name}.jpg", encoded(k)), (f"{name}.cls", b"%d" % (k % 2)))
    ]
    found = webdataset.read(tar(tmp_path / "a.tar", *members, form=tarfile.GNU_FORMAT))
    assert len(found.parts["all"]) == len(odd)
    assert all(name.isprintable() for name in found.parts["all"].names)
    assert sorted(tmp_path.parent.rglob("outside*")) == []
    folders = webdataset.read(tar(tmp_path / "b.tar", *by_class("\x1b[31m", "\udcff"), form=tarfile.GNU_FORMAT))
    assert folders.classes == ["\\udcff", "\\x1b[31m"]
    assert opened(webdataset, tmp_path / "a.tar", size=SIZE).fingerprint


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*samples(0), ("1.jpg", b"x"), ("1.png", b"x"), ("1.cls", b"1")], "1.jpg, 1.png belong to one label"),
        (
            [*samples(0), ("1.jpg", b"x"), ("1.cls", b"1"), ("1.json", b"2")],
            "'1.cls' says 1, '1.json' 2; they must agree",
        ),
        ([*samples(0), ("000000.jpg", b"x")], "'000000.jpg' occurs twice"),
        ([*samples(0), ("1.jpg", b"x"), ("1.json", b"{")], "member '1.json': not JSON"),
        ([*samples(0), ("1.jpg", b"x"), ("1.json", b"[" * 100_000)], "member '1.json': not JSON"),
        ([*samples(0), ("1.jpg", b"x"), ("1.json", b'{"label": [1, 2]}')], "neither a whole number nor a text"),
        ([*samples(0), ("1.jpg", b"x"), ("1.json", b'{"label": 0.5}')], "neither a whole number nor a text"),
        ([*samples(0), ("1.jpg", b"x"), ("1.json", b'{"label": true}')], "neither a whole number nor a text"),
        ([*samples(0), ("1.jpg", b"x"), ("1.json", b'{"label": -3}')], "label -3; numbers of classes are"),
        ([*samples(0), ("1.jpg", b"x"), ("1.json", b'{"label": 1' + b"0" * 100 + b"}")], "numbers of classes are"),
        ([*samples(0), ("1.jpg", b"x"), ("1.cls", b"-1")], "label -1 of picture 6"),
        ([*samples(0), ("1.jpg", b"x"), ("1.cls", bytes(2**20 + 1))], "1,048,577 bytes; no label has more"),
        ([("1.jpg", b"x"), ("1.txt", b"a caption")], "no picture in it that has a label"),
        ([("1.txt", b"x")], "no picture in it that has a label"),
        ([], "no picture in it that has a label"),
    ],
)
def test_what_cannot_be_used(tmp_path, members, message):
    path = tar(tmp_path / "a.tar", *members)
    with pytest.raises(DataError, match=message) as caught:
        webdataset.read(path)
    assert "a.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_shards_that_were_cut_short(tmp_path, keep):
    path = tar(tmp_path / "a.tar", *samples(0))
    raw = path.read_bytes().rstrip(b"\0")
    for length in (int(len(raw) * keep), int(len(raw) * keep) // 512 * 512):
        path.write_bytes(raw[:length])
        with pytest.raises(DataError, match="get it again"):
            webdataset.read(path)


def test_a_damaged_header_is_not_the_end(tmp_path):
    path = tar(tmp_path / "a.tar", *samples(0))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"000003.jpg") + 1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="damaged or cut short behind byte"):
        webdataset.read(path)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_huge_headers_are_not_read(tmp_path, kind):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 2**31
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(10240))
    with pytest.raises(DataError, match="a header of 2,147,483,648 bytes"):
        webdataset.read(tmp_path / "a.tar")


def test_a_part_that_nothing_says_the_purpose_of(tmp_path):
    for name in ("train-0.tar", "val-0.tar", "extra.tar"):
        tar(tmp_path / name, *samples(0))
    with pytest.raises(DataError, match="beside 'train' there are pictures that nothing says the purpose of"):
        webdataset.read(tmp_path)


def test_other_things_are_not_taken_for_it(tmp_path):
    path = tar(tmp_path / "a.tar", *samples(0))
    (tmp_path / "b.tar").write_bytes(b"<html>")
    (tmp_path / "c.tar").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d.tar")
    (tmp_path / "e.tar").mkdir()
    with tarfile.open(tmp_path / "f.tar.gz", "w:gz") as archive:
        archive.add(path, "a.tar")
    for name in ("b.tar", "c.tar", "d.tar", "f.tar.gz", "nothing.tar"):
        assert not webdataset.recognises(tmp_path / name, ()), name
    folder = tmp_path / "e.tar"
    tar(folder / "ILSVRC2012_img_train.tar", *samples(0))
    assert not recognised(folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    assert not recognised(tmp_path / "photos")
