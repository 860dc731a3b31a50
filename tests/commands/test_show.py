"""``convnet-show``: every figure in both formats, what is in it, and one clear line for every mistake."""

from __future__ import annotations

import base64
import io
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from runs import COLOURS, shared_images, straight_run

from convnet.analysis import evaluate, retrieval
from convnet.cli.show import WHATS, main
from convnet.output import figures
from convnet.training import checkpoint
from convnet.training.trained import load_trained

DEVICE = ["--device", "cpu", "-b", "8", "-q"]
SVG = "{http://www.w3.org/2000/svg}"


def show(*arguments: object) -> int:
    return main([*map(str, arguments), *DEVICE])


def texts(path) -> list[str]:
    """The pieces of text of an SVG file, in order."""
    return ["".join(found.itertext()).strip() for found in ElementTree.parse(path).iter(f"{SVG}text")]


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def colours(path) -> list[int]:
    """Of the images in an SVG file, in order, the strongest channel: the label of the images of these tests."""
    coded = re.findall(r"data:image/png;base64,([^\"]+)", path.read_text())
    found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")) for text in coded]
    return [int(image.mean(axis=(0, 1)).argmax()) for image in found]


@pytest.fixture
def opened():
    trained = load_trained(straight_run(), print)
    with trained.open_network("cpu", 8, fused=False) as network:
        yield trained.open_dataset(), network


@pytest.mark.parametrize("what", list(WHATS))
def test_every_figure_in_both_formats_twice_the_same(tmp_path, what):
    for name in ("a.png", "a.svg", "b.SVG"):
        assert show(straight_run(), what, "-o", tmp_path / name, "--queries", "2", "--limit", "8") == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.SVG").read_bytes()
    shown = pixels(tmp_path / "a.png")
    assert 300 <= shown.shape[0] <= 1500
    assert 700 <= shown.shape[1] <= 1500 or what == "confusion"
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50
    assert len(texts(tmp_path / "a.svg")) >= (1 if what == "filters" else 10)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.svg", "b.SVG"]


def test_curves_name_their_runs(tmp_path):
    other = tmp_path / "other-run"
    shutil.copytree(straight_run(), other)
    assert show(straight_run(), other, "curves", "-o", tmp_path / "two.svg") == 0
    found = texts(tmp_path / "two.svg")
    assert {"run", "other-run", "2 runs", "training (smoothed)", "validation", "learning rate", "step"} <= set(found)
    assert show(straight_run(), "-o", tmp_path / "one.svg", "curves") == 0  # an option between them
    assert "other-run" not in texts(tmp_path / "one.svg")


def test_curves_pass_through_the_records(tmp_path):
    def records(slope):
        train = [{"event": "train", "step": s, "loss": slope * s, "top1_error": 0.5, "lr": 0.01} for s in range(1, 21)]
        return [*train, {"event": "valid", "step": 20, "loss": 5.0, "top1_error": 0.25}]

    figures.save_curves(tmp_path / "a.svg", {"one": records(0.1), "two": records(0.2)}, "both")
    drawn = (tmp_path / "a.svg").read_text()
    for colour in figures.RUN_COLOURS[:2]:  # loss, error, rate, smoothed lines, points, a line of the legend
        assert drawn.count(f"stroke: {colour.lower()}") >= 8
    assert {"0.01", "both"} <= set(texts(tmp_path / "a.svg"))
    figures.save_curves(tmp_path / "b.svg", {f"run {k}": records(k) for k in range(9)}, "nine")
    assert {f"run {k}" for k in range(9)} <= set(texts(tmp_path / "b.svg"))


def test_empty_records_make_an_empty_figure(tmp_path):
    figures.save_curves(tmp_path / "a.png", {"new": []}, "new")
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(("filters", "towers", "rows"), [(96, 2, 3), (96, 1, 6), (32, 2, 2), (20, 1, 3)])
def test_filters_lie_in_rows_by_tower(filters, towers, rows):
    weights = np.random.default_rng(filters).normal(size=(filters, 3, 5, 5)).astype(np.float32)
    sheet, tops = figures.filter_sheet(weights, towers)
    columns = 16 if filters // towers >= 32 else 8
    assert sheet.shape == ((rows * 6 + 2) * towers - 3, columns * 6 - 1, 3)
    for k in (0, filters // 2 - 1, filters // 2, filters - 1):
        own = filters // towers
        top, left = tops[k // own] + k % own // columns * 6, k % own % columns * 6
        expected = 0.5 + 0.5 * weights[k] / np.abs(weights[k]).max()
        np.testing.assert_allclose(sheet[top : top + 5, left : left + 5], expected.transpose(1, 2, 0), rtol=1e-6)
    if towers == 2:
        assert (sheet[tops[1] - 3 : tops[1]] == 1).all()  # white between the towers
    joint, _ = figures.filter_sheet(weights, towers, jointly=True)
    np.testing.assert_allclose(joint[:5, :5], (0.5 + 0.5 * weights[0] / np.abs(weights).max()).transpose(1, 2, 0))


@pytest.mark.parametrize(("maps", "filters", "columns"), [(1, 6, 8), (2, 6, 8), (4, 6, 4), (12, 3, 1), (16, 3, 1)])
def test_filters_of_other_numbers_of_maps(maps, filters, columns):
    """Of one map grey, of two without blue, of more in a row for each filter, an own gap between filters."""
    weights = np.random.default_rng(maps).normal(size=(filters, maps, 3, 4)).astype(np.float32)
    sheet, _ = figures.filter_sheet(weights, 1)
    wide, gap = (4, 1) if maps < 4 else (5 * maps - 1, 3)
    assert sheet.shape == (-(-filters // columns) * 4 - 1, (wide + gap) * columns - gap, 3)
    for k in range(filters):
        expected = 0.5 + 0.5 * weights[k] / np.abs(weights[k]).max()
        top, left = k // columns * 4, k % columns * (wide + gap)
        for c in range(maps):
            at = left if maps < 4 else left + 5 * c
            seen = sheet[top : top + 3, at : at + 4]
            np.testing.assert_allclose(seen[..., c if maps == 2 else 0], expected[c], rtol=1e-6)
            if maps != 2:
                assert (seen[..., 0] == seen[..., 1]).all()
            assert (seen[..., 2] == (0.5 if maps == 2 else seen[..., 0])).all()
            if maps >= 4 and c:
                assert (sheet[top : top + 3, at - 1] == 1).all()


def test_the_picture_holds_the_filters(tmp_path):
    weights = np.random.default_rng(1).normal(size=(96, 3, 11, 11)).astype(np.float32)
    weights /= 1.1 * np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    weights[95, 0, 10, 10] = weights[80, 0, 10, 0] = 1  # so that the sheet's corners are not white
    weights[80, 1, 10, 0] = weights[95, 1, 10, 10] = -1
    figures.save_filters(tmp_path / "f.png", weights, 2, "conv1")
    sheet, _ = figures.filter_sheet(weights, 2)
    shown = pixels(tmp_path / "f.png").astype(int)
    marked = np.argwhere((shown[..., 0] > 250) & (shown[..., 1] < 5))  # the two corners
    (bottom, right), left = marked.max(axis=0) + 1, marked[:, 1].min()
    scale = (right - left) / sheet.shape[1]
    assert scale > 4
    for row, column in np.argwhere((sheet < 1).any(axis=2))[::17]:
        y, x = int(bottom - (sheet.shape[0] - row - 0.5) * scale), int(left + (column + 0.5) * scale)
        assert np.abs(shown[y, x] - 255 * sheet[row, column]).max() <= 2


@pytest.mark.parametrize("jointly", [False, True])
def test_filters_are_the_ones_of_the_run(tmp_path, jointly):
    assert show(straight_run(), "filters", "-o", tmp_path / "f.png", *["--jointly"] * jointly) == 0
    trained = load_trained(straight_run(), print)
    weights = trained.weights["conv1.weight"]
    figures.save_filters(tmp_path / "g.png", weights, trained.spec.towers, "conv1", jointly=jointly)
    assert (tmp_path / "f.png").read_bytes() == (tmp_path / "g.png").read_bytes()


def test_predictions_are_the_networks(tmp_path, opened):
    assert show(straight_run(), "predictions", "-o", tmp_path / "p.svg", "--seed", "3") == 0
    dataset, network = opened
    with network:
        shares = evaluate.probabilities(network, dataset.valid)
    order = np.random.default_rng(3).permutation(len(dataset.valid))[:8]
    expected = []
    for image in order:
        expected.append(COLOURS[dataset.valid.labels[image]])
    for image in order:
        for c in evaluate.top(shares[image][None], 5)[0]:
            expected += [COLOURS[c], figures._share(float(shares[image, c]))]
    assert sorted(texts(tmp_path / "p.svg")[:-1]) == sorted(expected)
    assert colours(tmp_path / "p.svg") == [dataset.valid.labels[image] for image in order]
    widths = bar_widths(tmp_path / "p.svg")
    best = np.array([evaluate.top(shares[image][None], 5)[0] for image in order])
    for k in range(8):
        ratio = np.array(widths[k]) / shares[order[k]][best[k]]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert show(straight_run(), "predictions", "-o", tmp_path / "other.svg", "--seed", "4") == 0
    assert (tmp_path / "other.svg").read_bytes() != (tmp_path / "p.svg").read_bytes()


def bar_widths(path) -> list[list[float]]:
    """Of every image's bars, in units of the drawing."""
    found: dict[int, list[float]] = {}
    for group in ElementTree.parse(path).iter(f"{SVG}g"):
        if match := re.fullmatch(r"bar-(\d+)-\d+", group.get("id", "")):
            numbers = re.findall(r"[ML] (\S+) \S+", group.find(f"{SVG}path").get("d"))
            found.setdefault(int(match[1]), []).append(max(map(float, numbers)) - min(map(float, numbers)))
    return [found[k] for k in sorted(found)]


def test_bars_have_the_lengths_and_colours_of_the_guesses(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    guesses = [[("cat", 0.5), ("dog $x$", 0.25), ("a name of more than twenty-two letters", 0.125)]] * 2
    figures.save_predictions(tmp_path / "p.svg", [image] * 2, ["dog $x$", "bird"], guesses)
    first, second = bar_widths(tmp_path / "p.svg")
    np.testing.assert_allclose(np.array(first) / first[0], [1, 0.5, 0.25], rtol=1e-4)
    np.testing.assert_allclose(first, second)
    found = texts(tmp_path / "p.svg")
    assert found.count("dog $x$") == 3
    assert "bird" in found
    assert "a name of more t…" in found
    drawn = (tmp_path / "p.svg").read_text()
    assert drawn.count(f"fill: {figures.ORANGE.lower()}") == 1  # the second image's class is not among the guesses


def test_only_errors(tmp_path, capsys, opened):
    dataset, network = opened
    with network:
        shares = evaluate.probabilities(network, dataset.valid)
    wrong = int((evaluate.top(shares, 1)[:, 0] != dataset.valid.labels).sum())
    code = show(straight_run(), "predictions", "--only-errors", "-o", tmp_path / "p.svg")
    if wrong:
        assert code == 0
        assert len(bar_widths(tmp_path / "p.svg")) == min(wrong, 8)
    else:
        assert code == 2
        assert "none of the 12 validation images" in capsys.readouterr().err


def test_neighbours_are_the_nearest_in_fc7(tmp_path, opened):
    arguments = ["--queries", "3", "--limit", "20", "--seed", "5"]
    assert show(straight_run(), "neighbours", "-o", tmp_path / "n.svg", *arguments) == 0
    dataset, network = opened
    with network:
        queries, known = evaluate.features(network, dataset.valid), evaluate.features(network, dataset.train)
    rng = np.random.default_rng(5)
    asked = rng.permutation(12)[:3]
    searched = np.sort(rng.permutation(36)[:20])
    nearest = searched[retrieval.nearest(queries[asked], known[searched], 6)[0]]
    expected = [COLOURS[dataset.valid.labels[i]] for i in asked]
    for query, row in zip(asked, nearest, strict=True):
        for i in row:
            right = dataset.train.labels[i] == dataset.valid.labels[query]
            expected.append(("" if right else "✗ ") + COLOURS[dataset.train.labels[i]])
    found = [text for text in texts(tmp_path / "n.svg") if text.split()[-1] in COLOURS]
    assert sorted(found) == sorted(expected)
    shown = [*dataset.valid.labels[asked], *dataset.train.labels[nearest].ravel()]  # column of queries, rows of others
    assert colours(tmp_path / "n.svg") == [int(label) for label in shown]


def test_neighbours_of_another_class_are_marked(tmp_path):
    images = [np.full((8, 8, 3), 10 * k, np.uint8) for k in range(4)]
    figures.save_neighbours(tmp_path / "n.svg", images[:1], ["ant"], [images[1:]], [["ant", "bee", "ant"]], "fc6")
    found = texts(tmp_path / "n.svg")
    assert [found.count(text) for text in ("ant", "✗ bee", "bee")] == [3, 1, 0]
    assert any("fc6" in text for text in found)
    assert (tmp_path / "n.svg").read_text().count(f"stroke: {figures.RED.lower()}") == 4  # the sides of one frame


def test_confusion_counts(tmp_path, opened):
    assert show(straight_run(), "confusion", "-o", tmp_path / "c.svg", "--views", "10") == 0
    dataset, network = opened
    with network:
        counts = evaluate.confusion(evaluate.probabilities(network, dataset.valid, 10), dataset.valid.labels)
    found = texts(tmp_path / "c.svg")
    assert all(found.count(name) == 2 for name in COLOURS)
    assert f"{12 - np.trace(counts)} of 12 images taken for another class" in found
    classes = ["ant", "bee", "cow"]
    figures.save_confusion(tmp_path / "d.svg", np.array([[71, 0, 0], [72, 73, 0], [0, 0, 74]]), classes, [])
    found = texts(tmp_path / "d.svg")
    assert [found.count(n) for n in ("71", "72", "73", "74")] == [1, 1, 1, 1]
    places = {
        text.text: [round(float(place)) for place in re.findall(r"-?[\d.]+", text.get("transform"))[-2:]]
        for text in ElementTree.parse(tmp_path / "d.svg").iter(f"{SVG}text")
    }
    assert places["72"][0] == places["71"][0]  # taken for an ant
    assert places["72"][1] == places["73"][1]  # and is a bee
    assert places["74"][1] > places["73"][1] > places["71"][1]


def test_confusion_of_many_classes_lists_pairs(tmp_path):
    classes = [f"class {k}" for k in range(41)]
    counts = 5 * np.eye(41, dtype=np.int64)
    counts[3, 7] = 4
    pairs = evaluate.most_confused(counts, classes, 30)
    figures.save_confusion(tmp_path / "c.svg", counts, classes, pairs)
    found = texts(tmp_path / "c.svg")
    assert "class 3 → class 7" in found
    assert "4 of 9" in found
    assert "class 5" not in found
    figures.save_confusion(tmp_path / "d.svg", None, classes, pairs)  # nobody needs the square
    assert (tmp_path / "d.svg").read_bytes() == (tmp_path / "c.svg").read_bytes()
    figures.save_confusion(tmp_path / "none.png", counts, classes, [])


def test_names_without_a_letter_in_the_font_are_drawn(tmp_path):
    figures.save_confusion(tmp_path / "c.png", np.eye(2, dtype=int), ["猫", "perché"], [])
    assert (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["RUN", "curves", "-o", "a.jpg"], 2, r"a\.jpg: a figure's name must end in \.png or \.svg"),
        (["RUN", "curves", "-o", "no/a.png"], 2, "its folder does not exist"),
        (["RUN", "curves"], 2, "required: -o"),
        (["RUN", "pie", "-o", "a.png"], 2, "invalid choice: 'pie'"),
        (["RUN", "RUN", "filters", "-o", "a.png"], 2, "filters are drawn of one run, got 2"),
        (["RUN", "confusion", "-o", "a.png", "-b", "0"], 2, "-b must be at least 1, got 0"),
        (["RUN", "neighbours", "-o", "a.png", "--limit", "0"], 2, "--limit must be at least 1, got 0"),
        (["RUN", "neighbours", "-o", "a.png", "--seed", "-1"], 2, "--seed must be at least 0, got -1"),
        (["RUN", "confusion", "-o", "a.png", "--views", "3"], 2, "--views: invalid choice: 3"),
        (["RUN", "filters", "-o", "a.png", "--joint"], 2, "did you mean --jointly"),
        (["nowhere", "curves", "-o", "a.png"], 2, "nowhere: curves need a run folder"),
        (["nowhere", "filters", "-o", "a.png"], 4, "nowhere"),
        (["RUN", "confusion", "-o", "a.png", "--data", "nowhere"], 3, "there is no 'nowhere'"),
        (["RUN", "confusion", "-o", "a.png", "--device", "tpu"], 2, "tpu"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    try:
        found = main([str(straight_run()) if a == "RUN" else a for a in arguments] + ["-q"])
    except SystemExit as end:
        found = end.code
    said = capsys.readouterr()
    assert (found, said.out) == (code, "")
    assert re.search(message, said.err)
    assert said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_data_with_other_classes_is_refused(tmp_path, capsys):
    assert show(straight_run(), "confusion", "-o", tmp_path / "a.png", "--data", "shapes") == 3
    assert (
        "the network knows none of them, but 'blue', 'green', 'red'; give data with its classes"
        in capsys.readouterr().err
    )


def test_a_checkpoint_file_serves_as_run(tmp_path):
    newest = checkpoint.files(straight_run() / "checkpoints")[-1]
    assert show(newest, "filters", "-o", tmp_path / "f.png") == 0
    assert show(newest, "predictions", "-o", tmp_path / "p.png", "--data", shared_images()) == 0


def test_the_command_says_where_the_figure_lies(tmp_path, capsys):
    assert main([str(straight_run()), "filters", "-o", str(tmp_path / "f.png")]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'f.png'}\n"
