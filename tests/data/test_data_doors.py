"""Folders of pictures as people have them: which part and class every picture gets, what is said, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from data_files import lay

from convnet.data import DataError, HeldOut, NotThere, load_square, open_dataset, open_labelled
from convnet.data.dataset import left_out_lines
from convnet.data.labels import role
from convnet.data.recognise import find
from convnet.data.source import hold_out

TRAIN = ("{}/cat/{{1..4}}.jpg", "{}/dog/{{1..3}}.jpg")


def train(name="train"):
    return [each.format(name) for each in TRAIN]


def opened(root, **options):
    return open_dataset(root, size=16, **{"seed": 0, **options})


def told(data, root):
    """Class -> names of pictures from ``root`` on, for training and for validation."""
    parts = []
    for split in (data.train, data.valid):
        found = {}
        for k in range(len(split)):
            found.setdefault(data.classes[split.labels[k]], []).append(os.path.relpath(split.name(k), root))
        parts.append(found)
    return parts


# ---- splits by their names


@pytest.mark.parametrize("first", ["train", "Train", "TRAINING", "training_set", "seg_train", "train_images"])
@pytest.mark.parametrize("second", ["val", "Val", "valid", "VALIDATION", "validation_set", "dev"])
def test_parts_are_known_by_any_usual_name(tmp_path, first, second):
    data = opened(lay(tmp_path, *train(first), f"{second}/cat/1.jpg", f"{second}/dog/1.jpg"))
    assert told(data, tmp_path) == [
        {"cat": [f"{first}/cat/{k}.jpg" for k in range(1, 5)], "dog": [f"{first}/dog/{k}.jpg" for k in range(1, 4)]},
        {"cat": [f"{second}/cat/1.jpg"], "dog": [f"{second}/dog/1.jpg"]},
    ]
    assert [repr(name) in " ".join(data.notes) for name in (first, second)] == [first != "train", second != "val"]


def test_other_words_are_no_parts():
    assert [role(name) for name in ("trainer", "cat", "evaluate me", "valley", "testament", "")] == [None] * 6


def test_a_test_set_stands_in_where_there_is_no_validation_set_and_is_left_alone_else(tmp_path):
    lay(tmp_path, *train(), "test/cat/1.jpg")
    data = opened(tmp_path)
    assert len(data.valid) == 1
    assert data.test is None
    assert "the 1 of the test set are taken as such" in data.notes[0]
    lay(tmp_path, "val/dog/{1..2}.jpg")
    data = opened(tmp_path)
    assert (len(data.valid), len(data.test)) == (2, 1)


def test_a_test_set_without_labels_is_left_to_convnet_predict(tmp_path):
    data = opened(lay(tmp_path, *train(), "val/cat/1.jpg", "test/{1..5}.jpg"))
    assert data.test is None
    assert "'test' has 5 pictures without labels; convnet-predict can label them" in data.notes


def test_a_flat_test_folder_beside_classes_is_no_class(tmp_path):
    data = opened(lay(tmp_path, "cat/{1..4}.jpg", "dog/{1..4}.jpg", "test/{1..5}.jpg"))
    assert data.classes == ["cat", "dog"]
    assert "'test' has 5 pictures without labels; convnet-predict can label them" in data.notes


def test_two_folders_for_one_part_are_refused(tmp_path):
    with pytest.raises(DataError, match="has 'val' and 'validation', which mean the same; leave one of them there"):
        opened(lay(tmp_path, *train(), "val/cat/1.jpg", "validation/cat/1.jpg"))


def test_a_class_may_be_called_train(tmp_path):
    data = opened(lay(tmp_path, "train/{1..4}.jpg", "bus/{1..4}.jpg", "car/{1..4}.jpg"))
    assert data.classes == ["bus", "car", "train"]


def test_a_folder_that_may_be_both_a_class_and_a_part_is_refused(tmp_path):
    with pytest.raises(DataError, match="'train' may be a class beside 'bus', 'car', or a part with classes in it"):
        opened(lay(tmp_path, "train/1998/{1..4}.jpg", "train/1999/1.jpg", "bus/{1..4}.jpg", "car/{1..4}.jpg"))


def test_folders_beside_the_parts_are_named(tmp_path):
    data = opened(lay(tmp_path, *train(), "val/cat/1.jpg", "spare/1.jpg"))
    assert "left alone: 'spare'" in data.notes


@pytest.mark.parametrize("wrapped", ["photos", "PetImages", "a/b/c", "training_set"])
def test_folders_that_only_hold_the_data_are_passed_through(tmp_path, wrapped):
    data = opened(
        lay(tmp_path, f"{wrapped}/train/cat/{{1..4}}.jpg", f"{wrapped}/train/dog/1.jpg", f"{wrapped}/val/cat/1.jpg")
    )
    assert (len(data.train), len(data.valid)) == (5, 1)


def test_a_part_within_itself_as_some_archives_unpack(tmp_path):
    data = opened(lay(tmp_path, *train("training_set/training_set"), "test_set/test_set/cat/1.jpg"))
    assert (len(data.train), len(data.valid)) == (7, 1)


# ---- no split


def test_a_share_of_every_class_is_held_out(tmp_path):
    lay(tmp_path, "cat/{1..40}.jpg", "dog/{1..20}.jpg", "emu/{1..2}.jpg", "fox/1.jpg")
    data = opened(tmp_path)
    assert np.bincount(data.train.labels).tolist() == [36, 18, 1, 1]
    assert np.bincount(data.valid.labels, minlength=4).tolist() == [4, 2, 1, 0]
    assert "7 of 63 are held out (10 % of each class, chosen by the seed 0)" in data.notes[0]
    both = [split.name(k) for split in (data.train, data.valid) for k in range(len(split))]
    assert len(set(both)) == 63

    def held(**options):
        valid = opened(tmp_path, **options).valid
        return [valid.name(k) for k in range(len(valid))]

    assert held() == held()
    assert held(seed=1) != held()
    assert len(held(val_split=0.25)) == 10 + 5 + 1
    assert opened(tmp_path).fingerprint != opened(tmp_path, seed=1).fingerprint


def test_what_is_held_out_depends_on_labels_and_seed_alone():
    labels = np.repeat(np.arange(3, dtype=np.int32), 50)
    kept, held = hold_out(labels, 7, 0.1)
    assert np.bincount(labels[held]).tolist() == [5, 5, 5]
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(150))
    # drawn, not the first or the last of each class
    assert len(set((held % 50).tolist())) > 5
    assert not (np.diff(held[:5]) == 1).all()


def test_nothing_can_be_held_out_of_one_picture_a_class(tmp_path):
    with pytest.raises(DataError, match="none can be held out of 2 in 2 classes"):
        opened(lay(tmp_path, "cat/1.jpg", "dog/1.jpg"))


def test_one_class_is_none(tmp_path):
    with pytest.raises(DataError, match="has 1 class, 'cat'; at least 2 are needed"):
        opened(lay(tmp_path, "cat/{1..4}.jpg"))
    with pytest.raises(DataError, match=r"4 pictures, and nothing says of which class.*name the folder above"):
        opened(lay(tmp_path / "cat", "{1..1}.jpg"))


def test_only_validation_pictures_are_none_to_train_on(tmp_path):
    with pytest.raises(DataError, match=r"has pictures for val and none to train on.*convnet-eval RUN --data"):
        opened(lay(tmp_path, "val/cat/1.jpg", "val/dog/1.jpg"))


# ---- tables of labels


LAYOUTS = {
    "Kaggle's ImageNet": (
        [*train(), "val/v{1..3}.jpg"],
        {"LOC_val_solution.csv": "ImageId,PredictionString\nv1,cat 1 2 3 4\nv2,dog 1 1 1 1 dog 2 2 2 2\nv3,cat 1 2\n"},
    ),
    "Kaggle's ImageNet, deep down": (
        [*train("ILSVRC/Data/CLS-LOC/train"), "ILSVRC/Data/CLS-LOC/val/v{1..3}.jpg", "ILSVRC/Data/CLS-LOC/test/t1.jpg"],
        {
            "LOC_val_solution.csv": "ImageId,PredictionString\nv1,cat 1 2 3 4\nv2,dog 1 1 1 1\nv3,cat 1 2 3 4\n",
            "ILSVRC/Annotations/a.xml": "<annotation/>",
            "LOC_synset_mapping.txt": "cat a cat\ndog a dog\n",
            "LOC_sample_submission.csv": "ImageId,PredictionString\nt1,1 2 3 4\n",
        },
    ),
    "tiny-imagenet": (
        [
            "train/cat/images/{1..4}.jpg",
            "train/dog/images/{1..3}.jpg",
            "val/images/v{1..3}.jpg",
            "test/images/{1..2}.jpg",
        ],
        {
            "val/val_annotations.txt": "v1.jpg\tcat\t0\t0\t1\t1\nv2.jpg\tdog\t0\t0\t1\t1\nv3.jpg\tcat\t0\t0\t1\t1\n",
            "wnids.txt": "cat\ndog\n",
            "words.txt": "cat\ta cat\ndog\ta dog\n",
            "train/cat/cat_boxes.txt": "1.jpg\t0\t0\t1\t1\n",
        },
    ),
    "a table beside each part": (
        ["train/c{1..4}.jpg", "train/d{1..3}.jpg", "val/v{1..3}.jpg"],
        {
            "train.csv": "id,label\n" + "".join(f"c{k},cat\n" for k in range(1, 5)) + "d1,dog\nd2,dog\nd3,dog\n",
            "val.csv": "id,label\nv1,cat\nv2,dog\nv3,cat\n",
        },
    ),
    "one table with a column of parts": (
        ["images/c{1..4}.jpg", "images/d{1..3}.jpg", "images/v{1..3}.jpg"],
        {
            "labels.csv": "file;Class;split;width\n"
            + "".join(f"images/c{k}.jpg;cat;train;9\n" for k in range(1, 5))
            + "".join(f"images/d{k}.jpg;dog;Training;9\n" for k in range(1, 4))
            + "images/v1.jpg;cat;valid;9\nimages/v2.jpg;dog;valid;9\nimages/v3.jpg;cat;valid;9\n"
        },
    ),
    "a table without headings, blanks between": (
        [*train(), "val/v{1..3}.png"],
        {"val/labels.txt": "v1.png cat\nv2.png dog\nv3.png cat\n"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_of_labels(tmp_path, layout):
    names, texts = LAYOUTS[layout]
    data = opened(lay(tmp_path, *names, texts=texts))
    assert data.classes == ["cat", "dog"]
    assert np.bincount(data.train.labels).tolist() == [4, 3]
    of = {os.path.basename(data.valid.name(k)).partition(".")[0]: int(data.valid.labels[k]) for k in range(3)}
    assert of == {"v1": 0, "v2": 1, "v3": 0}
    assert any("labels of" in note for note in data.notes)
    name = data.valid.name(1)
    np.testing.assert_array_equal(data.valid.image(1), load_square(name, 16))


def test_a_table_by_itself_names_its_pictures(tmp_path):
    lay(tmp_path, "a/{1..6}.jpg", "b/{1..6}.jpg", "other/9.jpg")
    rows = [f"{folder}/{k}.jpg,{'odd' if k % 2 else 'even'}" for folder in "ab" for k in range(1, 7)]
    (tmp_path / "mine.csv").write_text("path,label\n" + "\n".join(rows) + "\ngone.jpg,odd\n", encoding="utf-8-sig")
    data = opened(tmp_path / "mine.csv")
    assert data.classes == ["even", "odd"]
    assert len(data.train) + len(data.valid) == 12
    assert "1 of its lines name no picture that is there" in data.notes[0]
    assert data.left_out == ()


def test_folders_beat_a_table_and_say_so(tmp_path):
    data = opened(lay(tmp_path, "cat/{1..4}.jpg", "dog/{1..4}.jpg", texts={"sizes.csv": "name,label\n1.jpg,7\n"}))
    assert data.classes == ["cat", "dog"]
    assert "classes are the folders; for what sizes.csv says of them: DATA/sizes.csv" in data.notes


def test_numbers_as_labels_are_ordered_as_numbers(tmp_path):
    lay(tmp_path, "{1..24}.jpg", texts={"labels.csv": "".join(f"{k}.jpg,{k % 12}\n" for k in range(1, 25))})
    assert opened(tmp_path).classes == [str(k) for k in range(12)]


def test_pictures_without_a_label_are_listed(tmp_path):
    lay(tmp_path, "{1..9}.jpg", texts={"labels.csv": "".join(f"{k},{'ab'[k % 2]}\n" for k in range(1, 8))})
    data = opened(tmp_path)
    assert [(entry.name, entry.reason) for entry in data.left_out] == [
        ("8.jpg", "no label in labels.csv"),
        ("9.jpg", "no label in labels.csv"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,height,width\n1,2,3\n2,2,3\n", r"has the columns id, height, width, and none says that it is the label"),
        ("id,label\n1,a\n2,b\n1,b\n", "line 4: '1.jpg' is 'a' above"),
        ("1.jpg\n2.jpg\n3.jpg\n", "names pictures, but has no column of labels"),
        ("id,label,split\n1,a,train\n2,b,later\n", "'later' is none of train, val and test"),
        ("id,label,split\n1,a,train\n2,b,\n", "says of some pictures what they are for, and of some not"),
        ("id,label\n1,a\n2\n", "line 3: 1 columns, where a name and a label are needed"),
        ("something else\n", "3 pictures, and nothing says of which class"),
    ],
)
def test_tables_that_leave_something_open(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        opened(lay(tmp_path, "{1..3}.jpg", texts={"labels.csv": text}))


def test_labels_of_other_classes_than_those_trained_on(tmp_path):
    lay(tmp_path, *train(), "val/v1.jpg", texts={"val.csv": "v1.jpg,wolf\n"})
    with pytest.raises(DataError, match=r"class 'wolf' is in the val part .* not among the 2 classes to train on"):
        opened(tmp_path)


# ---- what lies in a class folder


def test_pictures_below_a_class_at_any_depth_and_of_any_suffix(tmp_path):
    lay(tmp_path, "cat/{1..2}.jpg", "cat/2024/may/{1..2}.png", "cat/IMG.JPEG", "dog/{1..4}.jpg")
    os.rename(tmp_path / "cat/1.jpg", tmp_path / "cat/1")  # known by its first bytes
    os.rename(tmp_path / "cat/2.jpg", tmp_path / "cat/2.old")
    data = opened(tmp_path)
    assert len(data.train) + len(data.valid) == 5 + 4
    assert data.left_out == ()


def test_what_is_left_out_is_counted_by_class_and_reason(tmp_path):
    lay(
        tmp_path, "cat/{1..4}.jpg", "dog/{1..4}.jpg", texts={"cat/notes.txt": "x", "cat/clip.mp4": "x", "dog/e.jpg": ""}
    )
    for name in ("cat/Thumbs.db", "cat/.DS_Store", "dog/desktop.ini"):
        (tmp_path / name).write_bytes(b"of a file manager")
    for k in range(3):
        (tmp_path / f"dog/gone{k}.jpg").symlink_to(f"/nowhere/{k}.jpg")
    (tmp_path / "cat/again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "dog/pipe.jpg")
    data = opened(tmp_path)
    assert left_out_lines(data.left_out) == [
        "left out of 'dog': 3 (a link to a file that is not there)",
        "left out of 'cat': 2 (not a picture of a known kind)",
        "left out of 'cat': 1 (a folder within itself)",
        "left out of 'dog': 1 (an empty file)",
        "left out of 'dog': 1 (not a file)",
    ]
    assert {entry.name for entry in data.left_out} >= {"cat/clip.mp4", "dog/gone0.jpg", "dog/pipe.jpg"}
    assert left_out_lines(data.left_out, most=1)[1:] == ["left out elsewhere: 5"]


def test_a_class_without_a_picture_is_named(tmp_path):
    lay(tmp_path, *train(), "val/cat/1.jpg", texts={"train/emu/readme.txt": "to come"})
    with pytest.raises(
        DataError, match=r"class folder '.*train/emu' has no picture that can be used .*; add some or remove"
    ):
        opened(tmp_path)


def test_pictures_that_nobody_reads_here_are_named_for_what_they_are(tmp_path):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40
    for name in ("cat", "dog"):
        for k in range(3):
            lay(tmp_path, f"{name}/{k}.jpg")
            (tmp_path / name / f"{k}.heic").write_bytes(heic)
    assert left_out_lines(opened(tmp_path).left_out)[0] == (
        "left out of 'cat': 3 (a HEIC picture, which is not read here; convert it to JPEG or PNG)"
    )
    for k in range(3):
        (tmp_path / "cat" / f"{k}.jpg").unlink()
    with pytest.raises(DataError, match=r"cat' has no picture that can be used \(3: a HEIC picture.*\); add some"):
        opened(tmp_path)
    shutil.rmtree(tmp_path / "dog")
    with pytest.raises(DataError, match=r"without pictures \(3: a HEIC picture, .*convert it"):
        opened(tmp_path)


# ---- errors that look


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("photos.tar.bz2", b"BZh91AY&SY" + b"\0" * 90, "a bzip2 archive: unpack it and name the folder"),
        ("photos.tgz", b"\x1f\x8b\x08" + b"\0" * 60, "a gzip archive: unpack it"),
        ("data.zip", b"<!DOCTYPE html>\n<html>Sign in</html>", "a page of HTML, not data: fetch it again"),
        ("data.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "an HDF5 file: write its pictures"),
        ("data.7z", b"7z\xbc\xaf\x27\x1c" + b"\0" * 90, "a 7z archive: unpack it"),
        ("data.pkl", b"\x80\x04\x95" + b"\0" * 90, "a pickle of Python, which could run anything"),
        ("x.bin", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("x.bin", b"\0" * 600, "a file of an unknown kind"),
    ],
)
def test_a_file_that_is_no_data_is_described(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"is {message}"):
        find(path)
    if "unknown" not in message:
        with pytest.raises(DataError, match=f"is a folder without pictures; '{name}' in it is {message}"):
            find(tmp_path)


def test_archives_of_pictures_and_pickles_of_pytorch(tmp_path):
    lay(tmp_path / "in", *train())
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "in")
    with pytest.raises(DataError, match="a zip archive of 7 pictures: unpack it and name the folder"):
        find(tmp_path / "photos.zip")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/data.pkl").write_bytes(b"\x80\x02}.")
    shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path, "archive")
    with pytest.raises(DataError, match="a PyTorch pickle: weights to start from are named with --init-from"):
        find(tmp_path / "model.zip")


def test_one_picture_is_no_data_set(tmp_path):
    lay(tmp_path, "cat.jpg")
    with pytest.raises(DataError, match="is one picture: name a folder of them; convnet-predict RUN FILE labels one"):
        find(tmp_path / "cat.jpg")


def test_a_name_beside_is_offered(tmp_path):
    lay(tmp_path, "photos/a/1.jpg")
    with pytest.raises(NotThere, match=r"there is no '.*photo', but 'photos' is beside it"):
        find(tmp_path / "photo")


# ---- labelled sets to try a network on


def labelled(path, classes=("cat", "dog", "emu"), **options):
    given = {"size": 16, "seed": 0, "held_out": None, "depth": 16, **options}
    return open_labelled(path, list(classes), **given)


def test_class_folders_at_the_top_are_all_tried(tmp_path):
    data = labelled(lay(tmp_path, "dog/{1..3}.jpg", "emu/{1..2}.jpg"))
    assert data.valid.labels.tolist() == [1, 1, 1, 2, 2]
    assert len(data.train) == 0
    assert data.classes == ["cat", "dog", "emu"]


@pytest.mark.parametrize("part", ["val", "test", "Validation"])
def test_a_lone_part_is_tried(tmp_path, part):
    data = labelled(lay(tmp_path, f"{part}/dog/{{1..3}}.jpg"))
    assert data.valid.labels.tolist() == [1, 1, 1]


def test_classes_that_the_network_does_not_know_are_named(tmp_path):
    data = labelled(lay(tmp_path, "dog/{1..3}.jpg", "wolf/{1..2}.jpg"))
    assert data.valid.labels.tolist() == [1, 1, 1]
    assert os.path.basename(data.valid.name(2)) == "3.jpg"
    assert "the network does not know 'wolf': left out" in data.notes
    with pytest.raises(DataError, match="has the classes 'dog', 'wolf', and the network knows none of them, but 'cat'"):
        labelled(tmp_path, ("cat",))


def test_the_data_of_the_run_is_cut_as_it_was(tmp_path):
    lay(tmp_path, "cat/{1..20}.jpg", "dog/{1..20}.jpg")
    before = opened(tmp_path, seed=7, val_split=0.2)
    again = labelled(tmp_path, ("cat", "dog"), held_out=before.held_out)
    assert [again.valid.name(k) for k in range(len(again.valid))] == [before.valid.name(k) for k in range(8)]
    assert again.held_out == before.held_out
    other = dataclasses.replace(before.held_out, of="of another folder")
    assert len(labelled(tmp_path, ("cat", "dog"), held_out=other).valid) == 40


@pytest.mark.parametrize(
    ("told", "text"),
    [(3, "found 3"), ([], r"found \[\]"), ({"of": "a", "seed": 0}, "expected digest, seed and share"),
     ({"of": 1, "seed": 0, "share": 0.5}, "expected digest"), ({"of": "a", "seed": True, "share": 0.5}, "expected dig"),
     ({"of": "a", "seed": 2**64, "share": 0.5}, "expected digest"), ({"of": "a", "seed": 0, "share": 1.0}, "found 1.0"),
     ({"of": "a", "seed": 0, "share": float("nan")}, "found nan")],
)  # fmt: skip
def test_what_a_file_says_of_held_out_pictures_is_checked(told, text):
    with pytest.raises(ValueError, match=text):
        HeldOut.read(told)


def test_what_is_held_out_is_read_as_it_was_written():
    assert HeldOut.read(None) is None
    told = HeldOut("a", 2**64 - 1, 0.25)
    assert HeldOut.read(json.loads(json.dumps(dataclasses.asdict(told)))) == told
