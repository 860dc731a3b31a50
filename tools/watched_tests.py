"""Runs tests in processes of their own, so that one that hangs, crashes or spoils the device costs no more than itself.

    python tools/watched_tests.py tests -k cuda -j 8 --limit 25 --logs FOLDER -o FILE.json
    python tools/watched_tests.py tests/ops/test_ops_variants.py -k "cuda and wgmma" --each 1 --limit 10

The tests are collected once and dealt out in parts of at most --each of one file, a process per part, -j at a time.
This file is also the pytest plugin in each of them: it notes every test as it begins and ends, and

- a test that takes longer than --limit seconds is hung: a thread notes which kernels were queued last and ends the
  process; where a call that does not return holds Python's lock, faulthandler does, with a traceback, GRACE seconds
  later, and at last the parent;
- a test that fails and leaves a CUDA device dead (a kernel broke off: every later call fails) ends the process at
  once, without trying to free anything.

Whatever was the end of a process, the part's tests that had not begun are run in a new one, ATTEMPTS times at most.
Prints a line per process as it ends, then how many tests passed, failed, crashed, hung and did not run, with the names
of those that did not pass and the reasons of those that were skipped. --seconds is for everything; what has not begun
by then did not run. Exits with 0 when at least one test passed and all others were skipped.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

GRACE = 3.0  # seconds for a process to end itself
START = 60.0  # seconds from the start of a process to its first test
ATTEMPTS = 8  # processes for one part
HUNG, SPOILT = 86, 87  # exit codes of the plugin
SHOWN = 30  # names in the report
LINE = 300  # characters of an error in it


# ---- in the process that runs tests ----


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("watched tests")
    group.addoption("--list-to", metavar="FILE", help="write the path and id of all tests")
    group.addoption("--wanted", metavar="FILE", help="run only the tests whose ids are lines of this file")
    group.addoption("--record", metavar="FILE", help="note what tests do; leave out those in it")
    group.addoption("--limit", type=float, metavar="SECONDS", help="for each test")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record"):
        # while a test runs, pytest has the streams go elsewhere: a copy, for what is said at the end of the process
        config.pluginmanager.register(Watch(config, os.fdopen(os.dup(2), "w")))


def pytest_collection_finish(session: pytest.Session) -> None:
    if path := session.config.getoption("--list-to"):
        tests = [(str(item.path), item.nodeid) for item in session.items]
        Path(path).write_text(json.dumps({"root": str(session.config.rootpath), "tests": tests}))


class Watch:
    """Notes in the record, a line of JSON each: begun, ended (with outcome and text), hung."""

    def __init__(self, config: pytest.Config, log: Any):
        self.limit, self.log = config.getoption("--limit"), log
        self.wanted = set(Path(config.getoption("--wanted")).read_text().split("\n"))
        self.path = Path(config.getoption("--record"))
        self.earlier = {note["begun"] for note in notes(self.path) if "begun" in note}
        self.record = open(self.path, "a")  # noqa: SIM115  (as long as the process)
        self.outcome, self.text = "passed", ""

    def note(self, **what: Any) -> None:
        self.record.write(json.dumps(what) + "\n")
        self.record.flush()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self.wanted - self.earlier]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.outcome, self.text = "passed", ""
        self.note(begun=item.nodeid)
        alarm = threading.Timer(self.limit, self.hung, [item.nodeid])
        alarm.daemon = True
        alarm.start()
        faulthandler.dump_traceback_later(self.limit + GRACE, exit=True, file=self.log)
        yield
        faulthandler.cancel_dump_traceback_later()
        alarm.cancel()
        self.note(ended=item.nodeid, outcome=self.outcome, text=self.text)

    def hung(self, test: str) -> None:
        """In a thread of its own: the test's hangs."""
        said = f"more than {self.limit:g} s; kernels queued last: {queued_last()}"
        self.note(hung=test, text=said)
        print(f"\n{test} hangs: {said}", file=self.log, flush=True)
        faulthandler.dump_traceback(self.log)
        os._exit(HUNG)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, None]:
        report = (yield).get_result()
        if report.failed:
            self.outcome, self.text = "failed", str(report.longrepr)
            print(f"\n{item.nodeid}:\n{self.text}", file=self.log, flush=True)
            if any(device.dead for device in cuda_devices()):
                self.note(ended=item.nodeid, outcome="failed", text=self.text)
                os._exit(SPOILT)
        elif report.skipped and self.outcome == "passed":
            self.outcome, self.text = "skipped", report.longrepr[2]  # behind file and line


def cuda_devices() -> list[Any]:
    """All that are open in this process."""
    module = sys.modules.get("convnet.devices.cuda")
    return [thing for thing in gc.get_objects() if type(thing) is module.CudaDevice] if module else []


def queued_last() -> str:
    devices = (f"{device.name} {', '.join(device.launched) or 'none'}" for device in cuda_devices())
    return "; ".join(devices) or "no device is open"


def notes(record: Path) -> list[dict[str, Any]]:
    """What was noted; a last line that was cut off when its process ended counts for nothing."""
    if not record.exists():
        return []
    return [json.loads(line) for line in record.read_text().splitlines(keepends=True) if line.endswith("\n")]


# ---- the parent ----


@dataclass
class Found:
    """Ids of tests with what there is to say of each."""

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)
    hung: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    def good(self) -> bool:
        return bool(self.passed) and not (self.failed or self.crashed or self.hung or self.not_run)


class Part:
    """Some tests of one file, the processes that ran them one after the other, and their notes."""

    def __init__(self, file: str, root: str, ids: list[str], name: str, folder: Path, logs: Path):
        self.file, self.root, self.ids, self.name, self.attempts = file, root, ids, name, 0
        self.wanted, self.record, self.log = folder / f"{name}.txt", logs / f"{name}.jsonl", logs / f"{name}.log"
        self.wanted.write_text("\n".join(ids))
        for earlier in (self.record, self.log):
            earlier.unlink(missing_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.changed = 0.0  # when its process started or something was noted last
        self.size, self.size_before = 0, 0  # of the record now, and when the process started

    def start(self, limit: float, environment: dict[str, str]) -> None:
        self.attempts += 1
        options = [f"--rootdir={self.root}", f"--wanted={self.wanted}", f"--record={self.record}", f"--limit={limit}"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*PYTEST, "-v", *options, self.file], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.changed, self.size_before = time.monotonic(), self.size

    def ended(self, limit: float) -> bool:
        """Whether its process is gone; one that has noted nothing for too long is killed."""
        assert self.process is not None
        size = self.record.stat().st_size if self.record.exists() else 0
        if size != self.size:
            self.size, self.changed = size, time.monotonic()
        patience = START if size == self.size_before else limit + 3 * GRACE
        if self.process.poll() is None and time.monotonic() - self.changed > patience:
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:  # the driver does not let go of it
            self.process.returncode = -signal.SIGKILL

    def left(self) -> list[str]:
        begun = {note["begun"] for note in notes(self.record) if "begun" in note}
        return [test for test in self.ids if test not in begun]

    def end(self, limit: float) -> str:
        """Says what became of the process; notes what the process could not note itself, the end of its last test."""
        assert self.process is not None
        code = self.process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        noted = notes(self.record)
        done = {note["ended"] for note in noted if "ended" in note} | {note["hung"] for note in noted if "hung" in note}
        done |= {note["crashed"] for note in noted if "crashed" in note}
        for test in [note["begun"] for note in noted if "begun" in note and note["begun"] not in done]:
            hung = time.monotonic() - self.changed > limit  # the last thing noted is that it began
            held = f"more than {limit:g} s, in a call that holds Python's lock; see {self.log.name}"
            with open(self.record, "a") as record:
                record.write(
                    json.dumps({"hung": test, "text": held} if hung else {"crashed": test, "text": how}) + "\n"
                )
        return how


PYTEST = [
    *(sys.executable, "-m", "pytest", "-p", "watched_tests", "-p", "no:cacheprovider"),
    "--continue-on-collection-errors",
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", help="files or folders of tests")
    parser.add_argument("-k", dest="expression", default="", help="which tests, as pytest takes it")
    parser.add_argument("-j", "--processes", type=int, default=8, help="at a time (default: 8)")
    parser.add_argument("--each", type=int, default=40, help="tests of a file per process, at most (default: 40)")
    parser.add_argument("--limit", type=float, default=25.0, help="seconds for one test (default: 25)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for everything")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="where what the processes say goes")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="every test that did not pass, and why")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="convnet-tests-") as temporary:
        folder = Path(temporary)
        logs = options.logs or folder
        logs.mkdir(parents=True, exist_ok=True)
        environment = environment_of(options.processes)
        try:
            listed = collected(options.paths, options.expression, logs, environment, options.seconds)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        parts = dealt(listed["tests"], listed["root"], options.each, folder, logs)
        print(f"{len(listed['tests'])} tests in {len(parts)} processes, {options.processes} at a time", flush=True)
        run(parts, options.processes, options.limit, start + options.seconds, environment)
        found = summed_up(parts, len(listed["tests"]))
    print(report(found, time.monotonic() - start))
    if options.output:
        options.output.write_text(json.dumps(asdict(found), indent=1) + "\n")
    return 0 if found.good() else 1


def environment_of(processes: int) -> dict[str, str]:
    """The cores are shared out among the processes; this file can be imported as a plugin."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    blas = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    return {**os.environ, **blas, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def collected(
    paths: list[str], expression: str, logs: Path, environment: dict[str, str], seconds: float
) -> dict[str, Any]:
    """ "tests", path and id of each, and the "root" that ids are relative to. Raises ``RuntimeError``, for none too."""
    listed, log = logs / "collected.json", logs / "collected.log"
    command = [*PYTEST, "--collect-only", "-q", "-k", expression, f"--list-to={listed}", *paths]
    with open(log, "wb") as output:
        try:
            subprocess.run(command, stdout=output, stderr=output, env=environment, timeout=min(seconds, 1e6))
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"collecting the tests takes more than {seconds:.0f} s") from error
    if not listed.exists() or not json.loads(listed.read_text())["tests"]:
        raise RuntimeError("no test was collected:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]))
    return json.loads(listed.read_text())


def dealt(tests: list[list[str]], root: str, each: int, folder: Path, logs: Path) -> list[Part]:
    """The largest files first; the parts of a file get about the same number of tests, and neighbours are parted."""
    parts = []
    for file, count in Counter(path for path, _ in tests).most_common():
        ids = [test for path, test in tests if path == file]
        pieces = -(-count // each)
        for i in range(pieces):
            parts.append(Part(file, root, ids[i::pieces], f"{Path(file).stem}-{i}", folder, logs))
    return parts


def run(parts: list[Part], processes: int, limit: float, end: float, environment: dict[str, str]) -> None:
    waiting, running = deque(parts), list[Part]()
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < processes:
            running.append(waiting.popleft())
            running[-1].start(limit, environment)
        time.sleep(0.05)
        for part in [part for part in running if part.ended(limit)]:
            running.remove(part)
            began, left = part.size > part.size_before, part.left()
            print(f"{part.name}: {part.end(limit)}, {len(part.ids) - len(left)} of {len(part.ids)} begun", flush=True)
            if left and began and part.attempts < ATTEMPTS:
                waiting.append(part)
    for part in running:
        part.kill()


def summed_up(parts: list[Part], count: int) -> Found:
    found = Found()
    for part in parts:
        begun = []
        for note in notes(part.record):
            if "begun" in note:
                begun.append(note["begun"])
            elif "hung" in note:
                found.hung[note["hung"]] = note["text"]
            elif "crashed" in note:
                found.crashed[note["crashed"]] = note["text"]
            elif note["outcome"] == "passed":
                found.passed.append(note["ended"])
            else:
                getattr(found, note["outcome"])[note["ended"]] = note["text"]
        known = {*found.passed, *found.skipped, *found.failed, *found.crashed, *found.hung}
        found.not_run |= {test: "was not done when the time was up" for test in begun if test not in known}
        found.not_run |= {test: why_not(part) for test in part.left()}
    assert count == sum(len(tests) for tests in asdict(found).values())
    return found


def why_not(part: Part) -> str:
    if part.attempts == 0:
        return "no time was left"
    if part.attempts == ATTEMPTS:
        return f"{ATTEMPTS} processes ended before it"
    return f"its process ended in front of all tests or was stopped; see {part.log.name}"


def report(found: Found, seconds: float) -> str:
    """The numbers, and the names of what went wrong, each with a line of what was said of it."""
    lines = []
    for kind in ("hung", "crashed", "failed", "not_run"):
        tests: dict[str, str] = getattr(found, kind)
        for test, text in list(tests.items())[:SHOWN]:
            lines.append(f"{kind.replace('_', ' ')}: {test}: {essence(text)[:LINE]}")
        if len(tests) > SHOWN:
            lines.append(f"{kind.replace('_', ' ')}: {len(tests) - SHOWN} more")
    reasons = Counter(found.skipped.values()).most_common(SHOWN)
    lines += [f"skipped: {count} tests: {reason[:LINE]}" for reason, count in reasons]
    counts = ", ".join(f"{len(tests)} {kind.replace('_', ' ')}" for kind, tests in asdict(found).items())
    return "\n".join([*lines, f"{counts} in {seconds:.0f} s"])


def essence(text: str) -> str:
    """Of what pytest says of an error, the first line of the last exception; else the last line of all."""
    lines = text.strip().splitlines() or [""]
    marked = [line[1:].strip() for before, line in zip(["", *lines], lines, strict=False)
              if line.startswith("E  ") and not before.startswith("E  ")]  # fmt: skip
    return marked[-1] if marked else lines[-1]


if __name__ == "__main__":
    sys.exit(main())
