"""The kernel under glass: what the emulator counts is what can be counted by hand, of small kernels that exist for
that, and of the shipped ones; and where a barrier is left out it tells."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from programs import PLAIN, SOURCES, Run, compile_objects, link, output, runner

from convnet.analysis import glass, glass_text
from convnet.devices import opening
from convnet.devices.protocol import DeviceError
from convnet.kernels.shapes import ConvShape
from convnet.ops import ops

# ---- small kernels ----


@pytest.fixture(scope="module")
def program(emulator, tmp_path_factory) -> Run:
    """Runs a scenario of tests/emu/glass.cu."""
    folder = tmp_path_factory.mktemp("glass")
    flags = [*PLAIN, "-fsanitize=thread"]  # for the kernels alone: no sanitizer is linked
    return runner(link(folder / "program", [*emulator, *compile_objects(folder, [SOURCES / "glass.cu"], *flags)]))


@dataclass
class Counted:
    requests: int
    asked: int
    used: int
    sectors: int
    wavefronts: int
    fewest: int
    worst: int
    lanes: list[int]


def accesses(lines: list[str]) -> dict[tuple[str, str, int, int], Counted]:
    """By memory, operation, warp and bytes of a lane."""
    found = {}
    for line in lines:
        kind, *words = line.split()
        if kind == "access":
            numbers = [int(word) for word in words[2:]]
            key = (words[0], words[1], numbers[0], numbers[1])
            assert key not in found
            found[key] = Counted(*numbers[2:9], numbers[9:])
    return found


@pytest.mark.parametrize(
    ("scenario", "conflicts"),
    # A column's values lie `pitch` banks apart: as many come together as the pitch has factors in common with 32.
    [("pitch_32", 32), ("pitch_33", 1), ("pitch_48", 16), ("pitch_65", 1)],
)
def test_a_transposition_conflicts_where_rows_are_not_padded(program, scenario, conflicts):
    found = accesses(output(program(scenario)).splitlines())
    rows, columns = found["shared", "store", 0, 4], found["shared", "load", 0, 4]
    assert (rows.requests, rows.wavefronts, rows.fewest, rows.worst) == (32, 32, 32, 1)
    assert (columns.requests, columns.wavefronts, columns.fewest) == (32, 32 * conflicts, 32)
    assert columns.worst == conflicts
    pitch = 4 * int(scenario.removeprefix("pitch_"))
    assert columns.lanes == [pitch * lane for lane in range(32)]
    assert found["x", "load", -1, 4].asked == found["y", "store", -1, 4].asked == 32 * 32 * 4


@pytest.mark.parametrize(
    ("scenario", "size", "wavefronts", "fewest"),
    [
        ("float4", 16, 4, 4),  # a quarter of the warp touches 8 times 4 banks
        ("float4_apart", 16, 8, 4),  # every second four of banks, twice
        ("float4_same", 16, 4, 4),  # one address serves a quarter at once
        ("float4_of_9", 16, 2, 2),  # lanes 0 to 7, and lane 8
        ("bf16x4", 8, 2, 2),  # halves of the warp
        ("bf16x4_apart", 8, 4, 2),
    ],
)
def test_wide_accesses_go_by_halves_and_quarters_of_a_warp(program, scenario, size, wavefronts, fewest):
    found = accesses(output(program(scenario)).splitlines())["shared", "load", 0, size]
    assert (found.requests, found.wavefronts, found.fewest) == (1, wavefronts, fewest)


def test_lanes_that_come_less_often_take_no_part_in_later_executions(program):
    found = accesses(output(program("uneven")).splitlines())["shared", "load", 0, 4]
    assert (found.requests, found.asked) == (2 * 4, 2 * 4 * (32 + 24 + 16 + 8))


@pytest.mark.parametrize(
    ("scenario", "requests", "asked", "used", "sectors"),
    [
        ("dense", 4, 512, 512, 16),  # two blocks of two warps, 128 bytes each
        ("strided", 2, 256, 256, 64),  # every lane a sector of its own: 4 of 32 bytes
        ("shifted", 1, 128, 128, 5),  # one value behind the beginning of a sector
        ("same", 1, 128, 4, 1),  # all lanes the same value
    ],
)
def test_sectors_of_global_memory(program, scenario, requests, asked, used, sectors):
    found = accesses(output(program(scenario)).splitlines())["x", "load", -1, 4]
    assert (found.requests, found.asked, found.used, found.sectors) == (requests, asked, used, sectors)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_ring_of_a_pipeline(program, seed):
    lines = output(program("ring", seed)).splitlines()
    # Five fillings of three stages of 256 bytes; each is issued, lands and is read in this order.
    fills = [line for line in lines if line.startswith("fill")]
    assert fills == [f"fill {256 * (i % 3)} {256 * (i % 3) + 256} 256 1" for i in range(5)]
    calls = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith("call")}
    assert calls == {"copy_async_commit": 7 * 64, "copy_async_wait": 5 * 64, "__syncthreads": 5 * 64}
    found = accesses(lines)
    assert (found["x", "copy_async", -1, 4].asked, found["x", "copy_async", -1, 4].sectors) == (5 * 256, 5 * 8)
    assert found["shared", "copy_async", 1, 4].requests == found["shared", "load", 0, 4].requests == 5


def test_who_arrives_at_a_barrier_and_who_waits(program):
    lines = [line for line in output(program("mail")).splitlines() if line.split()[0] in ("barrier", "use")]
    warp = " ".join(map(str, range(32)))
    assert lines == [
        "barrier mbarrier 0 1 3",  # the letter is full: one arrival, three phases
        f"use barrier_wait 96 0 {warp}",
        "use barrier_arrive 3 0 32",
        "barrier mbarrier 8 32 3",  # it is empty: nobody waits for the last phase
        "use barrier_wait 2 0 32",
        f"use barrier_arrive 96 0 {warp}",
        "barrier named_barrier 1 32 1",
        f"use named_barrier 32 0 {warp}",
    ]


# ---- shipped kernels ----


def look(op: str, sizes: str = "", precision: str = "fp32", without: int | None = None) -> glass.Glass:
    try:
        return glass.look(op, sizes, precision, without)
    except DeviceError as error:
        return pytest.skip(str(error))


def named(seen: tuple[glass.Access, ...], array: str, operation: str) -> glass.Access:
    (found,) = (a for a in seen if (a.array, a.operation) == (array, operation))
    return found


def test_relu_uses_all_of_its_sectors():
    seen = look("relu", "count=2048")
    (launch,) = seen.launches
    assert (launch.grid, launch.block, launch.shared_bytes) == ((2, 1, 1), (256, 1, 1), 0)
    assert (launch.shared, launch.barriers, launch.fills, seen.calls) == ((), (), (), ())
    for array, operation in (("x", "load"), ("y", "store")):
        a = named(launch.arrays, array, operation)
        # a thread takes 16 bytes, so that a warp touches 16 sectors
        assert (a.bytes, a.requests, a.asked, a.sectors, a.worst, a.share) == (16, 16, 8192, 256, 16, 1.0)
    halves = look("relu_forward", "2048", "bf16").launches[0]
    assert named(halves.arrays, "x", "load").asked == 4096


def test_the_tile_of_pack_has_no_conflicts():
    seen = look("pack", "N=64 C=3 H=8 W=8")
    (launch,) = seen.launches
    assert (launch.grid, launch.block) == ((3 * 8 * 8 // 32, 1, 1), (256, 1, 1))
    assert launch.shared_bytes == 32 * 65 * 4
    write, read = named(launch.shared, "", "store"), named(launch.shared, "", "load")
    for a in (write, read):  # 32 x 64 values by 256 threads
        assert (a.bytes, a.requests, a.wavefronts, a.fewest) == (4, 8, 8, 8)
    # A warp writes a column of rows of 65, and reads along one.
    assert write.lanes == tuple(65 * 4 * lane for lane in range(32))
    assert read.lanes == tuple(4 * lane for lane in range(32))
    for array, operation in (("x", "load"), ("y", "store")):
        a = named(launch.arrays, array, operation)
        assert (a.asked, a.sectors, a.share) == (64 * 3 * 8 * 8 * 4, 64 * 3 * 8 * 8 * 4 // 32, 1.0)
    (barrier,) = seen.calls
    assert (barrier.operation, barrier.calls, barrier.threads) == ("__syncthreads", 256, tuple(range(256)))


@pytest.mark.parametrize(
    ("precision", "depth", "stages"),
    [("fp32", 16, 3), ("tf32", 16, 3)],  # kDepth * kUnits and kStages of an Arithmetic in tile/gemm_tile.cuh
)
def test_the_ring_of_asynchronous_copies(precision, depth, stages):
    C = 64  # in one part: a block sums all of it
    seen = look("linear_forward", f"N=64 C={C} K=64", precision)
    (launch,) = seen.launches
    assert launch.grid == (1, 1, 1)
    threads = launch.block[0]
    filled = C // depth
    calls = {call.operation: call.calls for call in seen.calls}
    assert calls == {
        "copy_async_commit": (filled + stages - 1) * threads,
        "copy_async_wait": filled * threads,
        "__syncthreads": filled * threads,
    }
    assert len(launch.fills) == filled
    assert len({fill.begin for fill in launch.fills}) == stages
    for n, fill in enumerate(launch.fills):
        assert fill.begin == launch.fills[n % stages].begin
        assert 0 < fill.issued < fill.landed < fill.first_read < fill.last_read
        if n >= stages:  # the stage has been read by all before it is filled anew
            assert launch.fills[n - stages].last_read < fill.issued
    x, weight = (named(launch.arrays, array, "copy_async") for array in ("x", "weight"))
    assert x.asked == weight.asked == 4 * 64 * C
    assert x.share == weight.share == 1.0


def test_the_ring_of_tensor_copies():
    seen = look("conv_forward", "N=64 C=64 H=4 W=4 K=64", "bf16")
    (launch,) = seen.launches
    assert seen.variant.startswith("wgmma")
    full = [b for b in launch.barriers if b.arrivals == 1 and b.uses]
    empty = [b for b in launch.barriers if b.kind == "mbarrier" and b.arrivals > 1 and b.uses]
    assert len(full) == len(empty) == len({fill.begin for fill in launch.fills})
    assert sum(b.phases for b in full) == len(launch.fills)
    announced = brought = 0
    for barrier in full:
        uses = {use.operation: use for use in barrier.uses}
        assert uses["barrier_expect"].threads == (256,)  # the producer
        assert uses["barrier_wait"].threads == tuple(range(256))  # the consumers
        assert uses["barrier_expect"].count == barrier.phases
        announced += uses["barrier_expect"].bytes
        brought += sum(use.bytes for use in barrier.uses if use.operation == "tma_load")
    for barrier in empty:  # one lane of every consumer's warp
        uses = {use.operation: use for use in barrier.uses}
        assert uses["barrier_arrive"].threads == tuple(range(0, 256, 32))
        assert uses["barrier_arrive"].count == 8 * barrier.phases
        assert uses["barrier_wait"].threads == (256,)
    assert announced == brought == sum(fill.bytes for fill in launch.fills)
    for fill in launch.fills:
        assert 0 < fill.issued < fill.landed < fill.first_read < fill.last_read
    (stored,) = (a for a in launch.arrays if a.operation == "tma_store")
    assert (stored.array, stored.asked, stored.share) == ("y", 2 * 64 * 64 * 4 * 4, 1.0)


def test_two_blocks_of_a_cluster_bring_each_other_what_both_need():
    seen = look("conv_forward", "N=128 C=64 H=4 W=4 K=64", "bf16")
    (launch,) = seen.launches
    assert launch.cluster == 2
    # Tiles are rows of four pixels, of two or three rows of filters (10 of them) and 4 chunks of 16 channels.
    stages = 10 * 4
    strip, weights = 6 * 16 * 128, 3 * 16 * 128
    brought, counts = Counter(), Counter()
    for use in (use for barrier in launch.barriers for use in barrier.uses):
        brought[use.operation] += use.bytes
        counts[use.operation] += use.count
    assert brought["tma_load"] == stages * strip
    assert brought["tma_load_multicast"] == stages * weights  # from both blocks
    assert brought["barrier_expect"] == stages * (strip + weights)
    assert named(launch.arrays, "weight", "tma_load").asked == stages * weights  # once for both
    assert counts["barrier_arrive_at"] == 2 * 8 * stages  # by eight warps of both blocks


def test_matrices_are_read_where_the_kernel_asks_for_them():
    seen = look("conv_forward", "C=3 K=30", "bf16")  # too odd for tensor copies
    assert seen.variant.startswith("bf16")
    loads = [a for a in seen.launches[0].shared if a.operation == "ldmatrix"]
    assert loads
    for a in loads:  # a row of 16 bytes by each lane, padded against conflicts
        assert (a.bytes, a.wavefronts, a.fewest) == (16, 4 * a.requests, 4 * a.requests)
        assert a.where.startswith("tile/tensor_core.cuh:")


def test_a_product_of_several_launches_shows_them_all():
    seen = look("linear_forward", "N=64 C=256 K=64")
    assert [launch.kernel.split()[0] for launch in seen.launches] == ["product_kernel", "sum_parts_kernel"]
    parts, total = seen.launches
    assert parts.grid == (1, 1, 2)
    workspace = named(parts.arrays, "workspace", "store")
    assert workspace.asked == 2 * 64 * 64 * 4  # the sums of both parts
    assert sum(a.asked for a in total.arrays if a.array == "workspace") == workspace.asked


def test_places_are_lines_of_the_source():
    if shutil.which("addr2line") is None:
        pytest.skip("binutils are not installed")
    lines = (SOURCES.parents[1] / "src" / "kernels" / "pack.cu").read_text().splitlines()
    seen = look("pack")
    for operation, text in (("store", "tile.values[value][lane] = found"), ("load", "tile.values[value][lane])")):
        file, _, line = named(seen.launches[0].shared, "", operation).where.partition(":")
        assert file == "pack.cu"
        assert text in "".join(lines[int(line) - 1 :][:2])  # a statement may have two
    file, _, line = seen.calls[0].where.partition(":")
    assert "__syncthreads()" in lines[int(line) - 1]
    # What a kernel asks of the emulator is where it asks.
    assert all(a.where.startswith("tile/quads.cuh:") for a in look("relu").launches[0].arrays)


def test_without_a_line_table_instructions_are_numbered(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    seen = look("pack")
    found = {a.where for a in (*seen.launches[0].arrays, *seen.launches[0].shared)}
    assert found == {f"instruction {number}" for number in (1, 2, 3, 4)}
    assert seen.calls[0].where.startswith("pack.cu:")  # the emulator knows it from the call


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("op", glass.NAMES)
def test_every_op_can_be_looked_at(op, precision):
    seen = look(op, precision=precision)
    assert seen.launches
    for launch in seen.launches:
        assert launch.kernel.split()[0].endswith("_kernel")
        assert launch.arrays
        for a in launch.arrays:
            assert a.sectors
            assert 0 < a.used <= a.asked
            assert a.share <= 1
        for a in launch.shared:
            assert a.wavefronts >= a.fewest >= a.requests > 0
    written = {
        name for name, p in glass.DECLARED[op].parameters.items() if any(getattr(m, "written", 0) for m in p.marks)
    }
    touched = {a.array for launch in seen.launches for a in launch.arrays if "store" in a.operation}
    assert touched <= written | {"workspace"}
    assert touched
    text = glass_text.as_text(seen)
    assert max(map(len, text.splitlines())) <= 80, text
    assert text.isascii()
    assert json.loads(json.dumps(glass.as_json(seen)))["op"] == op


def test_kernels_that_are_looked_at_compute_what_the_others_do():
    def computed(device):
        stream, shape = device.stream(), ConvShape.of(64, 8, 5, 5, 24, 3, 3, padding=1, lanes=64)
        random = np.random.default_rng(0)
        x, weight = device.empty(shape.x), device.empty(shape.weight)
        bias, y = device.empty((shape.K,)), device.empty(shape.y)
        for array in (x, weight, bias):
            stream.upload(array, random.standard_normal(array.shape, np.float32))
        ops.conv_forward(stream, shape, "fp32", x, weight, bias, y, True)
        return y.download()

    look("relu")
    np.testing.assert_array_equal(computed(opening.open_watched()), computed(opening.open_device("emu")))


# ---- without a barrier ----


@pytest.mark.parametrize(
    ("op", "precision", "operation", "says"),
    [
        ("pack", "fp32", "__syncthreads", ""),
        ("ingest", "fp32", "__syncthreads", ""),
        ("softmax_cross_entropy", "fp32", "__syncthreads", ""),
        ("lrn_pool_forward", "fp32", "__syncthreads", ""),
        ("conv_forward", "fp32", "__syncthreads", ""),
        ("conv_forward", "fp32", "copy_async_wait", "where an earlier copy has not landed yet"),
        ("linear_backward_data", "tf32", "copy_async_commit", "where an earlier copy has not landed yet"),
        ("conv_forward", "bf16", "__syncthreads", "the block has not met since"),
        ("conv_forward", "bf16", "barrier_expect", "bytes .*missing"),
        ("conv_forward", "bf16", "barrier_arrive", "deadlock, no thread can go on"),
        ("conv_forward", "bf16", "fence_async_proxy", r"without fence_async_proxy\(\)"),
        ("conv_backward_filter", "bf16", "wgmma_fence", "wgmma_fence"),
    ],
)
def test_the_emulator_tells_when_a_barrier_is_left_out(op, precision, operation, says):
    number = next(call.number for call in look(op, precision=precision).calls if call.operation == operation)
    seen = look(op, precision=precision, without=number)
    assert seen.without == number
    assert [verdict.seed for verdict in seen.verdicts] == [1, 2, 3]
    for verdict in seen.verdicts:
        assert verdict.noticed
        assert bool(verdict.error) == bool(says)
        assert re.search(says, verdict.error), verdict.error
        if not says:
            assert sum(changed for changed, _ in verdict.changed.values()) > 0
    if op == "pack":  # how many values are read too early depends on the order of threads
        assert len({verdict.changed["y"] for verdict in seen.verdicts}) == 3
    # What was left out is there again: what others are compared with is right.
    assert look(op, precision=precision, without=number) == seen


def test_a_call_that_nothing_depends_on_is_said_to_go_unnoticed():
    """With one filling nobody waits for a stage to be empty: the ring has more stages than that."""
    seen = look("linear_forward", "N=64 C=64 K=64", "bf16")
    number = next(call.number for call in seen.calls if call.operation == "barrier_arrive")
    seen = look("linear_forward", "N=64 C=64 K=64", "bf16", without=number)
    assert not any(verdict.noticed for verdict in seen.verdicts)
    text = glass_text.as_text(seen)
    assert "Nobody notices" in text
    assert text.count("the same bits as before") == 3


# ---- words ----


def test_a_conflict_is_drawn():
    lanes = tuple(128 * lane for lane in range(32))
    access = glass.Access("load", "tile/x.cuh:7", "", 4, 1, 128, 128, 32, 1, 0, 32, lanes)
    launch = glass.Launch("f_kernel", (1, 1, 1), (32, 1, 1), 1, 4096, 0, (access,), (), (), ())
    text = glass_text.as_text(glass.Glass("pack", "fp32", {"N": 3}, 8, "", (launch,), (), None, ()))
    assert text.startswith("pack in fp32 on sm_90, emulated: N=3, as 8 images\n")
    assert "  x.cuh:7  load           4      1          32       1\n" in text
    assert "31 of 32 wavefronts are lost to bank conflicts." in text
    assert "takes 32 wavefronts, 1 without conflicts." in " ".join(text.split())
    assert text.count("\n  bank " + 16 * "   0") == 2
    assert "32 different words lie in bank 0, of lanes 0-31." in text


def test_the_ring_is_drawn():
    fills = (
        glass.Fill(0, 64, 64, 10, 30, 40, 50),
        glass.Fill(64, 128, 64, 20, 60, 70, 80),
        glass.Fill(0, 64, 64, 90, 0, 0, 0),
    )
    launch = glass.Launch("f_kernel", (1, 1, 1), (32, 1, 1), 1, 128, 0, (), (), (), fills)
    text = glass_text.as_text(glass.Glass("pack", "fp32", {}, 0, "", (launch,), (), None, ()))
    assert "  bytes 0-63          0>=##...2\n  bytes 64-127        .1>>>=##.\n" in text


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void convnet::{anonymous}::a_kernel(int, const T*) [with T = float]", "a_kernel [T = float]"),
        ("void convnet::(anonymous namespace)::a_kernel(int, const T *) [T = convnet::bf16]", "a_kernel [T = bf16]"),
        ("void convnet::b_kernel(int)", "b_kernel"),
    ],
)
def test_names_of_kernels(signature, name):
    assert glass.kernel_name(signature) == name
