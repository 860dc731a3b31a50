"""What ``convnet-train`` does where the user says nothing, how long it lasts, and what it says at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import TINY, final, here, make_images, records, shared_images, straight_run, training

import convnet
from convnet.cli.train import main
from convnet.network.initial import initial_weights
from convnet.network.networks import NETWORKS, network
from convnet.network.spec import Conv, Linear
from convnet.training import checkpoint
from convnet.training.config import Config, read_toml

NETWORK = ["--width", "0.25", "--crop", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def images() -> str:
    return shared_images()


# ---- options


@pytest.mark.parametrize(
    ("images", "most", "batch"),
    [(1, 64, 16), (36, 64, 16), (300, 64, 16), (1023, 64, 16), (1024, 64, 32), (1200, 64, 32), (2048, 64, 64),
     (4095, 128, 64), (4096, 128, 128), (20_000, 64, 64), (20_000, 8, 8)],
)  # fmt: skip
def test_few_images_come_in_small_batches(images, most, batch):
    spec = network("alexnet-tiny")
    defaults = type(spec.defaults)(batch_size=most, epochs=1, lr=0.01)
    assert Config().resolved(defaults, 64, images).batch_size == batch
    assert Config(batch_size=100).resolved(defaults, 64, images).batch_size == 100


@pytest.mark.parametrize(("batch", "rate"), [(None, 0.016), (16, 0.008), (256, 0.032)])
def test_the_rate_goes_with_the_square_root_of_the_batch(batch, rate):
    defaults = network("alexnet-tiny").defaults
    assert Config(batch_size=batch).resolved(defaults, 64, 12_000).lr == pytest.approx(rate)
    assert Config(batch_size=batch, lr=0.5).resolved(defaults, 64, 12_000).lr == 0.5


@pytest.mark.parametrize(
    ("images", "least", "batch", "epochs"),
    [(1, 6, None, 100), (108, 6, None, 100), (160, 6, None, 100), (176, 6, None, 91), (300, 6, None, 53),
     (1200, 6, None, 27), (12_000, 6, None, 6), (10_000, 6, None, 7), (20_000, 6, None, 6), (300, 60, None, 60),
     (300, 6, 100, 100), (300, 6, 1, 6), (108, 120, None, 120)],
)  # fmt: skip
def test_few_images_are_learnt_for_a_thousand_steps(images, least, batch, epochs):
    spec = network("alexnet-tiny")
    defaults = type(spec.defaults)(batch_size=64, epochs=least, lr=0.01)
    assert Config(batch_size=batch).resolved(defaults, 64, images).epochs == epochs
    assert Config(batch_size=batch, epochs=2).resolved(defaults, 64, images).epochs == 2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("change", [{}, {"joins": False}, {"width": 0.5}, {"towers": 1}])
def test_he_scales_layers_to_their_inputs_and_leaves_biases_out(name, change):
    """The first to a quarter of that."""
    spec = network(name, init="he", num_classes=7, **{"width": 0.25, **change})
    weights = initial_weights(spec, 0)
    for parameter, values in weights.items():
        if parameter.endswith("bias"):
            assert not values.any(), parameter
        else:
            factor = 0.25 if parameter == "conv1.weight" else 1
            reads = values.shape[1:] if values.ndim < 6 else values.shape[3:]  # of a local layer, one pixel's filter
            assert values.std() == pytest.approx(factor * np.sqrt(2 / np.prod(reads)), rel=0.1), parameter
    with pytest.raises(ValueError, match='init must be he or paper, got "hey"'):
        network(name, init="hey")


def test_a_network_of_the_library_has_the_papers_weights():
    own = network("alexnet")
    assert own == network("alexnet", init="paper")
    stds = {layer.name: (layer.std, layer.bias) for layer in own.layers if isinstance(layer, (Conv, Linear))}
    assert {std for std, _ in stds.values()} == {0.01}
    assert [name for name, (_, bias) in stds.items() if bias] == ["conv2", "conv4", "conv5", "fc6", "fc7"]


def test_the_defaults_are_written_down(images, tmp_path):
    assert here(images, *NETWORK, "--steps", "1", "-o", str(tmp_path)) == 0
    found = read_toml(str(tmp_path / "config.toml"))
    names = ("init", "lr_schedule", "batch_size", "normalisation", "lr", "epochs")
    assert [found[name] for name in names] == ["he", "flat-cosine", 16, "mean-image", 0.008, 100]
    weights = checkpoint.load(tmp_path / "last").part("weights")
    with convnet.Network("alexnet-tiny", "cpu", 16, num_classes=3, width=0.25, crop=32, init="he") as net:
        drawn = net.weights()
    assert np.corrcoef(weights["conv1.weight"].ravel(), drawn["conv1.weight"].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["alexnet-paper", "alexnet-2012", "ablations/tanh", "ablations/one-tower"])
def test_the_papers_recipe_is_named_whole(name):
    """The configurations say all in which the default is another."""
    options = Config(**read_toml(str(Path(__file__).parents[2] / "configs" / f"{name}.toml")))
    spec = network(options.model, **options.network_options())
    resolved = options.resolved(spec.defaults, spec.crop)
    assert {layer.std for layer in spec.layers if isinstance(layer, (Conv, Linear))} == {0.01}
    assert (resolved.normalisation, resolved.batch_size, resolved.lr, resolved.momentum, resolved.weight_decay) == (
        "mean-image", 128, 0.01, 0.9, 5e-4
    )  # fmt: skip
    assert resolved.lr_schedule == ("stages" if name == "alexnet-2012" else "plateau")
    assert resolved.patience == 3


# ---- the length


def test_a_default_run_lasts_as_many_epochs_as_asked_for(images, tmp_path, capsys):
    assert main([images, *NETWORK, "--epochs", "9", "--lr", "1e-30", "-o", str(tmp_path)]) == 0
    assert [r["epoch"] for r in records(tmp_path) if r["event"] == "valid"] == list(range(1, 10))
    shown = capsys.readouterr()
    assert "ended " not in shown.out
    assert "warning: nothing was learnt: top-1 error " in shown.err
    assert "; try more --epochs than these 27 steps, --lr 3e-31 or 3e-30, smaller batches (-b), and" in shown.err


def test_a_run_of_fewer_steps_says_why_it_ended(images, tmp_path, capsys):
    assert main([images, *TINY, "--steps", "7", "-o", str(tmp_path)]) == 0
    assert "ended before the last of 2 epochs, as --steps 7 says" in capsys.readouterr().out


# ---- what was learnt


def test_what_was_learnt_is_said_at_the_end(images, tmp_path, capsys):
    assert main([images, *NETWORK, "--epochs", "30", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    end = shown.out[shown.out.index("best: ") :]
    assert "\nlearnt: top-1 error " in end
    assert ", and 66.67 % for who names the most frequent class each time\n" in end
    assert shown.err == ""
    assert "  train longer   convnet-train --resume auto" in end


def test_quiet_runs_say_that_nothing_was_learnt(images, tmp_path, capsys):
    assert here(images, *TINY, "--lr", "1e-30", "-o", str(tmp_path)) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("warning: nothing was learnt: ")


def test_without_an_evaluation_nothing_is_known(images, tmp_path, capsys):
    assert main([images, *TINY, "--steps", "2", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "the run ended before its first evaluation: whether anything was learnt is not known" in shown.out
    assert shown.err == ""


def test_classes_of_other_sizes(tmp_path, capsys):
    """Who always names the largest of them has learnt nothing."""
    folder = make_images(tmp_path / "images", classes=("much", "little"))
    for path in sorted((folder / "val" / "little").iterdir())[1:]:
        path.unlink()
    assert main([str(folder), *TINY, "--lr", "1e-30", "-o", str(tmp_path / "run")]) == 0
    assert ", and 20.00 % for who names the most frequent class" in capsys.readouterr().err


def test_a_finished_run_says_it_again(images, tmp_path, capsys):
    shutil.copytree(straight_run(), tmp_path / "run", symlinks=True)
    assert main([images, "--resume", "auto", "-o", str(tmp_path / "run")]) == 0
    again = capsys.readouterr()
    said = [line for line in (straight_run() / "log.txt").read_text().splitlines() if "% for who names" in line]
    assert said[-1].split("  ", 1)[1] in (again.out + again.err)


# ---- made longer


def test_a_cosine_made_longer_says_from_where_to_where_the_rate_goes(images, tmp_path, capsys):
    assert here(images, *TINY, "--lr-schedule", "cosine", "-o", str(tmp_path)) == 0
    assert main(["--resume", "auto", "-o", str(tmp_path), "--epochs", "4"]) == 0
    text = (
        "learning rate: from 0.000245 at the last step to 0.005 at the next: --epochs is 4, not 2, and a cosine "
        "schedule spreads over all epochs\n"
    )
    assert text in capsys.readouterr().out
    rates = [r["lr"] for r in records(tmp_path) if r["event"] == "train" and r["step"] in (10, 15)]
    assert rates == pytest.approx([0.000245, 0.00206], rel=0.01)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--lr", "0.001"], "from 0.00905 at the last step to 0.00075 at the next: --lr is 0.001, not 0.01"),
        (["--lr-schedule", "constant"], "to 0.01 at the next: --lr-schedule is constant, not flat-cosine\n"),
        (["--lr-schedule", "step"], "to 0.0001 at the next: --lr-schedule is step, not flat-cosine, and a step "),
        (["--workers", "0"], None),
        ([], None),
    ],
)  # fmt: skip
def test_a_rate_that_jumps_is_told(images, tmp_path, capsys, options, text):
    assert here(images, *TINY, "--steps", "5", "-o", str(tmp_path)) == 0
    capsys.readouterr()
    assert main(["--resume", "auto", "-o", str(tmp_path), *options]) == 0
    shown = capsys.readouterr().out
    assert "resumed at step 5" in shown
    assert (text or "resumed") in shown
    assert ("learning rate: from" in shown) == (text is not None)


def test_a_rate_that_no_step_has_any_more_is_not_told(images, tmp_path, capsys):
    shutil.copytree(straight_run(), tmp_path / "run", symlinks=True)
    assert main([images, "--resume", "auto", "-o", str(tmp_path / "run"), "--lr-schedule", "constant"]) == 0
    assert "learning rate: from" not in capsys.readouterr().out


# ---- what runs of before meant


def before(written, folder, **options):
    """A checkpoint as version 0.1 wrote it: without what came later."""
    found = checkpoint.load(written)
    state = {**found.state, "schedule": {"lowest": 0.5, "waited": 1, "drops": 2}}
    state["config"] = {k: v for k, v in found.state["config"].items() if k != "init"} | options
    del state["last"]
    folder.mkdir(parents=True)
    checkpoint.save(folder / written.name, found.tensors, state)


def test_a_run_of_before_goes_on_as_it_was(images, tmp_path, capsys):
    written = straight_run() / "checkpoints" / checkpoint.file_name(10)
    before(written, tmp_path / "run" / "checkpoints", lr_schedule="plateau")
    assert main(["--resume", "auto", "-o", str(tmp_path / "run")]) == 0
    assert "before its first evaluation" in capsys.readouterr().out  # this file does not know of one
    assert main(["--resume", "auto", "-o", str(tmp_path / "run"), "--epochs", "3"]) == 0
    shown = capsys.readouterr()
    assert "learning rate: from" not in shown.out
    found = checkpoint.load(tmp_path / "run" / "last").state
    assert (found["config"]["init"], found["config"]["lr_schedule"]) == ("paper", "plateau")
    assert {r["lr"] for r in records(tmp_path / "run") if r["step"] == 15 and r["event"] == "train"} == {0.0001}
    assert found["last"] is not None


def test_a_run_of_before_without_a_checkpoint_starts_with_its_own_weights(images, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "config.toml"
    shutil.copy(straight_run() / "config.toml", file)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("init")))
    assert here("--resume", "auto", "-o", str(tmp_path), "--steps", "1") == 0
    assert checkpoint.load(tmp_path / "last").state["config"]["init"] == "paper"


def test_the_last_evaluation_is_kept_bit_for_bit(images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--steps", "7") == 0
    kept = checkpoint.load(tmp_path / "last").state["last"]
    (valid,) = [r for r in records(tmp_path) if r["event"] == "valid"]
    assert kept == {"error": valid["top1_error"], "loss": valid["loss"]}
    assert here("--resume", "auto", "-o", str(tmp_path)) == 0
    assert final(tmp_path) == final(straight_run())
    assert json.dumps(training(tmp_path)[-1]) == json.dumps(training(straight_run())[-1])
