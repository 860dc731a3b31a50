"""Runs on data as people have it: without a split, with files of no use in it, and data that has moved since."""

from __future__ import annotations

import csv
import os
import shutil
import zipfile

import numpy as np
import pytest
from data_files import lay, picture
from PIL import Image
from runs import final, here, records

import convnet.data
from convnet.analysis.predict import ImageFiles
from convnet.cli.eval import main as evaluate
from convnet.cli.predict import main as predict
from convnet.cli.prepare import main as prepare
from convnet.cli.train import main
from convnet.data import DataError, open_dataset
from convnet.training import checkpoint
from convnet.training.config import Config
from convnet.training.run import RunFolder
from convnet.training.trained import load_trained

SMALL = ["--device", "cpu", "-b", "8", "--width", "0.25", "--crop", "32"]


@pytest.fixture
def photos(tmp_path):
    """32 pictures of two classes, of which 2 and 1 are held out; some other files."""
    lay(tmp_path / "photos", "cat/{1..20}.jpg", "dog/{1..12}.png", texts={"dog/notes.txt": "x", "cat/film.mp4": "x"})
    (tmp_path / "photos/dog/gone.jpg").symlink_to("/nowhere.jpg")
    return str(tmp_path / "photos")


def held_out(run):
    valid = load_trained(run, pytest.fail).open_dataset().valid
    return [valid.name(k) for k in range(len(valid))]


def test_the_share_has_one_default():
    assert Config().val_split == convnet.data.VAL_SPLIT


def test_what_is_held_out_is_said_and_the_same_after_a_resume(photos, tmp_path, capsys):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main([photos, *SMALL, "--epochs", "2", "-o", str(straight)]) == 0
    said = "no validation pictures: 3 of 32 are held out (10 % of each class, chosen by the seed 0)"
    assert said in capsys.readouterr().out
    assert said in (straight / "log.txt").read_text()
    assert main([photos, *SMALL, "--epochs", "2", "--steps", "3", "-o", str(stopped)]) == 0
    capsys.readouterr()
    assert main(["--resume", "auto", "-o", str(stopped)]) == 0
    assert said in capsys.readouterr().out
    assert final(stopped, 8) == final(straight, 8)
    assert held_out(stopped) == held_out(straight)
    assert [record["event"] for record in records(straight)].count("valid") == 2


def test_another_share_or_seed_is_another_run(photos, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert here(photos, *SMALL, "--steps", "2", "-o", run, "--val-split", "0.25", "--seed", "5") == 0
    assert len(held_out(run)) == 5 + 3
    assert here("--resume", "auto", "-o", run, "--val-split", "0.5") == 4
    assert "cannot take --val-split 0.5 (it is 0.25)" in capsys.readouterr().err
    assert here(photos, *SMALL, "-o", run + "2", "--val-split", "1") == 2


def test_pictures_added_later_change_what_was_held_out(photos, tmp_path, capsys):
    """Some of those evaluated may have been trained on: a resume refuses, an evaluation says so."""
    run = str(tmp_path / "run")
    assert here(photos, *SMALL, "--steps", "4", "-o", run) == 0
    lay(tmp_path / "photos", "cat/new{1..3}.jpg")
    assert here("--resume", "auto", "-o", run) == 4
    assert "expected the data it was trained on" in capsys.readouterr().err
    notes = load_trained(run, pytest.fail).open_dataset().notes
    assert any("the data has changed since" in note for note in notes)


@pytest.mark.parametrize("data", ["unsplit", "train only", "pixels"])
def test_a_run_on_a_store_knows_what_was_held_out_of_the_folder(photos, tmp_path, capsys, data):
    """With another seed and share than those of the run; and says so where pictures have come since."""
    folder = tmp_path / "photos"
    if data == "train only":
        (tmp_path / "whole").mkdir()
        folder = shutil.move(folder, tmp_path / "whole" / "train").parent
    elif data == "pixels":
        pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 40), np.uint8)
        folder = tmp_path / "a.npz"
        np.savez(folder, images=pixels, labels=np.repeat([0, 1], [20, 12]))
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    assert prepare([str(folder), store, "--size", "40", "--seed", "9", "--val-split", "0.25", "-q"]) == 0
    assert here(store, *SMALL, "--steps", "4", "-o", run) == 0
    inside = {load_trained(run, pytest.fail).open_dataset().valid.name(k) for k in range(5 + 3)}
    valid = load_trained(run, pytest.fail).open_dataset(str(folder)).valid
    assert len(valid) == 5 + 3
    assert {os.path.basename(valid.name(k)) for k in range(len(valid))} == {os.path.basename(name) for name in inside}


def test_pictures_added_later_are_told_where_the_data_is_named(photos, tmp_path):
    run = str(tmp_path / "run")
    assert here(photos, *SMALL, "--steps", "4", "-o", run) == 0
    trained = load_trained(run, pytest.fail)
    assert len(trained.open_dataset(photos).valid) == 3
    assert not any("has changed" in note for note in trained.open_dataset(photos).notes)
    lay(tmp_path / "photos", "cat/new{1..3}.jpg")
    found = trained.open_dataset(photos)
    assert len(found.valid) == 35
    assert any("it may know some of these images" in note for note in found.notes)


def test_a_share_that_nothing_is_held_out_of_is_told(photos, tmp_path, capsys):
    said = "warning: --val-split 0.25 changes nothing: the data has validation images of its own\n"
    share = ["--val-split", "0.25"]
    assert here(photos, *SMALL, "--steps", "1", "-o", str(tmp_path / "a"), *share) == 0
    assert prepare([photos, str(tmp_path / "store"), "--size", "40", "-q", *share]) == 0
    assert "--val-split" not in capsys.readouterr().err
    assert here(str(tmp_path / "store"), *SMALL, "--steps", "1", "-o", str(tmp_path / "b"), "--val-split", "0.1") == 0
    assert said.replace("0.25", "0.1") in capsys.readouterr().err
    for part, count in (("train", 20), ("val", 4)):
        lay(tmp_path / "split" / part, f"cat/{{1..{count}}}.jpg", f"dog/{{1..{count}}}.jpg")
    assert here(str(tmp_path / "split"), *SMALL, "--steps", "1", "-o", str(tmp_path / "c"), *share) == 0
    assert said in capsys.readouterr().err
    assert prepare([str(tmp_path / "split"), str(tmp_path / "d"), "--size", "40", "-q", *share]) == 0
    assert said in capsys.readouterr().err
    assert here("--resume", "auto", "-o", str(tmp_path / "c"), "--steps", "2") == 0
    assert "--val-split" not in capsys.readouterr().err


def test_files_left_out_are_counted_on_the_screen_and_listed_in_the_run(photos, tmp_path, capsys):
    (tmp_path / "photos/cat/7.jpg").write_bytes(b"\xff\xd8 no more of it")
    assert main([photos, *SMALL, "--epochs", "1", "-o", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "left out of 'cat': 1 (not a picture of a known kind)" in out
    assert "left out of 'dog': 1 (a link to a file that is not there)" in out
    with open(tmp_path / "run/left-out.csv", newline="") as file:
        listed = {row["source"].rpartition("/")[2]: row["reason"] for row in csv.DictReader(file)}
    assert listed.keys() == {"film.mp4", "notes.txt", "gone.jpg", "7.jpg"}
    assert "not a picture" in listed["7.jpg"]


def test_data_that_moved_can_be_named(photos, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert here(photos, *SMALL, "--steps", "4", "-o", run) == 0
    before = held_out(run)
    shutil.move(photos, tmp_path / "elsewhere")
    moved = str(tmp_path / "elsewhere")
    capsys.readouterr()
    assert here("--resume", "auto", "-o", run) == 3
    assert f"has moved, name it: convnet-train DATA --resume auto -o {run}" in capsys.readouterr().err
    assert evaluate([run, "--device", "cpu"]) == 3
    assert "has moved, name it with --data" in capsys.readouterr().err
    with pytest.raises(DataError, match="name it with --data"):
        load_trained(run, pytest.fail).open_dataset()
    valid = load_trained(run, pytest.fail).open_dataset(moved).valid
    assert [valid.name(k).rpartition("/photos/")[2].rpartition("/elsewhere/")[2] for k in range(len(valid))] == [
        name.rpartition("/photos/")[2] for name in before
    ]
    assert here(moved, "--resume", "auto", "-o", run, "--steps", "6") == 0


def test_a_run_that_is_not_there_is_not_begun_on_drawn_shapes(photos, tmp_path, capsys):
    assert here(photos, *SMALL, "--steps", "1", "-o", str(tmp_path / "mine")) == 0
    assert here("--resume", "auto", "-o", str(tmp_path / "mien")) == 2
    said = capsys.readouterr().err
    assert f"there is no run in {tmp_path / 'mien'} (did you mean {tmp_path / 'mine'}?)" in said
    assert not (tmp_path / "mien").exists()
    assert here(photos, *SMALL, "--resume", "auto", "--steps", "1", "-o", str(tmp_path / "mien")) == 0


def test_a_pickle_of_pytorch_is_no_checkpoint(tmp_path):
    for name, content in (("new.pth", None), ("old.pth", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")):
        if content:
            (tmp_path / name).write_bytes(content)
        else:
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                archive.writestr("model/data.pkl", b"\x80\x02}.")
        with pytest.raises(checkpoint.CheckpointError, match="found a PyTorch pickle; name a run folder"):
            checkpoint.load(tmp_path / name)
    (tmp_path / "page").write_text("<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(checkpoint.CheckpointError, match="found a page of HTML"):
        checkpoint.load(tmp_path / "page")


def x_rays(root, bits=12):
    """Grey PNG of 16 bits whose values take fewer."""
    for part, count in (("train", 6), ("val", 3)):
        for k, name in enumerate(("normal", "ill")):
            (root / part / name).mkdir(parents=True)
            for j in range(count):
                grey = np.asarray(picture(40, 36, 10 * k + j).convert("L")).astype(np.uint16)
                Image.fromarray(grey << (bits - 8)).save(root / part / name / f"{j}.png")
    return str(root)


def test_pictures_of_16_bits_stay_visible_in_runs_stores_and_predictions(tmp_path, capsys):
    data, store, run = x_rays(tmp_path / "x-rays"), str(tmp_path / "store"), str(tmp_path / "run")
    said = "16-bit pictures: their values take 12 bits, and are divided by 16 (255 at most)"
    assert main([data, *SMALL, "--steps", "2", "-o", run]) == 0
    assert said in capsys.readouterr().out
    assert prepare([data, store, "--size", "37", "-j", "1"]) == 0
    assert said in capsys.readouterr().out
    trained = load_trained(run, pytest.fail)
    assert trained.depth == 12
    assert open_dataset(store, size=37, seed=0).depth == 12
    split = trained.open_dataset().train
    plain = np.asarray(picture(40, 36, 10).convert("RGB").convert("L"))
    assert abs(float(split.image(0).mean()) - float(plain.mean())) < 12
    files = [split.name(k) for k in range(len(split))]
    for k, image in enumerate(ImageFiles(files, split.size, trained.depth).image(k) for k in range(len(files))):
        np.testing.assert_array_equal(image, split.image(k))
    # what the command hands to the network
    seen = []
    original = ImageFiles.__init__

    def noted(self, names, size, depth=16):
        seen.append(depth)
        original(self, names, size, depth)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFiles, "__init__", noted)
        assert predict([run, files[0], "--device", "cpu"]) == 0
    assert seen == [12]


def test_a_labelled_set_with_classes_missing_and_unknown_is_evaluated(photos, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert here(photos, *SMALL, "--steps", "4", "-o", run) == 0
    others = str(lay(tmp_path / "others", "dog/{1..5}.jpg", "wolf/{1..3}.jpg"))
    capsys.readouterr()
    assert evaluate([run, "--data", others, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "5 validation images, 1 view each" in out
    assert "the network does not know 'wolf': left out" in out
    assert evaluate([run, "--data", others, "--device", "cpu", "--split", "train"]) == 3
    assert "there is no training image to look at; choose another --split" in capsys.readouterr().err
    lay(tmp_path / "photos2", "train/cat/{1..5}.jpg", "train/dog/{1..5}.jpg", "val/cat/1.jpg", "test/dog/{1..3}.jpg")
    assert evaluate([run, "--data", str(tmp_path / "photos2"), "--device", "cpu", "--split", "test"]) == 0
    assert "3 test images, 1 view each" in capsys.readouterr().out


def test_an_ensemble_whose_members_hold_out_other_pictures_says_so(photos, tmp_path, capsys):
    runs = [str(tmp_path / f"run{seed}") for seed in (0, 1)]
    for seed, run in enumerate(runs):
        assert here(photos, *SMALL, "--steps", "1", "-o", run, "--seed", str(seed)) == 0
    assert evaluate([*runs, "--device", "cpu"]) == 0
    assert f"warning: {runs[1]} was trained on other pictures of the data than {runs[0]}" in capsys.readouterr().err
    assert evaluate([runs[0], runs[0], "--device", "cpu"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_list_that_cannot_be_written_ends_nothing(photos, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "list_left_out", full)
    assert here(photos, *SMALL, "--steps", "2", "-o", str(tmp_path / "run")) == 0
    assert "left-out.csv: not written: No space left on device" in capsys.readouterr().err
