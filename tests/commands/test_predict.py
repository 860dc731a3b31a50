"""``convnet-predict``: labels, activations and neighbours of image files, in order, in every form of output."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_files import picture
from runs import COLOURS, ELSEWHERE, ENVIRONMENT, call, command, shared_images, spawn, straight_run

from convnet.analysis import evaluate, retrieval
from convnet.analysis.predict import ImageFiles, image_files
from convnet.cli.predict import main
from convnet.data import DataError
from convnet.output import results as outputs
from convnet.training.trained import load_trained

PREDICT = ELSEWHERE + "from convnet.cli.predict import main; sys.exit(main())"
BASIC = ["--device", "cpu", "-b", "3", "-j", "1"]


@pytest.fixture(scope="module")
def run():
    return str(straight_run())


@pytest.fixture
def pictures(tmp_path):
    """Five images, of which one lies deeper and one is PNG, in a folder with other things."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for i, name in enumerate(("b.jpg", "a.JPG", "deeper/x.jpeg", "z.png", "c.jpg", ".hidden/h.jpg", ".no.jpg")):
        picture(60 + 7 * i, 70 - 3 * i, seed=i).save(folder / name)
    (folder / "readme.txt").write_text("no image")
    return folder


IN_ORDER = ["a.JPG", "b.jpg", "c.jpg", "deeper/x.jpeg", "z.png"]


def probabilities(run, files, views=1):
    trained = load_trained(run, pytest.fail)
    with trained.open_network("cpu", 8) as network:
        return evaluate.probabilities(network, ImageFiles(files, trained.spec.image_size), views)


def features(run, split=None, files=(), layer="fc7"):
    trained = load_trained(run, pytest.fail)
    with trained.open_network("cpu", 8, fused=False) as network:
        return evaluate.features(network, split or ImageFiles(files, trained.spec.image_size), layer)


def found(capsys, *arguments, code=0):
    assert call(main, *BASIC, "--json", *arguments) == code
    return json.loads(capsys.readouterr().out)


def test_which_files_are_meant(pictures):
    bad = []
    (pictures / "empty").mkdir()
    names = [str(pictures / "z.png"), str(pictures), "-", str(pictures / "readme.txt"), str(pictures / "empty")]
    listed = io.StringIO("none.jpg\r\n\n-\nwith space.png")
    files = list(image_files(names, listed, lambda *told: bad.append(told)))
    inside = [str(pictures / name) for name in IN_ORDER]
    assert files == [names[0], *inside, "none.jpg", "with space.png", names[3]]
    assert bad == [(names[4], "a folder without pictures")]


def test_files_are_brought_to_size_as_training_images_are(run):
    trained = load_trained(run, pytest.fail)
    split = trained.open_dataset().train
    files = ImageFiles([split.name(i) for i in range(4)], split.size)
    for i in range(4):
        np.testing.assert_array_equal(files.image(i), split.image(i))


@pytest.mark.parametrize("views", [1, 10])
def test_labels_as_json(views, run, pictures, capsys):
    result = found(capsys, run, str(pictures), "--top", "2", "--views", str(views))
    assert set(result) == {"run", "views", "images", "unusable"}
    assert (result["run"], result["views"], result["unusable"]) == (run, views, [])
    files = [str(pictures / name) for name in IN_ORDER]
    assert [image["file"] for image in result["images"]] == files
    for image, p in zip(result["images"], probabilities(run, files, views), strict=True):
        best = np.argsort(-p)[:2]
        assert [line["label"] for line in image["labels"]] == [COLOURS[k] for k in best]
        assert [line["probability"] for line in image["labels"]] == pytest.approx(p[best], rel=1e-4)


def test_text_and_csv_keep_the_order_of_the_arguments(run, pictures, capsys):
    given = [str(pictures / name) for name in ("z.png", "a.JPG", "c.jpg", "z.png")]
    assert call(main, *BASIC, run, *given) == 0
    out = capsys.readouterr()
    assert [line for line in out.out.splitlines() if not line.startswith(" ")] == given
    lines = out.out.splitlines()
    assert len(lines) == 4 * (1 + 3)
    assert all(re.fullmatch(r" +\d+\.\d\d %  (blue|green|red)", line) for i, line in enumerate(lines) if i % 4)
    shares = [float(line.split()[0]) for line in lines[1:4]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.02)

    assert call(main, *BASIC, run, *given, "--csv", "--top", "1") == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["file", "rank", "label", "probability"]
    assert [row[:2] for row in rows] == [[name, "1"] for name in given]


def test_unusable_files_are_warnings_and_exit_code_3(run, pictures, capsys):
    (pictures / "bad.jpg").write_bytes(b"nothing of the kind")
    given = [str(pictures / name) for name in ("z.png", "bad.jpg", "none.jpg", "c.jpg", "deeper/x.jpeg")]
    assert call(main, *BASIC, run, *given, "--json") == 3
    out, err = capsys.readouterr()
    result = json.loads(out)
    usable = [given[0], *given[3:]]
    assert [image["file"] for image in result["images"]] == usable
    assert [bad["file"] for bad in result["unusable"]] == given[1:3]
    warnings = [line for line in err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    assert re.match(rf"warning: {given[1]}: this is text, not a picture", warnings[0])
    assert warnings[1] == f"warning: {given[2]}: No such file or directory"
    expected = probabilities(run, usable).max(axis=1)
    assert [image["labels"][0]["probability"] for image in result["images"]] == pytest.approx(expected, rel=1e-4)


def test_names_from_standard_input(run, pictures, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    strange = os.fsencode(pictures) + b"/\xff.jpg"  # a name need not be text
    os.rename(pictures / "b.jpg", strange)
    listed = b"\n".join([os.fsencode(pictures / "z.png"), strange, os.fsencode(pictures / "none.jpg")])
    found = command("predict", run, "-", "--csv", "--top", "1", *BASIC, input=listed, text=False)
    assert found.returncode == 3, found.stderr
    rows = list(csv.reader(io.StringIO(found.stdout.decode())))
    assert [row[0] for row in rows[1:]] == [str(pictures / "z.png"), f"{pictures}/\\udcff.jpg"]
    assert found.stderr.decode() == f"warning: {pictures / 'none.jpg'}: No such file or directory\n"


NAMES = ("a, b.png", 'says "so".png', "two\nlines.png", "l\u00e4uft \u732b.png", "=1+1.png", "tab\tand\rreturn.png")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_table_of_a_folder_has_a_line_per_image_whatever_the_names_are(locale, run, tmp_path):
    """In a file, as a spreadsheet or a program reads it; and nothing else is in that file."""
    folder, table = tmp_path / "m\u00fcll; ordner", tmp_path / "predictions.csv"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        picture(50 + i, 60, seed=i).save(folder / name)
    (folder / "bad.png").write_bytes(b"no picture")
    variables = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with open(table, "wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", PREDICT, *map(os.fsencode, (run, str(folder), "--csv", "--top", "1", *BASIC))],
            stdout=file,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **variables},
            timeout=120,
            check=False,
        )
    assert done.returncode == 3, done.stderr
    assert b"bad.png" in done.stderr
    with open(table, encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["file", "rank", "label", "probability"]
    names = sorted(str(folder / name) for name in NAMES)
    assert [line[:2] for line in lines] == [[name, "1"] for name in names]
    assert all(line[2] in COLOURS and 1 / 3 <= float(line[3]) <= 1 for line in lines)
    assert table.read_bytes().count(b"\n") == 1 + len(NAMES) + 1  # a name has one


def test_activations_of_files(run, pictures, tmp_path, capsys):
    (pictures / "b0.jpg").write_bytes(b"bad")
    saved = tmp_path / "f.npy"
    assert call(main, *BASIC, run, str(pictures), "--features", "conv5", "-o", str(saved)) == 3
    files = [str(pictures / name) for name in IN_ORDER]
    expected = features(run, files=files, layer="conv5")
    values = np.load(saved)
    assert (values.dtype, values.ndim) == (np.float32, 4)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
    lines = (tmp_path / "f.csv").read_text().splitlines()
    assert lines == ["row,name,label", *(f"{i},{name}," for i, name in enumerate(files))]
    assert f"{saved}: conv5 of 5 images, float32 {values.shape}; names in" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.csv", "f.npy", "pictures"]


def test_activations_of_a_data_set(run, tmp_path, capsys):
    saved = tmp_path / "v.npy"
    result = found(
        capsys, run, "--data", shared_images(), "--split", "val", "--features", "fc7", "-o", str(saved), "-q"
    )
    split = load_trained(run, pytest.fail).open_dataset().valid
    values = np.load(saved)
    assert result == {"run": run, "layer": "fc7", "file": str(saved), "shape": list(values.shape), "unusable": []}
    np.testing.assert_allclose(values, features(run, split), rtol=1e-4, atol=1e-6)
    with open(tmp_path / "v.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [split.name(i) for i in range(12)]
    assert [line["label"] for line in lines] == [COLOURS[k] for k in split.labels]


def test_nothing_is_written_where_nothing_could_be_read(run, tmp_path, capsys):
    bad = [tmp_path / f"{i}.jpg" for i in range(4)]
    for path in bad:
        path.write_bytes(b"")
    files = list(map(str, bad))
    assert found(capsys, run, *files, "--features", "fc7", "-o", str(tmp_path / "f.npy"), code=3)["file"] is None
    assert found(capsys, run, *files, "--neighbours", "2", code=3)["images"] == []
    assert sorted(tmp_path.iterdir()) == bad
    picture(50, 50).save(tmp_path / "good.png")  # the first batch is all bad
    assert call(main, *BASIC, run, str(tmp_path), "--features", "fc7", "-o", str(tmp_path / "f.npy")) == 3
    np.testing.assert_allclose(
        np.load(tmp_path / "f.npy"), features(run, files=[str(tmp_path / "good.png")]), rtol=1e-4, atol=1e-6
    )


def test_neighbours_among_training_images_and_among_saved_ones(run, pictures, tmp_path, capsys):
    split = load_trained(run, pytest.fail).open_dataset().train
    files = [str(pictures / "a.JPG"), split.name(7)]
    rows, distances = retrieval.nearest(features(run, files=files), features(run, split), 3)
    result = found(capsys, run, *files, "--neighbours", "3")
    assert (set(result), result["layer"]) == ({"run", "layer", "images", "unusable"}, "fc7")
    for image, file, row, distance in zip(result["images"], files, rows, distances, strict=True):
        assert image["file"] == file
        assert [line["name"] for line in image["neighbours"]] == [split.name(k) for k in row]
        assert [line["label"] for line in image["neighbours"]] == [COLOURS[split.labels[k]] for k in row]
        assert [line["distance"] for line in image["neighbours"]] == pytest.approx(distance, rel=1e-3, abs=1e-4)
    assert rows[1, 0] == 7  # a training image is nearest to itself

    saved = tmp_path / "t.npy"
    assert call(main, *BASIC, run, "--data", shared_images(), "--features", "fc7", "-o", str(saved)) == 0
    capsys.readouterr()
    again = found(capsys, run, *files, "--neighbours", "3", "--among", str(saved))
    for image, before in zip(again["images"], result["images"], strict=True):
        assert [line["name"] for line in image["neighbours"]] == [line["name"] for line in before["neighbours"]]
    assert call(main, *BASIC, run, *files, "--neighbours", "1", "--among", str(saved)) == 0
    assert re.search(rf"^{files[1]}\n +0\.0000  \w+  {split.name(7)}$", capsys.readouterr().out, re.MULTILINE)
    assert call(main, *BASIC, run, files[0], "--neighbours", "1", "--among", str(saved), "--features", "conv1") == 2
    assert "rows must have the queries' " in capsys.readouterr().err


MISTAKES = {
    "no run": (["nowhere", "IMAGE"], 4, "there is no such checkpoint"),
    "no image": (["RUN"], 2, "name image files, folders with some, or - for"),
    "empty folder": (["RUN", "EMPTY"], 3, "no images to look at"),
    "layer": (["RUN", "IMAGE", "--features", "fc9", "-o", "f.npy"], 2, 'no layer is called "fc9"; there are conv1'),
    "no file": (["RUN", "IMAGE", "--features", "fc7"], 2, "--features needs -o FILE.npy"),
    "no layer": (["RUN", "IMAGE", "-o", "f.npy"], 2, "name a layer with --features"),
    "suffix": (["RUN", "IMAGE", "--features", "fc7", "-o", "f.bin"], 2, "-o f.bin: .* must end in .npy"),
    "no folder": (["RUN", "IMAGE", "--features", "fc7", "-o", "no/f.npy"], 2, "no/f.npy: cannot be written"),
    "top": (["RUN", "IMAGE", "--top", "0"], 2, "--top must be at least 1, got 0"),
    "neighbours": (["RUN", "IMAGE", "--neighbours", "0"], 2, "--neighbours must be at least 1, got 0"),
    "views": (["RUN", "IMAGE", "--neighbours", "2", "--views", "10"], 2, "an image's centre; leave --views out"),
    "among alone": (["RUN", "IMAGE", "--among", "f.npy"], 2, "--among is for --neighbours"),
    "among nothing": (["RUN", "IMAGE", "--neighbours", "1", "--among", "f.npy"], 3, "f.npy: expected an array"),
    "two sets": (
        ["RUN", "IMAGE", "--neighbours", "1", "--among", "f.npy", "--data", "shapes"],
        2,
        "exclude each other",
    ),
    "data": (["RUN", "IMAGE", "--data", "shapes"], 2, "convnet-eval labels a data set"),
    "both": (["RUN", "IMAGE", "--data", "shapes", "--features", "fc7", "-o", "f.npy"], 2, "leave one out"),
    "forms": (["RUN", "IMAGE", "--json", "--csv"], 2, "not allowed with argument"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(mistake, run, tmp_path, monkeypatch, capsys):
    arguments, code, text = MISTAKES[mistake]
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "empty").mkdir()
    picture(40, 40).save(tmp_path / "image.png")
    known = {"RUN": run, "IMAGE": str(tmp_path / "image.png"), "EMPTY": str(tmp_path / "empty")}
    assert call(main, "--device", "cpu", *(known.get(argument, argument) for argument in arguments)) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1, errors
    assert re.search(rf"^convnet-predict: error: .*{text}", errors[0]), errors
    assert not list(work.iterdir())


def test_saved_rows_that_do_not_fit_their_names(tmp_path):
    with outputs.RowsFile(tmp_path / "f.npy", ("name",)) as file:
        file.append(np.zeros((2, 3), np.float32), [("a",), ('b "c", d',)])
        file.append(np.ones((1, 3), np.float32), [("e",)])
    values, lines = retrieval.read_rows(tmp_path / "f.npy")
    assert values.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert [line["name"] for line in lines] == ["a", 'b "c", d', "e"]
    whole = (tmp_path / "f.npy").read_bytes()
    (tmp_path / "f.npy").write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"f.npy: expected an array"):
        retrieval.read_rows(tmp_path / "f.npy")
    (tmp_path / "f.npy").write_bytes(whole)
    (tmp_path / "f.csv").write_text("row,name\n0,a\n")
    with pytest.raises(DataError, match=r"a row for each of the 1 lines of f.csv"):
        retrieval.read_rows(tmp_path / "f.npy")


def test_an_error_leaves_no_half_of_a_file(tmp_path):
    def fail():
        with outputs.RowsFile(tmp_path / "f.npy", ("name",)) as file:
            file.append(np.zeros((2, 3), np.float32), [("a",), ("b",)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_behind(run, tmp_path):
    picture(400, 400).save(tmp_path / "image.png")
    saved = tmp_path / "f.npy"
    many = [str(tmp_path / "image.png")] * 5000
    process = spawn(run, *many, "--features", "conv1", "-o", str(saved), *BASIC, code=PREDICT)
    until = time.monotonic() + 120
    while not (saved.with_name("f.npy.tmp").exists() and saved.with_name("f.npy.tmp").stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert [path.name for path in Path(tmp_path).iterdir()] == ["image.png"]


def test_the_example_in_the_help_lacks_but_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(main, "--help")
    example = capsys.readouterr().out.split("example:\n")[1].split()
    assert call(main, *example[1:]) == 4
    assert "runs/first: there is no such checkpoint" in capsys.readouterr().err
