"""Several networks as one: a weighted mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .evaluate import own_probabilities

Values = np.ndarray[Any, Any]

# Fitting ends when the loss is at most GAP nats above the lowest possible one, or after ROUNDS.
GAP, ROUNDS = 1e-6, 10_000


def mean(members: Sequence[Values], weights: Sequence[float] | Values | None = None) -> Values:
    """The mean of the members' probabilities, each (n, classes), as float32; ``weights`` sum to one (None: equal)."""
    if weights is None:
        weights = [1 / len(members)] * len(members)
    total = np.zeros(members[0].shape, np.float64)
    for weight, member in zip(weights, members, strict=True):
        total += weight * member.astype(np.float64)
    return total.astype(np.float32)


def fit_weights(members: Sequence[Values], labels: Values) -> Values:
    """``lowest_loss`` for the probabilities (n, classes) of each member and the labels (n,)."""
    return lowest_loss(np.stack([own_probabilities(member, labels) for member in members], axis=1))


def lowest_loss(own: Values) -> Values:
    """The weights, float64 (members,), not negative and of sum one, with the lowest mean loss, -log of the weighted
    mean of the members' probabilities of the label, float64 (n, members), over the images given.

    That loss is convex in the weights, so its minimum is the only one. Expectation maximisation finds it: with r the
    mean, over images, of a member's probability divided by the mixture's, w becomes w r, and the loss is at most
    log(max r) above its minimum. (The 2012 tool tried steps of .05 for the lowest top-5 error, of which a few hundred
    images allow but a few values.)
    """
    weights = np.full(own.shape[1], 1 / own.shape[1])
    for _ in range(ROUNDS):
        ratio = (own / (own @ weights)[:, None]).mean(axis=0)
        if ratio.max() <= 1 + GAP:
            break
        weights = weights * ratio
    return np.asarray(weights / weights.sum())
