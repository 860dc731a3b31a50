"""What is answered over HTTP, to whom, and that nothing outside of runs and data is."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import os
import re
import shutil
import struct
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from pages import LOAD, OWN, Client, copy_run, png
from PIL import Image
from runs import here

from convnet.analysis import glass, glass_text
from convnet.cli import export
from convnet.data.images import decode_square
from convnet.explore import server
from convnet.explore.server import HERE, Page
from convnet.network.spec import Term
from convnet.training.trained import Trained, load_trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs in a folder beside which lies what is nobody's business."""
    found = tmp_path_factory.mktemp("served")
    (found / "secret.txt").write_text("a secret")
    (found / "runs").mkdir()
    copy_run(found / "runs")
    return found


@pytest.fixture(scope="module")
def page(folder):
    found = Page(folder / "runs", LOAD)
    yield found
    found.study.close()


@pytest.fixture(scope="module")
def client(page):
    return Client(page)


@pytest.fixture(scope="module")
def run(page):
    """The address of the run."""
    return f"/runs/{next(iter(page.listing.runs()))}"


def sentence(answer, status: int) -> str:
    assert answer.status_code == status, answer.text
    (told,) = answer.json().values()
    assert answer.json().keys() == {"error"}
    assert told
    assert "\n" not in told
    assert "Traceback" not in told
    return told


def pixels(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def events(answer) -> list[tuple[str, dict]]:
    return [(kind, json.loads(told)) for kind, told in re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)]


# ---- what there is


def test_pages_and_what_they_need(client, run):
    front = client.get("/")
    assert front.status_code == 200
    assert "Runs in runs" in front.text
    own = client.get(run)
    assert ">first</h1>" in own.text
    for text in (front.text, own.text):
        needed = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert {"/static/style.css", "/static/explore.js", "/static/icon.svg"} <= set(needed)
        assert all(client.get(address).status_code == 200 for address in needed)
        assert not re.search(r"<script>|style=| on\w+=|https?://", text)  # the policy would not let them be
    for file in (HERE / "static").iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(?m)(^|\s)//.*$", "", text), file
        assert client.get(f"/static/{file.name}").content == file.read_bytes()


def test_one_run_is_shown_at_once(folder):
    page = Page(folder / "runs" / "first", LOAD)
    client = Client(page)
    answer = client.get("/")
    assert answer.status_code == 307
    assert ">first</h1>" in client.get(answer.headers["location"]).text


def test_a_name_is_no_markup(tmp_path):
    copy_run(tmp_path, "<img src=x onerror=alert(1)>")
    page = Page(tmp_path, LOAD)
    client = Client(page)
    text = client.get(f"/runs/{next(iter(page.listing.runs()))}").text
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_about_a_network(client, run, folder):
    told = client.get(f"{run}/about").json()
    weights = LOAD(folder / "runs" / "first").weights["conv1.weight"]
    assert (told["network"], told["crop"], told["classes"], told["data"]) == ("alexnet-tiny", 32, 3, True)
    assert [tower["filters"] for tower in told["towers"]] == [len(weights) // 2] * 2
    for tower, own in zip(told["towers"], np.split(weights, 2), strict=True):
        shown = pixels(tower["pixels"], len(own), 7, 7, 3).transpose(0, 3, 1, 2)
        largest = np.abs(own).max(axis=(1, 2, 3), keepdims=True)
        np.testing.assert_allclose(shown, 127.5 + 127.5 * own / largest, atol=0.51)
        assert len(tower["colour"]) == len(own)
    assert [one["layer"] for one in told["crossing"]] == ["conv3", "fc6", "fc7", "fc8"]


def test_a_picture_that_is_sent_and_the_same_that_is_stored(client, run):
    """Five bars where there are five classes; here all three."""
    stored = client.get(f"{run}/look/val/7").json()
    sent = client.post(f"{run}/look", content=client.get(f"{run}/pictures/val/7.png").content).json()
    assert stored["truth"] in ("blue", "green", "red")
    assert sent["truth"] is None
    assert sent["token"] != stored["token"]
    for name in ("seen", "drawn", "guesses", "layers", "side"):
        assert sent[name] == stored[name]
    assert sum(guess["probability"] for guess in sent["guesses"]) == pytest.approx(1, abs=1e-6)
    assert sorted(guess["label"] for guess in sent["guesses"]) == ["blue", "green", "red"]
    assert pixels(sent["seen"], 32, 32, 3).std() > 1
    names = "conv1 norm1 pool1 conv2 norm2 pool2 conv3 conv4 conv5 pool5 fc6 drop6 fc7 drop7 fc8"
    assert [layer["name"] for layer in sent["layers"]] == names.split()
    for layer in sent["layers"]:
        shown = [pixels(t["values"], t["maps"], layer["height"], layer["width"]) for t in layer["towers"]]
        assert max(np.abs(values.astype(int) - 128).max() for values in shown) == 127  # one scale for both
        assert len(shown) == (1 if layer["name"] == "fc8" else 2)


def test_a_picture_takes_the_way_of_all_pictures(client, run):
    raw = png(3, (90, 50))
    found = client.post(f"{run}/look", content=raw).json()
    np.testing.assert_array_equal(pixels(found["seen"], 32, 32, 3), decode_square(io.BytesIO(raw), 37, 16)[2:34, 2:34])


def test_what_is_computed_for_a_picture(client, run):
    token = client.get(f"{run}/look/val/0").json()["token"]
    found = client.get(f"{run}/seen/{token}/occlusion").json()
    assert found["square"] == 8
    assert len(found["maps"]) == 3
    assert all(pixels(one["values"], 32, 32).shape for one in found["maps"])
    while not (found := client.get(f"{run}/seen/{token}/neighbours").json())["finished"]:
        time.sleep(0.01)
    assert len(found["nearest"]) == 6
    while not (found := client.get(f"{run}/confusion").json())["finished"]:
        time.sleep(0.01)
    assert found["images"] == 12
    assert sentence(client.get(f"{run}/seen/0123/occlusion"), 410) == "this picture is no longer kept; choose it again"


def test_examples_and_their_pictures(client, run):
    found = client.get(f"{run}/examples").json()["pictures"]
    assert len(found) == 12
    for one in found[:3]:
        answer = client.get(f"{run}/pictures/{one['split']}/{one['index']}.png")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == (37, 37)


# ---- while it is written


def test_records_are_told_as_they_come(tmp_path):
    """The page ends after some looks; in between a line is written in two halves, and a run appears."""
    run = copy_run(tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:3]))
    looks = itertools.count()

    def closing() -> bool:
        look = next(looks)
        with open(run / "metrics.jsonl", "a") as file:
            if look == 1:
                file.write(lines[3] + lines[4][:20])
            if look == 2:
                file.write(lines[4][20:])
        if look == 3:
            copy_run(tmp_path, "second")
        return look == 5

    page = Page(tmp_path, LOAD, closing)
    server.PERIOD, before = 0.01, server.PERIOD
    try:
        client = Client(page)
        answer = client.get("/live")
    finally:
        server.PERIOD = before
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer)
    first = next(iter(page.listing.runs()))
    seen = [len(about["records"]) for kind, about in told if kind == "records" and about["run"] == first]
    assert seen == [3, 1, 1]
    assert [[one["name"] for one in about["runs"]] for kind, about in told if kind == "runs"] == [
        ["first"],
        ["first", "second"],
    ]


def test_a_run_without_a_checkpoint_has_curves_and_a_sentence(tmp_path):
    run = copy_run(tmp_path)
    shutil.rmtree(run / "checkpoints")
    (run / "best").unlink()
    calls = itertools.count()
    page = Page(tmp_path, LOAD, lambda: next(calls) == 1)
    client = Client(page)
    home = f"/runs/{next(iter(page.listing.runs()))}"
    assert ">first</h1>" in client.get(home).text
    assert [kind for kind, _ in events(client.get(f"{home}/live"))] == ["runs", "records"]
    assert "expected a checkpoint in checkpoints/, found none" in client.get(f"{home}/about").json()["waiting"]
    assert "expected a checkpoint in checkpoints/, found none" in sentence(client.get(f"{home}/look/val/0"), 422)
    page.study.close()


def test_weights_without_data_can_be_looked_at(folder, tmp_path):
    """A file that convnet-export wrote has no curves, no validation pictures, and takes pictures."""
    assert export.main([str(folder / "runs" / "first"), "-o", str(tmp_path / "mine.safetensors"), "-q"]) == 0
    page = Page(tmp_path / "mine.safetensors", LOAD)
    client = Client(page)
    home = client.get("/").headers["location"]
    about = client.get(f"{home}/about").json()
    assert (about["data"], about["step"]) == (False, None)
    found = client.post(f"{home}/look", content=png())
    assert [guess["label"] for guess in sorted(found.json()["guesses"], key=lambda guess: guess["label"])] == [
        *("blue", "green", "red")
    ]
    assert "says nothing of data" in sentence(client.get(f"{home}/examples"), 422)
    page.study.close()


def test_networks_of_other_kinds(tmp_path, monkeypatch):
    """What is alike by is what the last layer reads; a graph is refused."""
    options = ["--model", "lenet5", "--device", "cpu", "--steps", "1", "--width", "0.5", "-b", "16"]
    assert here("shapes", *options, "-o", str(tmp_path / "lenet")) == 0
    page = Page(tmp_path, LOAD)
    client = Client(page)
    home = f"/runs/{next(iter(page.listing.runs()))}"
    assert client.get(f"{home}/about").json()["filters"] == {"layer": "conv1", "side": 5}
    token = client.post(f"{home}/look", content=png()).json()["token"]
    assert client.get(f"{home}/seen/{token}/neighbours").json()["layer"] == "fc6"
    page.study.close()
    spec = load_trained(tmp_path / "lenet", print).spec
    graph = replace(spec, layers=(*spec.layers[:-1], replace(spec.layers[-1], terms=(Term("conv1"),))))
    monkeypatch.setattr(Trained, "spec", graph)
    page = Page(tmp_path, LOAD)
    client = Client(page)
    for address in ("about", "look/val/0", "confusion"):
        assert '"lenet5" is no chain of layers' in sentence(client.get(f"{home}/{address}"), 422)
    page.study.close()


def test_a_damaged_checkpoint_is_a_sentence(tmp_path):
    run = copy_run(tmp_path)
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"damaged")
    page = Page(tmp_path, LOAD)
    client = Client(page)
    assert "damaged" in client.get(f"/runs/{next(iter(page.listing.runs()))}/about").json()["waiting"]
    page.study.close()


# ---- who may ask


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8012",
        "127.0.0.1",
        "127.0.0.1:80",
        "localhost:8013",
        "[::1]:8012",
        "0.0.0.0:8012",
        "",
    ],
)
@pytest.mark.parametrize("address", ["/", "/live", "/static/explore.js", "/runs/x/about", "/nowhere"])
def test_other_hosts_are_refused(host, address, client):
    """A name of somebody else that has come to stand for 127.0.0.1 is no way in."""
    assert "for this machine alone" in sentence(client.get(address, headers={"host": host}), 421)


def test_two_hosts_are_refused(client):
    hosts = [("host", "127.0.0.1:8012"), ("host", "evil.example")]
    assert sentence(client.get("/", headers=hosts), 421)


def test_both_names_of_this_machine_are_taken(client):
    assert client.get("/", headers={"host": "localhost:8012"}).status_code == 200
    assert client.get("/", headers={"host": "LOCALHOST:8012"}).status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:8013", "https://127.0.0.1:8012"]
)
def test_other_pages_send_nothing(origin, client, run):
    headers = {} if origin is None else {"origin": origin}
    assert "only this page itself" in sentence(
        client.request("POST", f"{run}/look", content=png(), headers=headers), 403
    )


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_embed_nothing(site, client, run):
    """They may lead here, no more."""
    embedded = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
    assert sentence(client.get(f"{run}/pictures/val/0.png", headers=embedded), 403)
    for headers in (embedded, link):
        assert sentence(client.request("POST", f"{run}/look", content=png(), headers={**OWN, **headers}), 403)
    assert client.get("/", headers=link).status_code == 200


def test_every_answer_says_what_browsers_may_do(client, run):
    for answer in (
        client.get("/"),
        client.get(f"{run}/about"),
        client.get("/nowhere"),
        client.get("/", headers={"host": "evil.example"}),
        client.get(f"{run}/pictures/val/0.png"),
    ):
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy.pop("default-src") == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


# ---- what may be asked for

WAYS_OUT = [
    "../secret.txt",
    "..%2fsecret.txt",
    "%2e%2e/secret.txt",
    "%2e%2e%2fsecret.txt",
    "..%252fsecret.txt",
    "..\\secret.txt",
    "..%5csecret.txt",
    "....//secret.txt",
    "%c0%ae%c0%ae/secret.txt",
    "..%00/secret.txt",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "metrics.jsonl",
    "first",
    "first/metrics.jsonl",
    "checkpoints/step-00000010.safetensors",
]
PLACES = [
    "/",
    "/static/",
    "/static/../",
    "/runs/",
    "RUN/",
    "RUN/pictures/",
    "RUN/pictures/val/",
    "RUN/look/train/",
    "RUN/seen/",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_address_leads_out(place, client, run, folder):
    """As they are written: a client that tidies an address up first would hide the question."""
    (folder / "runs" / "secret.txt").write_text("a secret")
    for way in WAYS_OUT:
        for ending in ("", ".png", "/about", "/0", "/0.png"):
            answer = client.raw(place.replace("RUN", run) + way + ending)
            assert answer.status_code in (404, 410, 307), (place, way, ending, answer.text)
            assert "secret" not in answer.text
            assert "root:" not in answer.text


@pytest.mark.parametrize("index", ["12", "-1", "1e0", "0x1", "%D9%A1", "999999999999999999999", "NaN", "0.0"])
def test_numbers_of_pictures_that_are_none(index, client, run):
    assert sentence(client.raw(f"{run}/look/val/{index}"), 404)
    assert sentence(client.raw(f"{run}/pictures/val/{index}.png"), 404)
    assert sentence(client.raw(f"{run}/pictures/test/0.png"), 404)


def test_methods_that_are_not_meant(client, run):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, f"{run}/about", headers=OWN).status_code == 405
    assert client.get(f"{run}/look").status_code == 405
    assert client.post("/").status_code == 405


# ---- hostile pictures


def bomb() -> bytes:
    """A PNG of a few bytes that would be 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


HOSTILE = {
    "nothing": (b"", "the file is empty"),
    "text": (b"<html><script>alert(1)</script>", "cannot be read"),
    "half of one": (png()[:200], "PNG"),
    "a bomb": (bomb(), "10000000000 pixels"),
    "a script in SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "cannot be read"),
    "zeros": (bytes(10_000), "cannot be read"),
    "a strip": (png(0, (1, 3000)), "strip|cannot"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_one_sentence(name, client, run, folder, tmp_path, monkeypatch):
    raw, told = HOSTILE[name]
    before = sorted(folder.rglob("*"))
    answer = client.post(f"{run}/look", content=raw)
    if name == "a strip":  # is a picture, if a strange one
        assert answer.status_code == 200
    else:
        assert re.search(told, sentence(answer, 422))
    assert sorted(folder.rglob("*")) == before
    answer = client.get(f"{run}/look/val/0")
    assert answer.status_code == 200, answer.text


# ---- a kernel under glass


@pytest.fixture
def watched():
    pytest.importorskip("convnet.kernels._glass", reason="convnet.kernels._glass is not built")


def test_a_kernel_under_glass_is_what_the_command_shows(client, watched):
    empty = client.get("/kernels")
    assert empty.status_code == 200
    assert "<option>relu_forward</option>" in empty.text
    assert "<pre" not in empty.text
    answer = client.get("/kernels?op=pack&sizes=N%3D64+C%3D5&precision=bf16&without=1")
    assert "<option selected>pack</option>" in answer.text
    assert "<option selected>bf16</option>" in answer.text
    (shown,) = re.findall(r"<pre[^>]*>(.*?)</pre>", answer.text, re.DOTALL)
    assert html.unescape(shown) == glass_text.as_text(glass.look("pack", "N=64 C=5", "bf16", 1))


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("op=nonsense", "there is no op"),
        ("op=pack&sizes=%3Cscript%3E%3D3", "script"),
        ("op=pack&precision=fp64", "fp64"),
        ("op=pack&without=999", "has no call 999"),
        ("op=pack&without=-1", "is a number in the list of calls"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(query, told, client, watched):
    answer = client.get(f"/kernels?{query}")
    assert answer.status_code == 200
    (error,) = re.findall(r'<p class="error" role="alert">(.*?)</p>', answer.text)
    assert told in html.unescape(error)
    assert "<script>=" not in answer.text
    assert "<pre" not in answer.text


def test_a_link_of_another_site_runs_no_kernel(client, monkeypatch):
    monkeypatch.setattr(server, "_under_glass", lambda **_: pytest.fail("a kernel ran"))
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    answer = client.get("/kernels?op=pack", headers=headers)
    assert answer.status_code == 200
    assert "<option selected>pack</option>" in answer.text


def test_a_picture_that_is_too_large_is_not_read(client, run, monkeypatch):
    monkeypatch.setattr(server, "MAX_BYTES", 1000)
    told = "this picture is too large; the limit is 1,000 bytes"
    assert sentence(client.post(f"{run}/look", content=png(0, (40, 40))), 413) == told

    async def parts():  # without a length in front
        for _ in range(10):
            yield bytes(300)
        raise AssertionError("read to its end")

    assert sentence(client.post(f"{run}/look", content=parts()), 413) == told


def test_pictures_are_not_written(client, run, monkeypatch):
    """Nowhere: neither beside the run nor into a temporary folder."""
    written: list[tuple] = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and watching and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(arguments)

    watching = True
    sys.addaudithook(watch)  # which stays, but says nothing later
    try:
        assert client.post(f"{run}/look", content=png(0, (1500, 1500))).status_code == 200
        assert written == []
        with open(os.devnull, "w"):
            assert len(written) == 1
    finally:
        watching = False


def test_a_mistake_of_ours_is_told_and_shown_on_the_terminal(page, run, monkeypatch, capsys):
    monkeypatch.setattr(server, "_about", lambda subject: 1 / 0)
    client = Client(page)
    told = sentence(client.get(f"{run}/about"), 500)
    assert told == "ZeroDivisionError: division by zero (a mistake of ours; the terminal says where)"
    assert "Traceback" in capsys.readouterr().err
