"""The site: it is built without a warning, fetches nothing, and has what the project says elsewhere, once."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from runs import ENVIRONMENT

pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install ".[docs]"')
pytest.importorskip("material", reason='mkdocs-material is not installed: pip install ".[docs]"')
pytest.importorskip("mkdocstrings", reason='mkdocstrings is not installed: pip install ".[docs]"')

import site_hooks
import tour
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
FETCHING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as a stranger does it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**ENVIRONMENT, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    return folder


def fetched(html: str) -> list[str]:
    """What a browser gets by itself when it shows the page."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            given = dict(attributes)
            if tag == "link" and not {"canonical", "next", "prev"} & set((given.get("rel") or "").split()):
                found.append(given.get("href") or "")
            if tag in FETCHING:
                found.append(given.get(FETCHING[tag]) or "")

    Reader().feed(html)
    return found


def elsewhere(address: str) -> bool:
    return bool(re.match(r"(\w+:)?//", address))


def test_what_is_fetched_is_seen():
    html = '<link rel="stylesheet" href="https://fonts.example/a.css"><script src="//cdn.example/b.js"></script>'
    assert [*map(elsewhere, fetched(html + '<img src="c.png"><a href="https://d.example">'))] == [True, True, False]


def test_nothing_is_fetched_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        assert [address for address in fetched(page.read_text()) if elsewhere(address)] == [], page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", style.read_text()), style


def test_chapters_are_pages_with_what_came_out_of_them(site):
    for path in tour.chapters():
        html = (site / "tour" / f"{path.stem}.html").read_text()
        assert re.search(rf'<img alt="[^"]+" src="{path.stem}-1\.png"', html)
        assert 'class="output' in html
        assert (site / "tour" / path.name).exists()  # to take along


def test_pages_have_what_they_take_from_elsewhere(site):
    for page in (ROOT / "docs").rglob("*.md"):
        html = (site / page.relative_to(ROOT / "docs").with_suffix(".html")).read_text()
        assert "<!-- from" not in html, page
    assert "A state dict of torchvision" in (site / "how-to" / "weights.html").read_text()
    assert 'src="curves.png"' in (site / "index.html").read_text()
    assert 'src="../predictions.png"' in (site / "how-to" / "figures.html").read_text()
    assert 'href="../reliability.html"' in (site / "how-to" / "trouble.html").read_text()
    assert "The Hopper family" in (site / "kernels.html").read_text()


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("network", ["convnet.Network.train_step", "convnet.Network.exchanges"]),
        ("functional", ["convnet.functional.conv2d", "convnet.functional.sgd"]),
        ("classifier", ["convnet.classifier.Classifier.fit"]),
        ("interop", ["convnet.interop.export_onnx", "convnet.interop.load"]),
        ("torch", ["convnet.torch.Conv2d", "convnet.torch.linear"]),
    ],
)
def test_the_reference_is_there(site, page, names):
    html = (site / "api" / f"{page}.html").read_text()
    assert [name for name in names if f'id="{name}"' not in html] == []


# ---- what mkdocs is helped with ----


def test_a_chapter_that_fails_ends_the_build_with_its_name(tmp_path, monkeypatch):
    pooling = next(path for path in tour.chapters() if "pooling" in path.stem)
    wrong = tmp_path / pooling.name
    wrong.write_text(pooling.read_text().replace("== (27, 27)", "== (28, 28)"))
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    monkeypatch.setattr(tour, "chapters", lambda: [wrong])
    with pytest.raises(PluginError, match=r"2-pooling\.ipynb fails:(.|\n)*AssertionError"):
        site_hooks.on_files(Files([]), None)


def test_the_text_below_a_heading(tmp_path, monkeypatch):
    monkeypatch.setattr(site_hooks, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(
        "# All\n\none\n\n## Part\n\n```sh\n# no heading\n```\ntwo, [three](docs/three.md#there), [four](src/four.md), "
        "![five](docs/five.png), [six](https://six.example)\n\n### Below\n\nseven\n"
    )
    taken = site_hooks._taken("README.md", "Part", "how-to", Files([]))
    assert taken.strip() == (
        "```sh\n# no heading\n```\ntwo, [three](../three.md#there), four (`src/four.md`), ![five](../five.png), "
        "[six](https://six.example)"
    )
    assert site_hooks._taken("README.md", None, "", Files([])).strip().endswith("### Below\n\nseven")
    with pytest.raises(PluginError, match=r'README\.md has no heading "Nothing"'):
        site_hooks._taken("README.md", "Nothing", "", Files([]))
