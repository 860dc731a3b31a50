"""``convnet-prepare`` killed, stopped, resumed with other options, short of disk, or beside another one."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import struct
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from data_files import write_folder
from preparing import JOURNALS, SMALL, contents, here, run, spawn

from convnet.data import DataError, open_dataset
from convnet.data.packing import Task
from convnet.data.recognise import open_source
from convnet.prepare import prepare
from convnet.prepare.packers import in_order

SIZE = 48
OPTIONS = ["--size", SIZE, "--quality", 90]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """156 images, in shards of 8: 20 of them."""
    folder = write_folder(tmp_path_factory.mktemp("source") / "photos", classes=4, train=33, valid=6)
    (folder / "train/class2/007.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("whole") / "store"
    run(source, target, *OPTIONS, "-j", 1)
    found = contents(target)
    assert len(found) == 17 + 3 + 7
    assert b"class2/007.jpg" in found["bad.csv"]
    return found


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(prepare, "SHARD", 8)
    monkeypatch.setattr(prepare, "CHUNK", 4)


def journals(target: Path) -> int:
    return len(list(target.glob(JOURNALS)))


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def kill_and_resume(source, target, whole, kills: int, seed: int):
    """Kills the whole process group ``kills`` times at random moments of its work; every time it comes to its end, the
    store must be the undisturbed one, and a new one is begun."""
    chance = random.Random(seed)
    done = stores = 0
    while done < kills:
        before, moment = journals(target), chance.random()
        process = spawn(source, target, *OPTIONS, "-j", chance.choice([1, 2]))
        if moment < 0.2:
            time.sleep(chance.uniform(0, 0.6))
        else:
            wait_for(lambda process=process, before=before: journals(target) > before or process.poll() is not None)
            time.sleep(chance.uniform(0, 0.06))
        with contextlib.suppress(ProcessLookupError):  # it came to its end before
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done += process.returncode == -signal.SIGKILL
        if (target / "store.json").exists():
            assert "nothing to do" in run(source, target, *OPTIONS)
            assert contents(target) == whole
            shutil.rmtree(target)
            stores += 1
    run(source, target, *OPTIONS, "-j", 2)
    assert contents(target) == whole
    return stores


def test_killed_at_random_and_resumed_it_writes_the_same_bytes(source, tmp_path, undisturbed):
    kill_and_resume(source, tmp_path / "store", undisturbed, kills=5, seed=0)


@pytest.mark.slow
def test_killed_twenty_times_and_resumed_it_writes_the_same_bytes(source, tmp_path, undisturbed):
    kill_and_resume(source, tmp_path / "store", undisturbed, kills=20, seed=1)


def begun(source, target, least=3) -> Path:
    """A folder in which some shards are finished."""
    process = spawn(source, target, *OPTIONS, "-j", 1)
    wait_for(lambda: journals(target) >= least)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return target


@pytest.fixture(scope="module")
def some_shards(source, tmp_path_factory):
    return begun(source, tmp_path_factory.mktemp("begun") / "store")


def test_finished_shards_are_not_made_again(source, tmp_path, undisturbed):
    target = begun(source, tmp_path / "store")
    finished = {path.name.removesuffix(".journal") for path in target.glob(JOURNALS)}
    times = {name: (target / name).stat().st_mtime_ns for name in finished}
    assert "shards are finished and whole" in run(source, target, *OPTIONS, "-j", 2)
    assert {name: (target / name).stat().st_mtime_ns for name in finished} == times
    assert contents(target) == undisturbed


def test_damaged_shards_and_journals_are_made_again(source, tmp_path, undisturbed, small):
    target = begun(source, tmp_path / "store", least=5)
    for path in (target / "train-00000.bin", target / "train-00001.bin.journal"):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    for path in (target / "train-00002.bin", target / "train-00003.bin.journal"):
        path.write_bytes(path.read_bytes()[:-1])
    (target / "train-00004.bin").unlink()
    assert here(source, target, *OPTIONS, "-j", 1) == 0
    assert contents(target) == undisturbed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--size", "64"], "it was begun with --size 48, not 64; give the same, or choose another folder"),
        (["--quality", "80"], "it was begun with --quality 90, not 80; give the same"),
        (["--seed", "3"], "it was begun with --seed 0, not 3; give the same"),
        (["--keep-aspect"], "it was begun with --keep-aspect False, not True; give the same"),
        ([], "it was begun with other source images; give the same source, or choose another folder"),
    ],
)
def test_resuming_with_something_else_is_refused(source, some_shards, tmp_path, change, message, capsys):
    target = shutil.copytree(some_shards, tmp_path / "store")
    if not change:
        source = write_folder(tmp_path / "other", classes=4, train=6, valid=2)
    assert here(source, target, *OPTIONS, *change) == 2
    assert message in capsys.readouterr().err
    assert contents(target) == contents(some_shards)


def test_a_complete_store_is_left_alone(source, tmp_path, undisturbed, small, capsys):
    target = tmp_path / "store"
    assert here(source, target, *OPTIONS, "-j", 1) == 0
    (target / "unfinished.json").write_text("{}")  # as where it was killed between the last two steps
    assert "complete already; nothing to do" in run(source, target, *OPTIONS)
    assert contents(target) == undisturbed
    assert here(source, target, *OPTIONS, "--seed", 1) == 2
    assert "it is complete with --seed 0, not 1" in capsys.readouterr().err
    assert here(target, tmp_path / "again") == 3
    assert "is prepared already" in capsys.readouterr().err
    assert contents(target) == undisturbed


def test_folders_with_something_else_are_left_alone(source, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("all of it")
    for target in (tmp_path / "mine", source, source / "train"):
        before = sorted(path.name for path in target.iterdir())
        assert here(source, target) == 2
        assert "not empty (it holds" in capsys.readouterr().err
        assert sorted(path.name for path in target.iterdir()) == before
    assert here(source, tmp_path / "mine/thesis.tex") == 3
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_says_how_to_go_on(source, tmp_path, undisturbed, small, number, workers):
    target = tmp_path / "store"
    process = spawn(source, target, *OPTIONS, "-j", workers)
    wait_for(lambda: journals(target) >= 2)
    # Ctrl-C reaches the workers, too
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, output + errors
    assert "shards are finished; the same command goes on where this one stopped" in errors
    assert "Traceback" not in errors
    assert not list(target.glob("*.tmp"))
    assert here(source, target, *OPTIONS, "-j", 1) == 0
    assert contents(target) == undisturbed


def test_stopped_before_the_first_shard_is_finished(source, tmp_path):
    code = SMALL.replace("8, 4", "1000, 2") + "sys.exit(main())"
    process = spawn(source, tmp_path / "store", "-j", 1, "--size", 1000, code=code)
    wait_for(lambda: list((tmp_path / "store").glob("*.bin.tmp")))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "warning: stopped; the same command goes on" in errors


def children(pid: int) -> set[int]:
    """All living processes whose ancestor is ``pid``."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_with_their_parent(source, tmp_path):
    process = spawn(source, tmp_path / "store", *OPTIONS, "-j", 3, "--size", 1500)
    wait_for(lambda: len(children(process.pid)) >= 3 and list((tmp_path / "store").glob("*.bin.tmp")))
    workers = children(process.pid)
    process.kill()  # it alone
    try:
        wait_for(lambda: not any(alive(pid) for pid in workers), 20)
    finally:
        for pid in filter(alive, workers):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def test_a_lost_worker_is_one_sentence(source, tmp_path, undisturbed, small):
    target = tmp_path / "store"
    process = spawn(source, target, *OPTIONS, "-j", 2)
    wait_for(lambda: journals(target) >= 1)
    for pid in children(process.pid):
        if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert errors.count("\n") == 1, errors
    assert "a worker process was lost or ran out of memory" in errors
    assert here(source, target, *OPTIONS, "-j", 1) == 0
    assert contents(target) == undisturbed


class HalfWay:
    """An image whose packer is killed when it has handed over the first bytes of what became of it."""

    def read(self):
        def some(connection, content):
            os.write(connection.fileno(), struct.pack("!i", len(content)) + bytes(content[:10]))
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send_bytes = some
        return b"no picture"


@pytest.mark.parametrize("others", [0, 5])
def test_a_worker_lost_half_way_through_its_answer(source, others):
    """The rest of it never comes, and others would have gone on."""
    images = open_source(source).train.images[:2]
    tasks = [Task(some, SIZE, 90, False, 16, sums=True) for some in ([HalfWay()], *[images] * others)]
    results = in_order(iter(tasks), 2, [0])
    with pytest.raises(RuntimeError, match="a worker process was lost or ran out of memory"):
        next(results)


def test_a_full_disk_is_one_sentence_and_keeps_what_is_finished(source, some_shards, tmp_path, undisturbed, small):
    """A limit on the size of files stands for it."""
    target = shutil.copytree(some_shards, tmp_path / "store")
    before = journals(target)
    limit = 2000
    process = spawn(
        source, target, *OPTIONS, "-j", 1, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert errors.count("\n") == 1, errors
    assert "File too large; finished shards are kept" in errors
    assert journals(target) == before
    assert here(source, target, *OPTIONS, "-j", 1) == 0
    assert contents(target) == undisturbed


def test_two_processes_do_not_prepare_in_one_folder(source, tmp_path):
    target = tmp_path / "store"
    process = spawn(source, target, *OPTIONS, "-j", 1, "--size", 1000)
    wait_for(lambda: list(target.glob("*.bin.tmp")))
    try:
        assert "another process is preparing there" in run(source, target, *OPTIONS, "--size", 1000, code=2)
    finally:
        process.kill()
        process.communicate()


def test_training_on_an_unfinished_store_is_refused(some_shards):
    with pytest.raises(DataError, match="not prepared completely; run its convnet-prepare command again"):
        open_dataset(some_shards, size=SIZE, seed=0)
