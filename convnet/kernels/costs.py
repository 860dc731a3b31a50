"""The costs beside the softmax's cross-entropy: ``src/kernels/costs.hpp`` says what each computes, to the rounding."""

from __future__ import annotations

COSTS = {
    "squares": "x^2",
    "squared-error": "(x - t)^2",
    "log-squared-error": "log(1 + (x - t)^2)",
    "cross-entropy": "-t log x - (1 - t) log(1 - x), logarithms at least -50",
    "logistic-cross-entropy": "the same of 1 / (1 + e^-x)",
}
