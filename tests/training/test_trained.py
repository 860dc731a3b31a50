"""Trained networks taken up again: the right checkpoint, the right network, the right data."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from runs import make_images, straight_run

from convnet.data import DataError, sampled_statistics, statistics, view_windows
from convnet.data.dataset import DataSet
from convnet.training import checkpoint
from convnet.training.checkpoint import CheckpointError
from convnet.training.trained import load_trained


@pytest.fixture(scope="module")
def run():
    return straight_run()


def test_a_run_folder_means_its_best_checkpoint(run):
    found = load_trained(run, pytest.fail)
    best = checkpoint.load((run / "best").resolve())
    assert found.step == best.state["step"]
    assert found.classes == ["blue", "green", "red"]
    with found.open_network("cpu", batch_size=4) as network:
        assert network.spec.classes == 3
        for name, values in network.weights().items():
            np.testing.assert_array_equal(values, best.tensors[f"weights/{name}"])


def test_a_file_means_itself(run):
    file = checkpoint.files(run / "checkpoints")[0]
    assert load_trained(file, pytest.fail).step == int(file.stem.split("-")[1])


def test_a_damaged_best_one_is_replaced_by_the_newest_with_a_warning(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "best").unlink()
    (copy / "best").write_bytes(b"nonsense")
    warnings = []
    newest = checkpoint.files(copy / "checkpoints")[-1]
    assert load_trained(copy, warnings.append).step == checkpoint.load(newest).state["step"]
    assert len(warnings) == 1
    assert "taking the newest one instead" in warnings[0]


def test_no_run_and_no_checkpoint(run, tmp_path):
    with pytest.raises(CheckpointError, match="found a folder without a run"):
        load_trained(tmp_path, pytest.fail)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="found none; train longer"):
        load_trained(tmp_path, pytest.fail)
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_trained(tmp_path / "no.safetensors", pytest.fail)


def test_data_must_have_some_of_the_classes_of_the_run(run, tmp_path):
    trained = load_trained(run, pytest.fail)
    assert len(trained.open_dataset().train) == 36
    other = make_images(tmp_path / "other", classes=("blue", "green", "yellow"))
    found = trained.open_dataset(str(other))
    assert found.classes == ["blue", "green", "red"]
    assert sorted(set(found.valid.labels)) == [0, 1]
    assert "the network does not know 'yellow': left out" in found.notes
    none = make_images(tmp_path / "none", classes=("black", "yellow"))
    with pytest.raises(DataError, match="the network knows none of them, but 'blue', 'green', 'red'"):
        trained.open_dataset(str(none))


def test_statistics_that_come_with_the_data_are_cut_to_the_crop(run):
    dataset = load_trained(run, pytest.fail).open_dataset()
    whole = sampled_statistics(dataset.train, dataset.train.size)
    known = DataSet(dataset.name, dataset.classes, dataset.train, dataset.valid, dataset.fingerprint, whole)
    found = statistics(known, 32)
    before = (dataset.train.size - 32) // 2
    np.testing.assert_array_equal(found.mean, whole.mean[:, before : before + 32, before : before + 32])
    np.testing.assert_array_equal(found.std, whole.std)


def test_views():
    assert view_windows(256, 224, 1).tolist() == [[16, 16, 0]]
    corners = [[0, 0], [0, 32], [16, 16], [32, 0], [32, 32]]
    expected = [[*place, flip] for flip in (0, 1) for place in corners]
    assert view_windows(256, 224, 10).tolist() == expected
    nine = [[0, 0], [0, 4], [0, 8], [4, 0], [4, 4], [4, 8], [8, 0], [8, 4], [8, 8]]
    assert view_windows(32, 24, 9).tolist() == [[*place, 0] for place in nine]
    with pytest.raises(ValueError, match="views must be one of"):
        view_windows(256, 224, 5)
