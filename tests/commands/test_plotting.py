"""Figures and the settings of matplotlib that a user has: the same bytes whatever those are, and theirs left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ELSEWHERE, ENVIRONMENT, shared_folder, straight_run

# Draws one figure of every kind that has text, lines, pictures or bars, in both formats, and tells their hashes.
DRAW = """
import hashlib, sys
from pathlib import Path
import numpy as np
from convnet.output import figures
steps = [{"event": "train", "step": s, "loss": 2 / s, "top1_error": 0.5, "lr": 0.01} for s in range(1, 20)]
records = [*steps, {"event": "valid", "step": 19, "loss": 1.0, "top1_error": 0.25}]
filters = np.random.default_rng(0).normal(size=(32, 3, 5, 5)).astype(np.float32)
for suffix in (".png", ".svg"):
    figures.save_curves(Path(sys.argv[1]) / ("c" + suffix), {"a_$b$": records}, "a_$b$")
    figures.save_filters(Path(sys.argv[1]) / ("f" + suffix), filters, 2, "conv1")
    figures.save_confusion(Path(sys.argv[1]) / ("m" + suffix), np.diag([1, 2]), ["caf\\u00e9", "x_y"], [])
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""
SETTINGS = """
backend: Nowhere
text.usetex: True
font.family: fantasy, Nobody's Sans
font.size: 31
axes.formatter.use_locale: True
axes.facecolor: red
axes.grid: True
figure.dpi: 7
figure.autolayout: True
lines.linewidth: 9
lines.marker: x
path.sketch: 1, 100, 2
image.cmap: viridis
image.interpolation: nearest
savefig.bbox: tight
savefig.transparent: True
savefig.facecolor: green
svg.fonttype: path
svg.hashsalt: other
svg.image_inline: False
xtick.direction: in
no.such.setting: 3
without a colon
"""


def drawn(folder: Path, environment: dict[str, str], code: str = DRAW, *arguments: str) -> tuple[str, str]:
    """Output and errors of ``code``, in its own process, in ``folder``; a warning in it is an error."""
    figures = folder / "figures"
    figures.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE + code, str(figures), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def at_home(folder: Path, **variables: str) -> dict[str, str]:
    """An environment with a home of its own and without variables of matplotlib."""
    names = ("MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "DISPLAY")
    kept = {name: value for name, value in ENVIRONMENT.items() if name not in names}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(shared_folder() / "cache"), **variables}  # of fonts


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What is drawn where there are no settings."""
    folder = tmp_path_factory.mktemp("plain")
    hashes, errors = drawn(folder, at_home(folder))
    assert errors == ""
    assert len(hashes.splitlines()) == 6
    return hashes


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "module://no.such", "Qt5Agg", "?"])
def test_whatever_backend_is_asked_for(backend, plain, tmp_path):
    assert drawn(tmp_path, at_home(tmp_path, MPLBACKEND=backend))[0] == plain


@pytest.mark.parametrize("place", ["here", "named", "named folder", "home"])
def test_whatever_a_settings_file_says(place, plain, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = tmp_path / "home" / ".config" / "matplotlib"
    config.mkdir(parents=True)
    folder = {"here": tmp_path, "home": config}.get(place, other)
    (folder / "matplotlibrc").write_text(SETTINGS)
    named = {"named": str(other / "matplotlibrc"), "named folder": str(other)}.get(place)
    environment = at_home(tmp_path, **({"MATPLOTLIBRC": named} if named else {}))
    asked = drawn(tmp_path, environment, "import matplotlib; print(matplotlib.rcParams['font.size'], sys.argv[1])")[0]
    assert asked.startswith("31.0 ")  # matplotlib does read it
    (tmp_path / "figures").rmdir()
    assert drawn(tmp_path, environment)[0] == plain


@pytest.mark.parametrize("broken", ["no text", "nobody may read it"])
def test_a_settings_file_that_keeps_matplotlib_from_being_imported(broken, plain, tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\x00" if broken == "no text" else b"")
    environment = at_home(tmp_path, MPLBACKEND="?")
    if broken != "no text":
        (tmp_path / "matplotlibrc").unlink()
        os.symlink("/proc/self/mem", tmp_path / "matplotlibrc")  # an error for root, too
    asked = "try:\n    import matplotlib\nexcept Exception as error:\n    print('refused')\n"
    assert drawn(tmp_path, environment, asked)[0] == "refused\n"
    (tmp_path / "figures").rmdir()
    assert drawn(tmp_path, environment)[0] == plain


SHOW = """
import hashlib, pathlib
from convnet.cli.show import main
assert main([sys.argv[2], "curves", "-q", "-o", sys.argv[1] + "/c.png"]) == 0
print(hashlib.sha256(pathlib.Path(sys.argv[1], "c.png").read_bytes()).hexdigest())
"""


@pytest.mark.parametrize("home", ["missing", "a file", "read-only", "not named", "damaged cache"])
def test_whatever_the_home_is_like_the_command_draws_and_says_nothing(home, tmp_path):
    environment = at_home(tmp_path)
    expected = shown(tmp_path, environment)
    assert expected[1] == ""
    del environment["XDG_CACHE_HOME"]
    place = Path(environment["HOME"])
    if home == "missing":
        environment["HOME"] = str(tmp_path / "nowhere" / "home")
        (tmp_path / "nowhere").write_text("")  # which makes it impossible also for root
    elif home == "a file":
        shutil.rmtree(place)
        place.write_text("")
    elif home == "read-only":
        shutil.rmtree(place)
        place.mkdir()
        (place / ".config").write_text("")
        (place / ".cache").write_text("")
    elif home == "not named":
        del environment["HOME"]
        environment |= {"XDG_CONFIG_HOME": "/proc/no", "XDG_CACHE_HOME": "/proc/no"}
    else:
        shown(tmp_path, environment)
        caches = list(place.rglob("fontlist*.json"))
        assert caches
        for cache in caches:
            cache.write_bytes(cache.read_bytes()[:100])
    assert shown(tmp_path, environment) == expected


def shown(folder: Path, environment: dict[str, str]) -> tuple[str, str]:
    """What ``SHOW`` says in ``folder``."""
    shutil.rmtree(folder / "figures", ignore_errors=True)
    return drawn(folder, environment, SHOW, str(straight_run()))


LIBRARY = """
import os, sys
from pathlib import Path
import numpy as np
from convnet.output import figures
import matplotlib
backend = dict.get(matplotlib.rcParams, "backend")
assert (os.environ.get("MPLBACKEND"), backend) == ("svg", "svg"), backend
assert matplotlib.rcParams["lines.linewidth"] == 9, "the user's own"
matplotlib.rcParams["font.size"] = 23
before = dict(matplotlib.rcParams)
figures.save_filters(Path(sys.argv[1]) / "f.png", np.ones((32, 3, 5, 5), np.float32), 2, "conv1")
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""


def test_a_program_that_imports_us_keeps_its_settings(tmp_path):
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 11\n")
    drawn(tmp_path, at_home(tmp_path, MPLBACKEND="svg"), LIBRARY)


def test_a_program_without_its_backend_keeps_the_variable_and_its_folder(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff")
    code = "from convnet.output import figures; import os; print(os.environ['MPLBACKEND'], os.getcwd())"
    assert drawn(tmp_path, at_home(tmp_path, MPLBACKEND="?"), code)[0] == f"? {tmp_path}\n"


def test_a_matplotlib_that_was_imported_before_is_taken_as_it_is(tmp_path):
    code = (
        "import matplotlib; matplotlib.use('pdf'); from convnet.output import figures, plotting; "
        "print(plotting.rcParams is matplotlib.rcParams, matplotlib.get_backend())"
    )
    assert drawn(tmp_path, at_home(tmp_path, MPLBACKEND="svg"), code)[0] == "True pdf\n"
