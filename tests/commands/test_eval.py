"""``convnet-eval``: one run, ensembles, weights, what it writes, and one line for every mistake."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import tracemalloc
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from runs import TINY, call, here, make_images, records, shared_folder, shared_images, straight_run

from convnet.analysis import ensemble, evaluate
from convnet.cli.eval import _open_data, main
from convnet.data import DataError
from convnet.devices.protocol import OutOfMemory
from convnet.output.console import Console
from convnet.training.trained import load_trained

BASIC = ["--device", "cpu", "-b", "5", "-j", "1"]  # 12 images: three batches, the last one short


@pytest.fixture(scope="module")
def runs():
    """Two networks that see the same images at different sizes."""
    other = shared_folder() / "eval" / "other"
    assert here(shared_images(), *TINY, "--crop", "40", "--seed", "3", "--epochs", "1", "-o", str(other)) == 0
    return [str(straight_run()), str(other)]


def found(capsys, *arguments):
    """The JSON object that the command prints, and nothing else."""
    assert call(main, *BASIC, "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def direct(run, views=1):
    trained = load_trained(run, pytest.fail)
    split = trained.open_dataset(shared_images()).valid
    with trained.open_network("cpu", 12) as network:
        return evaluate.probabilities(network, split, views), split


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_one_run_has_the_errors_of_its_last_validation(runs, capsys):
    result = found(capsys, runs[0])
    assert set(result) == {
        *("top1_error", "top5_error", "loss", "n", "views", "runs", "split", "data"),
        *("top1_standard_error", "top5_standard_error", "loss_standard_error"),
    }
    assert (result["n"], result["views"], result["runs"], result["split"]) == (12, 1, [runs[0]], "val")
    step = load_trained(runs[0], pytest.fail).step
    record = next(r for r in records(straight_run()) if r["event"] == "valid" and r["step"] == step)
    assert [result[key] for key in ("top1_error", "top5_error")] == [record["top1_error"], record["top5_error"]]
    assert result["loss"] == pytest.approx(record["loss"], rel=1e-5)
    assert found(capsys, runs[0], "--split", "train")["n"] == 36


def test_ensembles_of_different_crops_are_the_mean(runs, capsys, tmp_path):
    saved = tmp_path / "p.npy"
    result = found(capsys, *runs, "--views", "10", "--save-predictions", str(saved))
    (a, split), (b, other) = direct(runs[0], 10), direct(runs[1], 10)
    assert split.size != other.size
    p = np.load(saved)
    assert (p.dtype, p.shape) == (np.float32, (12, 3))
    np.testing.assert_allclose(p, (a + b) / 2, rtol=1e-5)
    expected = evaluate.scores(p, split.labels).as_json()
    assert {key: result[key] for key in expected} == expected
    assert (result["views"], result["weights"]) == (10, [0.5, 0.5])
    for member, run, own in zip(result["members"], runs, (a, b), strict=True):
        assert member["run"] == run
        assert member["loss"] == pytest.approx(evaluate.scores(own, split.labels).loss, rel=1e-5)
    header, *lines = rows(tmp_path / "p.csv")
    assert header == ["row", "name", "label", "predicted", "probability"]
    classes = ["blue", "green", "red"]
    for i, (row, name, label, predicted, probability) in enumerate(lines):
        assert (row, name, label) == (str(i), split.name(i), classes[split.labels[i]])
        assert predicted == classes[p[i].argmax()]
        assert float(probability) == pytest.approx(p[i].max(), rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.npy"]


def test_weights_are_divided_by_their_sum(runs, capsys, tmp_path):
    result = found(capsys, *runs, "--weights", "3,1", "--save-predictions", str(tmp_path / "p.npy"))
    a, b = direct(runs[0])[0], direct(runs[1])[0]
    assert result["weights"] == [0.75, 0.25]
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), 0.75 * a + 0.25 * b, rtol=1e-5)
    assert result["mean"]["loss"] == pytest.approx(
        evaluate.scores((a + b) / 2, direct(runs[0])[1].labels).loss, rel=1e-5
    )


def test_fitted_weights_are_reported_on_the_images_they_were_not_fitted_on(runs, capsys, tmp_path):
    saved, table = tmp_path / "p.npy", tmp_path / "c.csv"
    result = found(capsys, *runs, "--fit-weights", "--save-predictions", str(saved), "--confusion", str(table))
    (a, split), b = direct(runs[0]), direct(runs[1])[0]
    weights = ensemble.fit_weights([a[0::2], b[0::2]], split.labels[0::2])
    np.testing.assert_allclose(result["weights"], weights, atol=1e-3)
    assert (result["n"], result["fitted_on"], result["mean"]["n"]) == (6, 6, 6)
    p = np.load(saved)
    np.testing.assert_allclose(p, result["weights"][0] * a[1::2] + result["weights"][1] * b[1::2], rtol=1e-4)
    assert result["loss"] == evaluate.scores(p, split.labels[1::2]).loss
    labels = split.labels[1::2]
    assert result["members"][1]["loss"] == pytest.approx(evaluate.scores(b[1::2], labels).loss, rel=1e-5)
    assert result["mean"]["loss"] == pytest.approx(evaluate.scores((a + b)[1::2] / 2, labels).loss, rel=1e-5)
    assert [line[1] for line in rows(tmp_path / "p.csv")[1:]] == [split.name(i) for i in range(1, 12, 2)]
    assert sum(int(count) for line in rows(table)[1:] for count in line[1:]) == 6


def test_text_and_confusion(runs, capsys, tmp_path):
    assert call(main, *BASIC, *runs, "--weights", "1,0", "--confusion", str(tmp_path / "c.csv")) == 0
    text = capsys.readouterr().out
    assert "data: image folder: 3 classes, 36 training and 12 validation images\n" in text
    assert "\n12 validation images, 1 view each\n" in text
    assert "top-5" not in text  # of three classes
    percent = r"\d+\.\d\d % \(\+- \d+\.\d\d %\)"
    for name in (*map(re.escape, runs), "mean", "weighted"):
        assert re.search(rf"^{name} +{percent} +\d\.\d{{4}} \(\+- \d\.\d{{4}}\)$", text, re.MULTILINE), name
    assert "\nweights 1.000, 0.000\n" in text
    header, *lines = rows(tmp_path / "c.csv")
    assert header == ["", "blue", "green", "red"]
    p, split = direct(runs[0])
    counts = evaluate.confusion(p, split.labels)
    assert lines == [[name, *map(str, row)] for name, row in zip(header[1:], counts.tolist(), strict=True)]
    pairs = evaluate.most_confused(counts, header[1:])
    assert re.findall(r"^  (\w+) taken for (\w+): (\d+) of (\d+)$", text, re.MULTILINE) == [
        (true, taken, str(wrong), str(of)) for true, taken, wrong, of in pairs
    ]
    call(main, *BASIC, "-q", runs[0])
    assert capsys.readouterr().out.startswith("12 validation images")


MISTAKES = {
    "views": (["RUN", "--views", "5"], 2, r"--views: invalid choice"),
    "no run": (["nowhere"], 4, "nowhere: there is no such checkpoint"),
    "suffix": (["RUN", "--save-predictions", "p.csv"], 2, r"--save-predictions p.csv: .* must end in .npy"),
    "table suffix": (["RUN", "--confusion", "c.txt"], 2, r"--confusion c.txt: .* must end in .csv"),
    "no folder": (["RUN", "--save-predictions", "no/p.npy"], 2, r"no/p.npy: cannot be written: No such file"),
    "same file": (["RUN", "--save-predictions", "p.npy", "--confusion", "p.csv"], 2, "writes a file of this name"),
    "weights of one": (["RUN", "--weights", "1"], 2, "are for an ensemble; name two runs"),
    "fit one": (["RUN", "--fit-weights"], 2, "are for an ensemble; name two runs"),
    "both": (["RUN", "RUN", "--weights", "1,1", "--fit-weights"], 2, "exclude each other"),
    "too few weights": (["RUN", "RUN", "--weights", "1"], 2, "--weights must be 2 numbers"),
    "no weights": (["RUN", "RUN", "--weights", "0,0"], 2, "not all 0, such as 0.5,0.5; got '0,0'"),
    "words": (["RUN", "RUN", "--weights", "a,b"], 2, "--weights must be 2 numbers"),
    "nan": (["RUN", "RUN", "--weights", "nan,1"], 2, "--weights must be 2 numbers"),
    "negative": (["RUN", "RUN", "--weights=-1,2"], 2, "none negative"),
    "batch": (["RUN", "-b", "0"], 2, "batch_size must be at least 1, got 0"),
    "data": (["RUN", "--data", "nowhere"], 3, "there is no 'nowhere'"),
    "other classes": (["RUN", "--data", "shapes"], 3, "and the network knows none of them, but 'blue'"),
    "precision": (["RUN", "--precision", "bf16"], 2, "cpu computes in fp32 only"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(mistake, runs, tmp_path, monkeypatch, capsys):
    arguments, code, text = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    given = [runs[0] if argument == "RUN" else argument for argument in arguments]
    assert call(main, "--device", "cpu", "-q", *given) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(rf"^convnet-eval: error: .*{text}", error), error
    assert not list(tmp_path.iterdir())


def test_runs_must_know_the_same_classes_and_see_the_same_images(runs, tmp_path, capsys):
    images = str(make_images(tmp_path / "images", classes=("blue", "green", "yellow")))
    assert here(images, *TINY, "--steps", "1", "-o", str(tmp_path / "run")) == 0
    capsys.readouterr()
    assert call(main, *BASIC, runs[0], str(tmp_path / "run")) == 3
    assert re.search(r"know different classes \(\['red', 'yellow'\]\); an ensemble needs", capsys.readouterr().err)


def test_a_predictions_file_that_cannot_be_written_is_noticed_before_the_work(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convnet.training.trained.load_trained", lambda *_: pytest.fail("work was begun"))
    (tmp_path / "p.npy").mkdir()
    for option in ("--save-predictions", "--confusion"):
        name = {"--save-predictions": "p.npy", "--confusion": "none/c.csv"}[option]
        assert call(main, runs[0], option, str(tmp_path / name)) == 2
    assert "p.npy: this is a folder" in capsys.readouterr().err


def test_the_example_in_the_help_lacks_but_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(main, "--help")
    example = capsys.readouterr().out.split("example:\n")[1].split()
    assert call(main, *example[1:]) == 4
    assert "runs/first: there is no such checkpoint" in capsys.readouterr().err


def test_labels_that_differ_between_sizes_are_an_error(runs):
    """As when the data is changed while the command runs."""
    first, other = (load_trained(run, pytest.fail) for run in runs)

    class Changed(type(first)):
        def open_dataset(self, data=None, size=None, test_range=None):
            dataset = super().open_dataset(data, size, test_range)
            if size != self.spec.image_size:
                dataset.valid.labels = dataset.valid.labels[::-1]
            return dataset

    changed = Changed(*(getattr(first, field.name) for field in dataclasses.fields(first)))
    assert len(_open_data([first, other], None, "val", Console())) == 2
    with pytest.raises(DataError, match=r"other labels for .*other than for .*run; the data has changed"):
        _open_data([changed, other], None, "val", Console())


# ---- many classes and images


class Known:
    """A run that knows ``classes`` classes, of which every image seems to be a different one."""

    def __init__(self, path: str, classes: int, images: int, seed: int) -> None:
        self.path, self.classes, self.opened = path, [f"class {k}" for k in range(classes)], 0
        self.fingerprint = ""
        self.config = SimpleNamespace(data="nowhere", seed=0, ranges=(None, None))
        self.spec, self.image_size = SimpleNamespace(crop=8, classes=classes), 8
        self.labels = np.random.default_rng(0).integers(0, classes, images).astype(np.int32)
        self.seed, self.batch_size = seed, 0

    def open_dataset(self, *_):
        split = SimpleNamespace(size=8, labels=self.labels, name="image {}".format, image=self.image)
        split = type("Split", (), {"__len__": lambda _: len(self.labels), **vars(split)})()
        return SimpleNamespace(
            name="many", classes=self.classes, valid=split, train=split, test=None, notes=(), left_out=()
        )

    def image(self, index, out):
        out[:] = 0
        out[0, 0] = [index % 256, index // 256, self.seed]

    @contextmanager
    def open_network(self, _, batch_size, __):
        self.opened += 1
        self.batch_size = batch_size
        yield self

    def evaluate_batch(self, images, _):
        rows = [self.logits(int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])) for image in images]
        return np.stack(rows)

    def logits(self, index):
        return np.random.default_rng((self.seed, index)).normal(size=len(self.classes)).astype(np.float32)

    def probabilities(self):
        return evaluate.softmax(np.stack([self.logits(k) for k in range(len(self.labels))])).astype(np.float32)


def known(monkeypatch, classes: int, images: int, count: int) -> list[Known]:
    found = [Known(f"run-{k}", classes, images, k) for k in range(count)]
    waiting = list(found)
    monkeypatch.setattr("convnet.training.trained.load_trained", lambda *_: waiting.pop(0))
    return found


@pytest.mark.parametrize("options", [["r"], ["r", "r"], ["r", "r", "--fit-weights"]], ids=len)
def test_memory_does_not_grow_with_images_times_classes_nor_with_classes_squared(options, monkeypatch, capsys):
    """20,000 classes: the square of a confusion takes 3.2 GB, and what 600 images get, 48 MB."""
    monkeypatch.setattr("convnet.cli.eval.PART", 2**21)
    known(monkeypatch, 20_000, 600, options.count("r"))
    tracemalloc.start()
    try:
        assert call(main, *options, "--json", "-b", "4", "-j", "0", "-q") == 0
        assert tracemalloc.get_traced_memory()[1] < 24e6
    finally:
        tracemalloc.stop()
    assert json.loads(capsys.readouterr().out)["top1_error"] > 0.9


@pytest.mark.parametrize("fit", [False, True])
def test_images_in_parts_have_the_results_of_all_at_once(fit, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("convnet.cli.eval.PART", 4 * 9 * 2 * 10)  # ten images of two runs: two batches of 4
    runs = known(monkeypatch, 9, 50, 2)
    files = ["--save-predictions", str(tmp_path / "p.npy"), "--confusion", str(tmp_path / "c.csv")]
    chosen = ["--fit-weights"] if fit else ["--weights", "3,1"]
    assert call(main, "r", "r", "--json", "-b", "4", "-j", "0", *chosen, *files) == 0
    result = json.loads(capsys.readouterr().out)
    assert runs[0].opened > 2
    members, labels = [run.probabilities() for run in runs], runs[0].labels
    weights, numbers = [0.75, 0.25], slice(None)
    if fit:
        weights, numbers = ensemble.fit_weights([member[::2] for member in members], labels[::2]), slice(1, None, 2)
        np.testing.assert_array_equal(result["weights"], weights)
    members, labels = [member[numbers] for member in members], labels[numbers]
    p = ensemble.mean(members, weights)
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), p)
    for found, expected in zip(
        (result, *result["members"], result["mean"]), (p, *members, ensemble.mean(members)), strict=True
    ):
        scores = evaluate.scores(expected, labels).as_json()
        assert {key: found[key] for key in scores} == scores
    counts = [[int(count) for count in row[1:]] for row in rows(tmp_path / "c.csv")[1:]]
    assert counts == evaluate.confusion(p, labels).tolist()
    names = [row[1:3] for row in rows(tmp_path / "p.csv")[1:]]
    assert names == [[f"image {i}", f"class {k}"] for i, k in zip(range(50)[numbers], labels, strict=True)]


def test_from_six_classes_on_there_is_a_top_5_error(monkeypatch, capsys):
    for classes in (5, 6):
        known(monkeypatch, classes, 20, 1)
        assert call(main, "r", "-b", "4", "-j", "0") == 0
        assert ("top-5 error" in capsys.readouterr().out) == (classes == 6)


def test_memory_that_runs_out_half_way_goes_on_with_fewer_images_from_there(monkeypatch, capsys):
    run = known(monkeypatch, 9, 20, 1)[0]
    evaluate_batch, seen = run.evaluate_batch, []

    def short(images, windows):
        if len(images) > 2 and len(seen) == 2:
            raise OutOfMemory("cpu: no room")
        seen.append(len(images))
        return evaluate_batch(images, windows)

    run.evaluate_batch = short
    assert call(main, "r", "-b", "4", "-j", "0", "--json", "--retry") == 0
    found, labels = json.loads(capsys.readouterr().out), run.labels
    assert seen == [4, 4, 2, 2, 2, 2, 2, 2]
    assert found["loss"] == evaluate.scores(run.probabilities(), labels).loss


def test_no_image_is_an_error(monkeypatch, capsys):
    known(monkeypatch, 9, 0, 1)
    assert call(main, "r", "-q") == 3
    assert "many: there is no validation image to look at" in capsys.readouterr().err
