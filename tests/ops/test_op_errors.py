"""What ops say and launch, word for word: a change is a difference of ``golden/op_errors.json``; and declarations."""

from __future__ import annotations

import inspect
import json
from typing import Annotated

import op_errors
import pytest

from convnet.devices.host import HostDevice
from convnet.devices.protocol import Array, Stream
from convnet.kernels.shapes import PoolShape
from convnet.ops import ops
from convnet.ops.declare import DECLARED, Tensor, op, reads

GOLDEN = json.loads(op_errors.GOLDEN.read_text())


@pytest.fixture(scope="module")
def errors():
    return op_errors.errors()


def test_every_op_and_no_other(errors):
    assert list(errors) == list(GOLDEN)


def test_every_array_of_every_op(errors):
    for name, declaration in DECLARED.items():
        arrays = [n for n, p in declaration.parameters.items() if any(isinstance(mark, Tensor) for mark in p.marks)]
        wanted = {f"{array} {wrong}" for array in arrays for wrong in ("shape", "dtype", "device")}
        assert wanted <= errors[f"{name} fp32"].keys()


@pytest.mark.parametrize("case", GOLDEN)
def test_word_for_word(errors, case):
    assert errors[case] == GOLDEN[case]


@pytest.mark.parametrize("name", [name for name in DECLARED if name != "sgd_many"])
def test_arguments_may_be_given_by_name(name):
    """In any order, and what has a default left out."""
    launched = []
    device = HostDevice("cpu", 0, op_errors.kernels(launched))
    arguments = {**op_errors.right(name, "fp32", device), "relu": False}
    parameters = inspect.signature(getattr(ops, name)).parameters
    given = {n: arguments[n] for n, p in reversed(parameters.items()) if n in arguments and p.default is p.empty}
    getattr(ops, name)(stream=device.stream(), **given)
    device.synchronize()
    [(kernel, *passed, _)] = launched
    assert kernel + op_errors.written(tuple(passed), arguments) == GOLDEN[f"{name} fp32"]["launch"]
    device.close()


@pytest.mark.parametrize("extent", ["z", "x.z", "shape.y.z", "pool.x"])
def test_a_declaration_of_what_is_not_there_is_refused_at_once(extent):
    def nothing(stream: Stream, shape: PoolShape, precision: str, x: Annotated[Array, reads(extent)]) -> None:
        pass

    nothing.__annotations__["x"] = Annotated[Array, reads(extent)]
    with pytest.raises(TypeError, match=f'max_pool2d: there is no extent "{extent}"'):
        op("max_pool2d")(nothing)


def test_wrong_calls_are_those_of_the_signature():
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        ops.relu_forward(None, "fp32", None)
    assert (
        str(inspect.signature(ops.relu_forward)) == "(stream: 'Stream', precision: 'str', x: 'In', y: 'Out') -> 'None'"
    )
