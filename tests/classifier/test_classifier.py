"""``convnet.Classifier``: the commands' results, under scikit-learn's conventions."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from runs import COLOURS, ENVIRONMENT, here, training

import convnet
from convnet import Classifier, classifier
from convnet.cli.eval import main as evaluate
from convnet.cli.export import main as export
from convnet.cli.predict import main as predict
from convnet.training import checkpoint
from convnet.training.trained import load_trained

PLAIN = {"epochs": 1, "batch_size": 8, "device": "cpu"}
COMMAND = ["--epochs", "1", "-b", "8", "--device", "cpu"]


def colourful(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, uint8 (n, 20, 24, 3), and which channel of each is the brightest."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = random.integers(0, 100, (count, 20, 24, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels] += 120
    return pixels, labels


def weights(trained) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in trained.checkpoint.part("weights").items()}


@pytest.fixture(scope="module")
def fitted() -> Classifier:
    """On 36 pictures, with names as labels."""
    pixels, labels = colourful(36)
    return Classifier(**PLAIN).fit(pixels, np.array(COLOURS)[labels])


# ---- what the commands do


def test_a_folder_gives_the_bits_of_the_command(images, tmp_path, caplog):
    options = {"lr": 0.02, "augment": False, "val_split": 0.2, "random_state": 3}
    found = Classifier(**PLAIN, **options).fit(images)
    said = ["--lr", "0.02", "--no-augment", "--val-split", "0.2", "--seed", "3"]
    assert here(images, *COMMAND, *said, "-o", str(tmp_path)) == 0
    assert weights(found.trained_) == weights(load_trained(tmp_path, pytest.fail))
    assert found.classes_.tolist() == list(COLOURS)
    assert not hasattr(found, "n_features_in_")
    assert "--val-split 0.2 changes nothing" in caplog.text
    caplog.clear()
    assert weights(Classifier(**PLAIN).fit(Path(images)).trained_) != weights(found.trained_)
    assert "--val-split" not in caplog.text


@pytest.mark.parametrize("names", [COLOURS, range(3), range(5, 26, 10)], ids=["text", "numbers", "two digits"])
def test_arrays_give_the_bits_of_the_command_on_the_same_pictures(names, tmp_path):
    pixels, labels = colourful(36)
    y = np.array(names)[labels]
    np.savez(tmp_path / "data.npz", images=pixels, labels=y)
    assert here(str(tmp_path / "data.npz"), *COMMAND, "-o", str(tmp_path / "run")) == 0
    theirs = load_trained(tmp_path / "run", pytest.fail)
    found = Classifier(**PLAIN).fit(pixels, y)
    assert weights(found.trained_) == weights(theirs)
    assert found.trained_.classes == theirs.classes
    assert found.trained_.fingerprint == theirs.fingerprint
    assert found.trained_.held_out is not None
    assert found.classes_.tolist() == sorted(names)
    assert found.n_features_in_ == 20 * 24 * 3


def test_it_learns(fitted):
    others, labels = colourful(30, seed=1)
    learnt = Classifier(epochs=8, batch_size=8, device="cpu").fit(*colourful(60))
    assert learnt.score(others, labels) > 0.8
    shares = learnt.predict_proba(others)
    assert shares.shape == (30, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    assert (learnt.predict(others) == shares.argmax(axis=1)).all()
    assert learnt.score(others, labels) == (learnt.predict(others) == labels).mean()


def test_pictures_in_files_are_those_of_the_commands(images, tmp_path, capsys):
    found = Classifier(**PLAIN).fit(images)
    saved = tmp_path / "saved.safetensors"
    found.save(saved)
    assert predict([str(saved), f"{images}/val", "--device", "cpu", "--json", "-q"]) == 0
    theirs = json.loads(capsys.readouterr().out)["images"]
    assert found.predict(f"{images}/val").tolist() == [image["labels"][0]["label"] for image in theirs]
    probability = found.predict_proba(Path(images) / "val").max(axis=1)
    np.testing.assert_allclose(probability, [image["labels"][0]["probability"] for image in theirs], rtol=1e-5)
    one = found.predict_proba(f"{images}/val/red/0.png")
    np.testing.assert_allclose(one.max(), theirs[8]["labels"][0]["probability"], rtol=1e-5)
    assert evaluate([str(saved), "--device", "cpu", "--json", "-q"]) == 0
    assert found.score(images) == 1 - json.loads(capsys.readouterr().out)["top1_error"]


def test_a_run_folder_can_be_loaded(straight, images):
    loaded = Classifier.load(straight)
    assert weights(loaded.trained_) == weights(load_trained(straight, pytest.fail))
    assert loaded.get_params()["batch_size"] == 8
    assert loaded.predict(f"{images}/val/red").dtype.kind == "U"
    assert loaded.predict(colourful(3)[0]).shape == (3,)


def test_weights_in_a_file_can_be_loaded_and_stay_that_file(straight, tmp_path):
    assert export([str(straight), "-o", str(tmp_path / "x.npz"), "-q"]) == 0
    loaded, pictures = Classifier.load(tmp_path / "x.npz"), colourful(3)[0]
    np.testing.assert_array_equal(loaded.predict_proba(pictures), Classifier.load(straight).predict_proba(pictures))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'x.npz'} as it is; copy that file")):
        loaded.save(tmp_path / "y")
    assert not (tmp_path / "y").exists()


# ---- keeping


@pytest.mark.parametrize("kind", ["fitted", "integers", "minus one", "true", "fractions"])
def test_what_is_saved_is_the_same_when_it_is_loaded(kind, fitted, tmp_path):
    pixels, labels = colourful(12)
    X, y = {
        "fitted": (pixels, None),
        "integers": (pixels, 10 + labels),
        "minus one": (pixels, 1 - 2 * (labels == 1)),
        "true": (pixels, labels == 1),
        "fractions": (np.float32(pixels[..., 0]) / 1000 - 3, labels.astype(float)),
    }[kind]
    found = fitted if y is None else Classifier(**PLAIN, augment=False, random_state=5).fit(X, y)
    assert y is None or set(found.classes_) == set(y)
    found.save(tmp_path / "saved")
    loaded = Classifier.load(str(tmp_path / "saved"))
    assert loaded.classes_.dtype.kind == found.classes_.dtype.kind
    for one in (loaded, pickle.loads(pickle.dumps(found))):
        assert one.classes_.tolist() == found.classes_.tolist()
        assert one.n_features_in_ == found.n_features_in_
        np.testing.assert_array_equal(one.predict_proba(X), found.predict_proba(X))
    same = ("model", "epochs", "batch_size", "augment", "val_split", "random_state")
    assert {name: getattr(loaded, name) for name in same} == {name: getattr(found, name) for name in same}


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.update(classes=["a", "b"]),
        lambda kept: kept.update(classes=[["a"], ["b"], ["c"]]),
        lambda kept: kept.update(classes=[None, {}, 3]),
        lambda kept: kept.update(levels=[1, 1]),
        lambda kept: kept.update(levels=[0, 1e999]),
        lambda kept: kept.update(levels="ab"),
        lambda kept: kept.update(flat=1),
        lambda kept: kept.update(features="3"),
        lambda kept: kept.update(other=0),
        lambda kept: kept.pop("classes"),
        lambda kept: kept.clear(),
    ],
)
def test_what_nobody_saved_is_refused(change, fitted, tmp_path):
    found = fitted.trained_.checkpoint
    kept = {"classes": list(COLOURS), "levels": [0.0, 1.0], "flat": False, "features": 1440}
    checkpoint.save(tmp_path / "saved", found.tensors, {**found.state, "classifier": kept})
    Classifier.load(tmp_path / "saved")
    change(kept)
    state = {**found.state, "classifier": json.loads(json.dumps(kept).replace("Infinity", "1e999"))}
    try:
        checkpoint.save(tmp_path / "saved", found.tensors, state)
    except ValueError:  # no JSON
        return
    with pytest.raises(ValueError, match='expected labels and levels of pixels as "classifier", found'):
        Classifier.load(tmp_path / "saved")


def test_what_is_no_run_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="there is no such checkpoint"):
        Classifier.load(tmp_path / "no")
    with pytest.raises(ValueError, match="found a folder without a run"):
        Classifier.load(tmp_path)


# ---- numbers as pictures


def test_numbers_of_any_kind_are_the_same_pictures(fitted):
    pixels, _ = colourful(9)
    pixels[0, 0, 0] = 255
    wanted = fitted.predict_proba(pixels)
    for same in (
        pixels.astype(np.int64),
        pixels.astype(np.float32),
        pixels / 255,
        pixels.tolist(),
        np.asfortranarray(pixels),
        pixels.transpose(0, 3, 1, 2),
        np.dstack([pixels.reshape(9, -1, 3), np.full((9, 480, 1), 255, np.uint8)]).reshape(9, 20, 24, 4),
    ):
        np.testing.assert_array_equal(fitted.predict_proba(same), wanted)
    dark = pixels[1:, :10] // 120 * 60  # no value near 255 or 1
    np.testing.assert_array_equal(fitted.predict_proba(dark.astype(np.int16)), fitted.predict_proba(dark))
    with pytest.raises(ValueError, match="X has numbers from -1 to 254, and the network has learnt from pixels: give"):
        fitted.predict(pixels.astype(np.int16) - 1)


def test_levels_are_those_of_fit():
    """A picture is the same one whatever stands beside it."""
    pixels, labels = colourful(12)
    X = pixels[..., 0] / 16 - 5.0
    found = Classifier(**PLAIN).fit(X, labels)
    np.testing.assert_array_equal(found.predict_proba(X[3:4]), found.predict_proba(X)[3:4])
    assert (found.predict_proba(X[3:4] + 1) != found.predict_proba(X[3:4])).any()


def test_rows_of_features_are_square_pictures():
    rows = np.arange(10, dtype=np.float64).reshape(2, 5)
    pixels = classifier._pictures(rows, (0, 9))
    steps = np.rint(np.arange(10) * 255 / 9)
    expected = np.zeros((2, 9))
    expected[:, :5] = steps.reshape(2, 5)
    np.testing.assert_array_equal(pixels, expected.reshape(2, 3, 3))
    found = Classifier(**PLAIN).fit(np.repeat(rows, 5, axis=0), [0] * 5 + [1] * 5)
    assert found.n_features_in_ == 5
    with pytest.raises(ValueError, match="X has 4 features, but Classifier is expecting 5 features as input"):
        found.predict(rows[:, :4])
    with pytest.raises(ValueError, match="rows of numbers are expected, as in fit"):
        found.predict(rows[:, None])


# ---- what cannot be used


PIXELS, LABELS = colourful(6)


@pytest.mark.parametrize(
    ("X", "y", "told"),
    [
        (PIXELS, None, "requires y to be passed, but the target y is None"),
        (PIXELS, LABELS[:5], "y has 5 labels for 6 pictures; one each is needed"),
        (PIXELS, np.zeros((6, 2)), r"y should be a 1d array, got an array of shape \(6, 2\) instead"),
        (PIXELS, LABELS + 0.5, "Unknown label type: continuous; labels are whole numbers or text"),
        (
            PIXELS,
            np.array([0, "a"] * 3, object),
            "Unknown label type: object; labels are whole numbers or text, all of",
        ),
        (PIXELS, [b"a", b"b"] * 3, r"Unknown label type: \|S1; labels are whole numbers or text"),
        (PIXELS, np.array([None] * 6), "Unknown label type: object"),
        (PIXELS, LABELS * np.nan, "Input y contains NaN or infinity"),
        (PIXELS, [1] * 6, "has 1 class, '1'; at least 2 are needed"),
        (PIXELS[:3], LABELS[:3], "none can be held out of 3 in 3 classes with --val-split 0.1"),
        (
            PIXELS[0],
            LABELS,
            r"X of shape \(20, 24, 3\) is one picture; several are expected, \(n, H, W, 3\): X\[None\]",
        ),
        (PIXELS[0, 0, 0], [1, 2, 3], "one picture or row at most; several are expected. Reshape your data"),
        (PIXELS[:0], [], "0 pictures; one at least is needed"),
        (PIXELS[:, :0], LABELS, r"0 feature\(s\)"),
        (PIXELS[..., :2], LABELS, r"X is uint8 \(6, 20, 24, 2\): no pictures; needed are numbers of shape \(n, H, W\)"),
        (PIXELS * np.nan, LABELS, "X contains NaN or infinity"),
        (PIXELS * 1j, LABELS, "Complex data not supported: X is complex128"),
        (PIXELS.astype(str), LABELS, "no pictures; needed are numbers"),
        ([PIXELS[0], PIXELS[1, :5]], [0, 1], "X is no array of numbers .*; pictures of several sizes go into a folder"),
        ("no/such/folder", None, "there is no '/.*no/such/folder'; accepted are 'shapes'"),
        ("shapes", LABELS, "the labels of 'shapes' are in it; leave y out"),
    ],
)
def test_what_cannot_be_learnt_is_one_sentence(X, y, told):
    with pytest.raises(ValueError, match=told) as caught:
        Classifier(**PLAIN).fit(X, y)
    assert "\n" not in str(caught.value) or isinstance(X, list)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"model": "resnet"}, "resnet"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"lr": "fast"}, "--lr must be a number, got 'fast'"),
        ({"val_split": 1.0}, "--val-split must be"),
        ({"random_state": -1}, "--seed must be at least 0"),
        ({"device": "gpu"}, "device must be"),
    ],
)
def test_impossible_parameters_are_told_by_fit(params, told):
    with pytest.raises(ValueError, match=told):
        Classifier(**params).fit(PIXELS, LABELS)


def test_numbers_of_numpy_are_parameters_too():
    found = Classifier(epochs=np.int64(1), batch_size=np.int32(8), lr=np.float32(0.01), device="cpu")
    assert found.fit(*colourful(12)).trained_.config.epochs == 1


def test_pictures_that_cannot_be_read_are_named(fitted, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.png: "):
        fitted.predict(tmp_path)
    with pytest.raises(ValueError, match=r"b\.png: "):
        fitted.predict(tmp_path / "b.png")
    with pytest.raises(ValueError, match="no/such"):
        fitted.score("no/such")


def test_a_score_needs_a_label_each(fitted):
    names = np.array(COLOURS)[LABELS]
    assert fitted.score(PIXELS, names.astype(object)) == fitted.score(PIXELS, names.tolist())
    with pytest.raises(ValueError, match="requires y to be passed"):
        fitted.score(PIXELS)
    with pytest.raises(ValueError, match="y has 5 labels for 6 pictures"):
        fitted.score(PIXELS, names[:5])


def test_a_column_of_labels_is_taken_with_a_warning():
    pixels, labels = colourful(12)
    with pytest.warns(UserWarning, match=r"A column-vector y was passed .* give y.ravel\(\)"):
        found = Classifier(**PLAIN).fit(pixels, labels[:, None])
    assert found.classes_.tolist() == [0, 1, 2]


# ---- conventions


@pytest.mark.parametrize("there", [True, False], ids=["scikit-learn", "alone"])
def test_asked_before_it_was_fitted(there, monkeypatch, tmp_path):
    if there:
        kind = pytest.importorskip("sklearn.exceptions", reason="scikit-learn is not installed").NotFittedError
    else:
        monkeypatch.delitem(sys.modules, "sklearn.exceptions", raising=False)
        kind = classifier.NotFittedError
        assert issubclass(kind, ValueError)
        assert issubclass(kind, AttributeError)
    for ask in (
        lambda one: one.predict(PIXELS),
        lambda one: one.predict_proba(PIXELS),
        lambda one: one.score(PIXELS, LABELS),
        lambda one: one.score("shapes"),
        lambda one: one.save(tmp_path / "saved"),
    ):
        with pytest.raises(kind, match="this Classifier instance is not fitted yet; call fit first, or load one"):
            ask(Classifier())


def test_parameters():
    one = Classifier(epochs=3, augment=False)
    assert repr(one) == "Classifier(epochs=3, augment=False)"
    assert one.get_params()["model"] == "alexnet-tiny"
    assert one.set_params(lr=0.5, model="alexnet") is one
    assert (one.lr, one.model) == (0.5, "alexnet")
    assert Classifier(**one.get_params()).get_params() == one.get_params()
    with pytest.raises(ValueError, match="no parameter is called 'learning_rate'; there are model, epochs, "):
        one.set_params(learning_rate=1)
    assert vars(Classifier()).keys() == one.get_params().keys()


def test_fitted_anew_it_is_as_if_it_were_new(images):
    again = Classifier(**PLAIN).fit(*colourful(12))
    again.fit(images)
    assert not hasattr(again, "n_features_in_")
    assert weights(again.trained_) == weights(Classifier(**PLAIN).fit(images).trained_)


def test_it_is_quiet_and_leaves_nothing_behind(monkeypatch, tmp_path, capfd, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        Classifier(**PLAIN).fit(*colourful(12))
    assert capfd.readouterr() == ("", "")
    assert [record.name for record in caplog.records] == ["convnet.classifier"]
    assert "nothing was learnt: top-1 error" in caplog.text
    Classifier(**PLAIN, verbose=True).fit(*colourful(12))
    shown = capfd.readouterr().out
    assert "epoch 1/1" in shown
    assert "look at" not in shown
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_fit(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train_step = convnet.Network.train_step

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return train_step(*arguments)

    monkeypatch.setattr(convnet.Network, "train_step", interrupted)
    one = Classifier(**PLAIN)
    with pytest.raises(KeyboardInterrupt):
        one.fit(*colourful(36))
    assert not hasattr(one, "classes_")
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_imported_without_it():
    code = (
        "import sys, convnet\n"
        "assert 'convnet.classifier' not in sys.modules and 'convnet.training.train' not in sys.modules\n"
        "assert convnet.Classifier.__module__ == 'convnet.classifier' and 'sklearn' not in sys.modules\n"
        "try: convnet.Classifer\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "module 'convnet' has no attribute 'Classifer'\n", done.stderr


def test_the_walk_in_the_readme(tmp_path, monkeypatch):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (code,) = re.findall(
        r"<!-- run by tests/classifier/test_classifier\.py -->\n```python\n(.*?)```", readme, re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    images, labels = colourful(30)
    others, theirs = colourful(6, seed=1)
    names = {"convnet": convnet, "images": images, "labels": labels, "others": others, "theirs": theirs}
    exec(code.replace("epochs=20", "epochs=1, device='cpu'"), names)
    assert names["classifier"].predict(others).shape == (6,)
    shutil.copy("digits.safetensors", "other.safetensors")
    assert (
        here("--init-from", "other.safetensors", "shapes", "--steps", "1", "-b", "16", "--device", "cpu", "-o", "run")
        == 0
    )
    assert training(tmp_path / "run")
