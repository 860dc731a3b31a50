"""The ILSVRC-2012 archives as they are published, damaged and hostile ones, and other things that are no source."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from data_files import member, picture, write_folder
from preparing import here

from convnet.data import DataError, open_dataset
from convnet.data.ilsvrc import FIRST, PUBLISHED, SYNSETS, TRAIN_TAR, TRUTH, VALID_TAR
from convnet.data.recognise import open_source

IDS = ["n01440764", "n01443537", "n02123045"]
NUMBERS = [3, 1, 2]  # of the ids: not their order


def jpeg(seed):
    file = io.BytesIO()
    picture(40 + seed % 5, 36, seed).save(file, "JPEG", quality=92)
    return file.getvalue()


def tar(*members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for info, raw in members:
            archive.addfile(info, io.BytesIO(raw))
    return file.getvalue()


def class_tar(c, count=4):
    # out of order, as in the archives
    return tar(*(member(f"{IDS[c]}_{k}.JPEG", jpeg(100 * c + k)) for k in reversed(range(count))))


def write_ilsvrc(root, *, train=None, valid=None, truth=None, synsets=True):
    root.mkdir(exist_ok=True)
    outer = train if train is not None else tar(*(member(f"{IDS[c]}.tar", class_tar(c)) for c in (2, 0, 1)))
    (root / TRAIN_TAR).write_bytes(outer)
    names = [f"ILSVRC2012_val_{k:08}.JPEG" for k in range(1, 7)]
    images = [member(name, jpeg(500 + k)) for k, name in enumerate(names)]
    (root / VALID_TAR).write_bytes(valid if valid is not None else tar(*images[::-1]))
    (root / TRUTH).write_text(truth or "".join(f"{NUMBERS[k % 3]}\n" for k in range(6)))
    if synsets:
        table = [IDS[NUMBERS.index(number)] for number in (1, 2, 3)]
        (root / SYNSETS[0]).write_text("".join(f"{name} tench, Tinca tinca\n" for name in table))
    return root


def test_every_image_of_the_archives_is_found_where_it_lies(tmp_path):
    source = open_source(write_ilsvrc(tmp_path / "download"))
    assert source.name == "ILSVRC-2012 archives: 3 classes, 12 training and 6 validation images"
    assert source.classes == IDS
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.train.names[5] == f"{TRAIN_TAR}/{IDS[1]}.tar/{IDS[1]}_1.JPEG"
    for k, place in enumerate(source.train.images):
        assert place.read() == jpeg(100 * (k // 4) + k % 4)
    assert source.valid.names[2] == f"{VALID_TAR}/ILSVRC2012_val_00000003.JPEG"
    assert source.valid.labels.tolist() == [0, 1, 2, 0, 1, 2]  # numbers 3 1 2, and the first id has number 3
    for k, place in enumerate(source.valid.images):
        assert place.read() == jpeg(500 + k)


def test_the_archives_are_prepared_without_unpacking(tmp_path):
    root = write_ilsvrc(tmp_path / "download")
    before = sorted(root.iterdir())
    assert here(root, tmp_path / "store", "--size", 32, "-j", 1) == 0
    assert sorted(root.iterdir()) == before
    data = open_dataset(tmp_path / "store", size=32, seed=0)
    assert data.classes == IDS
    assert sorted(data.train.labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_the_truth_may_name_ids(tmp_path):
    text = "\n".join([IDS[2], IDS[0], IDS[1]] * 2)
    source = open_source(write_ilsvrc(tmp_path / "download", truth=text, synsets=False))
    assert source.valid.labels.tolist() == [2, 0, 1, 2, 0, 1]


AB = {"truth": "a\nb\n" * 3}  # labels of other classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"synsets": False},
            "nothing says which WordNet ids they stand for .*synsets.txt': .*meta.mat.* line k must be the WNID",
        ),
        ({"truth": "1\n2\n3\n"}, "has 3 lines for the 6 images"),
        ({"truth": "\n"}, "has 0 lines for the 6 images"),
        ({"truth": "1\n2\n4\n" * 2}, "class number 4; synsets.txt has 1 to 3"),
        ({"truth": "1\n2\n0\n" * 2}, "class number 0; synsets.txt has 1 to 3"),
        ({"truth": "9" * 5000 + "\n"}, "class number 99999999999999999999; synsets.txt"),
        ({"truth": "n999\n" * 6}, "class 'n999' of .* is not in ILSVRC2012_img_train.tar"),
        ({"train": tar(member("readme.txt", b"hello"))}, "holds 0 tar files of classes"),
        ({"train": b""}, "not a readable, uncompressed tar archive"),
        ({"train": b"\x1f\x8b" + b"x" * 2000}, "not a readable, uncompressed tar archive"),
        (AB | {"train": tar(member("a.tar", tar()), member("b.tar", class_tar(0)))}, "'a.tar': no picture in it"),
        (AB | {"train": tar(member("a.tar", b"text"), member("b.tar", class_tar(0)))}, "'a.tar': not a readable"),
        ({"train": tar(member("a.tar", class_tar(0)), member("./a.tar", class_tar(0)))}, "'a.tar' occurs twice"),
        (
            AB | {"train": tar(member("a.tar", class_tar(0)[:-9000]), member("b.tar", class_tar(0)))},
            "member 'a.tar'.*get it",
        ),
    ],
)
def test_incomplete_downloads(tmp_path, change, message):
    root = write_ilsvrc(tmp_path / "download", **change)
    with pytest.raises(DataError, match=message) as caught:
        open_source(root)
    assert "\n" not in str(caught.value)


def table(root, ids):
    (root / SYNSETS[0]).write_text("".join(f"{name} a name, another\n" for name in ids))
    return root


def test_ids_in_alphabetical_order_are_refused(tmp_path):
    """As Caffe has them: they look like the numbers' order, and every label would be another class."""
    root = table(write_ilsvrc(tmp_path / "download"), sorted(IDS))
    with pytest.raises(DataError, match=r"synsets.txt' is in alphabetical order.*meta.mat in ILSVRC2012_devkit_t12"):
        open_source(root)
    # others of the same ids are taken, and so are two ids, which are sorted half of the time
    assert open_source(table(root, sorted(IDS, reverse=True))).valid.labels.tolist() == [0, 2, 1, 0, 2, 1]
    (root / TRUTH).write_text("1\n2\n" * 3)
    assert open_source(table(root, IDS[:2])).valid.labels.tolist() == [0, 1] * 3


def published(order):
    """A thousand ids: ten that the development kit begins with, and others."""
    others = [f"n1{k:07}" for k in range(PUBLISHED - len(FIRST))]
    exchanged = [*FIRST[:8], FIRST[9], FIRST[8]]
    return {
        "as in meta.mat": [*FIRST, *others],
        "sorted": sorted([*FIRST, *others]),
        "shifted": [others[0], *FIRST, *others[1:]],
        "two exchanged": [*exchanged, *others],
    }[order]


@pytest.mark.parametrize("order", ["as in meta.mat", "sorted", "shifted", "two exchanged"])
def test_the_published_thousand_are_known(tmp_path, order):
    ids = published(order)
    train = tar(*(member(f"{name}.tar", class_tar(0, 1)) for name in ids[:12]))
    root = table(write_ilsvrc(tmp_path / "download", train=train, truth="1\n2\n3\n" * 2), ids)
    if order == "as in meta.mat":
        classes = sorted(ids[:12])
        assert open_source(root).valid.labels.tolist() == [classes.index(name) for name in ids[:3]] * 2
    else:
        with pytest.raises(
            DataError, match=r"not in the order of the class numbers: line \d+ is 'n.*', and number \d+ is"
        ):
            open_source(root)


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    root = table(write_ilsvrc(tmp_path / "download"), [IDS[1], IDS[0], IDS[1]])
    with pytest.raises(DataError, match=f"'{IDS[1]}' occurs twice"):
        open_source(root)


def test_a_byte_order_mark_before_the_labels_is_none_of_them(tmp_path):
    root = write_ilsvrc(tmp_path / "download")
    (root / TRUTH).write_bytes(b"\xef\xbb\xbf" + (root / TRUTH).read_bytes())
    assert open_source(root).valid.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("name", [TRAIN_TAR, VALID_TAR])
def test_one_of_the_archives_names_them_all(tmp_path, name):
    root = write_ilsvrc(tmp_path / "download")
    assert open_source(root / name).fingerprint == open_source(root).fingerprint


@pytest.mark.parametrize("name", [TRAIN_TAR, VALID_TAR, TRUTH])
def test_missing_files(tmp_path, name):
    root = write_ilsvrc(tmp_path / "download")
    (root / name).unlink()
    with pytest.raises(DataError, match=f"has no file '{name}'|not of a known kind"):
        open_source(root)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_archives_that_were_cut_short(tmp_path, keep):
    whole = write_ilsvrc(tmp_path / "download")
    raw = (whole / TRAIN_TAR).read_bytes().rstrip(b"\0")
    for length in (int(len(raw) * keep), int(len(raw) * keep) // 512 * 512):
        (whole / TRAIN_TAR).write_bytes(raw[:length])
        with pytest.raises(DataError, match=r"get it again|holds . tar files"):
            open_source(whole)


def test_a_damaged_header_is_not_the_end(tmp_path):
    root = write_ilsvrc(tmp_path / "download")
    raw = bytearray((root / VALID_TAR).read_bytes())
    at = raw.index(b"ILSVRC2012_val_00000003.JPEG")
    raw[at + 3] ^= 1
    (root / VALID_TAR).write_bytes(raw)
    with pytest.raises(DataError, match=f"damaged or cut short behind byte {at:,}; get it again"):
        open_source(root)


def test_hostile_members_are_left_out(tmp_path):
    hostile = [
        member("../../outside.JPEG", b"x"),
        member("/etc/passwd.JPEG", b"x"),
        member("folder/inside.JPEG", b"x"),
        member("line\nbreak.JPEG", b"x"),
        member("escape\x1b[31m.JPEG", b"x"),
        member(".hidden.JPEG", b"x"),
        member("-rf.JPEG", b"x"),
        member("link.JPEG", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard.JPEG", type=tarfile.LNKTYPE, linkname=f"{IDS[0]}_0.JPEG"),
        member("device.JPEG", type=tarfile.CHRTYPE),
        member("fifo.JPEG", type=tarfile.FIFOTYPE),
        member("folder.JPEG", type=tarfile.DIRTYPE),
        member("readme.txt", b"hello"),
    ]
    first = tar(*hostile, member("./good.JPEG", jpeg(1)), member("long" * 60 + ".JPEG", jpeg(2)))
    root = write_ilsvrc(
        tmp_path / "download",
        train=tar(*(member(f"{IDS[c]}.tar", class_tar(c) if c else first) for c in range(3)), *hostile),
    )
    source = open_source(root)
    names = [name.rsplit("/")[-1] for name in source.train.names[:-8]]
    assert names == ["good.JPEG", "long" * 60 + ".JPEG"]
    assert [place.read() for place in source.train.images[:2]] == [jpeg(1), jpeg(2)]


def header(name, size):
    """A member's header with any size field: a negative one in base 256, as GNU tar would write it."""
    block = bytearray(tarfile.TarInfo(name).tobuf())
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize("size", [2**62, 2**80, -512, -1024, -1])
def test_impossible_sizes(tmp_path, size):
    raw = tar(member("a.JPEG", b"x" * 512))[:1024] + header("b.JPEG", size) + bytes(10240)
    root = write_ilsvrc(tmp_path / "download", valid=raw)
    with pytest.raises(DataError, match="get it again"):
        open_source(root)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_huge_headers_are_not_read(tmp_path, kind):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 2**31
    root = write_ilsvrc(tmp_path / "download", valid=info.tobuf() + bytes(10240))
    with pytest.raises(DataError, match="a header of 2,147,483,648 bytes"):
        open_source(root)


def test_a_source_is_known_by_names_lengths_and_labels(tmp_path):
    prints = set()
    for k in range(3):
        root = write_folder(tmp_path / str(k))
        if k == 1:
            (root / "train/class0/000.jpg").rename(root / "train/class1/000x.jpg")
        if k == 2:
            (root / "train/class0/000.jpg").write_bytes(b"shorter")
        prints.add(open_source(root).fingerprint)
    prints.add(open_source(write_folder(tmp_path / "again")).fingerprint)
    assert len(prints) == 3


def test_what_is_no_source(tmp_path):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    for path, message in [
        ("none", "there is no"),
        ("text", "a file of an unknown kind"),
        ("empty", "a folder without pictures; accepted are"),
        ("x" * 300, "cannot read|there is no"),
        ("a\0b", "cannot read|there is no"),
    ]:
        with pytest.raises(DataError, match=message):
            open_source(tmp_path / path)


def test_labels_are_int32(tmp_path):
    for part in (open_source(write_folder(tmp_path / "f")).train, open_source(write_ilsvrc(tmp_path / "d")).valid):
        assert part.labels.dtype == np.int32
