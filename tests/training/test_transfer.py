"""Frozen layers, networks that start from others, stages, and the paper's comparisons: what they change and keep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from runs import final, here, make_images, records, shared_images, straight_run, training

import convnet
from convnet.network.networks import network
from convnet.network.spec import Pace, paces, parameter_count, placed_layers
from convnet.ops import ops
from convnet.training import checkpoint, config, schedule, verdict
from convnet.training.trained import load_trained

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--device", "cpu", "-b", "8", "--width", "0.25", "--crop", "32", "--lr", "0.01"]


def tensors(folder: Path, step: int, part: str = "weights") -> dict[str, np.ndarray]:
    return checkpoint.load(folder / "checkpoints" / checkpoint.file_name(step)).part(part)


def batch(spec, n=4, seed=0):
    random = np.random.default_rng(seed)
    images = random.standard_normal((n, 3, spec.crop, spec.crop), dtype=np.float32)
    return images, random.integers(0, spec.classes, n)


# ---- freezing


@pytest.mark.parametrize("devices", ["cpu", "emu:0,emu:1"])
@pytest.mark.parametrize("names", [["conv1", "conv2"], ["conv3"], ["fc7", "fc8"], ["conv1", "fc6"]], ids="+".join)
def test_frozen_layers_stay_and_the_others_learn_as_before(devices, names):
    with convnet.Network("alexnet-tiny", devices, 4, width=0.25, seed=1) as net:
        images, labels = batch(net.spec)
        net.forward(images, train=True)
        net.backward(labels)
        free = net.gradients()
        before, velocity = net.weights(), net.velocity()
        net.freeze(names)
        assert net.frozen == names
        net.forward(images, train=True)
        net.backward(labels)
        gradients = net.gradients()
        assert set(free) - set(gradients) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, free[name], err_msg=name)
        net.step(lr=0.1)
        for name, weight in net.weights().items():
            assert (weight == before[name]).all() == (name.split(".")[0] in names), name
            assert (net.velocity()[name] == velocity[name]).all() == (name.split(".")[0] in names), name
        net.freeze([])
        net.forward(images, train=True)
        net.backward(labels)
        assert set(net.gradients()) == set(free)


def test_no_work_is_done_below_the_lowest_layer_that_learns(monkeypatch):
    called = []
    for name in ("conv_backward_filter", "conv_backward_data", "linear_backward_filter", "linear_backward_data"):
        real = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, _n=name, _r=real, **k: called.append(_n) or _r(*a, **k))
    with convnet.Network("alexnet-tiny", "cpu", 4, width=0.25) as net:
        images, labels = batch(net.spec)
        net.freeze(["conv1", "conv2", "conv3", "conv4", "conv5", "fc7"])
        net.forward(images, train=True)
        net.backward(labels)
    # through fc8 and its own, through fc7, then fc6's own and nothing below
    filter_, data = "linear_backward_filter", "linear_backward_data"
    assert called == [data, filter_, data, filter_]


def test_a_network_cannot_freeze_all_or_what_it_does_not_have():
    with convnet.Network("alexnet-tiny", "cpu", 4, width=0.25) as net:
        with pytest.raises(ValueError, match='no layer with weights is called "pool1"; there are conv1, '):
            net.freeze(["pool1"])
        with pytest.raises(ValueError, match="all layers are frozen"):
            net.freeze(net.layers)
        assert net.frozen == []


# ---- starting from another run


def test_a_new_head_on_a_trained_trunk(tmp_path, capsys):
    source = straight_run()
    other = make_images(tmp_path / "other", classes=("cyan", "magenta", "yellow", "white"), seed=5)
    options = ["--init-from", str(source), "--freeze", "conv1,conv2", "--head-lr", "10", "-b", "8", "--device", "cpu"]
    options += ["--lr-schedule", "constant", "--lr", "0.01"]
    folder = tmp_path / "run"
    from convnet.cli.train import main

    assert main([str(other), *options, "--epochs", "2", "--steps", "6", "-o", str(folder)]) == 0
    output = capsys.readouterr().out
    best = checkpoint.load((source / "best").resolve())
    assert (
        f"from {source}, step {best.state['step']}: conv1, conv2, conv3, conv4, conv5, fc6, fc7; new: fc8; "
        "frozen: conv1, conv2" in output.replace("conv1,conv2", "conv1, conv2")
    )
    saved = checkpoint.load(folder / "checkpoints" / checkpoint.file_name(6))
    assert saved.state["new_layers"] == ["fc8"]
    assert (saved.state["config"]["width"], saved.state["config"]["crop"]) == (0.25, 32)  # the source's
    learnt = saved.part("weights")
    for name, values in best.part("weights").items():
        same = learnt[name].shape == values.shape and (learnt[name] == values).all()
        assert same == (name.split(".")[0] in ("conv1", "conv2")), name

    # the same steps by hand
    trained = load_trained(source, pytest.fail)
    data = convnet.data.open_dataset(str(other), size=trained.spec.image_size, seed=0)
    from convnet.data import Loader, statistics

    found = statistics(data, 32)
    with convnet.Network("alexnet-tiny", "cpu", 8, num_classes=4, width=0.25, crop=32, init="he") as net:
        drawn = net.weights()
        net.load_weights({**best.part("weights"), "fc8.weight": drawn["fc8.weight"], "fc8.bias": drawn["fc8.bias"]})
        net.set_input(found.mean)
        net.freeze(["conv1", "conv2"])
        with Loader(data.train, batch_size=8, crop=32, seed=0, augment=True, statistics=found, workers=0) as loader:
            for _, b in zip(range(6), loader.epoch(0), strict=False):
                net.train_batch(b.images, b.labels, b.windows, b.noise)
                net.step(0.01, rates={"fc8.weight": 10.0, "fc8.bias": 10.0})
        for name, values in net.weights().items():
            np.testing.assert_array_equal(values, learnt[name], err_msg=name)

    # and it goes on bit for bit, without the source
    assert here("--resume", "auto", "-o", str(folder), "--steps", "9") == 0
    straight = tmp_path / "straight"
    assert main([str(other), *options, "-q", "--epochs", "2", "--steps", "9", "-o", str(straight)]) == 0
    assert final(folder, 9)[0] == final(straight, 9)[0]


def test_the_same_classes_keep_the_head_and_other_ones_do_not(tmp_path, capsys):
    from convnet.cli.train import main

    renamed = make_images(tmp_path / "renamed", classes=("one", "two", "three"))
    arguments = ["--init-from", str(straight_run()), "-b", "8", "--device", "cpu", "--steps", "1", "-o"]
    assert main([shared_images(), *arguments, str(tmp_path / "same")]) == 0
    assert "fc7, fc8; new: none; frozen: none" in capsys.readouterr().out
    assert main([str(renamed), *arguments, str(tmp_path / "other")]) == 0
    assert "fc7; new: fc8; frozen: none" in capsys.readouterr().out


def test_a_network_that_shares_no_layer_is_refused(tmp_path, capsys):
    arguments = ["--init-from", str(straight_run()), "--width", "1", "--crop", "64", "-o", str(tmp_path / "run")]
    renamed = make_images(tmp_path / "renamed", classes=("one", "two", "three"))
    assert here(str(renamed), "--device", "cpu", *arguments) == 2
    assert 'no layer of its network, "alexnet-tiny" of width 0.25, fits into "alexnet-tiny"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- stages


STAGES = """
batch_size = 8
epochs = 3

[[stages]]
epoch = 0
lr = 0.02
bias_lr = 0.04

[[stages]]
epoch = 1
lr = 0.002
layers = { conv1 = 0.0, fc8 = 0.004 }
"""


def test_a_run_in_stages(tmp_path):
    file = tmp_path / "stages.toml"
    file.write_text(STAGES)
    folder = tmp_path / "run"
    assert here(shared_images(), "--config", str(file), *SMALL, "-o", str(folder)) == 0
    rates = {r["epoch"]: r["lr"] for r in records(folder) if r["event"] == "train"}
    assert rates == {1: 0.02, 2: 0.002, 3: 0.002}
    first, last = tensors(folder, 5), tensors(folder, 15)
    for name, values in first.items():
        assert (values == last[name]).all() == name.startswith("conv1."), name
    # what was written to the run folder says the same
    assert config.Config(**config.read_toml(str(folder / "config.toml"))).stages == [
        {"epoch": 0, "lr": 0.02, "bias_lr": 0.04},
        {"epoch": 1, "lr": 0.002, "layers": {"conv1": 0.0, "fc8": 0.004}},
    ]
    # and a resumed run goes on in its stage
    cut = tmp_path / "cut"
    assert here(shared_images(), "--config", str(file), *SMALL, "-o", str(cut), "--steps", "10") == 0
    assert here("--resume", "auto", "-o", str(cut)) == 0
    assert final(cut, 15) == final(folder, 15)
    assert training(cut) == training(folder)


def test_rates_of_single_parameters_in_a_stage():
    """One step of weights and biases that all have the same gradient 0 and decay: seen by what decays."""
    from convnet.training.schedule import stages_of

    stage = stages_of([{"epoch": 0, "lr": 0.5, "bias_lr": 1.0, "layers": {"fc7": 0.25}}])[0]
    with convnet.Network("alexnet-tiny", "cpu", 2, width=0.25) as net:
        names = list(net.weights())
        factors = {name: stage.factor(name) for name in names}
        assert [factors[f"{name}.{kind}"] for name in ("fc6", "fc7") for kind in ("weight", "bias")] == [1, 2, 0.5, 0.5]


def test_a_stage_names_a_layer_that_is_not_there(tmp_path, capsys):
    file = tmp_path / "stages.toml"
    file.write_text(STAGES.replace("fc8", "fc9"))
    assert here(shared_images(), "--config", str(file), *SMALL, "-o", str(tmp_path / "run")) == 2
    assert "stages: no layer is called 'fc9'; there are conv1, " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_plateau_ends_the_run(tmp_path, capsys, monkeypatch):
    """With a rate that changes nothing the error cannot fall: one minimum, three drops, and the end, which is told."""
    from convnet.cli.train import main

    monkeypatch.setattr(schedule, "LEAST_STEPS", 1)
    monkeypatch.setattr(verdict.Chance, "begun", lambda *_: True)
    folder = tmp_path / "run"
    arguments = [*SMALL, "--lr-schedule", "plateau", "--lr", "1e-30", "--patience", "1", "--epochs", "30"]
    assert main([shared_images(), *arguments, "-o", str(folder)]) == 0
    output = capsys.readouterr().out
    assert output.count("learning rate divided by 10") == 3
    ends = "ended after epoch 5 of 30: for 5 steps at the lowest learning rate the validation error has not fallen by"
    assert ends in output[output.index("best: ") :]
    assert "train longer" not in output
    assert [r["event"] for r in records(folder)].count("valid") == 5
    assert main(["--resume", "auto", "-o", str(folder)]) == 0  # nothing is left to do
    assert [r["event"] for r in records(folder)].count("valid") == 5
    assert ends in capsys.readouterr().out
    assert main(["--resume", "auto", "-o", str(folder), "--lr-schedule", "cosine"]) == 0  # what it advises
    assert [r["event"] for r in records(folder)].count("valid") == 30


def test_a_plateau_of_a_run_that_has_learnt_nothing_lasts_as_long_as_asked_for(tmp_path, capsys, monkeypatch):
    from convnet.cli.train import main

    monkeypatch.setattr(schedule, "LEAST_STEPS", 1)
    folder = tmp_path / "run"
    arguments = [*SMALL, "--lr-schedule", "plateau", "--lr", "1e-30", "--patience", "1", "--epochs", "9"]
    assert main([shared_images(), *arguments, "-o", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "divided by 10" not in shown.out
    assert [r["event"] for r in records(folder)].count("valid") == 9
    assert "warning: nothing was learnt: top-1 error" in shown.err


# ---- the paper's networks


def test_the_sixth_convolution_reads_both_towers_behind_the_last_pooling():
    placed = {p.layer.name: p for p in placed_layers(network("alexnet-6conv"))}
    sixth = placed["conv6"]
    assert (sixth.C, sixth.H, sixth.K, sixth.P, sixth.groups, sixth.gathers) == (256, 6, 256, 6, 1, True)
    names = list(placed)
    assert names[names.index("pool5") :][:3] == ["pool5", "conv6", "fc6"]
    assert parameter_count(network("alexnet-6conv")) == 60_965_224 + 256 * 256 * 9 + 256


def test_one_tower_has_half_the_maps_and_all_features():
    one = network("alexnet", towers=1)
    assert one.layers == network("alexnet-1gpu").layers
    sizes = [(p.K, p.groups) for p in placed_layers(one) if p.parameters]
    assert sizes == [(k, 1) for k in (48, 128, 192, 192, 256, 4096, 4096, 1000)]
    with pytest.raises(ValueError, match='"alexnet" has 2 towers and can be had with 1, got towers=3'):
        network("alexnet", towers=3)


def test_without_overlap_all_later_sizes_stay():
    for name in ("alexnet", "alexnet-tiny", "alexnet-6conv"):
        usual, other = network(name), network(name, overlap=False)
        assert parameter_count(usual) == parameter_count(other)
        sizes = [{p.layer.name: p.P for p in placed_layers(spec)} for spec in (usual, other)]
        assert all(sizes[0][layer] == sizes[1][layer] for layer in ("conv3", "pool5"))


def test_without_joins_nothing_crosses_before_the_last_layer():
    with convnet.Network("alexnet-tiny", "emu:0,emu:1", 4, width=0.25, joins=False) as net:
        images, labels = batch(net.spec)
        net.forward(images, train=True)
        net.backward(labels)
        assert [(layer, way) for layer, way, _ in net.exchanges()] == [("fc8", "forward"), ("fc8", "backward")]
    for devices in ("cpu", "emu:0"):  # and without devices of their own the towers are as far apart
        with convnet.Network("alexnet-tiny", devices, 4, width=0.25, joins=False, dropout=0) as net:
            net.forward(images)
            before = net.activation("fc7")
            weights = net.weights()
            weights["conv1.weight"][net.spec.layers[0].filters // 2 :] *= 2  # the second tower's
            net.load_weights(weights)
            net.forward(images)
            changed = (net.activation("fc7") != before).any(axis=(0, *range(2, before.ndim)))
            assert not changed[: len(changed) // 2].any()
            assert changed[len(changed) // 2 :].any()


CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))


def test_there_is_a_configuration_for_every_comparison():
    names = {path.stem for path in CONFIGS}
    assert names == {
        "alexnet-2012", "alexnet-paper", "no-lrn", "no-overlap", "one-tower", "tanh", "no-dropout", "no-joins",
        "80sec", "19pct", "18pct", "13pct", "11pct"
    }  # fmt: skip


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.parent.name != "cifar"], ids=lambda p: p.stem)
def test_every_configuration_trains(path, tmp_path):
    """Narrow and on small images: three colours are learnt within twenty passes."""
    folder = tmp_path / "run"
    sizes = ["--model", "alexnet-tiny", "--width", "0.5", "--crop", "48", "--lr", "0.02"]
    arguments = [*sizes, "-b", "12", "--device", "cpu", "--steps", "60", "--epochs", "91", "--eval-every", "91"]
    assert here(shared_images(), "--config", str(path), *arguments, "-o", str(folder)) == 0
    losses = [r["loss"] for r in records(folder) if r["event"] == "train"]
    assert losses[0] > 0.9  # ln 3 is 1.1
    assert min(losses[-5:]) < 0.7
    said = json.loads(json.dumps(config.read_toml(str(path))))
    kept = config.read_toml(str(folder / "config.toml"))
    same = {
        "lrn",
        "overlap",
        "joins",
        "dropout",
        "activation",
        "towers",
        "stages",
        "momentum",
        "lr_schedule",
    } & said.keys()
    assert {name: kept[name] for name in same} == {name: said[name] for name in same}


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.parent.name == "cifar"], ids=lambda p: p.stem)
def test_every_configuration_for_cifar_trains(path, tmp_path):
    """Its own network, which three colours teach something within a few steps, and its rates: those of biases are twice
    what stands there.
    """
    folder = tmp_path / "run"
    arguments = ["--epochs", "600", "--steps", "60", "--size", "32", "-b", "12", "--device", "cpu", "--lr", "0.001"]
    assert here(shared_images(), "--config", str(path), *arguments, "-o", str(folder)) == 0
    losses = [r["loss"] for r in records(folder) if r["event"] == "train"]
    assert losses[-1] < losses[0]
    kept = config.read_toml(str(folder / "config.toml"))
    assert (kept["model"], kept["order"], kept["lr_schedule"]) == (f"cifar-{path.stem}", "file", "stages")
    assert kept["stages"][0]["epoch"] == 0
    assert dict(paces(network(kept["model"])))["conv1.bias"] == Pace(lr=2.0, decay=0.0)


def test_a_stage_sets_the_colour_noise(tmp_path):
    file = tmp_path / "stages.toml"
    runs = {"stage": "[[stages]]\nepoch = 0\nlr = 0.01\nnoise = 0.0", "option": "noise = 0.0", "default": ""}
    weights = {}
    for name, text in runs.items():
        file.write_text(text)
        arguments = [*SMALL, "--config", str(file), "--lr-schedule", "stages" if name == "stage" else "constant"]
        assert here(shared_images(), *arguments, "--steps", "2", "-o", str(tmp_path / name)) == 0
        weights[name] = tensors(tmp_path / name, 2)["conv1.weight"]
    np.testing.assert_array_equal(weights["stage"], weights["option"])
    assert (weights["stage"] != weights["default"]).any()
