"""What CONVNET_OFF turns off, and that nothing computed depends on it."""

from __future__ import annotations

import gc
import itertools

import fake_cuda
import numpy as np
import pytest

import convnet
from convnet.analysis import info
from convnet.cli.info import main
from convnet.devices import cuda as device
from convnet.devices import switches
from convnet.network.networks import network

TINY = network("alexnet-tiny", width=0.1, crop=32)
N = 2


RUNS = [  # where, precision, steps: few where the emulator computes them
    ("cpu", "fp32", 200), ("stand-in", "fp32", 4), ("stand-in", "bf16", 4),
    *(pytest.param(("cuda", precision, 200), marks=pytest.mark.gpu) for precision in ("fp32", "bf16")),
]  # fmt: skip


@pytest.fixture(params=RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def run(request, monkeypatch):
    """A device, a precision, and steps to take."""
    where, precision, steps = request.param
    if where == "stand-in":
        from convnet.kernels import _emu as emu

        fake_cuda.install(monkeypatch, fake_cuda.Machine(gpus=1), emu)
    kind = {"cpu": "cpu", "stand-in": "emu", "cuda": "cuda"}[where]
    request.node.user_properties.append(("device", kind))
    yield "cpu" if where == "cpu" else "cuda:0", precision, steps
    gc.collect()
    if where == "stand-in":
        device._driver.cache_clear()


def trained(name: str, steps: int, precision: str) -> tuple[list[np.ndarray], int]:
    """Losses of all steps and the weights behind them, and how many steps were launched as graphs."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, N, 36, 36, 3), dtype=np.uint8)
    labels = random.integers(0, 10, (4, N))
    windows = random.integers(0, (5, 5, 2), (4, N, 3)).astype(np.int32)
    noise = random.normal(0, 5, (4, N, 3)).astype(np.float32)
    with convnet.Network(TINY, name, batch_size=N, precision=precision, seed=3) as net:
        results = []
        for step in range(steps):
            k = step % 4
            results.append(net.train_step(images[k], labels[k], windows[k], noise[k], lr=0.01))
        losses = [result.get()[0] for result in results]
        return [*losses, *net.weights().values()], net._graphs.launched


def test_every_combination_computes_the_same(run, monkeypatch):
    """Every step, to the bit; in bf16 with layers fused always: where they are not, one rounding more is taken."""
    name, precision, steps = run
    free = list(switches.PARTS)
    if precision == "bf16":
        free.remove("fused")
    if name == "cpu":
        free.remove("programmatic")
    told = []
    if name != "cpu":
        kernels = device._driver()[1]
        tell = kernels.set_programmatic_launches
        monkeypatch.setattr(kernels, "set_programmatic_launches", lambda on: (told.append(on), tell(on))[1])
    expected = None
    for count in range(len(free) + 1):
        for off in itertools.combinations(free, count):
            monkeypatch.setenv(switches.VARIABLE, ",".join(off))
            values, launched = trained(name, steps, precision)
            assert launched == (0 if "graph" in off else steps - 2), off
            assert not told or told[-1] == ("programmatic" not in off)
            expected = expected or values
            for value, other in zip(values, expected, strict=True):
                np.testing.assert_array_equal(value, other, err_msg=f"without {off}")
    assert len(told) == (0 if name == "cpu" else 2 ** len(free))
    assert np.isfinite(np.concatenate([value.ravel() for value in expected])).all()


@pytest.mark.parametrize(
    ("off", "streams", "blocks"), [("", 2, 11), ("intake", 1, 11), ("fused", 2, 15), ("intake,fused", 1, 15)]
)
def test_what_is_off_is_not_there(off, streams, blocks, monkeypatch):
    """Streams, and what runs as one kernel: unfused, normalisation, pooling and dropout are blocks of their own."""
    monkeypatch.setenv(switches.VARIABLE, off)
    with convnet.Network(TINY, "cpu", batch_size=N) as net:
        assert len({id(s) for s in (net._sides[0].stream, *net._intake._streams)}) == streams
        assert len(net._wiring.blocks) == blocks


def test_info_lists_them(monkeypatch, capsys):
    monkeypatch.setenv(switches.VARIABLE, " graph, intake ")
    monkeypatch.setattr(info, "self_test", lambda name: "ok")
    assert main([]) == 0
    shown = capsys.readouterr().out
    lines = [line.split()[-2:] for line in shown[shown.index(switches.VARIABLE) :].splitlines()[:4]]
    assert lines == [["programmatic", "on"], ["graph", "off"], ["fused", "on"], ["intake", "off"]]


def test_an_unknown_part_is_named(monkeypatch, capsys):
    monkeypatch.setenv(switches.VARIABLE, "graph;fused")
    with pytest.raises(ValueError, match='CONVNET_OFF turns off programmatic, graph, fused, intake, got "graph;fused"'):
        switches.states()
    assert main([]) == 2
    assert 'got "graph;fused"' in capsys.readouterr().err
