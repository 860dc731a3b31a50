"""A trained network over many images: probabilities averaged over views, activations, errors, confusions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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

    Those of all views (1 or 10, see ``data.view_windows``) are averaged, not their logits (Krizhevsky, Sutskever and
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


def scores(probabilities: Values, labels: Values) -> Scores:
    """What probabilities (n, classes) are worth where ``labels`` (n,) are true; n >= 1.

    The loss of an image is -log p of its label, p being at least ``SMALLEST``. Among equal probabilities the class
    with the lower index comes first, as in ``metrics.losses_and_ranks``. Raises ``ValueError`` without images.
    """
    n = len(labels)
    if n == 0:
        raise ValueError("scores need at least one image, got none")
    ranks = losses_and_ranks(probabilities, labels)[1]  # only the order matters to them
    own = probabilities[np.arange(n), labels].astype(np.float64)
    losses = -np.log(np.maximum(own, SMALLEST))
    top1, top5 = float((ranks >= 1).mean()), float((ranks >= 5).mean())
    return Scores(
        n=n,
        top1_error=top1,
        top1_standard_error=float(np.sqrt(top1 * (1 - top1) / n)),
        top5_error=top5,
        top5_standard_error=float(np.sqrt(top5 * (1 - top5) / n)),
        loss=float(losses.mean()),
        loss_standard_error=float(losses.std() / np.sqrt(n)),
    )


def top(probabilities: Values, k: int) -> Values:
    """The k most probable classes of every image (fewer where there are fewer classes), int64 (n, k), best first."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]


def confusion(probabilities: Values, labels: Values) -> Values:
    """How many images of each class (row) were taken for each class (column), int64 (classes, classes)."""
    classes = probabilities.shape[1]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, top(probabilities, 1)[:, 0]), 1)
    return counts


def most_confused(counts: Values, classes: Sequence[str], most: int = 5) -> list[tuple[str, str, int, int]]:
    """The largest entries of a confusion off its diagonal: true class, what it was taken for, images, of how many."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(i), len(classes)) for i in order]
    return [(classes[i], classes[j], int(wrong[i, j]), int(counts[i].sum())) for i, j in pairs if wrong[i, j]]
