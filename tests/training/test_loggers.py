"""Where records go besides ``metrics.jsonl``: the table beside it, TensorBoard, loggers of users."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import ENVIRONMENT, TINY, TRAIN, here, records

from convnet.training import checkpoint
from convnet.training.loggers import TensorBoard
from convnet.training.metrics import COLUMNS, MetricsFile


def said(capsys) -> list[str]:
    """Lines on standard error, but for the one about what was learnt."""
    return [line for line in capsys.readouterr().err.splitlines() if "nothing was learnt" not in line]


def take_back(folder: Path) -> None:
    """As if the run had been killed at its end, when the checkpoint of the first epoch was the last one."""
    (folder / "checkpoints" / checkpoint.file_name(10)).unlink()
    for link in ("last", "best"):
        (folder / link).unlink(missing_ok=True)


# ---- the table


def table_agrees(folder: Path) -> bool:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    wanted = [{name: str(value) for name, value in record.items() if value is not None} for record in records(folder)]
    return [{name: value for name, value in row.items() if value} for row in rows] == wanted


def test_the_table_has_the_records(straight):
    assert table_agrees(straight)
    assert len(records(straight)) == 6


def test_the_table_of_a_resumed_run_agrees(images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path)) == 0
    take_back(tmp_path)
    assert here("--resume", "auto", "-o", str(tmp_path)) == 0
    assert table_agrees(tmp_path)
    assert [r["step"] for r in records(tmp_path) if r["event"] == "train"] == [5, 10]


def test_a_table_that_was_lost_or_torn_is_made_anew(images, tmp_path):
    assert here(images, *TINY, "--steps", "7", "-o", str(tmp_path)) == 0
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-5])):
        damage(tmp_path / "metrics.csv")
        with open(tmp_path / "metrics.jsonl", "a") as file:  # killed within a line
            file.write('{"event": "tr')
        assert here("--resume", "auto", "-o", str(tmp_path), "--steps", "7") == 0
        records_file = MetricsFile(tmp_path / "metrics.jsonl")
        assert table_agrees(tmp_path), records_file.records()


def test_a_table_that_cannot_be_written_for_a_while_is_whole_afterwards(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"event": "train", "step": 1})
    file.table.unlink()
    file.table.mkdir()
    with pytest.raises(OSError, match=r"metrics\.csv"):
        file.append({"event": "train", "step": 2})
    file.table.rmdir()
    file.append({"event": "train", "step": 3})
    assert [record["step"] for record in file.records()] == [1, 2, 3]
    assert table_agrees(tmp_path)


def test_records_of_somebody_else_in_the_table(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"event": "a\\r,\\"b\\ud800", "step": 1, "other": 2}\n{"step": 1, "loss": [1]}\n'
    )
    MetricsFile(tmp_path / "metrics.jsonl").rewind(1, True)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "metrics.csv").read_bytes().decode(), newline="")))
    assert [row["event"] for row in rows] == ['a\r,"b\\ud800', ""]
    assert rows[1]["loss"] == "[1]"


# ---- TensorBoard


def written(folder: Path) -> list:
    """All events of a run's files, oldest file first; half of a last one is left out."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed")
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):
            start = at + 12  # behind the length and its sum
            at = start + struct.unpack_from("<Q", content, at)[0] + 4
            if at <= len(content):
                found.append(event_pb2.Event.FromString(content[start : at - 4]))
    return found


def shown(folder: Path) -> list:
    """Values that TensorBoard shows, as (tag, step, value): it forgets those from the step of a start on."""
    values: list = []
    for event in written(folder):
        if event.HasField("session_log"):
            assert event.session_log.status == event.session_log.START
            values = [one for one in values if one[1] < event.step]
        values += [(value.tag, event.step, value) for value in event.summary.value]
    return values


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    return sorted(
        (tag, step, value.simple_value) for tag, step, value in shown(folder) if value.HasField("simple_value")
    )


def wanted(folder: Path) -> list[tuple[str, int, float]]:
    """The same from the records."""
    keys = ("loss", "top1_error", "top5_error", "lr", "images_per_second", "data_share")
    return sorted(
        (f"{key}/{record['event']}", record["step"], float(np.float32(record[key])))
        for record in records(folder)
        if record["event"] in ("train", "valid")
        for key in keys
        if key in record
    )


def test_tensorboard_shows_what_the_records_say(images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--log", "tensorboard") == 0
    assert scalars(tmp_path) == wanted(tmp_path)
    assert {tag for tag, _, _ in scalars(tmp_path)} >= {"loss/valid", "top1_error/train", "lr/train"}
    pictures = [(tag, step, value.image) for tag, step, value in shown(tmp_path) if value.HasField("image")]
    assert [(tag, step) for tag, step, _ in pictures] == [("conv1", 0), ("conv1", 5), ("conv1", 10)]
    pixels = [np.asarray(Image.open(io.BytesIO(one.encoded_image_string))) for _, _, one in pictures]
    weights = checkpoint.load(tmp_path / "last").part("weights")["conv1.weight"]
    last = pixels[-1].astype(np.float64) / 255
    first_filter = last[: 4 * 7 : 4, : 4 * 7 : 4]
    expected = 0.5 + 0.5 * weights[0] / np.abs(weights[0]).max()
    np.testing.assert_allclose(first_filter, expected.transpose(1, 2, 0), atol=0.51 / 255)
    assert (pixels[0] != pixels[-1]).any()


def test_a_resumed_run_is_shown_without_a_step_twice(images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--log", "tensorboard") == 0
    first = written(tmp_path)
    take_back(tmp_path)
    (torn,) = (tmp_path / "tensorboard").iterdir()
    torn.write_bytes(torn.read_bytes()[:-5])
    assert here("--resume", "auto", "-o", str(tmp_path)) == 0  # which inherits where it logs
    assert len(written(tmp_path)) > len(first)
    assert scalars(tmp_path) == wanted(tmp_path)
    steps = [step for _, step, value in shown(tmp_path) if value.HasField("image")]
    assert steps == [0, 5, 10]


def test_an_evaluation_that_is_done_anew_is_shown_once(tmp_path):
    """Killed between an evaluation and its checkpoint: the record of it goes, that of training at the step stays."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    train = {"event": "train", "step": 5, "epoch": 1, "loss": 0.5, "lr": 0.25}
    valid = {"event": "valid", "step": 5, "epoch": 1, "loss": 0.75}
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    killed = TensorBoard(tmp_path, {}, 0)
    for record in (train, valid):
        metrics.append(record)
        killed.record(record)
    assert len(scalars(tmp_path)) == 3  # though it was not closed
    killed.close()
    metrics.rewind(5, evaluated=False)
    logger = TensorBoard(tmp_path, {}, 5)
    assert scalars(tmp_path) == [("loss/train", 5, 0.5), ("lr/train", 5, 0.25)]
    logger.record(valid)
    assert scalars(tmp_path) == [("loss/train", 5, 0.5), ("loss/valid", 5, 0.75), ("lr/train", 5, 0.25)]
    logger.close()


def test_without_tensorboardx_one_sentence_before_anything_starts(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert here(images, *TINY, "-o", str(tmp_path / "run"), "--log", "tensorboard") == 2
    (line,) = said(capsys)
    assert "tensorboardX is needed" in line
    assert line.endswith('pip install "convnet[tensorboard]"')
    assert not (tmp_path / "run").exists()


# ---- loggers of users


OWN = """
import json
class Own:
    def __init__(self, folder, settings, step):
        self.file = open(folder / "own.txt", "a")
        self.tell("begin", step, settings["batch_size"])
    def record(self, record):
        self.tell("record", record["step"], record["event"])
    def picture(self, name, step, pixels):
        self.tell(name, step, [str(pixels.dtype), pixels.ndim])
    def close(self):
        self.tell("close", None, None)
        self.file.close()
    def tell(self, *what):
        print(json.dumps(what), file=self.file, flush=True)
"""


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``convnet-train`` as it is installed, in ``folder``, where it does not look for modules by itself."""
    command = [sys.executable, "-c", TRAIN, *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_a_logger_of_ones_own_is_told_all(images, tmp_path):
    (tmp_path / "own_log.py").write_text(OWN)
    done = started(tmp_path, images, *TINY, "--epochs", "1", "-o", "run", "--log", "own_log:Own")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in (tmp_path / "run" / "own.txt").read_text().splitlines()]
    assert told == [
        ["begin", 0, 8],
        ["record", 0, "start"],
        ["conv1", 0, ["uint8", 3]],
        ["record", 5, "train"],
        ["record", 5, "valid"],
        ["conv1", 5, ["uint8", 3]],
        ["record", 5, "end"],
        ["close", None, None],
    ]


def test_no_file_makes_the_command_import_code(images, tmp_path):
    """A checkpoint's options and those of a run that ended before its first checkpoint, or a configuration."""
    (tmp_path / "own_log.py").write_text("open('imported', 'w')\n" + OWN)
    options = ["--epochs", "1", "-o", "run"]
    assert started(tmp_path, images, *TINY, *options, "--log", "own_log:Own").returncode == 0
    (tmp_path / "imported").unlink()
    without = shutil.copytree(tmp_path / "run", tmp_path / "without")
    shutil.rmtree(without / "checkpoints")
    for arguments in (
        ["--resume", "auto", "-o", "run", "--epochs", "2"],
        ["--resume", "auto", "-o", "without"],
        ["--config", "run/config.toml", "-o", "other"],
    ):
        done = started(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("warning: --log 'own_log:Own': not imported, since a file says so") == 1
        assert not (tmp_path / "imported").exists()
    done = started(tmp_path, "--resume", "auto", "-o", "run", "--epochs", "3", "--log", "own_log:Own")
    assert done.returncode == 0, done.stderr
    assert '["begin", 10, 8]' in (tmp_path / "run" / "own.txt").read_text()


class Failing:
    """Fails where ``fails`` says."""

    fails = ""
    calls: tuple[str, ...] = ()

    def __init__(self, folder, settings, step):
        self.happens("init")

    def record(self, record):
        record.clear()  # which is its own
        self.happens("record")

    def picture(self, name, step, pixels):
        self.happens("picture")

    def close(self):
        self.happens("close")

    def happens(self, what):
        Failing.calls += (what,)
        if what == Failing.fails:
            raise RuntimeError(f"{what}\n failed")


@pytest.mark.parametrize("fails", ["init", "record", "picture", "close"])
def test_a_logger_that_fails_is_one_warning(fails, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Failing, "fails", fails)
    monkeypatch.setattr(Failing, "calls", ())
    options = ["--log", f"{__name__}:Failing, tensorboard"]
    assert here(images, *TINY, "-o", str(tmp_path), *options) == 0
    (line,) = said(capsys)
    assert line == f"warning: --log {__name__}:Failing: RuntimeError: {fails} failed; nothing more is logged there"
    assert Failing.calls.count(fails) == 1
    assert Failing.calls[-1] == fails
    assert records(tmp_path)[-1]["status"] == "done"
    assert scalars(tmp_path) == wanted(tmp_path)  # the others are told


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("tensorbord", "--log must be tensorboard, none, or MODULE:CLASS for a logger of your own, got 'tensorbord'"),
        ("", "got ''"),
        ("no_such_module:Logger", "cannot be imported from here: ModuleNotFoundError: No module named"),
        ("json:Logger", "cannot be imported from here: AttributeError: module 'json' has no attribute 'Logger'"),
        (":Logger", "cannot be imported from here: ValueError: Empty module name"),
        ("sys:path", "--log sys:path: a class is expected there, found list"),
    ],
)
def test_loggers_that_there_are_not(log, told, images, tmp_path, capsys):
    path = list(sys.path)
    assert here(images, *TINY, "-o", str(tmp_path / "run"), "--log", log) == 2
    (line,) = said(capsys)
    assert told in line
    assert sys.path == path
    assert not (tmp_path / "run").exists()


def test_none_ends_what_a_run_inherits(images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--log", "tensorboard", "--steps", "2") == 0
    before = len(written(tmp_path))
    assert here("--resume", "auto", "-o", str(tmp_path), "--log", "none") == 0
    assert len(written(tmp_path)) == before


def test_the_logger_in_the_readme_works(images, tmp_path):
    """With a stand-in for the service that it talks to."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(# wandb_log\.py.*?)```", readme, re.DOTALL)
    (tmp_path / "wandb_log.py").write_text(code)
    (tmp_path / "wandb.py").write_text(
        "class Run:\n"
        "    def log(self, values, step): print('logged', step, sorted(values))\n"
        "    def finish(self): print('finished')\n"
        "def init(**options): print('begun', options['id']); return Run()\n"
        "def Image(pixels): return pixels.shape\n"
    )
    done = started(tmp_path, images, *TINY, "--epochs", "1", "-o", "run", "--log", "wandb_log:Wandb")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("begun", "logged", "finished"))]
    assert lines[0] == "begun run"
    assert "logged 5 ['valid/loss', 'valid/top1_error', 'valid/top5_error']" in lines
    assert "logged 5 ['conv1']" in lines
    assert lines[-1] == "finished"
    assert "warning: --log" not in done.stderr
