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


def test_what_is_drawn_depends_on_the_seed_alone_and_a_larger_number_adds_to_it():
    drawn = tool.drawn("gemm.cu", 10, 1)
    assert len(set(drawn)) == 10
    assert drawn == tool.drawn("gemm.cu", 10, 1) == tool.drawn("gemm.cu", 20, 1)[:10] != tool.drawn("gemm.cu", 10, 2)
    assert set(tool.drawn("gemm.cu", 0, 1)) == set(tool.mutants("gemm.cu"))


def test_every_kernel_source_has_tests():
    sources = [*tool.KERNELS.glob("*.cu"), *tool.KERNELS.glob("tile/*.cuh")]
    assert {str(path.relative_to(tool.KERNELS)) for path in sources} == set(tool.TESTS)
    for file, stages in tool.TESTS.items():
        assert not stages[-1].source, f"the last tests of {file} must run with everything that it is part of"
        for stage in stages:
            assert all((tool.ROOT / path.partition("::")[0]).is_file() for path in stage.paths)
            assert not stage.source or (tool.KERNELS / stage.source).is_file()


def test_equivalent_mutants_exist_and_have_reasons():
    made = {(mutant.file, mutant.before, mutant.after) for file in tool.TESTS for mutant in tool.mutants(file)}
    for mutant, reason in tool.equivalents().items():
        assert mutant in made
        assert reason.strip()


class Outcome(tool.Copy):
    """A copy of one kernel source, of which compiling and testing are done with other commands."""

    def __init__(self, folder, test):
        self.folder, self.limits, self.judged = folder, {}, ""
        tool.write_changed(folder / "src" / "kernels" / "relu.cu", (tool.KERNELS / "relu.cu").read_bytes())
        for path in tool.TESTS["relu.cu"][0].paths:
            tool.write_changed(folder / path, b"")
        tool.write_changed(folder / "tests" / "ops" / "test_ops_elementwise.py", test.encode())

    def build(self, source=""):
        return ""


READ = 'source = open("src/kernels/relu.cu").read()\ndef test_relu():\n    '
ORIGINAL = '"value > 0.0f ? slope" in source'


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        (f"{READ}assert {ORIGINAL}\n", ("killed", "tests/ops/test_ops_elementwise.py::test_relu")),
        (f"{READ}pass\n", ("survived", "")),
        (f"import os\n{READ}{ORIGINAL} or os.abort()\n", ("killed", "the tests end by SIGABRT")),
        (f"{READ}\n    while not ({ORIGINAL}):\n        pass\n", ("killed", "the tests hang")),
    ],
    ids=["killed", "survived", "crashed", "hanging"],
)
def test_judgement(tmp_path, monkeypatch, test, outcome):
    monkeypatch.setattr(tool, "SPARE", 3)
    (mutant,) = (m for m in tool.mutants("relu.cu") if "value >= 0.0f ? slope" in m.after)
    assert Outcome(tmp_path, test).judge(mutant) == outcome
    assert (tmp_path / "src/kernels/relu.cu").read_bytes() == (tool.KERNELS / "relu.cu").read_bytes()


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("def other():\n    pass\n", "the tests do not run: tests/ops/test_ops_elementwise.py"),
        ("def test_wrong():\n    assert False\n", "the tests fail undisturbed: tests/ops/test_ops_el"),
    ],
)
def test_tests_that_fail_anyway_are_no_kill(tmp_path, test, message):
    with pytest.raises(RuntimeError, match=message):
        Outcome(tmp_path, test).judge(tool.mutants("relu.cu")[0])
