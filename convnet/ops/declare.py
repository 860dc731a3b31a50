"""An op is declared once, by the signature of its function; what is checked, launched and tested follows from it.

    @op("max_pool2d")  # how the texts of its errors begin
    def max_pool_forward(
        stream: Stream,
        shape: PoolShape,
        precision: str,
        x: Annotated[Array, reads("x")],  # of shape.x, in what activations are made of
        y: Annotated[Array, writes("y")],
        argmax: Annotated[Array, writes("y", U8)] | None,
    ) -> None:
        '''y and the position of each maximum in its window.'''

A call checks the precision, the arrays from left to right, what the body checks on its own, and the workspace. Then it
launches the kernel of the function's name with the same arguments. What does not fit raises ``ValueError``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import wraps
from operator import attrgetter
from typing import Annotated, Any, ParamSpec, cast, get_args, get_origin, get_type_hints

import numpy as np

from ..kernels.precision import activation_dtype, dtype_name

P = ParamSpec("P")
# An attribute of the parameter ``shape`` ("x") or of another one ("lrn.x"), or a function of parameters by their names.
# It gives a shape, or an int, which is a number of elements.
Extent = str | Callable[..., "tuple[int, ...] | int"]


@dataclass(frozen=True)
class Tensor:
    """What an array must be. One that is written may be read, too, and be the same as one that is read."""

    extent: Extent
    dtype: np.dtype[Any] | None  # None: that of activations
    written: bool
    places: bool  # its values are places in other arrays, and nothing checks them


@dataclass(frozen=True)
class Scratch:
    """A workspace of as many bytes as the function ``size`` of the kernel table says for shape and precision."""

    size: str


def reads(extent: Extent, dtype: Any = None, places: bool = False) -> Tensor:
    return Tensor(extent, None if dtype is None else np.dtype(dtype), False, places)


def writes(extent: Extent, dtype: Any = None) -> Tensor:
    return Tensor(extent, None if dtype is None else np.dtype(dtype), True, False)


class Parameter:
    """One parameter of an op: its type, what is said of it where it is an array, and whether it may be None."""

    def __init__(self, hint: Any):
        self.optional = type(None) in get_args(hint)
        if self.optional:
            hint = next(kind for kind in get_args(hint) if kind is not type(None))
        annotated = get_origin(hint) is Annotated
        self.kind: Any = hint.__origin__ if annotated else hint
        # more than one tensor: several rules for one array
        self.marks: tuple[Tensor | Scratch, ...] = hint.__metadata__ if annotated else ()


class Declaration:
    """What the signature of ``function`` says. Raises ``TypeError`` where it names an extent that is not there."""

    def __init__(self, title: str, function: Callable[..., None]):
        self.title, self.signature = title, inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
        self.parameters = {name: Parameter(hints[name]) for name in self.signature.parameters}
        self._at = {name: at for at, name in enumerate(self.parameters)}
        self._precision = self._at.get("precision")
        marks = [(name, mark) for name, parameter in self.parameters.items() for mark in parameter.marks]
        self._tensors = [
            (self._at[name], name, *self._extent(mark.extent), mark.dtype)
            for name, mark in marks
            if isinstance(mark, Tensor)
        ]
        self._scratch = [(self._at[name], mark.size) for name, mark in marks if isinstance(mark, Scratch)]
        self._counts = not any(is_dataclass(parameter.kind) for parameter in self.parameters.values())

    def _extent(self, extent: Extent) -> tuple[int | slice, Callable[[Any], Any]]:
        """The place of the argument that it follows from, or of all of them, and how it does."""
        if callable(extent):
            function, at = extent, [self._at[name] for name in inspect.signature(extent).parameters]
            return slice(None), lambda given: function(*[given[i] for i in at])
        owner, path = extent.split(".", 1) if "." in extent else ("shape", extent)
        try:
            kind = self.parameters[owner].kind
            for name in path.split("."):
                made = getattr(getattr(kind, name, None), "fget", None)  # a property, or else a field
                kind = get_type_hints(made)["return"] if made else get_type_hints(kind)[name]
        except (KeyError, TypeError):
            raise TypeError(f'{self.title}: there is no extent "{extent}"') from None
        return self._at[owner], attrgetter(path)

    def check(self, title: str, given: tuple[Any, ...]) -> None:
        """Compares precision and arrays with what they must be; ``given`` are all arguments in order."""
        device = given[0].device
        activations = None if self._precision is None else activation_dtype(given[self._precision])
        for at, name, whose, extent, dtype in self._tensors:
            array = given[at]
            if array is None:
                continue
            if array.device is not device:
                raise ValueError(f"{title}: {name} lies on {array.device.name}, the stream belongs to {device.name}")
            wanted, dtype = extent(given[whose]), dtype or activations
            if (array.size if isinstance(wanted, int) else array.shape) != wanted or array.dtype != dtype:
                words = f"{wanted} elements" if isinstance(wanted, int) else f"shape {wanted}"
                raise ValueError(
                    f"{title}: {name} must have {words} of {dtype_name(dtype)}, "
                    f"got shape {array.shape} of {dtype_name(array.dtype)}"
                )

    def launch(self, kernel: str, given: tuple[Any, ...]) -> None:
        """Compares the workspace with what is needed, and launches. Without a shape, kernels take a count in front."""
        kernels = given[0].device.kernels
        for at, size in self._scratch:
            needed = getattr(kernels, size)(given[self._at["shape"]], given[self._at["precision"]])
            found = given[at].nbytes if given[at] else 0
            if found < needed:
                raise ValueError(f"{self.title}: needs a workspace of {needed} bytes, got {found}")
        count = (given[self._tensors[0][0]].size,) if self._counts else ()
        given[0].launch(getattr(kernels, kernel), *count, *given[1:])


DECLARED: dict[str, Declaration] = {}  # of every op, by the name of its function


def op(title: str, launches: bool = True) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Makes the signature of a function its declaration. With ``launches=False``, its body does that."""

    def declare(function: Callable[P, None]) -> Callable[P, None]:
        name, body = function.__name__, cast("Callable[..., None]", function)
        declared = DECLARED[name] = Declaration(title, function)
        many = len(declared.parameters)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            given: tuple[Any, ...] = args
            if kwargs or len(given) != many:  # binding takes longer than all checks
                bound = declared.signature.bind(*args, **kwargs)
                bound.apply_defaults()
                given = bound.args
            declared.check(title, given)
            body(*given)
            if launches:
                declared.launch(name, given)

        return call

    return declare
