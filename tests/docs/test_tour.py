"""The tour: its notebooks are as git is to hold them, say what they are about, and run from top to bottom."""

from __future__ import annotations

import re
import shutil

import pytest
from runs import ENVIRONMENT

pytest.importorskip("nbclient", reason='nbclient is not installed: pip install ".[test]"')
pytest.importorskip("ipykernel", reason='ipykernel is not installed: pip install ".[test]"')

import nbformat
import tour

CHAPTERS = tour.chapters()
# A number must not depend on how fast a machine is.
CLOCKS = re.compile(r"%%?time|\bimport time\b|perf_counter|monotonic|process_time")


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    return request.param


@pytest.fixture(autouse=True)
def notebooks_import_what_is_tested(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])


def code(path) -> list[str]:
    return [cell.source for cell in tour.read(path).cells if cell.cell_type == "code"]


def test_there_are_eight_and_the_first_page_lists_them():
    assert [path.stem[0] for path in CHAPTERS] == list("12345678")
    listed = re.findall(r"^\| \[.+\]\((.+)\.md\) \|", (tour.FOLDER / "index.md").read_text(), re.MULTILINE)
    assert listed == [path.stem for path in CHAPTERS]


def test_git_holds_what_was_written_and_no_outputs(chapter):
    assert chapter.read_text() == tour.text_of(chapter), "python tools/tour.py clears it"


def test_what_jupyter_puts_in_is_taken_out(tmp_path):
    notebook = tour.read(CHAPTERS[0])
    notebook.metadata.language_info = nbformat.from_dict({"name": "python", "version": "3.99"})
    notebook.metadata.kernelspec.display_name = "my own"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells[0].execution_count, cells[0].metadata["scrolled"] = 7, True
    cells[0].outputs = [nbformat.v4.new_output("stream", text="seven")]
    cells[1].id = "4f0c9a1e"
    path = tmp_path / CHAPTERS[0].name
    nbformat.write(notebook, path)
    assert path.read_text() != CHAPTERS[0].read_text()
    assert tour.text_of(path) == CHAPTERS[0].read_text()


def test_a_chapter_says_its_section_and_ends_with_something_to_change(chapter):
    cells = tour.read(chapter).cells
    assert re.match(rf"# {chapter.stem[0]} \w.*\n\n\*\*(Section \d(\.\d)? of|Behind) the paper", cells[0].source)
    assert "\n**The idea of this chapter:** " in cells[0].source
    assert cells[-1].cell_type == "markdown"
    end = cells[-1].source.partition("## Change something\n\n")[2]
    assert 1 <= len(re.findall("^- ", end, re.MULTILINE)) <= 3


def test_numbers_are_held_by_asserts_and_none_is_a_time(chapter):
    cells = code(chapter)
    printing = [cell for cell in cells if "print(" in cell]
    assert len([cell for cell in cells if re.search("^ *assert ", cell, re.MULTILINE)]) >= len(printing) - 1
    assert not [cell for cell in cells if CLOCKS.search(cell)]


def test_a_chapter_runs(chapter):
    notebook = tour.executed(chapter)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [(cell, output) for cell in cells for output in cell.outputs]
    assert not [output.text for _, output in outputs if output.get("name") == "stderr"]
    drawing = [cell for cell, output in outputs if "image/png" in output.get("data", {})]
    assert 1 <= len(drawing) <= 4
    assert [cell.source for cell in drawing if not cell.source.startswith("# ")] == []
    text, pictures = tour.page(chapter.stem, notebook)
    assert len(pictures) == len(drawing)
    assert all(f"]({name})" in text and png.startswith(b"\x89PNG") for name, png in pictures.items())
    assert ".ipynb)" not in text.replace(f"[{chapter.name}]({chapter.name})", "")


def test_a_wrong_number_is_noticed(tmp_path):
    pooling = next(path for path in CHAPTERS if "pooling" in path.stem)
    text = pooling.read_text().replace("overlapping.shape == (27, 27)", "overlapping.shape == (28, 28)")
    assert text != pooling.read_text()
    wrong = tmp_path / pooling.name
    wrong.write_text(text)
    with pytest.raises(tour.ChapterError, match=r"2-pooling\.ipynb fails:(.|\n)*AssertionError"):
        tour.executed(wrong)


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        ("twice();", "should stand once in the source or in one of the headers"),
        ("nowhere();", "should stand once in the source or in one of the headers"),
    ],
)
def test_only_what_stands_once_can_be_taken_out(monkeypatch, tmp_path, piece, said):
    monkeypatch.syspath_prepend(tour.FOLDER)
    import emulator

    with pytest.raises(ValueError, match=said):
        emulator._taken_out("twice(); twice();", piece, tmp_path)


def test_kernels_of_notebooks_are_called_with_what_they_take(monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.syspath_prepend(tour.FOLDER)
    import emulator
    import numpy as np

    source = """
    __global__ void fill_kernel(float* x) { begin_kernel(); x[threadIdx.x] = 3; }
    void run(float* x) { launch(fill_kernel, Dim3(1), Dim3(4), 0, nullptr, x); }
    """
    run, x = emulator.compiled(source), np.zeros(4, np.float32)
    run(x)
    assert x.tolist() == [3, 3, 3, 3]
    with pytest.raises(TypeError, match="another number of arrays than 2"):
        run(x, x)
    with pytest.raises(ValueError, match="contiguous arrays"):
        run(np.zeros(8, np.float32)[::2])
    with pytest.raises(emulator.Complaint, match="in front of begin_kernel"):
        emulator.compiled(source.replace("x[threadIdx.x] = 3;", "store4(x, float4{});"), without="begin_kernel();")(x)
    with pytest.raises(RuntimeError, match=r"does not compile:\n(.|\n)*kernel\.cu"):
        emulator.compiled("void run(float* x) { undeclared(x); }")
