"""The emulator's sm_80: tensor cores of a warp, matrix loads and stores, asynchronous copies, conversions, and misuse.

What is expected comes from the maps in the PTX manual, written down here a second time, and from NumPy.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from programs import CHECKED, PLAIN, SOURCES, Run, compile_objects, link, output, runner

THREADS = 64
SHARED = 4096  # bytes
POISON = 0xFFFFFFFF
SEEDS = range(5)


@pytest.fixture(scope="module")
def plain(emulator, tmp_path_factory) -> Run:
    """Runs a scenario of tests/emu/sm80.cu."""
    folder = tmp_path_factory.mktemp("sm80")
    return runner(link(folder / "program", [*emulator, *compile_objects(folder, [SOURCES / "sm80.cu"], *PLAIN)]))


@pytest.fixture(scope="module")
def checked(checked_emulator, tmp_path_factory) -> Run:
    """Runs a scenario in a build with AddressSanitizer and UBSan."""
    folder = tmp_path_factory.mktemp("sm80_checked")
    objects = [*checked_emulator, *compile_objects(folder, [SOURCES / "sm80.cu"], *CHECKED)]
    return runner(link(folder / "program", objects, *CHECKED))


def text(words) -> str:
    return " ".join(f"{word:x}" for word in np.asarray(words, np.uint32).ravel().tolist())


def words(done) -> np.ndarray:
    result = output(done)
    assert not result.startswith("error"), result
    return np.array([int(word, 16) for word in result.split()], np.uint32)


def bits(values) -> np.ndarray:
    return np.asarray(values, np.float32).view(np.uint32)


# Conversions


def patterns() -> np.ndarray:
    """Float32 of every kind: each exponent with mantissas at, and next to, what bf16 and tf32 round at; and any."""
    edges = np.array([1 << i for i in range(23)] + [0, 0x7FFFFF, 0x400000, 0x7F8000, 0x7FF000, 0x18000, 0x3000])
    mantissas = np.unique(np.concatenate([edges - 1, edges, edges + 1])) & 0x7FFFFF
    signs, exponents = np.arange(2) << 31, np.arange(256) << 23
    made = (signs[:, None, None] | exponents[:, None] | mantissas).ravel()
    made = np.concatenate([made, np.random.default_rng(1).integers(0, 1 << 32, 4000)])
    return np.resize(made, -(-len(made) // THREADS) * THREADS).astype(np.uint32)


def nearest(pattern: int, dropped: int, away: bool) -> int:
    """A finite float32 pattern without its lowest bits, as an exact decision between its two neighbours."""
    below, rest, half = pattern >> dropped, pattern & (1 << dropped) - 1, 1 << dropped - 1
    up = rest > half or (rest == half and (away or below % 2 == 1))
    return below + up << dropped


def expect_rounded(pattern: int, dropped: int, away: bool, nan: int) -> int:
    magnitude = pattern & 0x7FFFFFFF
    if magnitude > 0x7F800000:
        return nan
    if magnitude == 0x7F800000:
        return pattern
    return nearest(magnitude, dropped, away) | pattern & 0x80000000


def test_conversions(plain):
    x = patterns()
    to_bf16, back, tf32, packed = words(plain("convert", stdin=text(x))).reshape(-1, 4).T
    expected = np.array([expect_rounded(p, 16, False, 0x7FFF0000) for p in x.tolist()], np.uint32)
    np.testing.assert_array_equal(back, expected)
    np.testing.assert_array_equal(to_bf16, expected >> 16)
    np.testing.assert_array_equal(packed, expected >> 16 | np.roll(expected, -1) & 0xFFFF0000)
    np.testing.assert_array_equal(
        tf32, np.array([expect_rounded(p, 13, True, 0x7FFFE000) for p in x.tolist()], np.uint32)
    )


# Tensor cores. With g = lane // 4 and q = lane % 4, every map gives (row, column) of element j of a lane.

BF16 = {
    "terms": 16,
    "a": (8, lambda g, q, j: (g + 8 * (j // 2 % 2), 2 * q + j % 2 + 8 * (j // 4))),
    "b": (4, lambda g, q, j: (2 * q + j % 2 + 8 * (j // 2), g)),
}
TF32 = {
    "terms": 8,
    "a": (4, lambda g, q, j: (g + 8 * (j % 2), q + 4 * (j // 2))),
    "b": (2, lambda g, q, j: (q + 4 * j, g)),
}
SUM = (4, lambda g, q, j: (g + 8 * (j // 2), 2 * q + j % 2))


def fragments(matrix: np.ndarray, elements) -> np.ndarray:
    """[lane][element] of one fragment."""
    count, place = elements
    return np.array([[matrix[place(lane // 4, lane % 4, j)] for j in range(count)] for lane in range(32)])


def registers(matrix: np.ndarray, elements, half: bool) -> np.ndarray:
    """A float32 matrix as [lane][register]; halves: two upper halves in a register, the first one low."""
    pattern = bits(fragments(matrix, elements))
    return pattern[:, 0::2] >> 16 | pattern[:, 1::2] & 0xFFFF0000 if half else pattern


def matrix_of(lanes: np.ndarray) -> np.ndarray:
    """The 16 x 8 sums in [lane][element]."""
    result = np.full((16, 8), np.nan, np.float32)
    for lane in range(32):
        for j in range(4):
            result[SUM[1](lane // 4, lane % 4, j)] = lanes[lane, j]
    return result


def call(run: Run, kind: str, c, a, b) -> np.ndarray:
    """c + a b by two warps with problems of their own: c [2][16 M][8 N], a [2][16 M][terms], b [2][terms][8 N]."""
    rules, half = (BF16, True) if kind.startswith("mma_bf16") else (TF32, False)
    M, N = a.shape[1] // 16, b.shape[2] // 8
    lanes = []
    for w in range(2):
        tiles = [fragments(c[w, 16 * m : 16 * m + 16, 8 * n : 8 * n + 8], SUM) for m in range(M) for n in range(N)]
        lanes.append(
            np.concatenate(
                [
                    *(bits(tile) for tile in tiles),
                    *(registers(a[w, 16 * m : 16 * m + 16], rules["a"], half) for m in range(M)),
                    *(registers(b[w, :, 8 * n : 8 * n + 8], rules["b"], half) for n in range(N)),
                ],
                axis=1,
            )
        )
    result = words(run(kind, stdin=text(np.concatenate(lanes)))).view(np.float32).reshape(2, 32, M, N, 4)
    return np.array([np.block([[matrix_of(result[w, :, m, n]) for n in range(N)] for m in range(M)]) for w in range(2)])


def cut(x: np.ndarray) -> np.ndarray:
    """Float64 to float32 toward zero; infinity from 2^128 on."""
    result = x.astype(np.float32)
    too_far = (abs(result.astype(np.float64)) > abs(x)) & (abs(x) < 2.0**128)
    return np.where(too_far, np.nextafter(result, np.float32(0)), result)


def product(c, a, b) -> np.ndarray:
    total = c.astype(np.float64)
    for k in range(a.shape[2]):
        total = total + a[:, :, k, None].astype(np.float64) * b[:, k, None, :].astype(np.float64)
    return cut(total + 0.0)  # an exact zero has no sign


KINDS = [("mma_bf16", 2, 3), ("mma_bf16_1x1", 1, 1), ("mma_tf32", 2, 3), ("mma_tf32_1x1", 1, 1)]


def operands(kind: str, M: int, N: int, draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c, a, b, with a and b representable in what the instruction takes."""
    terms, dropped = (16, 16) if "bf16" in kind else (8, 13)
    c, a, b = draw((2, 16 * M, 8 * N)), draw((2, 16 * M, terms)), draw((2, terms, 8 * N))
    keep = np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return c.astype(np.float32), (bits(a) & keep).view(np.float32), (bits(b) & keep).view(np.float32)


@pytest.mark.parametrize(("kind", "M", "N"), KINDS)
def test_small_integers_multiply_exactly(plain, kind, M, N):
    rng = np.random.default_rng(2)
    c, a, b = operands(kind, M, N, lambda shape: rng.integers(-64, 64, shape).astype(np.float32))
    np.testing.assert_array_equal(call(plain, kind, c, a, b), c + a @ b)


@pytest.mark.parametrize(("kind", "M", "N"), KINDS)
def test_products_are_summed_in_float64_and_cut_toward_zero(plain, kind, M, N):
    rng = np.random.default_rng(3)

    def draw(shape):
        return (rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 12, shape)).astype(np.float32)

    c, a, b = operands(kind, M, N, draw)
    expected = product(c, a, b)
    result = call(plain, kind, c, a, b)
    np.testing.assert_array_equal(bits(result), bits(expected))
    exact = c + np.matmul(a, b, dtype=np.float64)
    assert (expected != exact.astype(np.float32)).any()  # rounding to nearest would have shown
    assert (abs(result) <= abs(exact) * (1 + 1e-13)).all()


@pytest.mark.parametrize(("kind", "M", "N"), KINDS)
def test_numbers_at_the_ends_of_the_range(plain, kind, M, N):
    values = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 3e38, -3e38, 1e-30, 1e-40, -1e-40, 2**-126], np.float32)
    rng = np.random.default_rng(4)
    c, a, b = operands(kind, M, N, lambda shape: rng.choice(values[3:], shape))
    c[0, 0], a[0, 1], b[1, :, 2] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        expected = product(c, a, b)
    result = call(plain, kind, c, a, b)
    np.testing.assert_array_equal(bits(result), np.where(np.isnan(expected), 0x7FFFFFFF, bits(expected)))
    assert {"nan", "inf", "-inf", "0.0"} <= set(map(str, result.ravel().tolist()))


def test_the_order_of_threads_does_not_matter_to_products(plain):
    stdin = text(np.arange(THREADS * (24 + 8 + 6)))
    assert len({output(plain("mma_bf16", seed, stdin=stdin)) for seed in SEEDS}) == 1


# Matrices of 8 x 8 values of 16 bits. Lane 8 i + r brings row r of matrix i.


def halves(words: np.ndarray) -> np.ndarray:
    """Two values in each word, the first one low."""
    return np.stack([words & 0xFFFF, words >> 16], -1)


def rows(rng, count: int) -> np.ndarray:
    """Where `count` rows begin: any 16-byte place, none twice."""
    return rng.permutation(SHARED // 16)[:count] * 16


@pytest.mark.parametrize("scenario", ["load", "load_transposed"])
def test_matrix_loads(plain, scenario):
    rng = np.random.default_rng(5)
    places = rows(rng, 2 * THREADS).reshape(THREADS, 2)
    memory = rng.permutation(SHARED // 2).astype(np.uint32)  # every value is unique
    content = memory[0::2] | memory[1::2] << 16
    result = words(plain(scenario, stdin=text(np.concatenate([places.ravel(), content]))))
    result = halves(result.reshape(THREADS, 2, 4))
    for thread in range(THREADS):
        warp, lane = divmod(thread, 32)
        for call in range(2):
            for matrix in range(4):
                lines = places[32 * warp + 8 * matrix : 32 * warp + 8 * matrix + 8, call]
                square = np.array([memory[line // 2 : line // 2 + 8] for line in lines])
                if scenario == "load_transposed":
                    square = square.T
                g, q = lane // 4, lane % 4
                np.testing.assert_array_equal(result[thread, call, matrix], square[g, 2 * q : 2 * q + 2])


def test_a_transposed_store_is_the_inverse_of_a_transposed_load(plain):
    rng = np.random.default_rng(6)
    places = rows(rng, THREADS)
    given = rng.integers(0, 1 << 32, (THREADS, 4), np.uint32)
    stored = words(plain("store_transposed", stdin=text(np.column_stack([places, given]))))
    untouched = np.ones(SHARED // 16, bool)
    untouched[places // 16] = False
    assert (stored.reshape(-1, 4)[untouched] == POISON).all()
    twice = np.column_stack([places, places]).ravel()
    loaded = words(plain("load_transposed", stdin=text(np.concatenate([twice, stored])))).reshape(THREADS, 2, 4)
    np.testing.assert_array_equal(loaded[:, 0], given)
    np.testing.assert_array_equal(loaded[:, 1], given)


def test_a_transposed_store_by_its_map(plain):
    rng = np.random.default_rng(7)
    places = rows(rng, THREADS)
    given = rng.integers(0, 1 << 32, (THREADS, 4), np.uint32)
    stored = words(plain("store_transposed", stdin=text(np.column_stack([places, given]))))
    memory = halves(stored).ravel()
    for thread in range(THREADS):
        warp, lane = divmod(thread, 32)
        for matrix in range(4):
            for half in range(2):  # element (row 2 q + half, column g) of each matrix
                line = places[32 * warp + 8 * matrix + 2 * (lane % 4) + half]
                assert memory[line // 2 + lane // 4] == given[thread, matrix] >> 16 * half & 0xFFFF


@pytest.mark.parametrize("scenario", ["load_neighbours", "store_for_neighbours"])
@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_see_each_others_rows_behind_a_wait_only(plain, scenario, seed):
    assert (words(plain(scenario, seed)) == 0x10001).all()
    assert (words(plain(f"{scenario}_at_once", seed)) == POISON).any()


# Asynchronous copies


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("seed", SEEDS)
def test_copies_and_zeros(plain, size, seed):
    rng = np.random.default_rng(size)
    exists = rng.integers(0, 2, THREADS)
    source = rng.integers(0, 1 << 32, (THREADS, size // 4), np.uint32)
    result = words(plain(f"copy_{size}", seed, stdin=text(np.concatenate([exists, source.ravel()]))))
    expected = np.where(exists[:, None], source, 0)[np.arange(THREADS) ^ 33]
    np.testing.assert_array_equal(result, expected.ravel())


def test_copies_land_with_the_wait_for_their_group_and_not_before(plain):
    x = POISON  # also where something else was before the copy
    once = [x, x, x, x, 1, x, x, x, 1, x, x, x, 1, 2, 3, x, 1, 2, 3, 4]
    # Groups: {0}, {}, {1, 2}; then {3}. Before, wait<2>, wait<1>, wait<0>, and wait<0> behind another commit.
    assert words(plain("groups", stdin="1 2 3 4")).tolist() == 3 * once


def test_the_target_may_be_copied_to_again_when_the_first_copy_has_landed(plain):
    assert words(plain("twice", stdin="5 6 7 8")).tolist() == [5, 6, 7, 5]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_ring_of_stages(plain, seed):
    source = np.random.default_rng(8).integers(0, 1 << 20, (8, THREADS))
    expected = source.sum(0)[::-1]
    np.testing.assert_array_equal(words(plain("ring", seed, 2, stdin=text(source))), np.tile(expected, 5))
    for fault in ("barrier", "wait"):
        result = output(plain(f"ring_without_{fault}", seed, stdin=text(source)))
        assert result.startswith("error") or result.split() != [f"{word:x}" for word in expected.tolist()]


@pytest.mark.parametrize("writer", ["matrices", "copies"])
def test_tensor_copies_read_what_was_written_behind_a_fence_only(plain, writer):
    assert (words(plain(f"{writer}_for_tensor_copy")) == 0x10001).all()
    report = output(plain(f"{writer}_for_tensor_copy_unfenced"))
    assert re.search(r"tma_store .* reads byte \d+ .* written without fence_async_proxy", report), report


# Under the sanitizers, and misuse


@pytest.mark.parametrize(
    ("scenario", "count"),
    [("convert", THREADS), ("mma_bf16", THREADS * 38), ("load", 2 * THREADS + SHARED // 4), ("copy_4", 2 * THREADS),
     ("copy_16", 5 * THREADS), ("groups", 4), ("ring", 8 * THREADS), ("store_for_neighbours", 0)],
)  # fmt: skip
def test_correct_kernels_pass_the_sanitizers(plain, checked, scenario, count):
    stdin = text(16 * np.arange(count) % SHARED)
    assert output(checked(scenario, stdin=stdin)) == output(plain(scenario, stdin=stdin))


IN = r"in \w+_kernel \(sm80.cu:\d+\)"
OUTSIDE = rf"{IN} to an address outside the 4096 bytes of shared memory, at byte "

FAULTS = {
    "mma_by_half_a_warp": [r"deadlock", r"threads 0-15, 32-47 wait for mma_bf16", r"threads 16-31, 48-63 have ended"],
    "load_unaligned": [rf"16-byte access {IN} to an address that is no multiple of 16"],
    "load_behind": [rf"load_matrices {OUTSIDE}4096"],
    "load_in_front": [rf"load_matrices {OUTSIDE}-16"],
    "store_unaligned": [rf"16-byte access {IN} to an address that is no multiple of 16"],
    "store_behind": [rf"store_matrices_transposed {OUTSIDE}4096"],
    **{
        f"{what}_unaligned_{size}": [rf"{size}-byte access {IN} to an address that is no multiple of {size}"]
        for what in ("target", "source") for size in (4, 8, 16)
    },
    "target_behind": [rf"copy_async {OUTSIDE}4096"],
    "target_in_front": [rf"copy_async {OUTSIDE}-16"],
    "source_shared": [rf"copy_async {IN} reads shared memory"],
    "overlap": [rf"copy_async {IN} to bytes \d+-\d+ of shared memory, where an earlier copy has not landed yet"],
    "twice_at_once": [rf"copy_async {IN} to bytes 28-31 of shared memory, where an earlier copy has not landed yet"],
    "written": [rf"somebody wrote to bytes 16-31 of shared memory while copy_async {IN} was on its way there"],
    "source_written": [rf"somebody wrote to the source of copy_async {IN} before it had landed"],
    "never_committed": [rf"ended while 1 of its copies .* copy_async {IN}; its group was never committed"],
    "never_waited_for": [rf"ended while 1 of its copies .* copy_async {IN}; nobody waited for its group"],
}  # fmt: skip


@pytest.mark.parametrize("scenario", FAULTS)
def test_misuse_is_reported(plain, checked, scenario):
    for run in (plain, checked):
        report = output(run(scenario, stdin="1 2 3 4"))
        assert report.startswith("error: "), report
        for pattern in FAULTS[scenario]:
            assert re.search(pattern, report), report


@pytest.mark.parametrize("kind", ["mma_tf32", "mma_tf32_1x1"])
@pytest.mark.parametrize("bit", [0, 12])
def test_operands_of_tf32_must_have_been_rounded(plain, kind, bit):
    size = {"mma_tf32": 24 + 8 + 6, "mma_tf32_1x1": 4 + 4 + 2}[kind]
    sums = {"mma_tf32": 24, "mma_tf32_1x1": 4}[kind]
    for register in range(size):
        given = np.zeros((THREADS, size), np.uint32)
        given[41, register] = 1 << bit
        report = output(plain(kind, stdin=text(given)))
        assert report.startswith("error") == (register >= sums)
        if register >= sums:
            assert re.search(rf"thread \(41,0,0\): mma_tf32 {IN}: an operand was not rounded", report)


def test_transposed_stores_need_sm_90(plain):
    stdin = text(np.column_stack([16 * np.arange(THREADS), np.zeros((THREADS, 4), int)]))
    assert words(plain("store_transposed", 0, 0, 90, stdin=stdin)).size == SHARED // 4
    assert "needs sm_90, this is sm_80" in output(plain("store_transposed", 0, 0, 80, stdin=stdin))


@pytest.mark.parametrize("scenario", ["source_behind", "source_in_front"])
def test_address_sanitizer_sees_sources_outside(checked, scenario):
    done = checked(scenario, stdin="1 2 3 4")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert "address_kernel" in done.stderr  # the stack trace names the kernel
