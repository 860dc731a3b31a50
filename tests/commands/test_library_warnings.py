"""What libraries warn of reaches the screen where it is asked for alone; our own warnings always do."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings

import pytest
from data_files import picture
from PIL import Image
from runs import ENVIRONMENT, call, command, spawn

from convnet.cli.train import main

# a command whose libraries and modules warn in every way they have
WARN = """
import logging, sys, warnings
import convnet.training.train as train
from convnet.cli.train import main

def run(*_, **_options):
    warnings.warn("of Pillow", UserWarning)
    warnings.warn("of a picture", __import__("PIL.Image").Image.DecompressionBombWarning)
    warnings.warn("of NumPy", RuntimeWarning)
    logging.getLogger("PIL.TiffImagePlugin").warning("log of Pillow")
    logging.getLogger("matplotlib.font_manager").error("log of matplotlib")
    logging.getLogger("convnet.data").warning("ours")
    return 0

train.run = run
sys.exit(main())
"""
LIBRARIES = ("of Pillow", "of a picture", "of NumPy", "log of Pillow", "log of matplotlib")


def said(*arguments: str, python: tuple[str, ...] = (), **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *python, "-c", WARN, *arguments],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **variables},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_only_ours_are_shown():
    assert said() == "warning: ours\n"


@pytest.mark.parametrize("way", ["-v", "-W", "PYTHONWARNINGS"])
def test_libraries_are_shown_to_those_who_ask(way):
    shown = {
        "-v": lambda: said("-v"),
        "-W": lambda: said(python=("-W", "default")),
        "PYTHONWARNINGS": lambda: said(PYTHONWARNINGS="default"),
    }[way]()
    assert "warning: ours\n" in shown
    wanted = LIBRARIES if way == "-v" else LIBRARIES[:3]  # Python's options are about warnings
    assert all(text in shown for text in wanted), shown
    assert way == "-v" or "log of" not in shown


def test_a_filter_that_makes_warnings_errors_still_does(monkeypatch, capsys):
    monkeypatch.setattr(
        "convnet.training.train.run", lambda *_, **_options: warnings.warn("of NumPy", RuntimeWarning, 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(main) == 1
    assert capsys.readouterr().err == "convnet-train: error: RuntimeWarning: of NumPy (-v shows where)\n"


def test_a_program_that_calls_a_command_gets_its_warnings_back(monkeypatch):
    before = warnings.showwarning
    monkeypatch.setattr("convnet.training.train.run", lambda *_, **_options: int(warnings.showwarning is before))
    assert call(main) == 0
    assert call(main, "-v") == 1
    assert warnings.showwarning is before
    assert not logging.getLogger("convnet").handlers


def broken_exif() -> bytes:
    """A good JPEG whose EXIF data make Pillow warn."""
    file = io.BytesIO()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0"
    picture(80, 90, seed=1).save(file, "JPEG", exif=exif)
    with pytest.warns(UserWarning, match="EXIF"), Image.open(file) as image:
        image.getexif()
    return file.getvalue()


def test_pictures_with_broken_exif_are_used_without_a_word(tmp_path):
    """By convnet-prepare in processes of its own, and by others in threads."""
    raw = broken_exif()
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(2):
                (tmp_path / "images" / part / name / f"{i}.jpg").write_bytes(raw)
    options = ["--size", "48", "-q"]
    for workers in ("1", "2"):
        target = str(tmp_path / f"store{workers}")
        done = command("prepare", str(tmp_path / "images"), target, *options, "-j", workers)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    train = ["--device", "cpu", "--steps", "1", "-b", "2", "--crop", "32", "--width", "0.25", "-q"]
    process = spawn(str(tmp_path / "images"), *train, "-o", str(tmp_path / "run"))
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0
