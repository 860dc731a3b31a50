"""Which runs there are, and what they say while they are written."""

from __future__ import annotations

import json
import os

import pytest
from pages import copy_run

from convnet.explore.listing import Listing, Tail, Watch


def write(path, *records, end="\n"):
    with open(path, "a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records[:-1]) + json.dumps(records[-1]) + end)


def names(listing: Listing) -> list[str]:
    return [run.name for run in listing.runs().values()]


def make(folder, name):
    (folder / name).mkdir()
    (folder / name / "metrics.jsonl").touch()
    return folder / name


def test_runs_come_and_go(tmp_path):
    listing = Listing(tmp_path)
    assert names(listing) == []
    make(tmp_path, "b")
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").touch()
    make(tmp_path, ".hidden")
    assert names(listing) == ["b"]
    before = listing.runs()
    make(tmp_path, "a")
    assert names(listing) == ["a", "b"]
    assert before.keys() < listing.runs().keys()  # an id stays
    os.rename(tmp_path / "b", tmp_path / "c")
    assert names(listing) == ["a", "c"]
    assert not before.keys() & listing.runs().keys()


def test_one_run_and_one_file(tmp_path):
    run = copy_run(tmp_path)
    for path in (run, run / "best"):
        listing = Listing(path)
        ((key, found),) = listing.runs().items()
        assert listing.alone
        assert found.path == path.resolve()
        assert key == found.id


def test_ids_are_no_paths(tmp_path):
    for name in ("a..", "a b", "a%2fb", "Äpfel", "x" * 200):
        make(tmp_path, name)
    assert all(key.isalnum() and key.isascii() for key in Listing(tmp_path).runs())
    assert len(Listing(tmp_path).runs()) == 5


@pytest.mark.parametrize("what", ["the run", "metrics.jsonl", "config.toml", "best", "checkpoints", "a checkpoint"])
def test_links_that_lead_out_are_not_there(what, tmp_path):
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    runs.mkdir()
    elsewhere = copy_run(outside.parent, "outside")
    run = copy_run(runs)
    assert names(Listing(runs)) == ["first"]
    inner = {"the run": "", "a checkpoint": "checkpoints/step-00000010.safetensors"}.get(what, what)
    target = run / inner if inner else run
    os.rename(target, tmp_path / "moved")
    target.symlink_to(elsewhere / inner if inner else elsewhere)
    assert target.exists()
    assert names(Listing(runs)) == []
    assert Listing(runs).look()[1] == ["first"]
    if inner:
        assert names(Listing(run)) == []
        assert Listing(run).look()[1] == ["first"]
    target.unlink()
    os.rename(tmp_path / "moved", target)
    assert names(Listing(runs)) == ["first"]
    os.rename(target, run / "kept" if inner else runs / "kept")  # a link that stays inside is as good as a file
    target.symlink_to(run / "kept" if inner else runs / "kept")
    assert "first" in names(Listing(runs))


def test_what_the_command_names_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    copy_run(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(Listing(tmp_path / "link")) == ["first"]
    assert names(Listing(tmp_path / "link" / "first")) == ["first"]


def test_a_stamp_changes_with_the_weights_that_are_looked_at(tmp_path):
    run = copy_run(tmp_path)

    def stamp():
        return next(iter(Listing(tmp_path).runs().values())).stamp

    first = stamp()
    write(run / "metrics.jsonl", {"event": "train", "step": 11})
    assert stamp() == first != ""
    (run / "best").unlink()
    (run / "best").symlink_to("checkpoints/step-00000010.safetensors")
    assert (second := stamp()) not in ("", first)
    (run / "best").unlink()
    assert stamp() == second  # of the newest one
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.unlink()
    assert stamp() == ""


# ---- records


def test_whole_lines_are_told_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.poll() == (False, [])
    write(path, {"event": "start", "step": 0}, {"event": "train", "step": 1, "loss": 2.5})
    assert tail.poll() == (False, [{"event": "start", "step": 0}, {"event": "train", "step": 1, "loss": 2.5}])
    assert tail.poll() == (False, [])
    write(path, {"event": "train", "step": 2, "loss": 1.5}, end="")
    assert tail.poll() == (False, [])  # its end may still be on the way
    with open(path, "a") as file:
        file.write("\n")
    assert tail.poll() == (False, [{"event": "train", "step": 2, "loss": 1.5}])


@pytest.mark.parametrize("how", ["replaced", "cut", "removed"])
def test_a_file_that_is_not_the_same_any_more_is_told_anew(how, tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    write(path, {"step": 1}, {"step": 2})
    assert tail.poll() == (False, [{"step": 1}, {"step": 2}])
    if how == "replaced":
        write(tmp_path / "new", {"step": 1}, {"step": 7}, {"step": 8}, {"step": 9})
        os.replace(tmp_path / "new", path)
        assert tail.poll() == (True, [{"step": 1}, {"step": 7}, {"step": 8}, {"step": 9}])
    elif how == "cut":
        os.truncate(path, len('{"step": 1}\n'))
        assert tail.poll() == (True, [{"step": 1}])
    else:
        path.unlink()
        assert tail.poll() == (True, [])
    assert tail.poll() == (False, [])


def test_records_of_others_hold_finite_numbers_and_short_words(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"event": "train", "step": 1, "loss": NaN, "lr": Infinity, "own": 1, "epoch": true}\n'
        b'not json\n[1]\n"word"\n\xff\xfe{}\n' + b"[" * 100_000 + b"\n"
        b'{"event": "<b>\\u0007' + b"x" * 999 + b'", "step": 1e400, "loss": 1' + b"0" * 400 + b', "images": [1]}\n'
        b'{"step": 2}\n'
    )
    _, found = Tail(path).poll()
    assert found[0] == {"event": "train", "step": 1}
    assert found[1].keys() == {"event"}
    assert found[1]["event"].startswith("<b>\\x07")
    assert len(found[1]["event"]) == 200
    assert found[2:] == [{"step": 2}]


def test_a_pipe_in_place_of_metrics_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert Tail(tmp_path / "metrics.jsonl").poll() == (False, [])


# ---- both


def test_news_of_a_folder(tmp_path):
    watch = Watch(Listing(tmp_path))
    assert list(watch.news()) == [("runs", {"runs": [], "left_out": []})]
    assert list(watch.news()) == []
    run = make(tmp_path, "a")
    ((kind, told),) = watch.news()
    assert kind == "runs"
    assert [(one["name"], one["quiet"]) for one in told["runs"]] == [("a", False)]
    key = told["runs"][0]["id"]
    write(run / "metrics.jsonl", {"step": 1})
    assert list(watch.news()) == [("records", {"run": key, "anew": False, "records": [{"step": 1}]})]
    other = make(tmp_path, "b")
    write(other / "metrics.jsonl", {"step": 5})
    (_, told), (_, records) = watch.news()
    assert [one["name"] for one in told["runs"]] == ["a", "b"]
    assert records["records"] == [{"step": 5}]
    os.utime(run / "metrics.jsonl", (0, 0))
    ((_, told),) = watch.news()
    assert [one["quiet"] for one in told["runs"]] == [True, False]
    (other / "metrics.jsonl").unlink()
    assert [kind for kind, _ in watch.news()] == ["runs"]


def test_news_of_one_run_alone(tmp_path):
    write(make(tmp_path, "a") / "metrics.jsonl", {"step": 1})
    write(make(tmp_path, "b") / "metrics.jsonl", {"step": 2})
    listing = Listing(tmp_path)
    _, second = listing.runs()
    (_, told), (_, records) = Watch(listing, second).news()
    assert [one["name"] for one in told["runs"]] == ["b"]
    assert records["records"] == [{"step": 2}]
