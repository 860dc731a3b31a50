"""Runs on several processes: the bits are those of one, and of the batch in one piece but for the order of sums."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from mpi import mpirun, needs_mpi
from runs import CLOCK, ELSEWHERE, TINY, TRAIN, call, shared_folder, shared_images

from convnet import Network
from convnet.cli.train import main
from convnet.network.networks import network
from convnet.network.traffic import data_parallel, hybrid
from convnet.training import checkpoint
from convnet.training.config import Config
from convnet.training.train import chosen_parallel

# 17, 17 and 2 images to a step: of 4 shards the last step fills two
RUN = [shared_images(), *TINY, "-b", "17", "--shards", "4", "-q"]
KINDS = [
    f"{where} {parallel}"
    for where in ("cpu fp32", "emu fp32", "emu tf32", "emu bf16")
    for parallel in ("data", "hybrid")
]
SEED, N, SHARDS = 3, 11, 4


def options(kind: str) -> list[str]:
    device, precision, parallel = kind.split()
    short = ["--epochs", "1"] if device == "emu" else []
    return [*RUN, "--device", device, "--precision", precision, "--parallel", parallel, *short]


def train(n: int, folder: Path, *arguments: str, code: int = 0) -> str:
    """A run on n processes; what it said on standard error."""
    done = mpirun(n, "-c", TRAIN, *arguments, "-o", folder)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return done.stderr


@functools.cache
def alone(kind: str) -> Path:
    """A run of this process by itself."""
    folder = shared_folder() / f"alone-{kind.replace(' ', '-')}"
    assert call(main, *options(kind), "-o", str(folder)) == 0
    return folder


def records(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in (*CLOCK, "seconds")} for line in lines]


def assert_same(first: Path, second: Path) -> None:
    """Every bit of weights, momentum and whatever else is kept, and every record."""
    a, b = (checkpoint.load(folder / "last") for folder in (first, second))
    assert a.tensors.keys() == b.tensors.keys()
    for name, values in a.tensors.items():
        np.testing.assert_array_equal(values, b.tensors[name], err_msg=name)
    for key in ("step", "epoch", "position", "schedule", "running", "best", "last"):
        assert a.state[key] == b.state[key]
    assert records(first) == records(second)


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = (checkpoint.load(folder / "last").tensors for folder in (first, second))
    for name, values in a.items():
        np.testing.assert_array_equal(values, b[name], err_msg=name)


@needs_mpi
@pytest.mark.parametrize(
    ("kind", "n"),
    [(kind, n) for kind in KINDS for n in (2, 4) if n == 4 or kind.startswith(("cpu fp32", "emu bf16"))],
)
def test_any_number_of_processes_has_the_bits_of_one(kind, n, tmp_path):
    train(n, tmp_path, *options(kind))
    assert_same(alone(kind), tmp_path)


@needs_mpi
@pytest.mark.parametrize(
    ("before", "after", "parallel"),
    [(1, 4, "data"), (4, 2, "data"), (2, 1, "data"), (1, 4, "hybrid"), (4, 2, "hybrid")],
)
def test_another_number_goes_on_where_one_has_stopped(before, after, parallel, tmp_path):
    for n, more in ((before, ["--steps", "4"]), (after, ["--resume", "auto"])):
        said = [*options(f"cpu fp32 {parallel}"), *more]
        if n == 1:
            assert call(main, *said, "-o", str(tmp_path)) == 0
        else:
            train(n, tmp_path, *said)
    assert_same_weights(alone(f"cpu fp32 {parallel}"), tmp_path)


@needs_mpi
def test_a_run_of_one_process_becomes_one_of_several_and_goes_back(tmp_path):
    """With other sums, which is told; a number that does not fit is refused."""
    begun = [shared_images(), *TINY]
    assert call(main, *begun, "--steps", "3", "-q", "-o", str(tmp_path)) == 0
    error = train(2, tmp_path, "--resume", "auto", code=2)
    assert "--shards 1: 2 processes cannot share these out evenly; start 1 of them, or say another number of" in error
    done = mpirun(2, "-c", TRAIN, "--resume", "auto", "--shards", "2", "--steps", "6", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "batches were cut into 1 shard, data, and are now into 2 shards, data: sums are in another order" in done.stdout
    )
    assert call(main, "--resume", "auto", "--shards", "1", "-q", "-o", str(tmp_path)) == 0
    straight = tmp_path / "straight"
    assert call(main, *begun, "-q", "-o", str(straight)) == 0
    a, b = (checkpoint.load(each / "last").part("weights") for each in (straight, tmp_path))
    assert checkpoint.load(tmp_path / "last").state["config"]["shards"] == 1
    for name, values in a.items():
        np.testing.assert_allclose(b[name], values, rtol=1e-4, atol=1e-6)


@needs_mpi
def test_parts_change_between_epochs_alone(tmp_path):
    begun = [*options("cpu fp32 data"), "--order", "parts"]
    train(2, tmp_path, *begun, "--steps", "4")
    error = train(2, tmp_path, "--resume", "auto", "--shards", "2", "-q", code=4)
    assert "stands 17 images into an epoch, and with --order parts the shards change between epochs alone" in error
    train(4, tmp_path, "--resume", "auto", "-q")
    assert call(main, *begun, "-o", str(tmp_path / "alone")) == 0
    assert_same_weights(tmp_path, tmp_path / "alone")


def batch(random: np.random.Generator, n: int, size: int = 36):
    images = random.integers(0, 256, (n, size, size, 3), np.uint8)
    windows = random.integers(0, [5, 5, 2], (n, 3)).astype(np.int32)
    return images, random.integers(0, 3, n), windows, random.standard_normal((n, 3)).astype(np.float32)


def stepped(
    shards: int, device: str = "cpu", rate: float = 0.01, **changes
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Losses and weights of five steps, of which the last has fewer images than there are shards."""
    settings = {"num_classes": 3, "crop": 32, "width": 0.25, "seed": SEED, **changes}
    random, losses = np.random.default_rng(1), []
    with Network("alexnet-tiny", device, N, shards=shards, **settings) as network:
        for n in (N, N, N, N, 2):
            losses.append(network.train_step(*batch(random, n), lr=rate).get()[0])
        return losses, network.weights()


@pytest.mark.parametrize(
    ("device", "parallel"),
    [("cpu", "data"), ("emu", "data"), ("emu:0,emu:1", "data"), ("cpu", "hybrid"), ("emu", "hybrid")],
)
def test_a_batch_that_is_cut_differs_by_the_order_of_sums_alone(device, parallel, within):
    """Dropout is on: a shard that drew as if its images were the first would be wrong by far."""
    losses, weights = stepped(SHARDS, device, parallel=parallel)
    whole_losses, whole_weights = stepped(1, device)
    for cut, whole in zip(losses, whole_losses, strict=True):
        within("losses of a batch that is cut", float(abs(cut - whole).max() / whole.max()) / 1e-6)
    for name, values in weights.items():
        error = np.linalg.norm(values - whole_weights[name]) / np.linalg.norm(whole_weights[name])
        within("weights of a batch that is cut", float(error) / 1e-6)


STEPS = """
import hashlib, os, sys
import convnet.network.reduction as reduction
reduction.BUCKET = 30_000  # some layers each
import numpy as np
from convnet import Network
from convnet.group.launch import joined
group, random = joined(), np.random.default_rng(1)
settings = {"num_classes": 3, "crop": 32, "width": 0.25, "group": group, "shards": 4, "parallel": sys.argv[3]}
with Network("alexnet-tiny", sys.argv[1], 9, **settings) as network:
    for n in random.integers(1, 10, int(sys.argv[2])):
        part = network.share(n)
        images, labels = random.integers(0, 256, (n, 32, 32, 3), np.uint8), random.integers(0, 3, n)
        result = network.train_step(images[part], labels[part], np.zeros((n, 3), np.int32)[part],
                                    np.zeros((n, 3), np.float32)[part], of=n)
        assert result.get()[0].shape == (n,)
        network.evaluate_batch(images[part], np.zeros((n, 3), np.int32)[part], n)
    digest = hashlib.sha256(b"".join(w.tobytes() for _, w in sorted(network.weights().items()))).hexdigest()
    os.write(1, digest.encode() + bytes([10]))
"""


@needs_mpi
@pytest.mark.parametrize(
    ("device", "steps", "parallel"),
    [("cpu", 40, "data"), ("emu:0,emu:1", 8, "data"), ("cpu", 30, "hybrid"), ("emu", 8, "hybrid")],
)
def test_batches_of_any_size_have_the_same_bits_everywhere(device, steps, parallel):
    """Work of one size is captured and launched again between work of others; some processes have none of it."""
    (wanted,) = mpirun(1, "-c", ELSEWHERE + STEPS, device, steps, parallel).stdout.splitlines()
    for n in (2, 4):
        done = mpirun(n, "-c", ELSEWHERE + STEPS, device, steps, parallel)
        assert done.stdout.splitlines() == [wanted] * n, done.stderr


SENT = """
import os, sys
import numpy as np
from convnet import Network
from convnet.group.launch import joined
group, n, parallel = joined(), 16, sys.argv[1]
with Network("alexnet-tiny", "cpu", n, group=group, parallel=parallel) as network:
    part = network.share(n)
    windows, noise = np.zeros((n, 3), np.int32), np.zeros((n, 3), np.float32)
    batch = np.zeros((n, 73, 73, 3), np.uint8), np.zeros(n, np.int32), windows, noise
    before = group.sent
    network.train_step(*(values[part] for values in batch), of=n).get()
    os.write(1, str(group.sent - before).encode() + bytes([10]))
"""


@needs_mpi
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("parallel", ["data", "hybrid"])
def test_what_crosses_is_what_the_formula_says(parallel, processes):
    """Besides, every process tells the others whether its losses are finite, in 4 bytes, and, where layers are cut, the
    labels of its images, and whether its gradients are finite. Parts of sums are cut at whole quads."""
    spec = network("alexnet-tiny")
    traffic = data_parallel(spec, processes) if parallel == "data" else hybrid(spec, processes, 16 // processes, 4)
    more = 4 + (4 + 4 * 16 // processes if parallel == "hybrid" else 0)
    done = mpirun(processes, "-c", ELSEWHERE + SENT, parallel)
    sent = [int(line) for line in done.stdout.split()]
    assert len(sent) == processes, done.stderr
    assert sent == [pytest.approx(traffic.bytes + more * (processes - 1), abs=16 * processes)] * processes


SPOILT = """
import os
import numpy as np
from convnet import Network
from convnet.group.launch import joined
from convnet.kernels.control import SPOILED
group = joined()
with Network("alexnet-tiny", "cpu", 4, num_classes=3, crop=32, width=0.25, group=group, parallel="hybrid") as network:
    head, control = network._head, network._sides[0].control
    update = head.update_biases
    def spoilt(rates):
        update(rates)
        if group.rank == 1 and network.steps_done == 1:
            head.side.stream.upload(control.view((1,), SPOILED), np.ones(1, np.uint32))
    head.update_biases = spoilt
    part, found = network.share(4), []
    windows, noise = np.zeros((4, 3), np.int32), np.zeros((4, 3), np.float32)
    for _ in range(3):
        batch = np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, np.int32), windows, noise
        found.append(network.train_step(*(values[part] for values in batch), of=4).gradients_finite())
    os.write(1, repr(found).encode() + bytes([10]))
"""


@needs_mpi
def test_a_gradient_that_is_not_finite_in_one_slice_is_known_to_all():
    done = mpirun(2, "-c", ELSEWHERE + SPOILT)
    assert done.stdout.splitlines() == ["[True, False, True]"] * 2, done.stderr


def test_the_shards_decide_the_bits():
    """Other shards, other sums: no weight has the same bits, but what is computed before the first sum has. At a rate
    at which every weight moves by more than its last bits."""
    one, other = (stepped(shards, rate=0.3, dropout=0.0) for shards in (2, SHARDS))
    np.testing.assert_array_equal(one[0][0], other[0][0])
    assert not any(np.array_equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("devices", ["cpu", "emu:0,emu:1"])
def test_any_number_of_buckets_sums_up_the_same(devices, monkeypatch):
    """Of a layer each, of some, and of all."""
    found = []
    for nbytes in (1, 30_000, 2**30):
        monkeypatch.setattr("convnet.network.reduction.BUCKET", nbytes)
        found.append(stepped(SHARDS, devices)[1])
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name])
        np.testing.assert_array_equal(values, found[2][name])


def test_more_slices_than_one_launch_takes_learn_all_their_biases():
    """Sixteen of a process: 33 biases."""
    after = []
    for parallel in ("data", "hybrid"):
        settings = {"num_classes": 3, "crop": 32, "width": 0.25, "shards": 16, "parallel": parallel, "dropout": 0.0}
        with Network("alexnet-tiny", "cpu", 16, **settings) as network:
            network.train_step(*batch(np.random.default_rng(1), 16)).get()
            after.append(network.weights())
    for name, values in after[0].items():
        np.testing.assert_allclose(after[1][name], values, rtol=1e-4, atol=1e-6)


CONVOLUTIONS = ["conv1", "conv2", "conv3", "conv4", "conv5"]


@pytest.mark.parametrize("parallel", ["data", "hybrid"])
def test_frozen_layers_stay_and_the_others_learn(parallel):
    settings = {"num_classes": 3, "crop": 32, "width": 0.25, "shards": SHARDS, "parallel": parallel}
    with Network("alexnet-tiny", "cpu", N, **settings) as network:
        random = np.random.default_rng(1)
        for frozen in ([], ["conv1", "fc7"], ["fc6"], CONVOLUTIONS, [*CONVOLUTIONS, "fc6", "fc7"], ["fc8"], []):
            network.freeze(frozen)
            before = network.weights()
            network.train_step(*batch(random, N)).get()
            after = network.weights()
            same = {name.partition(".")[0] for name in after if np.array_equal(before[name], after[name])}
            assert same == set(frozen)


def test_rates_of_single_tensors_hold_where_layers_are_cut():
    rates = {"fc6.weight": 0.0, "fc7.bias": 0.0, "fc8.weight": 2.0}
    after = []
    for parallel in ("data", "hybrid"):
        settings = {"num_classes": 3, "crop": 32, "width": 0.25, "shards": SHARDS, "parallel": parallel}
        with Network("alexnet-tiny", "cpu", N, **settings) as network:
            before = network.weights()
            network.train_step(*batch(np.random.default_rng(1), N), rates=rates).get()
            after.append(network.weights())
            for name in ("fc6.weight", "fc7.bias"):
                np.testing.assert_array_equal(after[-1][name], before[name])
    for name, values in after[0].items():
        np.testing.assert_allclose(after[1][name], values, rtol=1e-4, atol=1e-7)


def test_in_bfloat16_sums_of_slices_are_rounded(within):
    """Gradients of what cut layers read are summed up in bfloat16: the first step differs by some roundings."""
    moved = []
    for parallel in ("data", "hybrid"):
        settings = {"num_classes": 3, "crop": 32, "width": 0.25, "seed": SEED, "shards": SHARDS, "parallel": parallel}
        with Network("alexnet-tiny", "emu", N, "bf16", **settings) as network:
            before = network.weights()
            network.train_step(*batch(np.random.default_rng(1), N)).get()
            moved.append({name: values - before[name] for name, values in network.weights().items()})
    for name in moved[0]:
        error = np.linalg.norm(moved[1][name] - moved[0][name]) / np.linalg.norm(moved[0][name])
        within("step of cut layers in bfloat16", float(error) / (2**-8 * 4))


@pytest.mark.parametrize(
    ("model", "shards", "message"),
    [
        ("lenet5", 4, "layer fc6 has no ReLU behind it; use --parallel data"),
        ("alexnet-torchvision", 2, "cannot be cut; use --parallel data"),
        ("alexnet-tiny", 3, "neurons of fc6 cannot be cut 3 ways; use --parallel data"),
    ],
)
def test_layers_that_cannot_be_cut_are_named(model, shards, message):
    with pytest.raises(ValueError, match=f"--parallel hybrid: .*{message}"):
        Network(model, "cpu", 12, num_classes=10, shards=shards, parallel="hybrid")


def test_with_two_devices_layers_are_not_cut():
    with pytest.raises(ValueError, match="--parallel hybrid: a process has one device"):
        Network("alexnet-tiny", "emu:0,emu:1", 4, shards=2, parallel="hybrid")
    with pytest.raises(ValueError, match='parallel must be one of data, hybrid, got "both"'):
        Network("alexnet-tiny", "cpu", 4, shards=2, parallel="both")


@pytest.mark.parametrize(
    ("model", "batch_size", "shards", "chosen"),
    [
        ("alexnet", 1024, 8, "hybrid"),
        ("alexnet", 1024, 1, "data"),
        ("alexnet", 65536, 512, "data"),
        ("cifar-19pct", 64, 2, "data"),
    ],
)
def test_what_sends_fewer_bytes_is_chosen(model, batch_size, shards, chosen):
    config = Config(model=model, batch_size=batch_size, shards=shards, parallel="auto")
    assert chosen_parallel(network(model), config) == chosen


def test_gradients_by_hand_are_refused_where_a_batch_is_cut():
    images, labels, windows, noise = batch(np.random.default_rng(0), N)
    with Network("alexnet-tiny", "cpu", N, num_classes=3, crop=32, width=0.25, shards=SHARDS) as network:
        for work in (
            lambda: network.train_batch(images, labels, windows, noise),
            lambda: network.forward(np.zeros((1, 3, 32, 32), np.float32), train=True),
        ):
            with pytest.raises(RuntimeError, match=r"a batch that is shared out has no gradients to look at"):
                work()
        with pytest.raises(ValueError, match="of 10 images rank 0 of 1 takes those from 0 to 10, got 11"):
            network.train_step(images, labels, windows, noise, of=10)


def test_a_loss_that_is_not_finite_in_one_shard_stops_all(tmp_path):
    """Weights stay as they are though the other shards have sound gradients."""
    with Network("alexnet-tiny", "cpu", N, num_classes=3, crop=32, width=0.25, shards=SHARDS) as network:
        weights = network.weights()
        weights["fc8.weight"][1, :] = 3e38
        network.load_weights(weights)
        images, labels, windows, noise = batch(np.random.default_rng(1), N)
        labels[:], labels[5] = 1, 0
        losses, _ = network.train_step(images, labels, windows, noise, lr=0.01).get()
        assert not np.isfinite(losses).all()
        for name, values in network.weights().items():
            np.testing.assert_array_equal(values, weights[name], err_msg=name)
