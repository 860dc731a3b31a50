"""The command: where the page is, whom it answers on a real socket, and one sentence for every mistake."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import threading

import pytest
from browsers import EXPLORE, served
from pages import copy_run, png
from runs import call, spawn

from convnet.cli import explore


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = tmp_path_factory.mktemp("command")
    (found / "secret.txt").write_text("a secret")
    copy_run(found / "runs")
    return found / "runs"


@pytest.fixture(scope="module")
def port(runs):
    with served(runs) as address:
        yield int(address.rstrip("/").rpartition(":")[2])


def exchange(port: int, request: bytes) -> bytes:
    """What comes back for these very bytes."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(request)
        found = b""
        while part := connection.recv(2**16):
            found += part
        return found


def get(port: int, address: str, host: str | None = None) -> tuple[int, bytes]:
    text = f"GET {address} HTTP/1.1\r\nHost: {host or f'127.0.0.1:{port}'}\r\nConnection: close\r\n\r\n"
    head, _, body = exchange(port, text.encode("latin-1")).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def run_of(port: int) -> str:
    """The address of the first run, as the page is told it."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"GET /live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        told = b""
        while not (found := re.search(rb'"id": "(\w+)"', told)):
            told += connection.recv(2**16)
    return f"/runs/{found[1].decode()}"


def test_it_listens_on_this_machine_alone(port):
    """At that one address: what listens at all of a machine's would answer at its other one, too."""
    with socket.create_connection(("127.0.0.1", port), 60):
        pass
    for address in ("127.0.0.2", "::1"):
        with pytest.raises(OSError, match=r"refused|assign|unreachable"):
            socket.create_connection((address, port), 60)


def test_another_host_gets_nothing_from_the_socket_either(port):
    assert get(port, "/")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
        assert get(port, "/", host)[0] == 421
        assert get(port, run_of(port), host)[0] == 421
    assert b" 400 " in exchange(port, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    two = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert re.match(rb"HTTP/1.1 4\d\d ", exchange(port, two.encode()))
    absolute = f"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    assert re.match(rb"HTTP/1.1 (200|4\d\d) ", exchange(port, absolute.encode()))


@pytest.mark.parametrize(
    "way",
    ["/../secret.txt", "/static/../../secret.txt", "/static/%2e%2e/%2e%2e/secret.txt", "/static/..%2f..%2fsecret.txt"],
)
def test_no_way_out_by_the_socket(way, port):
    run = run_of(port)
    for address in (way, run + way, f"{run}/pictures/val{way}", f"{run}/pictures/val{way}.png", f"{run}/look/val{way}"):
        status, body = get(port, address)
        assert status in (404, 307), address
        assert b"a secret" not in body


def test_a_picture_by_the_socket(port):
    """And one that says to be larger than it may be is refused before it comes."""
    run, content = run_of(port), png()
    head = f"POST {run}/look HTTP/1.1\r\nConnection: close\r\n"
    head += f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
    found = exchange(port, f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    told = json.loads(found.partition(b"\r\n\r\n")[2])
    assert len(told["guesses"]) == 3
    found = exchange(port, f"{head}Content-Length: 99999999999\r\n\r\n".encode() + content)
    assert found.startswith(b"HTTP/1.1 413 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"].startswith("this picture is too large")


def test_the_next_free_port_is_taken(runs):
    with served(runs) as first, served(runs) as second:
        ports = [int(address.rstrip("/").rpartition(":")[2]) for address in (first, second)]
    assert ports[0] < ports[1]
    assert ports[0] in explore.PORTS


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_port_is_chosen(runs):
    port = free_port()
    with served(runs, "--port", str(port)) as address:
        assert address == f"http://127.0.0.1:{port}/"
        assert get(port, "/")[0] == 200


def refusal(capsys, *arguments: str, code: int) -> str:
    assert call(explore.main, *arguments, "--no-browser") == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1, told.err
    return told.err


def test_a_port_that_is_taken(runs, port, capsys):
    told = refusal(capsys, str(runs), "--port", str(port), code=2)
    assert told == (
        f"convnet-explore: error: --port {port} cannot be had (Address already in use); name another, or leave it out "
        "for the first free one\n"
    )


def test_all_ports_are_taken(runs, port, capsys, monkeypatch):
    monkeypatch.setattr(explore, "PORTS", range(port, port + 1))
    assert "are all taken; name a free one with --port" in refusal(capsys, str(runs), code=2)


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_a_port_that_is_none(port, runs, capsys):
    assert "--port must be 1 to 65535, got" in refusal(capsys, str(runs), f"--port={port}", code=2)


def test_no_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = refusal(capsys, code=4)
    assert told == "convnet-explore: error: runs: there is no such run, nor a folder of runs; convnet-train makes one\n"
    copy_run(tmp_path / "runs")
    assert "(did you mean runs/first?)" in refusal(capsys, "runs/frist", code=4)


@pytest.mark.parametrize("module", ["starlette", "uvicorn", "jinja2"])
def test_without_the_extra(module, runs, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == module or name in ("convnet.explore.serving", "convnet.explore.server"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    told = refusal(capsys, str(runs), code=2)
    assert re.search(r'needs Starlette, uvicorn and jinja2 \(.*\): pip install "convnet\[explore\]"$', told.strip())


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_end_it_while_somebody_watches_and_something_is_computed(number, code, tmp_path):
    copy_run(tmp_path)
    process = spawn(str(tmp_path), "--no-browser", code=EXPLORE)
    port = int(process.stdout.readline().split("/ (")[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 60) as watching:
        watching.sendall(f"GET /live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert watching.recv(1).startswith(b"H")
        assert get(port, f"{run_of(port)}/confusion")[0] == 200
        process.send_signal(getattr(signal, number))
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output, errors.strip()) == (code, "", "convnet-explore: stopped")


def test_a_folder_without_a_run_waits_for_one(tmp_path):
    with served(tmp_path) as address:
        assert get(int(address.rstrip("/").rpartition(":")[2]), "/")[0] == 200


@pytest.mark.parametrize(("variables", "opened"), [({"DISPLAY": ":0"}, True), ({"BROWSER": "x"}, True), ({}, False)])
def test_a_browser_is_opened_where_there_is_a_display(variables, opened, runs, monkeypatch, capsys):
    """One in the terminal would take it over."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told: list[str] = []
    done = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda address: (told.append(address), done.set()))
    monkeypatch.setattr("convnet.explore.serving.serve", lambda *_: opened and done.wait(60))
    assert call(explore.main, str(runs)) == 0
    line = capsys.readouterr().out
    assert told == ([re.search(r"http://\S+", line)[0]] if opened else [])
