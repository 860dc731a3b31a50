"""The emulator: it runs correct kernels correctly in every order, and it catches faulty ones."""

from __future__ import annotations

import math
import re
import subprocess

import numpy as np
import pytest
from programs import CHECKED, PLAIN, SOURCES, Run, compile_objects, link, output, runner

from convnet.devices import opening
from convnet.devices import protocol as backend


@pytest.fixture(scope="module")
def plain(emulator, tmp_path_factory) -> Run:
    """Runs a scenario of tests/emu/scenarios.cu."""
    folder = tmp_path_factory.mktemp("plain")
    return runner(link(folder / "program", [*emulator, *compile_objects(folder, [SOURCES / "scenarios.cu"], *PLAIN)]))


@pytest.fixture(scope="module")
def checked(checked_emulator, tmp_path_factory) -> Run:
    """Runs a scenario in a build with AddressSanitizer and UBSan."""
    folder = tmp_path_factory.mktemp("checked")
    objects = [*checked_emulator, *compile_objects(folder, [SOURCES / "scenarios.cu"], *CHECKED)]
    return runner(link(folder / "program", objects, *CHECKED))


def floats(done: subprocess.CompletedProcess[str]) -> np.ndarray:
    return np.array(output(done).split(), np.float32)


def inputs(count: int) -> np.ndarray:
    """What scenarios.cu fills its arrays with."""
    return (np.arange(count) * 37 % 101).astype(np.float32) / np.float32(7)


REVERSED = inputs(200 * 64).reshape(200, 64)[:, ::-1].ravel()


# Correct kernels


@pytest.mark.parametrize("seed", [0, 1, 2, 12345678901234567890])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_depend_neither_on_the_order_nor_on_the_number_of_os_threads(plain, seed, threads):
    np.testing.assert_array_equal(floats(plain("reverse", seed, threads)), REVERSED)


@pytest.mark.parametrize(
    "scenario", ["reverse", "warp", "a_warp_leaves", "visit", "at_once", "shared_inside", "global_inside"]
)
def test_correct_kernels_pass_the_sanitizers(plain, checked, scenario):
    assert output(checked(scenario, 3, 1)) == output(plain(scenario, 3, 1))


def test_the_sanitizer_may_keep_variables_of_fibers_elsewhere(checked):
    assert output(checked("warp", ASAN_OPTIONS="detect_stack_use_after_return=1")) == output(checked("warp"))


def test_every_thread_of_every_block_runs_once(plain):
    shape = "of 3 2 4 5 3 2"
    expected = [
        f"{bx} {by} {bz} {x} {y} {z} {shape}"
        for bx in range(3) for by in range(2) for bz in range(4) for x in range(5) for y in range(3) for z in range(2)
    ]  # fmt: skip
    assert sorted(output(plain("visit", 1, 3)).splitlines()) == sorted(expected)


def test_the_seed_chooses_the_order_of_blocks_and_threads(plain):
    blocks, threads = set(), set()
    for seed in range(8):
        visits = [line.split()[:6] for line in output(plain("visit", seed, 1)).splitlines()]
        blocks.add(str([visit[:3] for visit in visits[::30]]))
        threads.add(str([visit[3:] for visit in visits[:30]]))
    assert len(threads) == 8
    assert len(blocks) >= 6  # 24 blocks are walked in one of 8 steps from one of 24 beginnings
    assert output(plain("visit", 5, 1)) == output(plain("visit", 5, 1))


def test_the_same_thread_is_not_first_in_every_block(plain):
    visits = output(plain("visit", 1, 1)).splitlines()
    assert len({tuple(visit.split()[3:6]) for visit in visits[::30]}) > 5


def test_warp_operations(plain):
    total, largest, shuffled, numbers = floats(plain("warp")).reshape(4, 2, 32)
    lanes = np.arange(32)
    for warp, x in enumerate(inputs(256)[:64].reshape(2, 32)):
        expected = x
        for mask in (16, 8, 4, 2, 1):
            expected = expected + expected[lanes ^ mask]
        np.testing.assert_array_equal(total[warp], expected)  # bit for bit, the GPU's order
        np.testing.assert_array_equal(largest[warp], x.max())
        np.testing.assert_array_equal(shuffled[warp], x[lanes ^ 5])
        np.testing.assert_array_equal(numbers[warp], sum(range(32 * warp, 32 * warp + 32)))


def test_barriers_do_not_wait_for_warps_that_have_ended(plain):
    x = inputs(64)
    np.testing.assert_array_equal(floats(plain("a_warp_leaves")), np.concatenate([x[31::-1], x[32:]]))


def test_launches_from_several_os_threads_at_once(plain):
    expected = np.arange(4 * 32 * 64, dtype=np.float32).reshape(-1, 64)[:, ::-1].ravel()
    np.testing.assert_array_equal(floats(plain("at_once", 1, 3)), expected)


def test_the_emulator_is_usable_after_an_error(plain):
    lines = output(plain("after_errors", 1, 2)).splitlines()
    assert [line.startswith("error: ") for line in lines[:3]] == [True, True, False]
    np.testing.assert_array_equal(np.array(lines[2:], np.float32), REVERSED)


# Faulty kernels


@pytest.mark.parametrize("seed", range(5))
def test_a_removed_barrier_shows_in_the_result(plain, seed):
    result = floats(plain("reverse_without_barrier", seed))
    assert np.isnan(result).any()
    assert not np.isnan(floats(plain("reverse", seed))).any()


@pytest.mark.parametrize("seed", range(5))
def test_a_warp_does_not_run_in_lock_step(plain, seed):
    swapped = inputs(64).reshape(-1, 2)[:, ::-1].ravel()
    np.testing.assert_array_equal(floats(plain("neighbour", seed)), swapped)
    assert np.isnan(floats(plain("neighbour_without_wait", seed))).any()


def test_an_uninitialised_shared_read_is_nan(plain):
    assert np.isnan(floats(plain("uninitialised"))).all()


FAULTS = {
    "half_warp_barrier": [
        r"half_warp_barrier_kernel \(scenarios.cu:\d+\) was reached by a part of a warp",
        r"threads 0-15, 32-47 wait for __syncthreads in half_warp_barrier_kernel \(scenarios.cu:\d+\)",
        r"threads 16-31, 48-63 have ended",
    ],
    "half_warp_sum": [
        r"block \(0,0,0\), deadlock",
        r"threads 0-15, 32-47 wait for __syncthreads in half_warp_sum_kernel \(scenarios.cu:\d+\)",
        r"threads 16-31, 48-63 wait for warp_sum in half_warp_sum_kernel \(scenarios.cu:\d+\)",
    ],
    "two_barriers": [r"threads of one block meet at different barriers", r"two_barriers_kernel \(scenarios.cu:\d+\)"],
    "two_warp_sums": [r"lanes of one warp meet at different operations", r"two_warp_sums_kernel \(scenarios.cu:\d+\)"],
    "a_lane_leaves": [r"deadlock", r"threads [^;]*\b35 have ended", r"threads [^;]*36-63 wait for warp_sum"],
    "warp_of_16": [r"warp_sum .* needs all 32 lanes, but this warp has 16"],
    "shared_too_small": [r"shared_storage in uninitialised_kernel .* needs 256 bytes, but the launch asked for 255"],
    "unaligned": [r"16-byte access in unaligned_kernel .* no multiple of 16"],
    "never_begun": [r"a thread ended without begin_kernel\(\)"],
    "too_early": [r"access in too_early_kernel .* in front of begin_kernel\(\)"],
    "too_early_copy": [r"access in too_early_kernel .* in front of begin_kernel\(\)"],
    "nested": [r"a kernel cannot launch a kernel"],
    "no_threads": [r"1 to 1024 threads, got \(0,1,1\)"],
    "too_many_threads": [r"1 to 1024 threads, got \(32,33,1\)"],
    "too_many_blocks": [r"65535 blocks, got \(1,65536,1\)"],
    "too_much_shared": [r"232448 bytes of shared memory, got 232449"],
}


@pytest.mark.parametrize("scenario", FAULTS)
def test_faults_are_reported(plain, checked, scenario):
    for seed in (1, 2):
        report = output(plain(scenario, seed))
        assert report.startswith("error: "), report
        for pattern in FAULTS[scenario]:
            assert re.search(pattern, report), report
    assert output(checked(scenario)).startswith("error: ")  # and nothing leaks, nothing stays poisoned


@pytest.mark.parametrize(
    ("scenario", "place"), [("shared_write_behind", "at byte 256"), ("shared_write_in_front", "at byte -4")]
)
def test_guards_catch_writes_outside_shared_memory(plain, scenario, place):
    report = output(plain(scenario))
    assert "wrote to shared memory" in report
    assert place in report
    np.testing.assert_array_equal(floats(plain("shared_inside")), inputs(64))


def test_reading_behind_shared_memory_gives_nan(plain):
    assert math.isnan(floats(plain("shared_read_behind"))[63])


@pytest.mark.parametrize(
    "scenario",
    ["shared_read_behind", "shared_write_behind", "shared_write_in_front",
     "global_read_behind", "global_write_behind", "global_write_in_front"],
)  # fmt: skip
def test_address_sanitizer_sees_accesses_outside(checked, scenario):
    done = checked(scenario)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert f"{scenario.split('_')[0]}_access_kernel" in done.stderr  # the stack trace names the kernel


def test_a_stack_overflow_stops_the_program(plain, checked):
    assert plain("overflow").returncode < 0
    assert "AddressSanitizer: stack-overflow" in checked("overflow").stderr


def test_guards_of_a_device_catch_a_kernel_that_writes_outside():
    try:
        device = opening.open_device("emu")
    except backend.DeviceError as error:
        pytest.skip(str(error))
    stream = device.stream()
    x, y = device.empty((1003,)), device.empty((1001,))
    stream.upload(x, inputs(1003))
    stream.launch(device.kernels.relu_forward, 1001, "fp32", x, y)
    np.testing.assert_array_equal(y.download(), inputs(1001))
    stream.launch(device.kernels.relu_forward, 1002, "fp32", x, y)
    with pytest.raises(backend.DeviceError, match=r"wrote outside an array of shape \(1001,\)"):
        device.synchronize()
    device.close()
