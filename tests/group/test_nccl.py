"""Processes with GPUs, on stand-ins for CUDA and NCCL: order, streams and capture; the bits are the emulator's."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi import mpirun, needs_mpi
from runs import ELSEWHERE

pytestmark = needs_mpi

TESTS = Path(__file__).parents[1]
FAKE = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
import fake_cuda
from convnet.kernels import _emu
class Patch:
    setitem = staticmethod(dict.__setitem__)
    def setattr(self, target, name, value, raising=True):
        setattr(target, name, value)
machine = fake_cuda.install(Patch(), fake_cuda.Machine(), _emu)
def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + bytes([10]))
"""
NCCL = """
import fake_nccl
sys.modules.update(fake_nccl.module(machine))
core = sys.modules["nccl.core"]
"""
TRAIN = """
import hashlib
import numpy as np
from convnet import Network
from convnet.group.launch import joined
device, precision, parallel = sys.argv[1:]
group, random = joined(), np.random.default_rng(1)
settings = {"num_classes": 3, "crop": 32, "width": 0.25, "group": group, "shards": 4, "parallel": parallel}
with Network("alexnet-tiny", device, 8, precision, **settings) as network:
    for n in (8, 8, 8, 8, 8, 3, 8):
        part = network.share(n)
        images, labels = random.integers(0, 256, (n, 32, 32, 3), np.uint8), random.integers(0, 3, n)
        windows, noise = np.zeros((n, 3), np.int32), np.zeros((n, 3), np.float32)
        result = network.train_step(images[part], labels[part], windows[part], noise[part], of=n)
        assert result.get()[0].shape == (n,)
        assert result.gradients_finite()
    logits = network.evaluate_batch(images[part], windows[part], n)
    digest = hashlib.sha256(b"".join(w.tobytes() for _, w in sorted(network.weights().items()))).hexdigest()
"""


@pytest.mark.parametrize(("precision", "parallel"), [("bf16", "data"), ("fp32", "hybrid")])
def test_gpus_of_processes_have_the_bits_of_the_emulator(precision, parallel):
    """Steps of one kind are captured and launched, what crosses included."""
    wanted = mpirun(1, "-c", ELSEWHERE + "import os, sys\n" + TRAIN + "print(digest)", "emu", precision, parallel)
    for n in (2, 4):
        report = "say(digest, network._graphs.launched > 0, core.calls.count('init'))"
        done = mpirun(n, "-c", ELSEWHERE + FAKE + NCCL + TRAIN + report, "cuda:0", precision, parallel)
        captured = parallel == "data"
        assert done.stdout.splitlines() == [f"{wanted.stdout.strip()} {captured} 1"] * n, done.stderr


def test_two_gpus_of_a_process_have_a_communicator_each():
    wanted = mpirun(1, "-c", ELSEWHERE + "import os, sys\n" + TRAIN + "print(digest)", "emu:0,emu:1", "fp32", "data")
    report = "say(digest, core.calls.count('init'))"
    done = mpirun(2, "-c", ELSEWHERE + FAKE + NCCL + TRAIN + report, "cuda:0,cuda:1", "fp32", "data")
    assert done.stdout.splitlines() == [f"{wanted.stdout.strip()} 2"] * 2, done.stderr


def test_without_nccl_gpus_are_refused_in_one_sentence():
    without = "sys.modules['nccl'] = None\n"
    report = """
from convnet.devices.protocol import DeviceError
"""
    text = TRAIN.replace("with Network", "try:\n  with Network").replace("\n    ", "\n      ")
    text += "\nexcept DeviceError as error:\n    say(error)\n    group.end(6)\n"
    done = mpirun(2, "-c", ELSEWHERE + FAKE + without + report + text, "cuda:0", "fp32", "data")
    assert done.returncode == 6, done.stderr
    assert done.stdout.splitlines()[0].startswith("processes cannot exchange what lies on GPUs without NCCL (")
    assert 'install it with: pip install ".[nccl]", or use --device cpu' in done.stdout


PLACES = """
from convnet.devices.opening import device_of
from convnet.devices.protocol import DeviceError
from convnet.group.launch import joined
group = joined()
try:
    say(group.rank, group.place, device_of(group.place))
except DeviceError as error:
    say(group.rank, error)
group.everyone(0, "the end")
"""


def test_every_process_of_a_machine_has_a_gpu_of_its_own():
    done = mpirun(3, "-c", ELSEWHERE + FAKE + PLACES)
    more = "this machine has 2 GPUs and more processes; start one for each GPU, or say --device cpu"
    assert sorted(done.stdout.splitlines()) == ["0 0 cuda:0", "1 1 cuda:1", f"2 {more}"], done.stderr
