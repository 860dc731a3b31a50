"""Training as in 2012: batches in file order, ranges of them, crops of any border, their mean image and noise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from data_files import write_cifar, write_colmajor
from runs import call, final, here, records, shared_folder

from convnet.cli.eval import main as evaluate
from convnet.data import Loader
from convnet.data.minibatches import Minibatches
from convnet.network.model import Network
from convnet.training import checkpoint
from convnet.training.config import Config
from convnet.training.trained import load_trained
from convnet.training.trainer import Trainer

SIZES = (19, 20, 17, 16, 9)  # in minibatches of 8: 3, 3, 3, 2 and 2 steps
SMALL = [
    "--device",
    "cpu",
    "-b",
    "8",
    "--width",
    "0.05",
    "--lr",
    "0.01",
    "--epochs",
    "2",
    "--save-every",
    "1",
    "-j",
    "0",
]
SMALL += ["--keep", "50", "--lr-schedule", "constant"]
FILE = [*SMALL, "--order", "file", "--crop-border", "2"]


@pytest.fixture(scope="session")
def batches():
    folder = shared_folder() / "colmajor"
    write_colmajor(folder, SIZES, side=40)
    return str(folder)


@pytest.fixture(scope="session")
def straight(batches):
    folder = shared_folder() / "in file order"
    assert here(batches, *FILE, "--train-range", "1-4", "--test-range", "5", "-o", str(folder)) == 0
    return folder


# ---- minibatches ----


def test_ten_thousand_are_78_of_128_and_one_of_16():
    course = Minibatches(128, (10_000,) * 5)
    spans = list(course.spans(0))
    assert len(spans) == course.steps == 395
    assert [end - start for start, end in spans] == ([128] * 78 + [16]) * 5
    assert [course.batches(end) for _, end in spans[77:80]] == [0, 1, 1]
    assert (course.batches(0), course.batches(50_000), course.images) == (0, 5, 50_000)


@pytest.mark.parametrize("sizes", [(1,), (8,), (9, 7), (3, 16, 1, 1, 8), (100, 5)])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 200])
def test_positions_of_minibatches(sizes, batch_size):
    course = Minibatches(batch_size, sizes)
    spans = list(course.spans(0))
    assert [course.step(start) for start, _ in spans] == list(range(course.steps))
    assert course.step(sum(sizes)) == course.steps
    begins = {start for start, _ in spans} | {sum(sizes)}
    assert {k for k in range(sum(sizes) + 1) if course.divides(k)} == begins
    assert not course.divides(-1)
    assert not course.divides(sum(sizes) + 1)
    ends = np.cumsum(sizes)
    for k in range(sum(sizes) + 1):
        assert course.batches(k) == (ends <= k).sum()
    for k, (start, _) in enumerate(spans):
        assert list(course.spans(start)) == spans[k:]
        assert not any(start < end < spans[k][1] for end in ends)  # none reaches into another data batch


# ---- training ----


@pytest.fixture
def steps(monkeypatch):
    """The positions, labels, windows, scale and data batches done of every training step."""
    seen = []
    real = Trainer._train_step

    def noted(self, batch):
        scale = self.network.input()[1]
        seen.append(
            (batch.position, batch.labels.copy(), batch.windows.copy(), scale, self.batches_done(batch.position))
        )
        return real(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", noted)
    return seen


def test_every_epoch_is_the_order_of_the_files(tmp_path, batches, steps):
    assert here(batches, *FILE, "--train-range", "1-4", "--test-range", "5", "-o", str(tmp_path / "run")) == 0
    positions = [0, 8, 16, 19, 27, 35, 39, 47, 55, 56, 64]
    assert [position for position, *_ in steps] == positions * 2
    labels = [k % 3 for size in SIZES[:4] for k in range(size)]
    assert np.concatenate([labels for _, labels, *_ in steps]).tolist() == labels * 2
    config = checkpoint.load(tmp_path / "run/last").state["config"]
    assert (config["size"], config["crop"], config["crop_border"]) == (40, 36, 2)
    windows = np.concatenate([windows for _, _, windows, *_ in steps])
    assert set(windows[:, 0].tolist()) == set(windows[:, 1].tolist()) == {0, 1, 2, 3, 4}


def test_data_batches_are_counted(tmp_path, batches, monkeypatch):
    seen = []
    real = Trainer._finish_step

    def noted(self, done):
        real(self, done)
        seen.append((self.step, self.batches_done(self.position)))
        assert self.batches_per_epoch == 4

    monkeypatch.setattr(Trainer, "_finish_step", noted)
    assert here(batches, *FILE, "--train-range", "1-4", "--test-range", "5", "-o", str(tmp_path / "run")) == 0
    ends = {3: 1, 6: 2, 9: 3, 11: 4, 14: 5, 17: 6, 20: 7, 22: 8}  # step that ends one: how many are done
    done = 0
    for step, batches_done in seen:
        done = ends.get(step, done)
        assert batches_done == done


def test_shuffled_an_epoch_is_one_data_batch(tmp_path, batches, steps):
    assert here(batches, *SMALL, "--crop", "36", "-o", str(tmp_path / "run")) == 0
    assert [position for position, *_ in steps] == [*range(0, 72, 8)] * 2
    assert [done for *_, done in steps][-2:] == [1, 1]


@pytest.mark.parametrize("step", [2, 3, 7, 11, 13])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, batches, straight, step):
    """Inside a data batch, at its end, and at that of an epoch."""
    options = ["--train-range", "1-4", "--test-range", "5", "-o", str(tmp_path / "run")]
    assert here(batches, *FILE, *options, "--steps", str(step)) == 0
    assert here("--resume", "auto", "-o", str(tmp_path / "run")) == 0
    (tensors, state), (expected, other) = final(tmp_path / "run", 22), final(straight, 22)
    assert tensors == expected
    assert state == other


def test_a_run_goes_on_with_more_batches_between_epochs_alone(tmp_path, batches, straight, capsys, steps):
    """As the 13 % network was made: batches 1-4, then 1-5."""
    folder = tmp_path / "run"
    assert here(batches, *FILE, "--train-range", "1-3", "--test-range", "5", "--epochs", "1", "-o", str(folder)) == 0
    del steps[:]
    assert here("--resume", "auto", "-o", str(folder), "--train-range", "1-4", "--epochs", "2") == 0
    assert [position for position, *_ in steps] == [0, 8, 16, 19, 27, 35, 39, 47, 55, 56, 64]
    assert load_trained(folder, pytest.fail).config.train_range == "1-4"
    middle = str(straight / "checkpoints" / checkpoint.file_name(2))
    assert here("--resume", middle, "-o", str(tmp_path / "other"), "--train-range", "1-3") == 4
    assert "change between epochs alone" in capsys.readouterr().err


def test_a_place_inside_a_minibatch_is_refused(tmp_path, batches, straight, capsys):
    """19 images end a data batch; 16 with others do not."""
    found = checkpoint.load(straight / "checkpoints" / checkpoint.file_name(3))
    assert found.state["position"] == 19
    state = {**found.state, "position": 20}
    checkpoint.save(tmp_path / "file.safetensors", found.tensors, state)
    assert here("--resume", str(tmp_path / "file.safetensors"), "-o", str(tmp_path / "run")) == 4
    assert "expected a place between two batches of 8 of the 72 images, found 20" in capsys.readouterr().err


def test_published_batches_in_file_order(tmp_path, steps):
    path = write_cifar(tmp_path / "cifar.tar.gz", "bin")
    options = ["--order", "file", "--train-range", "2-3", "--test-range", "1", "--size", "40", "--crop", "36"]
    assert here(str(path), *SMALL, *options, "--epochs", "1", "-o", str(tmp_path / "run")) == 0
    assert [position for position, *_ in steps] == [0, 8, 16, 20, 28, 36]


def test_other_data_has_one_batch_in_file_order(tmp_path, steps):
    assert here("shapes", *SMALL, "--order", "file", "--crop", "36", "--steps", "3", "-o", str(tmp_path / "run")) == 0
    assert [position for position, *_ in steps] == [0, 8, 16]
    trained = load_trained(tmp_path / "run", pytest.fail)
    labels = trained.open_dataset().train.labels
    assert np.concatenate([labels for _, labels, *_ in steps]).tolist() == labels[:24].tolist()


# ---- crops ----


def test_the_mean_image_is_the_centre_of_theirs(batches, straight):
    trained = load_trained(straight, pytest.fail)
    mean = trained.open_dataset().mean
    assert mean is not None
    np.testing.assert_array_equal(checkpoint.load(straight / "last").tensors["mean"], mean[:, 2:38, 2:38])


@pytest.mark.parametrize(
    ("options", "size", "crop"),
    [
        (["--crop-border", "2"], 40, 36),
        (["--crop-border", "0"], 40, 40),
        (["--crop-border", "4", "--size", "48"], 48, 40),
        (["--crop-border", "4", "--crop", "40"], 48, 40),
        (["--crop-border", "4", "--crop", "40", "--size", "48"], 48, 40),
        (["--size", "50", "--crop", "40"], 50, 40),
        (["--crop", "40"], 46, 40),  # as before: the network's own
    ],
)
def test_sides_of_images_and_crops(tmp_path, batches, options, size, crop):
    run = tmp_path / "run"
    assert here(batches, *SMALL, *options, "--steps", "1", "-o", str(run)) == 0
    trained = load_trained(run, pytest.fail)
    assert (trained.image_size, trained.spec.crop) == (size, crop)
    assert trained.open_dataset().train.size == size
    assert call(evaluate, str(run), "-q", "--views", "9") == 0  # at the same size
    assert here("--resume", "auto", "-o", str(run), "--steps", "2") == 0


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (None, ["--crop-border", "20"], "--crop-border 20 leaves nothing of images of 40 x 40"),
        (None, ["--size", "30", "--crop", "36"], "--size 30: the network takes crops of 36 x 36"),
        (None, ["--size", "40", "--crop", "30", "--crop-border", "4"], "30 + 2 x 4 is 38; leave one of them out"),
        ("shapes", ["--crop-border", "4"], "shapes are drawn in any size; say with --size"),
        (None, ["--train-range", "4-1"], "--train-range must be a number of a data batch or two, as 5 or 1-4"),
        (None, ["--test-range", "0"], "--test-range must be a number of a data batch or two"),
        (None, ["--train-range", "1-9"], "has no data batch 6; there are 1-5"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, batches, capsys, data, options, message):
    assert here(data or batches, *SMALL, *options, "-o", str(tmp_path / "run")) in (2, 3)
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_a_size_that_cannot_be_is_refused(tmp_path, straight, capsys):
    found = checkpoint.load(straight / "last")
    state = {**found.state, "config": {**found.state["config"], "crop_border": None, "size": 30}}
    checkpoint.save(tmp_path / "file.safetensors", found.tensors, state)
    assert here("--resume", str(tmp_path / "file.safetensors"), "-o", str(tmp_path / "run")) == 4
    assert "expected the options of a run, found others: --size 30" in capsys.readouterr().err


def test_evaluation_takes_other_batches(tmp_path, straight, capsys):
    for options, images in (([], 9), (["--test-range", "5"], 9), (["--split", "train"], 72)):
        assert call(evaluate, str(straight), *options, "-q") == 0
        assert f"{images} " in capsys.readouterr().out.splitlines()[0]
    assert call(evaluate, str(straight), "--test-range", "3", "-q") == 3
    assert "data batch 3 of" in capsys.readouterr().err


# ---- as the 2012 program cropped and added noise ----


class Numbered:
    size = 40

    def __init__(self, count):
        self.labels = np.arange(count, dtype=np.int32)

    def __len__(self):
        return len(self.labels)

    def image(self, index, out):
        return out


def drawn(statistics, chunk, sizes, batch_size=24, number=1, start=0):
    split = Numbered(sum(sizes))
    options = {"shuffle": False, "batches": sizes, "crop_chunk": chunk}
    with Loader(
        split, batch_size=batch_size, crop=32, seed=3, augment=True, statistics=statistics, workers=0, **options
    ) as loader:
        found = [(batch.windows, batch.noise) for batch in loader.epoch(number, start)]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def test_one_crop_and_flip_for_32_images_that_follow_each_other(straight):
    statistics = load_trained(straight, pytest.fail).statistics
    sizes = (80, 100)
    single, _ = drawn(statistics, 1, sizes)
    windows, noise = drawn(statistics, 32, sizes)
    starts = [0, 32, 64, 80, 112, 144, 176, 180]  # anew in each data batch
    for begin, end in pairwise(starts):
        assert (windows[begin:end] == windows[begin]).all()
        np.testing.assert_array_equal(windows[begin], single[begin])
    assert len({tuple(window) for window in windows.tolist()}) == 7
    assert len({tuple(each) for each in noise.tolist()}) == 180  # the colour noise is each image's own
    again, _ = drawn(statistics, 32, sizes, start=48)  # in the middle of one
    np.testing.assert_array_equal(again, windows[48:])
    other, _ = drawn(statistics, 32, sizes, batch_size=7)
    np.testing.assert_array_equal(other, windows)


def test_training_divides_by_what_noise_adds_and_evaluation_does_not(tmp_path, batches, steps, monkeypatch):
    scales = []
    real = Network.evaluate_batch

    def noted(self, *arguments):
        scales.append(self.input()[1])
        return real(self, *arguments)

    monkeypatch.setattr(Network, "evaluate_batch", noted)
    run = tmp_path / "run"
    assert here(batches, *FILE, "--noise", "0.25", "--noise-scaled", "--crop-chunk", "32", "-o", str(run)) == 0
    own = load_trained(run, pytest.fail).spec.input_scale
    assert len(scales) > 1
    assert set(scales) == {(own,) * 3}
    assert {scale for _, _, _, scale, _ in steps} == {(own / 1.25,) * 3}
    assert any(record["event"] == "valid" for record in records(run))


def test_without_augmentation_nothing_is_divided(tmp_path, batches, steps):
    options = ["--noise-scaled", "--no-augment", "--steps", "1"]
    assert here(batches, *FILE, *options, "-o", str(tmp_path / "run")) == 0
    assert steps[0][3] == (load_trained(tmp_path / "run", pytest.fail).spec.input_scale,) * 3


def test_switches_are_told_as_they_are(tmp_path, straight, capsys):
    assert not Config().noise_scaled
    assert here("--resume", str(straight), "--noise-scaled") == 4
    assert "cannot take --noise-scaled (it was not given)" in capsys.readouterr().err
