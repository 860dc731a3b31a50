"""What processes tell each other and what crosses between them: small programs on two and four of them."""

from __future__ import annotations

import re

import pytest
from mpi import mpirun, needs_mpi
from runs import ELSEWHERE

pytestmark = needs_mpi

START = (
    ELSEWHERE
    + """
import os, sys, time
import numpy as np
from convnet.group import mpi
from convnet.group.group import Elsewhere, Lost
from convnet.group.launch import joined
def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")  # in one piece, whatever others say
"""
)


def program(n: int, text: str, code: int = 0, **options) -> list[str]:
    """The lines of its output, sorted."""
    done = mpirun(n, "-c", START + text, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return sorted(done.stdout.splitlines())


EVERYONE = """
group = joined()
for size in (0, 10, 10_000_000):  # the last takes more than one piece of memory on its way
    found = group.everyone((group.rank, b"x" * size), "a test")
    assert found == [(rank, b"x" * size) for rank in range(group.size)]
assert group.from_first(lambda: "of the first", "a test") == "of the first"
say(group.rank, group.size, group.neighbours)
"""


@pytest.mark.parametrize("n", [2, 4])
def test_all_hear_all(n):
    assert program(n, EVERYONE) == [f"{rank} {n} {n}" for rank in range(n)]


EXCHANGE = """
from convnet.devices.opening import open_device
group = joined()
device = open_device(sys.argv[1])
stream, rank = device.stream(), group.rank
def there(values):
    array = device.empty(values.shape, values.dtype)
    stream.upload(array, values)
    return array
for turn in range(3):
    # of rank r to rank s: as many values as s says, one of them none at all
    sends = [there(np.full(5 * s, 100 * rank + 10 * s + turn, np.float32)) for s in range(group.size)]
    receives = [device.empty((5 * rank,)) for _ in range(group.size)]
    words = there(np.array([rank == turn, 7 - rank], np.uint32))
    group.exchange(stream, sends, receives)
    group.exchange(stream, sends, receives)  # twice, as buckets follow each other
    group.maximum(stream, words)
    group.complete(stream)
    for s, array in enumerate(receives):
        assert (array.download() == 100 * s + 10 * rank + turn).all(), (turn, s)
    assert words.download().tolist() == [turn < group.size, 7]
to_others = 2 * sum(20 * s for s in range(group.size) if s != rank) + 8 * (group.size - 1)
assert group.sent == 3 * to_others, (group.sent, to_others)
say("good")
"""


@pytest.mark.parametrize("device", ["cpu", "emu:0"])
@pytest.mark.parametrize("n", [2, 4])
def test_everybody_gets_what_was_sent_to_him(n, device):
    done = mpirun(n, "-c", START + EXCHANGE, device)
    assert done.stdout == n * "good\n", done.stderr


LATE = """
mpi.LATE = 1
group = joined()
if group.rank == 1:
    time.sleep(3)
group.everyone(0, "step 12")
"""


@pytest.mark.parametrize("n", [2, 4])
def test_one_who_is_late_is_named_by_one(n):
    """Again when twice the time has passed; and it is said when all are there."""
    done = mpirun(n, "-c", START + LATE)
    assert done.returncode == 0, done.stderr
    *waiting, last = done.stderr.splitlines()
    assert waiting
    for line in waiting:
        assert re.fullmatch(r"warning: step 12: waiting for rank 1 \(\S+\) for \d+ seconds", line)
    assert re.fullmatch(r"warning: step 12: all are there, after \d+ seconds", last)
    assert len(waiting) <= 3


GONE = """
mpi.LATE, mpi.GONE = 1.0, 3.0
group = joined()
try:
    if group.rank == 1:
        time.sleep(10)
    else:
        group.everyone(0, "step 12")
except Lost as error:
    say(error)
    group.end(6)
"""


def test_one_who_does_not_come_is_given_up():
    (line,) = program(2, GONE, code=6)
    assert re.fullmatch(r"rank 1 \(\S+\) did not answer for 3 seconds, at step 12", line)


FAILING = """
from convnet.devices.opening import open_device
group = joined()
if group.rank in map(int, sys.argv[2]):
    tells = group.failed(3)
    say("tells" if tells else "is silent", group.rank)
    time.sleep(0 if tells else 30)
    group.end(3)
try:
    if sys.argv[1] == "words":
        group.everyone(0, "a test")
    else:
        device = open_device("cpu")
        stream, array = device.stream(), device.empty((4,))
        group.exchange(stream, [array] * group.size, [device.empty((4,)) for _ in range(group.size)])
        group.complete(stream)
except Elsewhere as error:
    say("hears", group.rank, error.code)
time.sleep(30)
"""


@pytest.mark.parametrize(
    ("waiting", "failing", "expected"),
    [
        ("arrays", "2", ["hears 0 3", "hears 1 3", "hears 3 3", "tells 2"]),
        ("words", "13", ["hears 0 3", "hears 2 3", "is silent 3", "tells 1"]),
        ("words", "0123", ["is silent 1", "is silent 2", "is silent 3", "tells 0"]),
    ],
)
def test_of_those_who_fail_the_first_tells_and_all_end(waiting, failing, expected):
    lines = program(4, FAILING.replace("sys.argv[1]", repr(waiting)).replace("sys.argv[2]", repr(failing)), code=3)
    # without what mpirun says where it finds one that another one has ended
    said = [line for line in lines if re.match(r"(hears|is silent|tells) \d", line)]
    assert set(said) <= set(expected)  # the first one may end the others before they have said that they are silent
    assert [line for line in said if "tells" in line] == [line for line in expected if "tells" in line]
