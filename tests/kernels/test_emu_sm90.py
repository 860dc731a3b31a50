"""The emulator as a machine of sm_90: tensor copies, barriers that count, tensor cores of a warpgroup.

Programs of tests/emu are compiled with g++ against the emulator. What they are compared with is computed here, from the
definitions in the PTX manual. The last tests compile the GPU's side with nvcc, where there is one.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from programs import CHECKED, KERNELS, PLAIN, SOURCES, compile_objects, link

Run = Callable[..., bytes]
SHARED = 32768  # bytes, in most programs


def runner(program: Path) -> Run:
    def run(mode: str, *arguments: object, data: bytes = b"", seed: int = 1) -> bytes:
        command = [str(program), mode, str(seed), *map(str, arguments)]
        done = subprocess.run(command, input=data, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


@pytest.fixture(scope="module")
def sm90(emulator, tmp_path_factory) -> Run:
    """Runs tests/emu/sm90.cu."""
    folder = tmp_path_factory.mktemp("sm90")
    return runner(link(folder / "program", [*emulator, *compile_objects(folder, [SOURCES / "sm90.cu"], *PLAIN)]))


@pytest.fixture(scope="module")
def checked(checked_emulator, tmp_path_factory) -> Run:
    """The same in a build with AddressSanitizer and UBSan."""
    folder = tmp_path_factory.mktemp("sm90_checked")
    objects = [*checked_emulator, *compile_objects(folder, [SOURCES / "sm90.cu"], *CHECKED)]
    return runner(link(folder / "program", objects, *CHECKED))


# Numbers


def bf16(x: np.ndarray) -> np.ndarray:
    """Bits; the values must be representable."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def rounded(x: np.ndarray) -> np.ndarray:
    """To bf16, ties to even, as float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def floats(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits, np.uint32) << 16).view(np.float32)


def toward_zero(x: np.ndarray) -> np.ndarray:
    """float64 to float32."""
    nearest = x.astype(np.float32)
    further = np.abs(nearest.astype(np.float64)) > np.abs(x)
    return np.where(further, np.nextafter(nearest, np.float32(0)), nearest)


def swizzled(address: int, span: int) -> int:
    """16-byte chunks change places within `span` bytes, by the address's bits from 7 on; 16: no swizzle."""
    return address ^ (((address >> 7) & (span // 16 - 1)) << 4)


SPANS = {0: 16, 1: 32, 2: 64, 3: 128}  # by enum class Swizzle


# Products


def accumulator(thread: int, i: int) -> tuple[int, int]:
    """Row and column of a thread's i-th sum."""
    warp, group, quad = thread // 32, thread % 32 // 4, thread % 4
    return 16 * warp + group + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * quad + i % 2


def to_threads(x: np.ndarray) -> np.ndarray:
    """[64][N] to [128][N / 2]."""
    return np.array([[x[accumulator(t, i)] for i in range(x.shape[1] // 2)] for t in range(128)], np.float32)


def offset(mn: int, k: int, transposed: bool, span: int, lbo: int, sbo: int) -> int:
    """Of an element of one instruction's operand, before the swizzle."""
    if not transposed and span == 16:
        return mn % 8 * 16 + mn // 8 * sbo + k // 8 * lbo + k % 8 * 2
    if not transposed:
        return mn % 8 * span + mn // 8 * sbo + k * 2
    if span == 16:
        return mn % 8 * 2 + mn // 8 * sbo + k % 8 * 16 + k // 8 * lbo
    per_span = span // 2
    return mn % per_span * 2 + mn // per_span * lbo + k % 8 * span + k // 8 * sbo


class Operand:
    """A matrix [extent][32] somewhere in shared memory, with gaps, as two instructions read it."""

    def __init__(self, extent: int, transposed: bool, swizzle: int, start: int, wide: bool):
        span = SPANS[swizzle]
        self.extent, self.transposed, self.span, self.start = extent, transposed, span, start
        self.swizzle = swizzle
        if span == 16:  # one of the strides is the short one
            short, count = (128, 4) if wide else (128, -(-extent // 8))
            long = short * count + 16 * 3
            steps_k, steps_mn = (short, long) if wide else (long, short)
            self.lbo, self.sbo, self.step = steps_k, steps_mn, 2 * steps_k
        elif not transposed:
            self.lbo, self.sbo = 16 * 5, 8 * span * (2 if wide else 1)  # LBO does not matter
            self.step = 32 if span > 32 else -(-extent // 8) * self.sbo
        else:
            spans = -(-extent * 2 // span)
            atom = 8 * span
            self.sbo, self.lbo = (atom * spans + atom, atom) if wide else (atom, atom * 4 + atom)
            self.step = 2 * self.sbo

    def arguments(self) -> list[int]:
        return [self.start, self.lbo, self.sbo, self.swizzle, self.step]

    def put(self, shared: np.ndarray, x: np.ndarray) -> None:
        taken = set()
        for mn, k in itertools.product(range(self.extent), range(x.shape[1])):
            linear = offset(mn, k % 16, self.transposed, self.span, self.lbo, self.sbo) + k // 16 * self.step
            place = swizzled(self.start + linear, self.span)
            assert place not in taken
            taken.add(place)
            shared[place // 2] = bf16(x[mn, k])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("swizzle", range(4))
@pytest.mark.parametrize("transposed", [False, True])
def test_wgmma_reads_every_layout_as_the_manual_says(sm90, transposed, swizzle, wide):
    random = np.random.default_rng(swizzle)
    columns = itertools.cycle([64, 8, 192, 40])
    for b_transposed, b_swizzle in itertools.product([False, True], range(4)):
        N = next(columns)
        a, b = random.integers(-8, 9, (64, 32)), random.integers(-8, 9, (N, 32))
        old = random.integers(-100, 101, (64, N)).astype(np.float32)
        a_operand = Operand(64, transposed, swizzle, 1024, wide)
        b_operand = Operand(N, b_transposed, b_swizzle, 64 * 1024 - 2048, not wide)
        shared = np.full(160 * 1024 // 2, 0xFFFF, np.uint16)
        a_operand.put(shared, a)
        b_operand.put(shared, b)
        arguments = [N, int(transposed), int(b_transposed), 2, *a_operand.arguments(), *b_operand.arguments()]
        result = sm90("wgmma", *arguments, data=shared.tobytes() + to_threads(old).tobytes())
        assert not result.startswith(b"error"), result.decode()
        expected = to_threads((old + a @ b.T).astype(np.float32))
        np.testing.assert_array_equal(np.frombuffer(result, np.float32).reshape(128, -1), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("N", [8, 64, 256])
def test_wgmma_takes_its_first_operand_from_registers(sm90, transposed, N):
    random = np.random.default_rng(N)
    a, b = random.integers(-8, 9, (64, 16)), random.integers(-8, 9, (N, 16))
    old = random.integers(-100, 101, (64, N)).astype(np.float32)
    registers = np.zeros((128, 8), np.uint16)
    for t, j in itertools.product(range(128), range(8)):  # two elements per register, the first one in the low half
        row = 16 * (t // 32) + t % 32 // 4 + 8 * (j // 2 % 2)
        registers[t, j] = bf16(a[row, 2 * (t % 4) + j % 2 + 8 * (j // 4)])
    operand = Operand(N, transposed, 3, 1024, False)
    shared = np.full(SHARED, 0xFFFF, np.uint16)
    operand.put(shared, b)
    data = shared.tobytes() + to_threads(old).tobytes() + registers.tobytes()
    result = sm90("registers", N, int(transposed), *operand.arguments(), data=data)
    assert not result.startswith(b"error"), result.decode()
    np.testing.assert_array_equal(
        np.frombuffer(result, np.float32).reshape(128, -1), to_threads((old + a @ b.T).astype(np.float32))
    )


@pytest.mark.parametrize("swizzle", range(4))
@pytest.mark.parametrize("N", [8, 64, 192])
def test_wgmma_in_tf32_multiplies_eight_terms(sm90, N, swizzle):
    random = np.random.default_rng(N)
    a, b = random.integers(-8, 9, (64, 8)), random.integers(-8, 9, (N, 8))
    old = random.integers(-100, 101, (64, N)).astype(np.float32)
    registers = np.zeros((128, 4), np.float32)
    for t, j in itertools.product(range(128), range(4)):
        registers[t, j] = a[16 * (t // 32) + t % 32 // 4 + 8 * (j % 2), t % 4 + 4 * (j // 2)]
    operand = Operand(N, False, swizzle, 1024, False)
    shared = np.full(SHARED // 4, np.nan, np.float32)
    for n, k in itertools.product(range(N), range(8)):  # where the two bf16 terms 2 k and 2 k + 1 would lie
        place = operand.start + offset(n, 2 * k, False, operand.span, operand.lbo, operand.sbo)
        shared[swizzled(place, operand.span) // 4] = b[n, k]
    data = shared.tobytes() + to_threads(old).tobytes() + registers.tobytes()
    result = sm90("tf32", N, *operand.arguments(), data=data)
    assert not result.startswith(b"error"), result.decode()
    np.testing.assert_array_equal(
        np.frombuffer(result, np.float32).reshape(128, -1), to_threads((old + a @ b.T).astype(np.float32))
    )


@pytest.mark.parametrize("scale", [1.0, 2.0**-70, 2.0**60])  # the middle, numbers without leading one, infinity
def test_a_product_is_one_sum_cut_toward_zero(sm90, checked, scale):
    random = np.random.default_rng(3)
    a, b = (rounded(random.standard_normal((64, 32)) * scale) for _ in range(2))
    old = (random.standard_normal((64, 64)) * scale**2).astype(np.float32)
    if scale > 1:
        a, old = rounded(a * np.float32(2.0**6)), np.float32(2.0**127) * np.sign(old)
    operands = Operand(64, False, 3, 1024, False), Operand(64, False, 3, 16384, False)
    shared = np.full(SHARED // 2, 0xFFFF, np.uint16)
    operands[0].put(shared, a)
    operands[1].put(shared, b)
    arguments = [64, 0, 0, 2, *operands[0].arguments(), *operands[1].arguments()]
    data = shared.tobytes() + to_threads(old).tobytes()
    expected = old
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(2):
            total = expected.astype(np.float64)
            for k in range(16 * step, 16 * step + 16):
                total = total + np.outer(a[:, k].astype(np.float64), b[:, k].astype(np.float64))
            expected = np.where(np.abs(total) >= 2.0**128, np.inf * np.sign(total), toward_zero(total))
            expected = expected.astype(np.float32)
    result = sm90("wgmma", *arguments, data=data)
    np.testing.assert_array_equal(np.frombuffer(result, np.float32).reshape(128, -1), to_threads(expected))
    assert checked("wgmma", *arguments, data=data) == result


# Tensor copies

#   element bytes, sizes, gaps behind each dimension's end (in units of its stride), box, swizzle
TENSORS = {
    "a matrix": (2, (100, 30, 1, 1, 1), (4, 0, 0, 0), (64, 16, 1, 1, 1), 3),
    "narrow": (2, (40, 9, 3, 1, 1), (0, 1, 0, 0), (16, 8, 2, 1, 1), 1),
    "images": (2, (64, 7, 6, 3, 2), (0, 0, 2, 0), (32, 3, 4, 3, 2), 2),
    "floats": (4, (36, 5, 4, 3, 2), (0, 1, 0, 1), (32, 4, 3, 2, 2), 3),
    "without swizzle": (2, (200, 10, 3, 1, 1), (0, 0, 0, 0), (104, 5, 2, 1, 1), 0),
    "floats without swizzle": (4, (12, 10, 3, 1, 1), (0, 0, 0, 0), (20, 5, 2, 1, 1), 0),
}
EDGES = {
    "inside": lambda size, box: 0,
    "in front": lambda size, box: -1,
    "behind": lambda size, box: size - box + 1,
    "far in front": lambda size, box: -box,
    "far behind": lambda size, box: size,
    "very far": lambda size, box: 2**31 - 1,
}


def tensor(name: str) -> tuple[np.ndarray, list[object], list[int], int]:
    """Its bytes, the arguments that describe it, its strides, and the bytes of an element."""
    element, sizes, gaps, box, swizzle = TENSORS[name]
    strides = [-(-(sizes[0] * element + gaps[0] * 4) // 16) * 16]
    for d in (1, 2, 3):
        strides.append(strides[-1] * (sizes[d] + gaps[d]))
    total = strides[3] * sizes[4]
    data = np.random.default_rng(5).integers(0, 255, total).astype(np.uint8)
    return data, [int(element == 4), *sizes, *strides, *box, swizzle], strides, element


def box_places(name: str, coordinates: list[int], start: int) -> list[tuple[int, int | None]]:
    """For every element of the box: where it lies in shared memory, and in the tensor (None: outside)."""
    _, _, strides, element = tensor(name)
    _, sizes, _, box, swizzle = TENSORS[name]
    places = []
    for n, index in enumerate(itertools.product(*map(range, reversed(box)))):  # dimension 0 is the fastest
        at = [c + i for c, i in zip(coordinates, reversed(index), strict=True)]
        inside = all(0 <= x < size for x, size in zip(at, sizes, strict=True))
        place = sum(x * stride for x, stride in zip(at, [element, *strides], strict=True))
        places.append((swizzled(start + n * element, SPANS[swizzle]), place if inside else None))
    return places


@pytest.mark.parametrize("name", TENSORS)
def test_loads_of_boxes(sm90, name):
    data, arguments, _, element = tensor(name)
    _, sizes, _, box, _ = TENSORS[name]
    edges = [["inside"] * d + [edge] + ["inside"] * (4 - d) for d in range(5) for edge in EDGES]
    for kinds in [*edges, ["in front"] * 5, ["behind"] * 5]:
        coordinates = [EDGES[kind](size, extent) for kind, size, extent in zip(kinds, sizes, box, strict=True)]
        result = sm90("load", *arguments, *coordinates, 2048, data.size, data=data.tobytes())
        assert not result.startswith(b"error"), result.decode()
        shared = np.frombuffer(result, np.uint8)
        expected = np.full(SHARED, 0xFF, np.uint8)
        for place, source in box_places(name, coordinates, 2048):
            expected[place : place + element] = 0 if source is None else data[source : source + element]
        np.testing.assert_array_equal(shared, expected, err_msg=str(kinds))


@pytest.mark.parametrize("name", TENSORS)
def test_stores_of_boxes(sm90, name):
    data, arguments, _, element = tensor(name)
    _, sizes, _, box, _ = TENSORS[name]
    source = np.random.default_rng(6).integers(0, 255, SHARED).astype(np.uint8)
    edges = ("inside", "behind", "far behind", "very far")
    for kinds in [["inside"] * d + [edge] + ["inside"] * (4 - d) for d in range(5) for edge in edges]:
        coordinates = [max(EDGES[kind](size, extent), 0) for kind, size, extent in zip(kinds, sizes, box, strict=True)]
        result = sm90("store", *arguments, *coordinates, 3072, data.size, data=data.tobytes() + source.tobytes())
        assert not result.startswith(b"error"), result.decode()
        expected = data.copy()
        for place, target in box_places(name, coordinates, 3072):
            if target is not None:
                expected[target : target + element] = source[place : place + element]
        np.testing.assert_array_equal(np.frombuffer(result, np.uint8), expected, err_msg=str(kinds))


MAP = {"element": 0, "sizes": (64, 8, 1, 1, 1), "strides": (128, 1024, 1024, 1024), "box": (64, 8, 1, 1, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (0, 8, 1, 1, 1)}, r"x: size 0 of the tensor must be 1 to 2\^32, got 0"),
        ({"sizes": (64, 2**32 + 1, 1, 1, 1)}, r"size 1 of the tensor must be 1 to 2\^32, got 4294967297"),
        ({"box": (64, 257, 1, 1, 1)}, r"size 1 of the box must be 1 to 256, got 257; copy several boxes"),
        ({"box": (64, 8, 0, 1, 1)}, r"size 2 of the box must be 1 to 256, got 0"),
        ({"strides": (120, 1024, 1024, 1024)}, r"stride of dimension 1 must be a multiple of 16 bytes .* got 120"),
        ({"strides": (128, 1024, 1024, 0)}, r"stride of dimension 4 must be a multiple of 16 bytes .* got 0"),
        ({"strides": (128, 2**40, 1024, 1024)}, r"stride of dimension 2 .* below 2\^40, got 1099511627776"),
        ({"box": (60, 8, 1, 1, 1), "swizzle": 0}, r"rows of a box must be multiples of 16 bytes, got 60 elements"),
        ({"box": (128, 8, 1, 1, 1)}, r"as long as the swizzle's span, got 128 elements = 256 bytes, span 128"),
        ({"box": (32, 8, 1, 1, 1)}, r"as long as the swizzle's span, got 32 elements = 64 bytes, span 128"),
    ],
)
def test_limits_of_maps(sm90, change, message):
    x = {**MAP, "swizzle": 3, **change}
    arguments = [x["element"], *x["sizes"], *x["strides"], *x["box"], x["swizzle"], 0, 0, 0, 0, 0, 0, 1024]
    assert re.search(message, sm90("load", *arguments, data=bytes(1024)).decode())
    assert not sm90("load", *[0, *MAP["sizes"], *MAP["strides"], *MAP["box"], 3], *[0] * 6, 1024,
                    data=bytes(1024)).startswith(b"error")  # fmt: skip


# Lists of operations: "who operation numbers", see tests/emu/sm90.cu. Boxes have 1024 bytes.

READY = """
0 init 0 1
0 init 1 2
0 fence_init
* sync
"""
# Everything is 3 (0x4040): 16 * 9 is added to 1.
OPERANDS = """
0 fill 0 2048 64
0 fill 2048 4096 64
* proxy
* sync
"""


def script(
    run: Run, text: str, threads: int = 128, seed: int = 1, mode: str = "script", blocks: int = 1, cluster: int = 1
) -> str:
    lines = "\n".join(line for line in text.strip().splitlines() if line)
    return run(mode, threads, SHARED, blocks, cluster, data=lines.encode(), seed=seed).decode()


def values(report: str) -> list[str]:
    assert not report.startswith("error"), report
    return [line.split()[2] for line in report.splitlines()]


@pytest.mark.parametrize(
    ("operations", "state"),
    [
        ("", "phase 0: 2 of 2 arrivals and 0 bytes missing"),
        ("0 arrive 1", "phase 0: 1 of 2 arrivals and 0 bytes missing"),
        ("0 expect 1 100", "phase 0: 1 of 2 arrivals and 100 bytes missing"),
        ("0 expect 1 100\n0 expect 1 24", "phase 0: 0 of 2 arrivals and 124 bytes missing"),
        ("0 load 1024 1", "phase 0: 2 of 2 arrivals and -1024 bytes missing"),
        ("0 expect 1 2048\n0 load 1024 1\n1 arrive 1", "phase 0: 0 of 2 arrivals and 1024 bytes missing"),
        ("0 arrive 1\n0 arrive 1\n0 wait 1 0\n0 expect 1 7", "phase 1: 1 of 2 arrivals and 7 bytes missing"),
    ],
)
def test_barriers_count_arrivals_and_bytes(sm90, operations, state):
    parity = 1 if "phase 1" in state else 0
    report = script(sm90, f"{READY}\n{operations}\n* sync\n5 wait 1 {parity}")
    assert "deadlock, no thread can go on" in report
    assert re.search(rf"threads 5 wait for barrier_wait in script_kernel .* \(barrier at byte \d+ .*{state}\)", report)


def test_phases_follow_each_other(sm90, checked):
    text = READY + "* wait 0 1\n"  # a fresh barrier: the phase before is complete
    for parity in (0, 1, 0):
        text += f"3 expect 0 2048\n4 load 1024 0\n4 load 2048 0\n* wait 0 {parity}\n* sync\n"
    for run in (sm90, checked):
        for seed in range(4):
            assert values(script(run, text, seed=seed)) == ["passed"] * 4 * 128


def test_bytes_may_come_before_they_are_expected(sm90):
    text = READY + "0 load 1024 0\n1 init 2 1\n1 fence_init\n1 load 2048 2\n1 expect 2 1024\n1 wait 2 0\n"
    assert values(script(sm90, text + "0 expect 0 1024\n0 wait 0 0\n0 see 1026\n")) == ["passed", "passed", "1"]


def test_a_load_lands_as_late_as_it_may(sm90, checked):
    text = READY + "0 fill 1024 1024 0\n0 expect 0 1024\n0 load 1024 0\n0 see 1026\n0 wait 0 0\n0 see 1026\n"
    for run in (sm90, checked):
        assert values(script(run, text)) == ["nan", "passed", "1"]


def test_loads_land_in_an_order_that_the_seed_chooses(sm90):
    text = READY + "0 expect 0 1024\n0 load 1024 0\n0 init 2 1\n0 fence_init\n0 expect 2 1024\n0 load 2048 2\n"
    text += "0 wait 0 0\n0 see 1026\n0 see 2050\n0 wait 2 0\n0 see 2050\n"
    seen = {tuple(values(script(sm90, text, seed=seed))) for seed in range(12)}
    assert seen == {("passed", "1", "nan", "passed", "1"), ("passed", "1", "1", "passed", "1")}


def test_a_store_is_done_when_it_is_waited_for(sm90, checked):
    text = "0 fill 1024 1024 65\n0 proxy\n0 store 1024\n0 commit\n0 see_tensor 3\n"
    for wait in ("wait_read", "wait_written"):
        for run in (sm90, checked):
            assert values(script(run, f"{text}0 {wait} 1\n0 see_tensor 3\n0 {wait} 0\n0 see_tensor 3\n")) == [
                "3",
                "3",
                "12.0625",  # 0x4141
            ]


def test_products_happen_when_they_are_waited_for(sm90, checked):
    fence = OPERANDS + "* wfence\n"
    one, other = "* mma 0 2048\n* wcommit\n", "* mma_other 0 2048\n* wcommit\n"
    for run in (sm90, checked):
        assert values(script(run, f"{fence}{one}7 see_sum 5\n* wwait 0\n7 see_sum 5\n")) == ["nan", "145"]
        # Sums come back when nothing is to be added to them any more.
        report = script(run, f"{fence}{one}{one}* wwait 1\n7 see_sum 5\n* wwait 0\n7 see_sum 5\n")
        assert values(report) == ["nan", "289"]
        # A group that may be left is left.
        report = script(run, f"{fence}{one}{other}* wwait 1\n9 see_sum 0\n9 see_other 0\n* wwait 0\n9 see_other 0\n")
        assert values(report) == ["145", "nan", "145"]
        # Operands are read at the wait: what overwrites them before shows, here in the first row.
        report = script(run, f"{fence}{one}0 fill 0 4 255\n* sync\n* wwait 0\n0 see_sum 0\n64 see_sum 0\n")
        assert values(report) == ["nan", "145"]


def test_named_barriers_and_elections(sm90, checked):
    text = "0-63 named 3 64\n64-127 named 4 64\n32-95 named 5 64\n* elect\n"
    for run in (sm90, checked):
        assert values(script(run, text)) == [str(int(t % 32 == 0)) for t in range(128)]


def test_written_by_threads_read_by_copies(sm90):
    good = "5 fill 1024 1024 65\n5 noted 1024 1024\n5 proxy\n"
    end = "0 store 1024\n0 commit\n0 wait_read 0\n0 see_tensor 0\n"
    for meeting in ("* sync", "0-31 named 2 32", "0-31 syncwarp"):
        assert values(script(sm90, f"{good}{meeting}\n{end}")) == ["12.0625"]


FAULTS = {
    # barriers
    "0 arrive 0": r"thread \(0,0,0\): barrier_arrive in script_kernel \(sm90.cu:\d+\): .* there is no barrier",
    "0 wait 0 0": r"barrier_wait in .* there is no barrier; barrier_init\(\) comes first",
    "0 init 0 0": r"barrier_init in .* arrivals must be 1 to 1048575, got 0",
    "0 init 0 1048576": r"barrier_init in .* arrivals must be 1 to 1048575, got 1048576",
    "0 init_at 4 1": r"barrier_init in .* a barrier lies at a multiple of 8 bytes, got 4",
    "0 init_outside 0 1": r"barrier_init in .* needs an address in the 32768 bytes of shared memory",
    READY + "9 init 0 1": r"thread \(9,0,0\): barrier_init in .* thread 0 has initialised this barrier",
    "0 init 0 1\n* sync\n1 wait 0 1": r"barrier_wait in .* thread 0 has initialised .* not called fence_barrier_init",
    "0 init 0 1\n0 fence_init\n0 syncwarp\n1-31 syncwarp\n1 wait 0 1": r"but the block has not met since",
    "0 init 0 1\n0 load 1024 0": r"tma_load in .* this thread has initialised .* has not called fence_barrier_init",
    READY + "0 arrive 0\n0 arrive 0": r"barrier_arrive in .* phase 1 begins before any thread has waited for phase 0",
    READY + "0 expect 0 5\n0 arrive 0": r"more than the 1 arrivals .* 0 of 1 arrivals and 5 bytes missing",
    READY + "0 expect 0 1048576": r"barrier_expect in .* 0 to 1048575 bytes, got 1048576",
    READY + "0 expect 1 1048575\n0 expect 1 1": r"0 to 1048575 bytes, got 1",
    READY + "0 expect 0 -1": r"0 to 1048575 bytes, got -1",
    READY + "0 wait 0 2": r"parity must be 0 or 1, got 2",
    READY + "0 smash 0\n0 arrive 0": r"there is no barrier; .* nothing else may write there",
    READY + "0 arrive 1": None,  # an incomplete phase is no mistake
    READY + "0 expect 1 16": r"ended with other bytes expected than copied .* 16 bytes missing",
    READY + "7 wait 0 0": r"deadlock.*threads 7 wait for barrier_wait .* 1 of 1 arrivals and 0 bytes missing",
    READY
    + "0 arrive 0\n0 wait 0 0\n0 arrive 0\n0 wait 0 1\n* sync\n"
    + READY.replace("init 0", "init 3").replace("init 1", "init 4")
    + "1 wait 3 0\n": r"deadlock.*threads 1 wait for barrier_wait .* phase 0: 1 of 1 arrivals",
    # loads
    READY + "0 load 1000 0": r"tma_load in .* the box must lie at a multiple of 1024 bytes of shared memory, got 1000",
    READY + "0 load 1152 0": r"multiple of 1024 bytes of shared memory, got 1152",
    READY + "0 load 32768 0": r"tma_load in .* needs an address in the 32768 bytes of shared memory",
    READY + "0 load 31744 0": r"the box of 1024 bytes covers a barrier",
    READY + "0 load 1024 0\n0 load 1024 0": r"thread \(0,0,0\) \(tma_load in .*\) to the same bytes is still under way",
    READY + "0 expect 0 1024\n0 load 1024 0\n0 write 1030 1\n0 wait 0 0": r"byte 1030 of shared memory was written "
    r"while the copy to it by thread \(0,0,0\) \(tma_load in .*\) was under way",
    READY + "0 load 1024 0": r"the kernel ended while the copy by thread \(0,0,0\) \(tma_load in .*\) was under way",
    READY + "0 load 1024 3": r"tma_load in .* there is no barrier",
    # stores
    "0 bad_map": r"tma_store in .* this map was not made by tensor_map",
    "0 store 1024 -1": r"tma_store in .* coordinates must not be negative, got 0, -1, 0, 0, 0",
    "0 store 1000": r"tma_store in .* multiple of 1024",
    "0 store 1024": r"thread \(0,0,0\): the thread ended without bulk_commit\(\) for tma_store",
    "0 store 1024\n0 commit": r"the thread ended without bulk_wait or bulk_wait_read for tma_store",
    "0 store 1024\n0 commit\n0 commit\n0 wait_read 1": None,
    "0 store 1024\n0 commit\n0 wait_read 1": r"the thread ended without bulk_wait",
    "0 store 1024\n0 commit\n0 write 1040 3\n0 wait_read 0": r"the source of tma_store .* at byte 1024 .* was changed "
    r"before its store had read it",
    "5 noted 1024 16\n* sync\n0 store 1024": r"thread \(0,0,0\): tma_store .* reads byte 1024 .* which thread 5 has "
    r"written without fence_async_proxy",
    "5 noted 1536 2\n* sync\n5 proxy\n0 syncwarp\n1-31 syncwarp\n0 proxy\n32 store 1024": r"byte 1536 .* thread 5",
    # products
    OPERANDS + "* mma 0 2048": r"wgmma in .* without wgmma_fence\(\) since the thread began or waited",
    OPERANDS + "* wfence\n* mma 0 2048\n* wcommit\n* wwait 0\n* mma 0 2048": r"without wgmma_fence\(\)",
    OPERANDS + "* wfence\n* mma 0 2048": r"the thread ended without wgmma_wait for wgmma",
    OPERANDS + "* wfence\n* mma 0 2048\n* wwait 0": r"the thread ended without wgmma_wait for wgmma",  # no commit
    OPERANDS + "* wfence\n* mma 0 2048\n* wcommit\n3 touch 4\n* wwait 0": r"thread 3 of the warpgroup has touched sum "
    r"4 of 32 before wgmma_wait",
    OPERANDS
    + "* wfence\n* mma 0 2048\n* wcommit\n* hold\n* wwait 0": r"hold in .* products of these sums are under way",
    OPERANDS + "* wfence\n0-63 mma 0 2048\n64-127 mma 2048 0\n* wcommit\n* wwait 0": r"must call the same: wgmma<64>",
    OPERANDS + "* wfence\n0-99 mma 0 2048\n* wcommit\n* wwait 0": r"the threads of a warpgroup must call the same",
    OPERANDS + "* wfence\n* mma 0 2048\n0-99 wcommit\n* wwait 0": r"thread 1\d\d of it came to wgmma_wait .* without "
    r"wgmma_commit",
    OPERANDS + "* wfence\n* mma 0 2048\n* wcommit\n0-63 wwait 0\n64-127 wwait 1": r"must call the same: wgmma_wait<",
    OPERANDS + "* wfence\n* mma 0 2048\n* wcommit\n0-63 wwait 0": r"the thread ended without wgmma_wait|deadlock",
    OPERANDS + "* wfence\n* mma 0 2048\n* mma_part 0 2048": r"sums of 32 columns share registers with sums of 64",
    OPERANDS + "* wfence\n0-63 mma 0 2048\n64-127 mma_other 0 2048\n* wcommit\n* wwait 0": r"must call the same",
    OPERANDS
    + "* wfence\n* mma_registers 0 2048\n* wcommit\n77 touch_a 1\n* wwait 0": r"thread 77 of the warpgroup has "
    r"changed the registers a of wgmma",
    OPERANDS + "5 noted 2050 2\n* sync\n* wfence\n* mma 0 2048": r"wgmma in .* reads byte 2048 .* which thread 5",
    OPERANDS + "5 noted 4096 2\n* sync\n* wfence\n* mma 0 2048\n* wcommit\n* wwait 0": None,  # not an operand
    # tf32: bytes of 64 make numbers whose low bits are set
    "0 fill 0 8192 0\n* proxy\n* sync\n* wfence\n* mma_tf32 0 2048\n* wcommit\n* wwait 0": None,
    "0 fill 0 8192 0\n0 fill 4000 4 64\n* proxy\n* sync\n* wfence\n* mma_tf32 0 2048\n* wcommit\n* wwait 0": r"wgmma"
    r"_tf32 in .* byte 4000 of shared memory begins a value of b that was not rounded",
    "99 touch_a 2\n* wfence\n* mma_tf32 0 2048\n* wcommit\n* wwait 0": r"thread \(99,0,0\).*wgmma_tf32 in .*"
    r"register 2 of a was not rounded with round_tf32",
    "* wfence\n0-63 mma_tf32 0 2048\n64-127 mma_registers 0 2048\n* wcommit\n* wwait 0": r"must call the same: "
    r"wgmma(_tf32)?<64> with a=registers",
    # descriptors
    "* wfence\n* mma 31008 0": r"operand a: it leaves the 32768 bytes of shared memory \(start 31008, LBO 128, SBO 256",
    "* wfence\n* mma 0 31008": r"operand b: it leaves",
    **{f"* wfence\n* mma_bits 0 {bit}": r"operand a: the descriptor has reserved bits" for bit in (14, 31, 46, 52, 61)},
    **{f"* wfence\n* mma_bits 0 {bit}": r"operand a: the base offset must be 0" for bit in (49, 51)},
    "* wfence\n* mma_128 128 1024": r"operand a: 8 rows of a swizzled tile must begin at a multiple of 1024 bytes",
    "* wfence\n* mma_128 16 1024": r"operand a: it must begin at a multiple of 32 bytes within the span",
    "* wfence\n* mma_128 0 512": r"operand a: SBO must be a multiple of 1024",
    "* wfence\n* mma_128_t 64 1024 1024": r"operand a: it begins within a span and must end there",
    "* wfence\n* mma_128_t 0 1024 512": r"operand a: SBO must be a multiple of 1024",
    "* wfence\n* mma_b_128_t 0 512 1024": r"without wgmma_wait",  # 64 columns are one span: LBO does not matter
    "0 operand 8 16 16": r"operand in .* start must be a multiple of 16 bytes below 2\^18, got \d+",
    "0 operand 0 24 16": r"LBO must be a multiple of 16 bytes below 2\^18, got 24",
    "0 operand 0 16 262144": r"SBO must be a multiple of 16 bytes below 2\^18, got 262144",
    "0 advance 0 24": r"advance in .* by 24 bytes",
    "0 advance 0 262144": r"advance in .* by 262144 bytes",
    "0 advance 0 -8192": r"advance in .* by -8192 bytes",
    # registers and named barriers
    "* raise 160": r"raise_registers in .* to 160, but a thread has 256",
    "* lower 24\n* lower 248": r"lower_registers in .* to 248, but a thread has 24",
    "0-31 named 0 32": r"id must be 1 to 15, .* got id=0 threads=32",
    "0-31 named 16 32": r"got id=16 threads=32",
    "0-31 named 1 48": r"a multiple of 32 .* got id=1 threads=48",
    "0-31 named 1 160": r"within the 128 of the block, got id=1 threads=160",
    "0-31 named 1 64": r"deadlock.*threads 0-31 wait for named_barrier",
    "0-31 named 1 64\n32-63 named 1 96": r"named_barrier 1 .* is for (64|96) threads, but others wait for (96|64)",
    "0-15 named 1 32\n32-47 named 1 32": r"named_barrier 1 .* include 16 of a warp; whole warps must call it",
    "0-15 elect": r"deadlock.*threads 0-15 wait for elect_one",
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_faults_are_reported(sm90, text):
    for seed in (1, 2, 3):
        report = script(sm90, text, seed=seed)
        if FAULTS[text] is None:
            assert not report.startswith("error"), f"{text}\n{report}"
        else:
            assert report.startswith("error: "), f"{text}\n{report}"
            assert re.search(FAULTS[text], report, re.DOTALL), f"{text}\n{report}"


def test_faults_leave_nothing_behind(checked):
    for text in list(FAULTS)[::6]:
        script(checked, text)


def test_a_machine_of_sm_80_has_none_of_this(sm90):
    assert "clusters need sm_90, but the machine is sm_80" in script(sm90, "", mode="script_80", blocks=2, cluster=2)
    for operation in ("init 0 1", "store 0", "wfence", "elect", "proxy", "rank", "cluster_sync"):
        report = script(sm90, f"0 {operation}", mode="script_80")
        assert re.search(r"needs sm_90, but the machine is sm_80; choose kernels by architecture\(\)", report)
    assert not script(sm90, "* named 1 128", mode="script_80").startswith("error")


# Clusters: "1:0" is thread 0 of block 1, a name without a colon means both blocks.

PAIR = """
0 init 0 1
0 init 1 2
0 fence_init
* cluster_sync
"""
END = "* cluster_sync"
SEEDS = range(1, 9)  # blocks take turns, or one of them goes ahead


def pair(run: Run, text: str, seed: int = 1, threads: int = 128) -> str:
    return script(run, text, threads, seed, blocks=2, cluster=2)


def test_blocks_of_a_cluster_have_ranks_in_neighbouring_blocks(sm90, checked):
    for run in (sm90, checked):
        for seed in SEEDS:
            assert values(script(run, "0 rank", seed=seed, blocks=8, cluster=4)) == ["0", "1", "2", "3"] * 2
            assert values(script(run, "0 rank", seed=seed, blocks=3)) == ["0"] * 3


def test_a_load_into_several_blocks_lands_in_each_at_a_time_of_its_own(sm90, checked):
    text = PAIR + "0 expect 0 1024\n0:0 multicast 1024 0 3\n0 see 1026\n0 wait 0 0\n0 see 1026\n"
    for run in (sm90, checked):
        for seed in SEEDS:  # block 1 sees nothing of it yet, or poison
            seen = values(pair(run, text + END, seed))
            assert [seen[0], *seen[2:]] == ["nan", "passed", "passed", "1", "1"]
    # Every block waits for its own bytes: block 0 may be served before block 1, and the other way round.
    text = PAIR + "0 expect 0 1024\n0:0 multicast 1024 0 3\n0 wait 0 0\n0:0 arrive_at 1 1\n0:0 arrive_at 1 1\n"
    assert values(pair(sm90, text + "1:0 wait 1 0\n" + END)) == ["passed"] * 3


def test_only_the_blocks_of_the_mask_are_loaded_into(sm90):
    text = PAIR + "1:0 expect 0 1024\n0:0 multicast 1024 0 2\n1:0 wait 0 0\n* cluster_sync\n0 see 1026\n"
    for seed in SEEDS:
        assert values(pair(sm90, text, seed)) == ["passed", "nan", "1"]


def test_arrivals_at_another_block_count_there(sm90, checked):
    text = PAIR + "0 arrive_at 1 0\n0 arrive_at 1 1\n0 wait 1 0\n" + END
    for run in (sm90, checked):
        for seed in SEEDS:
            assert values(pair(run, text, seed)) == ["passed"] * 2


def test_a_cluster_meets_without_threads_that_have_ended(sm90, checked):
    for run in (sm90, checked):
        for seed in SEEDS:
            assert values(pair(run, "0-31 end\n* cluster_sync\n32 rank", seed)) == ["0", "1"]
            assert values(pair(run, "1:* end\n* cluster_sync\n0 rank", seed)) == ["0"]


def test_a_block_reads_what_another_held_when_they_met(sm90, checked):
    text = "0:0 float 1024 7\n1:0 float 1024 8\n* cluster_sync\n5 peek 1024 0\n5 peek 1024 1\n* cluster_sync\n"
    for run in (sm90, checked):
        for seed in SEEDS:
            assert values(pair(run, text + "0 float 1024 9", seed)) == ["7", "7", "8", "8"]


STILL_READ = OPERANDS.replace("* sync", "0 init 0 1\n0 fence_init\n* cluster_sync")
CLUSTER_FAULTS = {
    # before the blocks have met
    "0 init 0 1\n0 fence_init\n* sync\n0:0 multicast 1024 0 3\n"
    + END: r"tma_load_multicast in .* (thread 0 of block 1 of the "
    r"cluster has initialised this barrier in .* but the cluster has not met since|of block 1 .* there is no barrier)",
    "0 init 0 1\n0 fence_init\n* sync\n0:0 arrive_at 0 1\n"
    + END: r"barrier_arrive_at in .* (thread 0 of block 1 of the cluster "
    r"has initialised .* but the cluster has not met since|of block 1 of the cluster there is no barrier)",
    "0 init 0 1\n* cluster_sync\n0 fence_init\n0:0 arrive_at 0 1\n"
    + END: r"the cluster has not met since; cluster_sync\(\) "
    r"belongs behind fence_barrier_init",
    "0:0 init 0 1\n0:0 fence_init\n* cluster_sync\n0:0 multicast 1024 0 3\n"
    + END: r"of block 1 of the cluster there is no",
    # whom they reach
    PAIR + "0:0 multicast 1024 0 0\n" + END: r"tma_load_multicast in .* to no block: its mask is 0",
    PAIR + "0:0 multicast 1024 0 7\n" + END: r"tma_load_multicast in .* a cluster of 2 has no block 2",
    PAIR + "0:0 arrive_at 1 2": r"barrier_arrive_at in .* a cluster of 2 has no block 2",
    PAIR + "0:0 arrive_at 1 -1": r"a cluster of 2 has no block -1",
    PAIR + "0:0 peek 1024 2": r"load4_cluster in .* a cluster of 2 has no block 2",
    # arrivals and bytes
    PAIR + 3 * "0:0 arrive_at 1 1\n" + END: None,  # a thread of block 1 may still wait for the first phase
    PAIR + 4 * "0:0 arrive_at 1 1\n" + END: r"barrier_arrive_at in .* by thread \(0,0,0\) of block 0 of the cluster: "
    r"phase 1 ends before any thread has waited for phase 0 to complete",
    PAIR + 2 * "0:0 arrive_at 1 1\n" + "* cluster_sync\n1:0 arrive 1\n" + END: r"phase 1 begins before any thread has",
    PAIR + "0:0 arrive_at 1 1\n1:0 wait 1 0\n" + END: r"deadlock.*threads 0 of block 1 of the cluster wait for "
    r"barrier_wait .*of block 1 of the cluster, phase 0: 1 of 2 arrivals",
    PAIR
    + "0:0 expect 0 1024\n0:0 multicast 1024 0 3\n0:0 wait 0 0\n"
    + END: r"of block 1 of the cluster, phase 0: 1 of "
    r"1 arrivals and -1024 bytes missing|ended while the copy by thread \(0,0,0\) of block 0 .* was under way",
    PAIR + "0 expect 0 1024\n0 multicast 1024 0 3\n0 wait 0 0\n" + END: r"tma_load_multicast in .* the copy by thread "
    r"\(0,0,0\) of block . of the cluster .* to the same bytes of block . of the cluster is still under way",
    PAIR
    + "0 expect 0 1024\n0:0 multicast 1024 0 3\n* cluster_sync\n1:0 write 1030 1\n0 wait 0 0\n"
    + END: r"byte 1030 of "
    r"shared memory of block 1 of the cluster was written while the copy to it by thread \(0,0,0\) of block 0 of the "
    r"cluster \(tma_load_multicast in .*\) was under way|^8 0 passed",  # where it landed before
    # a stage that another block still reads
    STILL_READ
    + "1:* wfence\n1:* mma 0 2048\n1:* wcommit\n* cluster_sync\n0:0 multicast 2048 0 3\n"
    + END
    + "\n1:* wwait 0": r"tma_load_multicast "
    r"in .* overwrites byte 2048 of shared memory of block 1 of the cluster, which wgmma in .* still reads",
    # ends
    PAIR + "1:* end\n0:0 multicast 1024 0 3\n0:0 expect 0 1024\n0:0 wait 0 0": r"block 1 of the cluster has ended; it "
    r"must wait for all that other blocks send it|the kernel ended while the copy by thread \(0,0,0\) of block 0",
    PAIR + "0:0 arrive_at 1 1": r"block 1 of the cluster has ended|the block ended while an arrival at its barrier, by "
    r"thread \(0,0,0\) of block 0 of the cluster \(barrier_arrive_at in .*\), was under way",
    PAIR + "0:0 peek 1024 1": r"block 1 of the cluster has ended|which block 0 has read .* went with the block before",
    # values of another block
    "1:0 float 1024 8\n* sync\n0:0 peek 1024 1\n"
    + END: r"load4_cluster in .* reads bytes 1024-1039 of shared memory of "
    r"block 1 of the cluster, which may have been written since the cluster last met",
    PAIR
    + "1:0 float 1024 8\n0:0 peek 1024 1\n"
    + END: r"may have been written since|block 1 .* were written before the "
    r"cluster met again",
    PAIR + "0:0 peek 1024 1\n1:0 float 1024 8\n" + END: r"may have been written since|bytes 1024-1039 .* of block 1 of "
    r"the cluster, which block 0 has read \(load4_cluster in .*\), were written before the cluster met again",
    PAIR + "0:0 peek 1028 1\n" + END: r"16-byte access in .* no multiple of 16",
    # the cluster's barrier
    "0:* cluster_sync\n1:0 init 0 1\n1:0 fence_init\n1:0 wait 0 0": r"deadlock.*threads 0-127 of block 0 of the "
    r"cluster wait for cluster_sync.*threads 0 of block 1 of the cluster wait for barrier_wait",
    "0:* cluster_sync\n1:* cluster_sync_elsewhere": r"threads of one cluster meet at different barriers: thread "
    r"\d+ of block . of the cluster came to script_kernel",
    "0-15 end\n* cluster_sync": r"cluster_sync in .* was reached by a part of a warp, the rest of which has ended",
}


@pytest.mark.parametrize("text", CLUSTER_FAULTS, ids=range(len(CLUSTER_FAULTS)))
def test_faults_of_clusters_are_reported(sm90, text):
    reports, wanted = [pair(sm90, text, seed) for seed in SEEDS], CLUSTER_FAULTS[text]
    for report in reports:
        assert re.search(wanted or "^(?!error)", report, re.DOTALL), f"{text}\n{report}"
    assert any(report.startswith("error: ") for report in reports) == (wanted is not None)


@pytest.mark.parametrize(("blocks", "cluster"), [(3, 2), (16, 16), (4, 0)])
def test_grids_that_clusters_do_not_divide_are_refused(sm90, blocks, cluster):
    wanted = (
        rf"a cluster has 1 to 8 blocks and divides the grid's first size, got {cluster} and a grid of \({blocks},1,1\)"
    )
    assert re.search(wanted, script(sm90, "", blocks=blocks, cluster=cluster))


# The pipeline of tests/emu/pipeline.cuh

M, N, K = 256, 384, 320
MISTAKES = [
    "no_full_wait", "no_empty_wait", "released_too_early", "no_fence", "read_too_early",
    "missing_bytes", "one_release", "no_store_wait", "source_changed",
]  # fmt: skip


@pytest.fixture(scope="module")
def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and their product, in bits of bf16."""
    random = np.random.default_rng(0)
    a, b = (rounded(random.standard_normal(shape)) for shape in ((M, K), (K, N)))
    total = np.zeros((M, N), np.float32)
    for first in range(0, K, 16):
        exact = total.astype(np.float64)
        for k in range(first, first + 16):
            exact = exact + np.outer(a[:, k].astype(np.float64), b[k].astype(np.float64))
        total = toward_zero(exact)
    return bf16(a), bf16(b), bf16(rounded(total))


def pipeline(run: Run, matrices: tuple[np.ndarray, ...], mistake: int, seed: int) -> bytes:
    return run("pipeline", mistake, M, N, K, data=matrices[0].tobytes() + matrices[1].tobytes(), seed=seed)


def test_the_pipeline_gives_the_same_bits_in_every_order(sm90, checked, matrices):
    for seed in range(5):
        result = pipeline(sm90, matrices, 0, seed)
        assert not result.startswith(b"error"), result.decode()
        np.testing.assert_array_equal(np.frombuffer(result, np.uint16).reshape(M, N), matrices[2])
    assert pipeline(checked, matrices, 0, 7) == result


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_in_the_pipeline_shows(sm90, matrices, mistake):
    for seed in (1, 2, 3):
        result = pipeline(sm90, matrices, 1 + MISTAKES.index(mistake), seed)
        if not result.startswith(b"error: "):
            assert np.isnan(floats(np.frombuffer(result, np.uint16))).any()


def test_what_is_refused_of_a_launch_that_is_only_checked_shows_together(sm90):
    """And belongs to that launch alone; nothing runs meanwhile."""
    y = "bf16 [64, 48, 57, 1, 2] at 0x1000, strides [128, 6144, 16, 350208] bytes, box [64, 16, 15, 1, 1]"
    assert sm90("only_check").decode().splitlines() == [
        "nothing refused, x = 0", f"x: refused; y: {y}, swizzle 128 bytes", "nothing refused, x = 0",
        "nothing refused, x = 1", "error: z: refused",
    ]  # fmt: skip


# The GPU's side


@pytest.mark.parametrize("architecture", ["90a", "80"])
def test_the_gpu_side_compiles_without_complaints(architecture, tmp_path):
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    flags = ["-std=c++17", f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xcompiler=-Wall,-Wextra"]
    command = [
        nvcc,
        *flags,
        "-Xptxas",
        "-v",
        f"-I{KERNELS}",
        "-cubin",
        "-o",
        tmp_path / "cubin",
        SOURCES / "pipeline.cu",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert report.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 33
    assert not re.search(r"warning|C75\d\d|serialized", report), report  # C75..: products were serialised
