"""Several threads at once: each has its own network, and long calls let the others run."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from steps import at_once, opened

import convnet.functional as F


@pytest.mark.parametrize("devices", ["cpu", "emu", "emu:0,emu:1"])
def test_networks_in_two_threads_compute_what_each_does_alone(devices):
    def trained(_: int = 0) -> dict[str, np.ndarray]:
        with opened(devices) as net:
            return at_once(net, 3)[1]

    alone = trained()
    with ThreadPoolExecutor(2) as pool:
        for together in pool.map(trained, range(4)):
            for name, values in together.items():
                np.testing.assert_array_equal(values, alone[name], err_msg=name)


def most_counted_during(call: Callable[[], object], enough: int) -> int:
    """How far another thread counts during one call, out of many until it is enough. It lets go at every number, and
    nobody is made to hand over the interpreter meanwhile: it counts only while the caller has let go."""
    stop, count = threading.Event(), 0

    def run() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0)

    interval, most = sys.getswitchinterval(), 0
    sys.setswitchinterval(100)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(50):
            before = count
            call()
            most = max(most, count - before)
            if most >= enough:
                break
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()
    return most


@pytest.mark.parametrize("device", ["cpu", "emu"])
def test_other_threads_run_during_a_long_call(device):
    size = {"cpu": 256, "emu": 64}[device]
    x, weight = np.ones((8, size, 27, 27), np.float32), np.ones((size, size, 3, 3), np.float32)
    assert most_counted_during(lambda: F.conv2d(x, weight, padding=1, device=device), 200) >= 200


def test_a_call_that_keeps_the_interpreter_shows():
    sleep = ctypes.PyDLL(None).usleep  # PyDLL: holds on to the interpreter
    assert most_counted_during(lambda: sleep(2000), 200) < 200
