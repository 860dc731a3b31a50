"""What a training run does with its images: normalisation, noise, memory, and the time spent waiting for them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from data_files import write_cifar
from runs import TINY, final, here, records, shared_images, straight_run, training

import convnet
from convnet.cli.train import main
from convnet.data import Loader, cache, normalisation, sampled_statistics
from convnet.training import trainer
from convnet.training.metrics import losses_and_ranks
from convnet.training.trained import load_trained


@pytest.fixture
def images() -> str:
    return shared_images()


def test_images_kept_in_memory_change_nothing(images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--cache", "memory") == 0
    assert training(tmp_path) == training(straight_run())
    assert final(tmp_path) == final(straight_run())


@pytest.mark.parametrize("free", [4 * 10**5, 0])
def test_by_default_as_many_images_as_fit_are_kept_which_changes_nothing(images, tmp_path, monkeypatch, capsys, free):
    monkeypatch.setattr(cache, "free_memory", lambda: free)
    assert main([images, *TINY, "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^memory: {'[1-9]' if free else '0 of '}[^\n]* a quarter of what is free; the others", out, re.M)
    assert re.search(r"^looking at images  1/\d+$", out, re.M)
    assert training(tmp_path) == training(straight_run())
    assert final(tmp_path) == final(straight_run())
    assert here(images, "--resume", "auto", "-o", str(tmp_path), "--cache", "none") == 0  # a resumed run may change it


def test_images_kept_on_the_device(images, tmp_path, capsys):
    """They are others by their chroma alone, which here is noise from pixel to pixel: training goes the same way."""
    paper = [images, *TINY, "--init", "paper"]  # at once, He's weights make more of such noise
    assert main([*paper, "-o", str(tmp_path / "device"), "--cache", "device"]) == 0
    assert "images to the device" in capsys.readouterr().out
    assert here(*paper, "-o", str(tmp_path / "memory"), "--cache", "memory") == 0
    losses, expected = (
        [(record["event"], record["loss"]) for record in training(tmp_path / place)] for place in ("device", "memory")
    )
    assert losses != expected
    for (event, loss), (other, right) in zip(losses, expected, strict=True):
        assert event == other
        assert abs(loss - right) < 0.001 * right


def test_images_that_do_not_fit_into_memory(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "free_memory", lambda: 10**5)
    assert here(images, *TINY, "-o", str(tmp_path / "run"), "--cache", "memory") == 2
    assert "0.00 GB of memory are free; leave the option out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_mean_std_brings_every_channel_to_mean_0_and_deviation_1(images):
    split = load_trained(straight_run(), pytest.fail).open_dataset().train
    found = sampled_statistics(split, 32)
    mean, scale = normalisation(found, "mean-std")
    assert mean.shape == (3, 32, 32)
    assert mean.dtype == np.float32
    before = (split.size - 32) // 2
    inside = slice(before, before + 32)
    pixels = np.stack([split.image(k)[inside, inside] for k in range(len(split))]).transpose(0, 3, 1, 2)
    x = (pixels - mean.astype(np.float64)) * np.array(scale)[:, None, None]
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, rtol=1e-5)
    same, none = normalisation(found, "mean-image")
    assert same is found.mean
    assert none is None
    with pytest.raises(ValueError, match="must be mean-image or mean-std, got std"):
        normalisation(found, "std")


def test_a_constant_channel_is_not_blown_up(images):
    split = load_trained(straight_run(), pytest.fail).open_dataset().train
    found = sampled_statistics(split, 32)
    found.std[1] = 0
    assert normalisation(found, "mean-std")[1][1] == 1


@pytest.mark.parametrize("kind", ["mean-image", "mean-std"])
def test_training_and_what_comes_after_it_normalise_alike(images, tmp_path, kind):
    assert here(images, *TINY, "-o", str(tmp_path), "--epochs", "1", "--normalisation", kind) == 0
    (recorded,) = [record for record in records(tmp_path) if record["event"] == "valid"]
    trained = load_trained(tmp_path, pytest.fail)
    valid, found = trained.open_dataset().valid, trained.statistics
    losses = []
    with trained.open_network("cpu", batch_size=8) as network:
        options = {"batch_size": 8, "crop": 32, "seed": 0, "augment": False, "statistics": found, "workers": 1}
        with Loader(valid, **options) as loader:
            for batch in loader.epoch(0):
                logits = network.evaluate_batch(batch.images, batch.windows)
                losses.append(losses_and_ranks(logits, batch.labels)[0])
                top, left, _ = batch.windows[0]
                pixels = batch.images[:, top : top + 32, left : left + 32].transpose(0, 3, 1, 2).astype(np.float32)
                if kind == "mean-image":
                    x = (pixels - found.mean) * np.float32(network.spec.input_scale)
                else:
                    x = (pixels - found.mean.mean(axis=(1, 2))[:, None, None]) / found.std[:, None, None]
                np.testing.assert_allclose(logits, network.forward(x), rtol=1e-4, atol=1e-4 * np.abs(logits).max())
    assert np.concatenate(losses).mean() == pytest.approx(recorded["loss"], rel=1e-6)


def test_normalisation_cannot_change_in_a_resumed_run(images, tmp_path, capsys):
    assert here(images, *TINY, "-o", str(tmp_path), "--steps", "1") == 0
    assert here("--resume", "auto", "-o", str(tmp_path), "--normalisation", "mean-std") == 4
    assert "--normalisation mean-std (it is mean-image)" in capsys.readouterr().err


def test_noise_is_an_option(images, tmp_path, monkeypatch):
    seen = []
    train_step = convnet.Network.train_step

    def note(network, pixels, labels, windows, noise, *options):
        seen.append(noise.copy())
        return train_step(network, pixels, labels, windows, noise, *options)

    monkeypatch.setattr(convnet.Network, "train_step", note)
    for number, options in enumerate(((), ("--noise", "0.3"), ("--noise", "0"))):
        assert here(images, *TINY, "-o", str(tmp_path / str(number)), "--steps", "1", *options) == 0
    paper, more, none = seen
    assert np.abs(paper).max() > 0
    np.testing.assert_allclose(more, 3 * paper, rtol=1e-6)
    assert not none.any()
    assert here(images, *TINY, "-o", str(tmp_path / "negative"), "--noise", "-1") == 2


@pytest.mark.parametrize(("options", "ways"), [
    (("-j", "3"), "more threads (-j 6); convnet-prepare"),
    (("-j", "3", "--cache", "none"), "more threads (-j 6); --cache memory; convnet-prepare"),
    (("--cache", "memory"), "more threads (-j 4); convnet-prepare"),
])  # fmt: skip
def test_a_run_that_waits_for_images_says_once_what_can_help(images, tmp_path, monkeypatch, capsys, options, ways):
    monkeypatch.setattr(trainer, "HINT_STEPS", 3)
    monkeypatch.setattr(trainer, "HINT_SHARE", -1)
    assert main([images, *TINY, "-o", str(tmp_path / "run"), *options]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "waiting for images" in line]
    assert line.endswith(f"of the time went by waiting for images; what can help: {ways}")
    assert line in (tmp_path / "run/log.txt").read_text()


def test_preparing_helps_with_files_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "HINT_STEPS", 1)
    monkeypatch.setattr(trainer, "HINT_SHARE", -1)
    archive = write_cifar(tmp_path / "cifar.tar.gz", "bin")
    assert main([str(archive), *TINY, "--steps", "1", "-o", str(tmp_path / "run"), "--cache", "none"]) == 0
    assert "what can help: more threads (-j 4); --cache memory\n" in capsys.readouterr().out


def test_a_run_that_does_not_wait_says_nothing(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "HINT_STEPS", 3)
    monkeypatch.setattr(trainer, "HINT_SHARE", 1)
    assert main([images, *TINY, "-o", str(tmp_path / "run")]) == 0
    assert "waiting for images" not in capsys.readouterr().out
    shares = [record["data_share"] for record in records(tmp_path / "run") if record["event"] == "train"]
    assert len(shares) == 2
    assert all(0 <= share <= 1 for share in shares)
