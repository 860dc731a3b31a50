"""Parquet files as Hugging Face has them, others with pictures and labels, damaged and hostile ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import opened, picture

from convnet.data import DataError, open_dataset, parquet
from convnet.data.images import decode_square
from convnet.data.jpeg import BadImage

SIZE = 24
COUNT = 10


def encoded(seed, form="JPEG"):
    file = io.BytesIO()
    picture(30 + seed % 4, 26, seed).save(file, form)
    return file.getvalue()


def pictures(first=0, count=COUNT):
    return [encoded(k) for k in range(first, first + count)]


def structs(raws):
    return pa.array([{"bytes": raw, "path": f"{k}.jpg"} for k, raw in enumerate(raws)])


def labels(count=COUNT, classes=3):
    return [k % classes for k in range(count)]


def told(names, label="label"):
    """What Hugging Face writes about the columns."""
    features = {"image": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def write(path, columns, metadata=None, rows=4, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=rows, **options)
    return path


def hugging(path, first=0, names=("cat", "dog", "emu"), count=COUNT, **options):
    columns = {"image": structs(pictures(first, count)), "label": pa.array(labels(count))}
    return write(path, columns, told(list(names)), **options)


def recognised(path):
    return parquet.recognises(path, tuple(sorted(os.listdir(path))) if path.is_dir() else ())


LAYOUTS = {
    "top": ("train-{:05}-of-00002.parquet", "validation-{:05}-of-00002.parquet", "test-{:05}-of-00002.parquet"),
    "data": tuple(f"data/{part}-{{:05}}-of-00002.parquet" for part in ("train", "validation", "test")),
    "folders": ("train/{:04}.parquet", "val/{:04}.parquet", "test/{:04}.parquet"),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_layouts_of_hugging_face(tmp_path, layout):
    for k, form in enumerate(LAYOUTS[layout]):
        for shard in range(2):
            hugging(tmp_path / form.format(shard), 100 * k + 10 * shard)
    assert recognised(tmp_path)
    found = parquet.read(tmp_path)
    assert found.kind == "Parquet files"
    assert found.classes == ["cat", "dog", "emu"]
    assert not found.notes
    for k, part in enumerate(("train", "val", "test")):
        wanted = [encoded(100 * k + 10 * shard + j) for shard in range(2) for j in range(COUNT)]
        assert [row.read() for row in found.parts[part].images] == wanted
        assert found.parts[part].labels.tolist() == labels() * 2
    assert found.parts["train"].names[12] == f"{LAYOUTS[layout][0].format(1)} 2"
    data = open_dataset(tmp_path, size=SIZE, seed=0)
    assert data.name == "Parquet files: 3 classes, 20 training and 20 validation images"
    np.testing.assert_array_equal(data.valid.image(12), decode_square(io.BytesIO(encoded(112)), SIZE))


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_a_single_file(tmp_path, compression, rows):
    path = hugging(tmp_path / "any name", rows=rows, compression=compression)
    assert recognised(path)
    found = parquet.read(path)
    assert list(found.parts) == ["all"]
    order = np.random.default_rng(0).permutation(COUNT).tolist()
    assert [found.parts["all"].images[k].read() for k in order] == [encoded(k) for k in order]
    data = opened(parquet, path, size=SIZE)
    assert (len(data.train), len(data.valid)) == (7, 3)


COLUMNS = {
    "struct": structs(pictures()),
    "binary": pa.array(pictures()),
    "large binary": pa.array(pictures(), pa.large_binary()),
    "dictionary": pa.array(pictures()).dictionary_encode(),
}


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "dictionary"])
@pytest.mark.parametrize("name", ["image", "img", "jpg", "any"])
def test_columns_of_pictures(tmp_path, column, name):
    path = write(tmp_path / "a.parquet", {"id": pa.array(range(COUNT)), name: COLUMNS[column], "label": labels()})
    found = parquet.read(path)
    assert [row.read() for row in found.parts["all"].images] == pictures()
    assert found.classes == ["0", "1", "2"]


TEXTS = ["emu", "cat", "dog"]
LABELS = {
    "int64": (pa.array(labels()), ["0", "1", "2"]),
    "uint8": (pa.array(labels(), pa.uint8()), ["0", "1", "2"]),
    "text": (pa.array([TEXTS[k] for k in labels()]), ["cat", "dog", "emu"]),
    "large text": (pa.array([TEXTS[k] for k in labels()], pa.large_string()), ["cat", "dog", "emu"]),
    "dictionary": (pa.array([TEXTS[k] for k in labels()]).dictionary_encode(), ["cat", "dog", "emu"]),
    "bool": (pa.array([k % 2 == 1 for k in range(COUNT)]), ["0", "1"]),
    "from nine on": (pa.array([9 + k for k in labels()]), ["09", "10", "11"]),
}


@pytest.mark.parametrize("kind", list(LABELS))
@pytest.mark.parametrize("name", ["label", "Label", "class", "target", "fine_label"])
def test_columns_of_labels(tmp_path, kind, name):
    column, classes = LABELS[kind]
    found = parquet.read(write(tmp_path / "a.parquet", {"image": structs(pictures()), "id": labels(), name: column}))
    assert found.classes == classes
    wanted = [str(value) for value in column.to_pylist()]
    if kind == "bool":
        wanted = [str(int(value)) for value in column.to_pylist()]
    assert [classes[k].lstrip("0") or "0" for k in found.parts["all"].labels] == wanted


def test_of_several_labels_the_fine_one(tmp_path):
    """As CIFAR-100 has them."""
    features = {
        name: {"names": [f"{name}{k}" for k in range(3)], "_type": "ClassLabel"}
        for name in ("coarse_label", "fine_label")
    }
    columns = {"img": structs(pictures()), "coarse_label": [0] * COUNT, "fine_label": labels()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    found = parquet.read(write(tmp_path / "a.parquet", columns, metadata))
    assert found.classes == ["fine_label0", "fine_label1", "fine_label2"]
    assert found.notes == ["column 'fine_label' has the labels; not used: coarse_label"]


def test_what_hugging_face_says_decides(tmp_path):
    features = {"photo": {"_type": "Image"}, "species": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    columns = {
        "thumbnail": pa.array(pictures(50)),
        "photo": structs(pictures()),
        "label": [7] * COUNT,
        "species": labels(),
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    found = parquet.read(write(tmp_path / "a.parquet", columns, metadata))
    assert found.classes == ["a", "b", "c"]
    assert found.parts["all"].images[3].read() == encoded(3)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"info": 3}', '{"info": {"features": {"label": {"names": [1]}, "image": 0}}}', "[" * 10_000]
)
def test_odd_metadata_is_none(tmp_path, text):
    columns = {"image": structs(pictures()), "label": labels()}
    assert parquet.read(write(tmp_path / "a.parquet", columns, {"huggingface": text})).classes == ["0", "1", "2"]


def test_names_that_do_not_go_with_the_labels(tmp_path):
    found = parquet.read(hugging(tmp_path / "a.parquet", names=("cat", "dog")))
    assert found.classes == ["0", "1", "2"]
    assert found.notes == ["there are names for 2 classes and none for label 2: numbers are used"]
    hugging(tmp_path / "set" / "train-0.parquet")
    hugging(tmp_path / "set" / "test-0.parquet", names=("dog", "cat", "emu"))
    with pytest.raises(DataError, match=r"'test-0.parquet' and 'train-0.parquet' do not mean the same"):
        parquet.read(tmp_path / "set")


@pytest.mark.parametrize("unknown", [[-1] * COUNT, pa.nulls(COUNT, pa.int64())])
def test_a_test_set_without_labels_is_left_out(tmp_path, unknown):
    hugging(tmp_path / "train-0.parquet")
    write(tmp_path / "test-0.parquet", {"image": structs(pictures()), "label": unknown}, told(["cat", "dog", "emu"]))
    found = parquet.read(tmp_path)
    assert list(found.parts) == ["train"]
    assert "test: its 10 pictures have no labels" in found.notes[0]


def test_equal_data_is_known_again(tmp_path):
    prints = []
    for k in range(4):
        columns = {"image": structs(pictures(1 if k == 2 else 0)), "label": [0, *labels()[1:-1], 1 if k == 3 else 0]}
        prints.append(opened(parquet, write(tmp_path / str(k) / "a.parquet", columns), size=SIZE).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_row_group_is_read_once_for_pictures_in_their_order(tmp_path, monkeypatch):
    found = parquet.read(hugging(tmp_path / "a.parquet", rows=5))
    opened_files = []
    inner = parquet._opened
    monkeypatch.setattr(parquet, "_opened", lambda *a: opened_files.append(a) or inner(*a))
    for row in found.parts["all"].images:
        row.read()
    assert len(opened_files) == 2
    other = threading.Thread(target=found.parts["all"].images[9].read)  # each thread has its own
    other.start()
    other.join()
    assert len(opened_files) == 3


def test_a_row_is_small_and_may_go_to_another_process(tmp_path):
    row = parquet.read(hugging(tmp_path / "a.parquet")).parts["all"].images[5]
    assert len(pickle.dumps(row)) < 300
    assert pickle.loads(pickle.dumps(row)).read() == encoded(5)
    assert 0.5 * len(encoded(5)) < row.length < 2 * len(encoded(5))


def test_large_row_groups_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGE_GROUP", 1000)
    assert "convnet-prepare" in parquet.read(hugging(tmp_path / "a.parquet")).notes[0]


def test_without_pyarrow_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    path = hugging(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert recognised(path)
    with pytest.raises(DataError, match=r"pyarrow is needed: pip install \"convnet\[parquet\]\""):
        parquet.read(path)


# ---- damaged, hostile and odd files ----


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": labels()}, r"has the columns label \(int64\); one of pictures is needed"),
        ({"image": structs(pictures())}, "one of labels is needed, 'label'"),
        ({"image": structs(pictures()), "label": [0.5] * COUNT}, r"label \(double\); one of labels is needed"),
        ({"image": structs(pictures()), "label": [[1]] * COUNT}, "one of labels is needed"),
        ({"image": pa.array([[1.0]] * COUNT), "label": labels()}, "one of pictures is needed"),
        ({"a": pa.array(pictures()), "b": pa.array(pictures()), "label": labels()}, "one of pictures is needed"),
        ({"image": structs(pictures()), "label": pa.array([None, *labels()[1:]])}, "row 0 has no 'label'"),
        ({"image": structs(pictures()), "label": [-2, *labels()[1:]]}, "label -2 of picture 0"),
        ({"image": structs(pictures()), "label": ["a", " ", *"abababab"]}, "all: the label of picture 1 is empty"),
        ({"image": structs(pictures()), "label": ["x" * 1001] * COUNT}, "texts of 1,001 characters"),
        ({"image": structs(pictures())[:0], "label": pa.array([], pa.int64())}, "no picture with a label"),
    ],
)
def test_what_cannot_be_used(tmp_path, columns, message):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=message) as caught:
        parquet.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("end", [0, 3, 10, 3000, -1, -8, -100])
def test_files_that_are_cut_short(tmp_path, end):
    path = hugging(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataError, match="get it again"):
        parquet.read(path)


def test_metadata_longer_than_the_file(tmp_path):
    path = hugging(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1")
    with pytest.raises(DataError, match="2,147,483,647 bytes of metadata in a file of"):
        parquet.read(path)


def test_damage_anywhere_is_an_error_or_a_bad_picture(tmp_path):
    path = hugging(tmp_path / "a.parquet")
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(raw)
        at = int(rng.integers(len(raw) - 3000, len(raw)))
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            found = parquet.read(path)
            for row in found.parts["all"].images[:2]:
                row.read()
        except (DataError, BadImage):
            refused += 1
    assert refused > 20


def test_pictures_that_lie_elsewhere_are_bad(tmp_path):
    column = pa.array([{"bytes": None, "path": "/etc/passwd"}, *({"bytes": b"", "path": ""} for _ in range(9))])
    found = parquet.read(write(tmp_path / "a.parquet", {"image": column, "label": labels()}))
    for row in found.parts["all"].images[:2]:
        with pytest.raises(BadImage, match="no bytes in the file"):
            row.read()


def test_a_file_that_has_gone_is_a_bad_picture(tmp_path):
    path = hugging(tmp_path / "a.parquet")
    rows = parquet.read(path).parts["all"].images
    path.unlink()
    with pytest.raises(BadImage, match="No such file"):
        rows[9].read()


def test_one_picture_a_hundred_thousand_times_takes_no_memory(tmp_path):
    """A dictionary of one picture, and references to it: written out they would take 50 GB."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**5, np.int32)), pa.array([bytes(500_000)]))
    texts = pa.DictionaryArray.from_arrays(pa.array(np.arange(10**5) % 2, pa.int32()), pa.array(["a" * 900, "b" * 900]))
    path = write(tmp_path / "a.parquet", {"image": column, "label": texts}, rows=10**5, store_schema=False)
    assert path.stat().st_size < 2**20
    before = pa.total_allocated_bytes()
    found = parquet.read(path)
    assert len(found.parts["all"].images[99_999].read()) == 500_000
    assert pa.total_allocated_bytes() - before < 2**26


def test_what_does_not_fit_into_memory_is_not_read(tmp_path, monkeypatch):
    path = hugging(tmp_path / "a.parquet", rows=100)
    monkeypatch.setattr("convnet.data.published.free_memory", lambda: 5000)
    with pytest.raises(DataError, match=r"row group 0: takes 0.00 GB"):
        parquet.read(path)


def test_other_things_are_not_taken_for_it(tmp_path):
    hugging(tmp_path / "a.csv" / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"<html>")
    (tmp_path / "c.parquet").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d.parquet")
    for name in ("b.parquet", "c.parquet", "d.parquet", "nothing"):
        assert not parquet.recognises(tmp_path / name, ()), name
    assert not recognised(tmp_path)
    assert recognised(tmp_path / "a.csv")
