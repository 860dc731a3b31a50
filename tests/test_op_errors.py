"""The texts of errors stay word for word; what changes one is seen in a difference of ``golden/op_errors.json``."""

from __future__ import annotations

import json

import op_errors
import pytest

GOLDEN = json.loads(op_errors.GOLDEN.read_text())


@pytest.fixture(scope="module")
def errors():
    return op_errors.errors()


def test_every_op_and_no_other(errors):
    assert list(errors) == list(GOLDEN)


@pytest.mark.parametrize("case", GOLDEN)
def test_word_for_word(errors, case):
    assert errors[case] == GOLDEN[case]
