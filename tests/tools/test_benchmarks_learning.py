"""``benchmarks.learning``: its pictures, its peer, its rows, and the table made of them."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnet import Network
from convnet.data import open_dataset, sampled_statistics
from convnet.network import networks
from convnet.training.config import Config

sys.path.append(str(Path(__file__).resolve().parents[2]))
pytest.importorskip("benchmarks", reason="the benchmarks come with a checkout only")
learning = __import__("benchmarks.learning", fromlist=["_"])
report = __import__("benchmarks.report", fromlist=["_"])

THREE = learning.folder_of(3, 8, 4, learning.thing)


@pytest.fixture
def small(monkeypatch):
    """One set of 24 pictures, and a network for whose steps one need not wait."""
    monkeypatch.setitem(networks.NETWORKS, "narrow", lambda: networks.network("alexnet-tiny", width=0.25))
    monkeypatch.setattr(learning, "MODEL", "narrow")
    monkeypatch.setattr(learning, "SETS", {"few": learning.Set("few pictures", 2, THREE)})


def test_rows_come_together_piece_by_piece(small, tmp_path, monkeypatch, capsys):
    arguments = ["--seeds", "0", "--folder", str(tmp_path), "-o", str(tmp_path / "r.json")]
    assert learning.main([*arguments, "--ways", "default,constant"]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["set"], row["way"], row["seed"], row["epochs"], row["images"]) for row in rows] == [
        ("few", "default", 0, 2, 12),
        ("few", "constant", 0, 2, 12),
    ]
    measured = []
    monkeypatch.setattr(learning, "one", lambda *row: measured.append(row[1]) or {**rows[0], "way": row[1]})
    assert learning.main([*arguments, "--ways", "default,constant,step"]) == 0
    assert measured == ["step"]
    assert learning.main([*arguments, "--ways", "step", "--again"]) == 0
    assert measured == ["step", "step"]
    assert [row["way"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == [
        "default",
        "constant",
        "step",
    ]
    assert "written to" in capsys.readouterr().out


def test_rows_of_another_process_stay(small, tmp_path, monkeypatch):
    file = tmp_path / "r.json"
    row = {"set": "few", "seed": 0, "error": 0.5, "seconds": 1.0}

    def one(name, way, *_):
        file.write_text(json.dumps({"rows": [{**row, "way": "step"}]}))  # what another one wrote meanwhile
        return {**row, "way": way}

    monkeypatch.setattr(learning, "one", one)
    learning.main(["--seeds", "0", "--ways", "default", "--folder", str(tmp_path), "-o", str(file)])
    assert [row["way"] for row in json.loads(file.read_text())["rows"]] == ["step", "default"]


def test_a_training_that_was_stopped_is_no_row(small, tmp_path, monkeypatch):
    monkeypatch.setattr(learning.train, "run", lambda *_: 75)
    with pytest.raises(KeyboardInterrupt):
        learning.main(["--seeds", "0", "--ways", "default", "--folder", str(tmp_path), "-o", str(tmp_path / "r.json")])
    assert not (tmp_path / "r.json").exists()


def test_pytorch_sees_the_pictures_that_our_network_sees(small, tmp_path):
    """The same weights give the same logits for a batch with crops, flips and colour noise."""
    peer = pytest.importorskip("benchmarks.torch_network", reason="PyTorch is not installed")
    THREE(tmp_path / "few")
    tiny = networks.network("narrow", num_classes=3, dropout=0.0)
    data = open_dataset(tmp_path / "few", size=tiny.image_size, seed=0)
    found = sampled_statistics(data.train, tiny.crop)
    config = Config(batch_size=8).resolved(tiny.defaults, tiny.crop)
    batch = next(learning.batches(data, True, config, found, 0, 0))
    assert batch.windows[:, 2].any()
    assert batch.noise.any()
    weights = learning.torch_weights(tiny)
    inputs = learning.inputs(tiny, batch, found.mean)
    theirs = peer.TorchNetwork(tiny, weights, [inputs], peer.Variant(), "cpu").first_logits()
    with Network(tiny, "cpu", 8) as net:
        net.load_weights(weights)
        net.set_input(found.mean)
        losses, _ = net.train_batch(batch.images, batch.labels, batch.windows, batch.noise)
    # absolute, too: a loss near 0 is what rounding leaves of logits near 10
    assert losses == pytest.approx(learning.losses_and_ranks(theirs, batch.labels)[0], rel=1e-4, abs=1e-5)


def test_pytorch_begins_with_weights_of_he():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    tiny = networks.network("alexnet-tiny")
    he = learning.torch_weights(tiny)
    assert he["conv2.weight"].std() == pytest.approx(np.sqrt(2 / (16 * 25)), rel=0.05)
    assert not he["conv2.bias"].any()


def test_pytorch_learns(small, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    THREE(tmp_path / "few")
    found = learning.pytorch(learning.MODEL, str(tmp_path / "few"), 2, 0)
    assert found["epochs"] == 2
    assert 0 <= found["error"] <= 1
    assert found["loss"] < 3
    assert found != learning.pytorch(learning.MODEL, str(tmp_path / "few"), 2, 1)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(learning, "FASHION_TRAIN", 5)
    pixels = np.arange(6 * 28 * 28).reshape(6, 28, 28).astype(np.uint8)
    labels = np.array([3, 0, 9, 3, 1, 2], np.uint8)
    for name in ("train", "t10k"):
        for what, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            raw = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
            file = tmp_path / f"{name}-{what}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(raw) if packed else raw)
    learning.write_fashion(tmp_path, tmp_path / "set")
    assert len(list((tmp_path / "set" / "train").rglob("*.png"))) == 5
    (second,) = (tmp_path / "set" / "val" / "class02").iterdir()
    np.testing.assert_array_equal(np.asarray(Image.open(second))[..., 1], pixels[5])
    with pytest.raises(ValueError, match="there is no train-images-idx3-ubyte, packed or not"):
        learning.write_fashion(tmp_path / "set", tmp_path / "other")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--sets", "fashion"], "fashion needs --fashion DIR"),
        (["--sets", "moons"], "--sets: there is no moons; there are shapes, "),
        (["--ways", "adam"], "--ways: there is no adam; there are default, "),
    ],
)
def test_impossible_settings(wrong, text):
    with pytest.raises(ValueError, match=text):
        learning.main(wrong)


def test_classes_of_textures_differ():
    """Every kind is its own: other directions, lengths or edges, and a mirror makes none of them another."""
    kinds = []
    for kind in range(20):
        image = np.asarray(learning.texture(kind, np.random.default_rng(1)), np.float32).mean(axis=2)
        spectrum = np.abs(np.fft.rfft2(image - image.mean()))
        y, x = np.unravel_index(spectrum.argmax(), spectrum.shape)
        y = min(y, len(spectrum) - y)
        kinds.append((round(np.degrees(np.arctan2(y, x)) / 22.5), np.hypot(x, y) > 9))
    assert len(set(kinds)) == 10
    assert kinds[:10] == kinds[10:]  # with edges


def test_the_table():
    row = {"set": "three", "way": "default", "seed": 0, "error": 0.25, "images": 300, "date": "2026-01-02"}
    rows = [row, {**row, "seed": 1, "error": 0.35}, {**row, "way": "constant", "date": "2026-01-03"}]
    results = {"benchmark": "learning", "model": "narrow", "cores": 2, "processor": "Z80", "date": "2", "rows": rows}
    shown = report.section([results])
    assert "beside other schedules and PyTorch (narrow, 2 cores of an Z80, 2026-01-02 to 2026-01-03): top-1" in shown
    assert "| three classes of 100, 60 | 2.6 | 30.0 (25.0 to 35.0) | 25.0 (one seed) | not measured |" in shown
    assert "| Fashion-MNIST, 12,000, 6 |  | not measured |" in shown
