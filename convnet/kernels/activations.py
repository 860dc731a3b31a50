"""The activations that there are, of the 2012 program's "neurons" those with a gradient of their own.

``src/kernels/activation.hpp`` says what each computes, to the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Activation:
    """``formula``: y from x. ``parameters``: their names there, in order. ``reads``: what of its "x" and "y" the
    backward pass needs beside dy; "" where it needs neither. What reads x may not be computed in place before it."""

    formula: str
    parameters: tuple[str, ...]
    reads: str


ACTIVATIONS = {
    "relu": Activation("max(x, 0)", (), "y"),
    "tanh": Activation("a tanh(b x)", ("a", "b"), "y"),
    "logistic": Activation("1 / (1 + e^-x)", (), "y"),
    "linear": Activation("a x + b", ("a", "b"), ""),
    "softrelu": Activation("log(1 + e^x), x above 4", (), "x"),
    "brelu": Activation("min(a, max(0, x))", ("a",), "x"),
    "abs": Activation("|x|", (), "x"),
    "square": Activation("x^2", (), "x"),
    "sqrt": Activation("sqrt(x)", (), "y"),
}
