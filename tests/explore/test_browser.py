"""The page in a real browser: a picture is dropped, a curve grows, keys and narrow windows are enough."""

from __future__ import annotations

import base64

import pytest
from browsers import Browser, programs, served
from pages import copy_run, png
from runs import TINY, here, make_images, shared_images, spawn

CLASSES = ("ash", "beech", "cedar", "elm", "fir", "oak")
WINDOWS = {"wide": (1280, 900), "narrow": (360, 740)}

DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], arguments[1], {type: "image/png"}));
for (const kind of ["dragenter", "dragover", "drop"]) {
  document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
BARS = """return [...document.querySelectorAll("#bars li")].map((bar) =>
  [bar.querySelector(".label").textContent, bar.querySelector(".value").textContent])"""
# of every layer: its name, and of every tower how wide and high it is shown and how many colours that takes
MAPS = """return [...document.querySelectorAll("#layers .layer")].map((layer) => [
  layer.querySelector("h3").firstChild.textContent,
  [...layer.querySelectorAll("canvas")].map((canvas) => {
    const {width, height, left, right} = canvas.getBoundingClientRect();
    const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    return {width, height, left, right, colours: new Set(pixels).size};
  })])"""
# what has the focus, and how that is shown
FOCUS = """const at = document.activeElement;
const shown = at.type === "file" ? document.querySelector("label[for=file]") : at;
return [at.id || at.getAttribute("aria-label") || at.textContent.trim(), getComputedStyle(shown).outlineStyle]"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of six classes."""
    programs()
    folder = tmp_path_factory.mktemp("browsed")
    images = make_images(folder / "images", CLASSES)
    assert here(str(images), *TINY, "-o", str(folder / "runs" / "trees")) == 0
    return folder / "runs"


@pytest.fixture(scope="module")
def home(runs):
    with served(runs) as address:
        yield address


@pytest.fixture(params=WINDOWS)
def browser(request, home, tmp_path):
    found = Browser(tmp_path / "profile", *WINDOWS[request.param])
    try:
        yield found
        asked = found.requests()
        assert asked
        assert [address for address in asked if not address.startswith(home)] == []
        assert found.complaints() == []
        assert found.run("return document.documentElement.scrollWidth") <= WINDOWS[request.param][0]
    finally:
        found.close()


def open_run(browser: Browser, home: str, name: str = "trees") -> None:
    browser.driver.get(home)
    browser.until(f"return [...document.querySelectorAll('.card a')].find((a) => a.textContent === '{name}')").click()
    browser.until("return document.querySelectorAll('#bars li').length")


def drop(browser: Browser, content: bytes, name: str = "mine.png") -> None:
    browser.run(DROP, base64.b64encode(content).decode(), name)


def test_a_picture_is_dropped(browser, home):
    open_run(browser, home)
    browser.until("return document.querySelectorAll('#nearest img').length", lambda count: count == 6)
    drop(browser, png(5))
    browser.until("return document.getElementById('seen').ariaLabel", lambda told: "mine.png" in told)
    bars = browser.run(BARS)
    assert len(bars) == 5
    assert {label for label, _ in bars} < set(CLASSES)
    shares = [float(value.removeprefix("< ").removesuffix(" %")) for _, value in bars]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.3

    layers = browser.run(MAPS)
    names = "conv1 norm1 pool1 conv2 norm2 pool2 conv3 conv4 conv5 pool5 fc6 drop6 fc7 drop7 fc8"
    assert [name for name, _ in layers] == names.split()
    for name, towers in layers:
        assert len(towers) == (1 if name == "fc8" else 2)
        assert all(tower["width"] > 40 and tower["height"] > 5 for tower in towers), name
        assert all(tower["colours"] > 1 for tower in towers), name
        assert name == "fc8" or towers[0]["right"] <= towers[1]["left"]  # side by side, also in a narrow window
    assert browser.run("return document.querySelectorAll('.crossing').length") == 4
    assert browser.run("return document.querySelectorAll('#sees figure.tower').length") == 2

    browser.run("document.getElementById('matter').click()")
    browser.until("return !document.getElementById('heat').hidden")
    assert "falls by up to" in browser.run("return document.getElementById('heat-said').textContent")
    label = bars[2][0]
    browser.run("document.querySelectorAll('#bars button')[2].click()")
    browser.until("return document.getElementById('heat-said').textContent", lambda told: f"of {label} (" in told)

    browser.run("document.getElementById('confusion').scrollIntoView()")
    browser.until("return document.querySelectorAll('#square tbody tr').length", lambda count: count == 6)


def test_a_hostile_picture_is_a_sentence_on_the_page(browser, home):
    open_run(browser, home)
    before = browser.run(BARS)
    drop(browser, b"<script>alert(1)</script>", "<b>evil</b>.png")
    told = browser.until("return document.getElementById('trouble').textContent")
    assert told.startswith("this picture cannot be read: ")
    assert browser.run("return document.getElementById('trouble').checkVisibility()")
    assert browser.run(BARS) == before
    assert [one for one in browser.complaints() if "422" not in one] == []  # Chromium notes the status itself
    drop(browser, png(6))
    browser.until("return document.getElementById('trouble').hidden")


def test_a_file_is_chosen(browser, home, tmp_path):
    (tmp_path / "chosen.png").write_bytes(png(7))
    open_run(browser, home)
    browser.driver.find_element("id", "file").send_keys(str(tmp_path / "chosen.png"))
    browser.until("return document.getElementById('seen').ariaLabel", lambda told: "chosen.png" in told)


def test_a_curve_grows_while_a_run_trains(browser, home, runs, request):
    """In the folder's page, where the run appears by itself, and in its own."""
    name = f"new-{request.node.callspec.id}"
    browser.driver.get(home)
    browser.until("return document.querySelectorAll('.card').length")
    training = spawn(shared_images(), *TINY, "--epochs", "100000", "-o", str(runs / name))
    try:
        card = (
            f"[...document.querySelectorAll('.card')].find((card) => card.querySelector('a').textContent === '{name}')"
        )
        points = f"return Number({card}?.querySelector('svg').dataset.points ?? 0)"
        first = browser.until(points)
        browser.until(points, lambda count: count > first)
        browser.run(f"{card}.querySelector('a').click()")
        points = "return Number(document.getElementById('loss')?.dataset.points ?? 0)"
        first = browser.until(points)
        browser.until(points, lambda count: count > first)
        assert browser.run("return document.querySelectorAll('#loss path').length") >= 2
        training.terminate()
        browser.until("return document.getElementById('state').textContent", lambda told: "stopped at step" in told)
        browser.until("return document.querySelectorAll('#bars li').length", lambda count: count == 3)
    finally:
        training.kill()
        training.communicate()


def test_keys_reach_everything(browser, home):
    open_run(browser, home)
    browser.run("document.body.focus()")
    reached = []
    wanted = browser.run("return document.querySelectorAll('a, button, input, [tabindex]').length")
    for _ in range(wanted + 5):
        browser.press("TAB")
        reached.append(browser.run(FOCUS))
    names = [name for name, _ in reached]
    for name in (
        "All runs",
        "file",
        "matter",
        "conv1, tower 1: 8 maps",
        "conv1, tower 2: 8 maps",
        "fc7, tower 2: 32 values",
    ):
        assert name in names, names
    assert all(outline not in ("none", "") for name, outline in reached if name and "\n" not in name), reached


def test_maps_are_walked_by_arrow_keys(browser, home):
    open_run(browser, home)
    browser.run("document.querySelector('#layers canvas').focus()")
    browser.press("TAB")
    told = "return document.activeElement.getAttribute('aria-valuetext')"
    assert browser.run(told).startswith("map 1: mean ")
    browser.press("ARROW_RIGHT")
    assert browser.run(told).startswith("map 2: mean ")
    assert browser.run("return document.getElementById('lens-said').textContent").startswith("conv1, tower 2, map 2")
    browser.press("END")
    assert browser.run(told).startswith("map 8: mean ")


def test_what_is_drawn_is_told_too(browser, home):
    open_run(browser, home)
    browser.until("return document.querySelectorAll('#nearest img').length", lambda count: count == 6)
    untold = browser.run("""
        const nameless = (node) => !(node.getAttribute("alt") || node.getAttribute("aria-label") || node.ariaHidden);
        return [...document.querySelectorAll("img, canvas, svg")].filter(nameless).map((node) => node.outerHTML)""")
    assert untold == []
    assert browser.run("return document.querySelectorAll('h1').length") == 1
    assert browser.run("return document.documentElement.lang") == "en"


def test_both_schemes_of_colour(browser, home):
    """What is drawn changes with the page around it; filters have colours of their own."""

    def prefer(scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    paper = "return getComputedStyle(document.body).backgroundColor"
    maps, filters = (f"return document.querySelector('#{name} canvas').toDataURL()" for name in ("layers", "sees"))
    prefer("light")
    open_run(browser, home)
    before, drawn = browser.run(paper), browser.run(filters)
    light = browser.run(maps)
    prefer("dark")
    browser.until(maps, lambda dark: dark != light)
    assert browser.run(paper) != before
    assert browser.run(filters) == drawn


def test_a_run_without_a_checkpoint_shows_its_curves(browser, home, runs, request):
    name = f"bare-{request.node.callspec.id}"
    bare = copy_run(runs, name)
    for file in (bare / "checkpoints").iterdir():
        file.unlink()
    browser.driver.get(home)
    browser.until(f"return [...document.querySelectorAll('.card a')].find((a) => a.textContent === '{name}')").click()
    browser.until("return Number(document.getElementById('loss').dataset.points)")
    assert not browser.run("return document.getElementById('picture').checkVisibility()")
    assert browser.run("return document.getElementById('curves').checkVisibility()")
