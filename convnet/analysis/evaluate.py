"""A trained network over many images: probabilities averaged over views, activations, errors, confusions.

What is counted needs but a few numbers of every image (``Outcomes``), however many classes there are: probabilities of
all classes for all images are for those who ask for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Loader, Split, Statistics, view_windows
from ..network.spec import NetworkSpec
from ..training.metrics import losses_and_ranks

if TYPE_CHECKING:
    from ..network.model import Network

Values = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]  # images done, images in all

# The smallest probability that a loss is computed from, so that it stays finite: 87.34 nats at most. float32 cannot
# hold much smaller ones, and nothing can be told from a zero but that it is small.
SMALLEST = float(np.finfo(np.float32).tiny)
# A loader wants to know the colours of the training images; without augmentation it does nothing with them.
_NO_NOISE = Statistics(np.zeros((3, 1, 1), np.float32), *(np.zeros(s, np.float32) for s in ((3,), (3,), (3, 3))))


def image_batches(network: Network, split: Split, workers: int = 2, progress: Progress | None = None) -> Iterator[Any]:
    """The images of ``split`` in their order, uint8 (n, size, size, 3) with n of ``network.batch_size`` or fewer;
    each is valid until the next one is asked for."""
    loader = Loader(
        split,
        batch_size=network.batch_size,
        crop=network.spec.crop,
        seed=0,
        augment=False,
        statistics=_NO_NOISE,
        workers=workers,
    )
    with loader:
        for batch in loader.epoch(0):
            yield batch.images
            if progress is not None:
                progress(batch.position + len(batch.images), len(split))


def softmax(logits: Values) -> Values:
    """Probabilities, float64 (n, classes), computed in float64 from logits of any type."""
    x = logits.astype(np.float64)
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(x / x.sum(axis=1, keepdims=True))


def probability_batches(
    network: Network, split: Split, views: int = 1, *, workers: int = 2, progress: Progress | None = None
) -> Iterator[Values]:
    """What ``probabilities`` returns, batch by batch."""
    windows = view_windows(split.size, network.spec.crop, views)
    for images in image_batches(network, split, workers, progress):
        seen = [softmax(network.evaluate_batch(images, np.tile(window, (len(images), 1)))) for window in windows]
        yield np.mean(seen, axis=0).astype(np.float32)


def probabilities(
    network: Network, split: Split, views: int = 1, *, workers: int = 2, progress: Progress | None = None
) -> Values:
    """The network's probabilities for every image, float32 (n, classes), in test mode.

    Those of all views (1, 9 or 10, see ``data.view_windows``) are averaged, not their logits (Krizhevsky, Sutskever and
    Hinton 2012, section 4.1). ``workers`` threads decode; ``progress`` is told images done and images in all. Raises
    ``ValueError`` for other views, and what the split raises.
    """
    found = list(probability_batches(network, split, views, workers=workers, progress=progress))
    return np.concatenate(found) if found else np.empty((0, network.spec.classes), np.float32)


def feature_batches(
    network: Network, split: Split, layer: str = "fc7", *, workers: int = 2, progress: Progress | None = None
) -> Iterator[Values]:
    """What ``features`` returns, batch by batch."""
    check_layer(network.spec, layer)
    windows = view_windows(split.size, network.spec.crop, 1)
    for images in image_batches(network, split, workers, progress):
        network.evaluate_batch(images, np.tile(windows, (len(images), 1)))
        yield network.activation(layer)


def features(
    network: Network, split: Split, layer: str = "fc7", *, workers: int = 2, progress: Progress | None = None
) -> Values:
    """The outputs of ``layer``, behind its ReLU, for the centre crop of every image, in test mode.

    float32 (n, C, H, W) or (n, F); for many images and an early layer this is much memory, see ``feature_batches``.
    Raises ``ValueError`` for a layer that the network does not have, and for a split without images.
    """
    found = list(feature_batches(network, split, layer, workers=workers, progress=progress))
    if not found:
        raise ValueError(f"features of {layer}: at least one image is needed, got none")
    return np.concatenate(found)


def check_layer(spec: NetworkSpec, layer: str) -> None:
    """Raises ``ValueError`` unless the network has a layer of this name: before any image is read."""
    names = [known.name for known in spec.layers]
    if layer not in names:
        raise ValueError(f'no layer is called "{layer}"; there are {", ".join(names)}')


@dataclass(frozen=True)
class Scores:
    """Errors as fractions, the loss in nats, each with its standard error (of a fraction: sqrt(e (1 - e) / n))."""

    n: int
    top1_error: float
    top1_standard_error: float
    top5_error: float
    top5_standard_error: float
    loss: float
    loss_standard_error: float

    def as_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Outcomes:
    """What a network made of n images: their ``labels``; ``own``, the probability of the label, at least ``SMALLEST``,
    float64; ``ranks``, how many classes come before the label, as in ``metrics.losses_and_ranks``; and ``taken``, the
    most probable class, of equal ones the first."""

    labels: Values
    own: Values
    ranks: Values
    taken: Values

    @staticmethod
    def of(probabilities: Values, labels: Values) -> Outcomes:
        """From probabilities (n, classes)."""
        ranks = losses_and_ranks(probabilities, labels)[1]  # only the order matters to them
        return Outcomes(labels, own_probabilities(probabilities, labels), ranks, probabilities.argmax(axis=1))

    @staticmethod
    def joined(parts: Sequence[Outcomes]) -> Outcomes:
        """One after another. Raises ``ValueError`` for none."""
        if not parts:
            raise ValueError("scores need at least one image, got none")
        names = ("labels", "own", "ranks", "taken")
        return Outcomes(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def scores(self) -> Scores:
        """The loss of an image is -log of ``own``. Raises ``ValueError`` without images."""
        n = len(self.labels)
        if n == 0:
            raise ValueError("scores need at least one image, got none")
        losses = -np.log(self.own)
        top1, top5 = float((self.ranks >= 1).mean()), float((self.ranks >= 5).mean())
        return Scores(
            n=n,
            top1_error=top1,
            top1_standard_error=float(np.sqrt(top1 * (1 - top1) / n)),
            top5_error=top5,
            top5_standard_error=float(np.sqrt(top5 * (1 - top5) / n)),
            loss=float(losses.mean()),
            loss_standard_error=float(losses.std() / np.sqrt(n)),
        )


def outcomes(
    network: Network, split: Split, views: int = 1, *, workers: int = 2, progress: Progress | None = None
) -> Outcomes:
    """What the network makes of every image; arguments and errors as of ``probabilities``, and ``ValueError`` without
    images."""
    found: list[Outcomes] = []
    seen = 0
    for shares in probability_batches(network, split, views, workers=workers, progress=progress):
        found.append(Outcomes.of(shares, split.labels[seen : seen + len(shares)]))
        seen += len(shares)
    return Outcomes.joined(found)


def own_probabilities(probabilities: Values, labels: Values) -> Values:
    """Those of the labels (n,), at least ``SMALLEST``, float64 (n,), from probabilities (n, classes)."""
    return np.maximum(probabilities[np.arange(len(labels)), labels].astype(np.float64), SMALLEST)


def scores(probabilities: Values, labels: Values) -> Scores:
    """What probabilities (n, classes) are worth where ``labels`` (n,) are true; n >= 1. See ``Outcomes``."""
    return Outcomes.of(probabilities, labels).scores()


def top(probabilities: Values, k: int) -> Values:
    """The k most probable classes of every image (fewer where there are fewer classes), int64 (n, k), best first."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]


@dataclass(frozen=True)
class Confusion:
    """How many images of which class were taken for which, of ``classes`` in all: the pairs that occur, by true class
    and then by the other, int64 (pairs,) each."""

    true: Values
    taken: Values
    images: Values
    classes: int

    @staticmethod
    def of(found: Outcomes, classes: int) -> Confusion:
        pairs, images = np.unique(found.labels.astype(np.int64) * classes + found.taken, return_counts=True)
        return Confusion(*np.divmod(pairs, classes), images, classes)

    def rows(self) -> Iterator[Values]:
        """For every true class, how many of its images were taken for each class, int64 (classes,)."""
        for first, last in pairwise(np.searchsorted(self.true, np.arange(self.classes + 1))):
            row = np.zeros(self.classes, np.int64)
            row[self.taken[first:last]] = self.images[first:last]
            yield row

    def most(self, names: Sequence[str], most: int = 5) -> list[tuple[str, str, int, int]]:
        """The largest numbers of mistakes: true class, what it was taken for, images, of how many."""
        totals = np.bincount(self.true, self.images, self.classes).astype(np.int64)
        wrong = np.flatnonzero(self.true != self.taken)
        largest = wrong[np.argsort(-self.images[wrong], kind="stable")[:most]]
        return [
            (names[i], names[j], int(count), int(totals[i]))
            for i, j, count in zip(self.true[largest], self.taken[largest], self.images[largest], strict=True)
        ]


def confusion(probabilities: Values, labels: Values) -> Values:
    """How many images of each class (row) were taken for each class (column), int64 (classes, classes)."""
    return np.stack(list(Confusion.of(Outcomes.of(probabilities, labels), probabilities.shape[1]).rows()))


def most_confused(counts: Values, classes: Sequence[str], most: int = 5) -> list[tuple[str, str, int, int]]:
    """The largest entries of a confusion off its diagonal: true class, what it was taken for, images, of how many."""
    true, taken = np.nonzero(counts)
    return Confusion(true, taken, counts[true, taken], len(classes)).most(classes, most)
