"""The rules of tools/mutate_kernels.py make valid, distinct, repeatable mutants, and its judgement is right."""

from __future__ import annotations

import re

import mutate_kernels as tool
import pytest


@pytest.mark.parametrize("file", tool.TESTS)
def test_mutants_are_distinct_changes_of_code(file):
    text = (tool.KERNELS / file).read_text()
    lines = text.splitlines()
    found = tool.mutants(file)
    assert found
    different = len({mutant.apply(text) for mutant in found} - {text})
    assert different == len(found)
    for mutant in found:
        code = lines[mutant.line - 1].partition("//")[0]
        assert mutant.before == " ".join(lines[mutant.line - 1].split())
        assert text[mutant.start : mutant.end].splitlines()[0] in code
        assert not re.match(r"\s*(#|static_assert|template)", code)


def test_rules_find_the_mistakes_they_are_named_after():
    rules = {mutant.rule for file in tool.TESTS for mutant in tool.mutants(file)}
    assert rules == {rule for rule, _, _ in tool.RULES} | {"barrier"}


def test_what_is_drawn_depends_on_the_seed_alone():
    files = list(tool.TESTS)
    assert tool.drawn(files, 40, 1) == tool.drawn(files, 40, 1) != tool.drawn(files, 40, 2)
    assert len({mutant.file for mutant in tool.drawn(files, len(files), 1)}) == len(files)


def test_tests_of_every_kernel_source_exist():
    assert {path.name for path in tool.KERNELS.glob("*.cu")} <= set(tool.TESTS)
    for paths, _ in tool.TESTS.values():
        assert all((tool.ROOT / path).is_file() for path in paths)


def test_equivalent_mutants_exist_and_have_reasons():
    made = {(mutant.file, mutant.before, mutant.after) for file in tool.TESTS for mutant in tool.mutants(file)}
    for mutant, reason in tool.equivalents().items():
        assert mutant in made
        assert reason.strip()


class Outcome(tool.Copy):
    """A copy of one kernel source, of which compiling and testing are done with other commands."""

    def __init__(self, folder, test):
        self.folder, self.test = folder, test
        tool.write_changed(folder / "src" / "kernels" / "relu.cu", (tool.KERNELS / "relu.cu").read_bytes())
        tool.write_changed(folder / "tests" / "test_ops_elementwise.py", test.encode())

    def build(self):
        return ""


SLOPE = 'def test_emu_relu():\n    assert "value > 0.0f ? slope" in open("src/kernels/relu.cu").read()\n'


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        (SLOPE, ("killed", "tests/test_ops_elementwise.py::test_emu_relu")),
        ("def test_emu_relu():\n    pass\n", ("survived", "")),
        ("import os\ndef test_emu_relu():\n    os.abort()\n", ("killed", "the tests end by SIGABRT")),
    ],
    ids=["killed", "survived", "crashed"],
)
def test_judgement(tmp_path, test, outcome):
    (mutant,) = (m for m in tool.mutants("relu.cu") if "value >= 0.0f ? slope" in m.after)
    assert Outcome(tmp_path, test).judge(mutant) == outcome
    assert (tmp_path / "src/kernels/relu.cu").read_bytes() == (tool.KERNELS / "relu.cu").read_bytes()


def test_tests_that_do_not_run_are_no_kill(tmp_path):
    mutant = tool.mutants("relu.cu")[0]
    with pytest.raises(RuntimeError, match=r"the tests of relu\.cu do not run"):
        Outcome(tmp_path, "def test_other():\n    pass\n").judge(mutant)
