"""The networks of 2012 for small images in the commands that look at trained networks: a short run of each kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from runs import call, here

from convnet.analysis import evaluate
from convnet.cli.eval import main as evaluation
from convnet.cli.export import main as export
from convnet.cli.show import main as show
from convnet.data import normalisation
from convnet.network.spec import NetworkSpec
from convnet.training.loggers import Loggers
from convnet.training.trained import load_trained

# a network with local layers and smaller crops than pictures, one with averages and norms, and one of 1998
NAMES = ("cifar-11pct", "cifar-18pct", "lenet5")
SHORT = ["--device", "cpu", "-b", "16", "--steps", "3", "--width", "0.25", "--eval-every", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        assert here("shapes", "--model", name, *SHORT, "-o", str(folder / name)) == 0
    return {name: folder / name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_view_is_evaluated(runs, name, capsys):
    """By crops of the pictures that are made here, and their mean probabilities."""
    trained = load_trained(runs[name], print)
    valid = trained.open_dataset().valid
    crop, largest = trained.spec.crop, trained.image_size - trained.spec.crop
    mean, factors = normalisation(trained.statistics, trained.config.normalisation)
    factors = np.array(factors or (trained.spec.input_scale,) * 3, np.float32).reshape(3, 1, 1)
    pictures = np.stack([valid.image(k) for k in range(len(valid))]).transpose(0, 3, 1, 2)
    corners = [(y, x) for y in (0, largest) for x in (0, largest)]
    middle, thirds = (largest // 2, largest // 2), (0, largest // 2, largest)
    places = {1: [(middle, 1)], 9: [((y, x), 1) for y in thirds for x in thirds]}
    places[10] = [(place, step) for place in (*corners, middle) for step in (1, -1)]
    for views, windows in places.items():
        shares = np.zeros((len(valid), trained.spec.classes))
        with trained.open_network("cpu", 64) as network:
            for (y, x), step in windows:
                seen = (pictures[..., y : y + crop, x : x + crop] - mean) * factors
                seen = np.ascontiguousarray(seen[..., ::step], np.float32)
                parts = [network.forward(seen[k : k + 64]) for k in range(0, len(seen), 64)]
                shares += evaluate.softmax(np.concatenate(parts)) / len(windows)
        assert call(evaluation, str(runs[name]), "--device", "cpu", "--views", str(views), "--json", "-q") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["n"] == len(valid)
        own = shares[np.arange(len(valid)), valid.labels]
        assert told["loss"] == pytest.approx(float(-np.log(own).mean()), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["filters", "predictions", "confusion", "neighbours"])
def test_figures(runs, name, what, tmp_path):
    options = ["--device", "cpu", "-q", "--limit", "32", "--queries", "2"]
    assert call(show, str(runs[name]), what, "-o", str(tmp_path / "x.png"), *options) == 0
    assert (tmp_path / "x.png").stat().st_size > 5000
    assert (runs[name] / "filters.png").exists()  # the run has drawn them, too


def test_filters_of_a_layer_that_is_named(runs, tmp_path, capsys):
    run, file = str(runs["lenet5"]), tmp_path / "x.svg"
    assert call(show, run, "filters", "-o", str(file), "--layer", "conv3", "-q") == 0
    assert "conv3: 8 filters of 5 x 5 x 8, each scaled on its own" in file.read_text()
    assert call(show, run, "filters", "-o", str(file), "--layer", "fc6", "-q") == 2
    error = capsys.readouterr().err
    assert "fc6 has no filters of 16 maps or fewer to draw; those with such: conv1, conv3, conv5" in error
    assert call(show, run, "filters", "-o", str(file), "--layer", "conv9", "-q") == 2
    assert 'no layer is called "conv9"; there are conv1, ' in capsys.readouterr().err


def test_a_network_without_filters_to_look_at_trains(tmp_path, monkeypatch, capsys):
    """Nothing is drawn, and what a logger is told are numbers alone."""
    monkeypatch.setattr(NetworkSpec, "first_filters", None)
    pictures = []
    monkeypatch.setattr(Loggers, "filters", lambda *told: pictures.append(told))
    monkeypatch.setattr(Loggers, "__bool__", lambda _: True)
    assert here("shapes", "--model", "lenet5", *SHORT, "-o", str(tmp_path / "run")) == 0
    assert (tmp_path / "run" / "curves.png").exists()
    assert not (tmp_path / "run" / "filters.png").exists()
    assert not pictures
    assert capsys.readouterr().err == ""
    file = tmp_path / "x.png"
    assert call(show, str(tmp_path / "run"), "filters", "-o", str(file), "-q") == 0  # the first with few maps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_exported_arrays_are_the_weights_and_come_back(runs, name, suffix, tmp_path, monkeypatch):
    file = tmp_path / f"x{suffix}"
    assert call(export, str(runs[name]), "-o", str(file), "-q") == 0
    arrays = dict(np.load(file)) if suffix == ".npz" else safetensors.numpy.load_file(file)
    trained = load_trained(runs[name], print)
    for tensor, values in trained.weights.items():
        np.testing.assert_array_equal(arrays[tensor], values)
    back = load_trained(file, print)
    assert (back.spec, back.classes) == (trained.spec, trained.classes)
    card = (tmp_path / "README.md").read_text()
    scope: dict = {}
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], scope)
    assert scope["weights"]["conv1.weight"].shape == trained.weights["conv1.weight"].shape


def test_onnx_and_names_of_pytorch_are_refused(runs, tmp_path, capsys):
    for name in NAMES:
        odd = {"cifar-11pct": "local3", "cifar-18pct": "norm1", "lenet5": "pool2"}[name]
        assert call(export, str(runs[name]), "-o", str(tmp_path / "x.safetensors"), "--names", "torch", "-q") == 2
        assert f"--names torch: {odd} has no module of PyTorch's; take --names convnet" in capsys.readouterr().err
        pytest.importorskip("onnx", reason="onnx is not installed")
        assert call(export, str(runs[name]), "-o", str(tmp_path / "x.onnx"), "-q") == 2
        assert re.search(
            rf"error: {odd}: networks with layers of its kind.* export to .safetensors", capsys.readouterr().err
        )
    assert not list(tmp_path.iterdir())
