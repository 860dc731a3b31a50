"""docs/reliability.md promises nothing that no test holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)


def functions_of(file: str) -> set[str]:
    (path,) = (ROOT / "tests").glob(f"*/{file}")
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_the_page_names_tests():
    assert len(NAMED) > 80


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_the_page_names_exists(file):
    assert {name for other, name in NAMED if other == file} <= functions_of(file)


def test_every_promise_names_a_test():
    """Rows of its tables, but for the heads and the lists of what is not held."""
    promises = PAGE.partition("## Not held")[0]
    rows = [line for line in promises.splitlines() if line.startswith("|") and not re.match(r"\|( promise|---)", line)]
    assert len(rows) > 30
    assert not [row for row in rows if "::test_" not in row]


def test_a_missing_test_would_be_noticed():
    assert "test_that_nobody_wrote" not in functions_of("test_reliability.py")
    assert "test_the_page_names_tests" in functions_of("test_reliability.py")
