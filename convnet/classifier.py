"""A network as scikit-learn's classifiers are: made with parameters, fitted, asked. scikit-learn need not be there."""

from __future__ import annotations

import inspect
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .analysis import evaluate
from .analysis.predict import ImageFiles, image_files
from .data import DataError, Split
from .data.npz import converted, layout_of
from .data.published import digest, numbered
from .data.source import Found, Part
from .data.splits import PixelSplit
from .output.console import Console
from .output.files import printable
from .training import checkpoint
from .training.checkpoint import CheckpointError
from .training.train import run
from .training.trained import Trained, load_trained
from .training.trainer import STOPPED, Diverged

Values = np.ndarray[Any, Any]
Levels = tuple[float, float]

BATCH = 128  # pictures that are looked at together, where nothing is learnt
KEY = "classifier"  # of what a saved one keeps besides what a checkpoint does
_log = logging.getLogger(__name__)


class NotFittedError(ValueError, AttributeError):
    """A classifier was asked before it was fitted; where scikit-learn is loaded its class of this name is raised."""


class Classifier:
    """Trains a network on labelled pictures as ``convnet-train`` does, and says what is in others.

    >>> classifier = convnet.Classifier(epochs=20).fit(images, labels)  # uint8 (n, H, W, 3), and a label each
    >>> classifier.predict(others), classifier.score(others, their_labels)

    Parameters are options of ``convnet-train`` under their names there, None for what it chooses itself:
    ``random_state`` is its ``--seed``, ``augment=False`` its ``--no-augment``, for pictures that mean something else
    when they are mirrored. ``verbose`` shows what the command would show; warnings go to ``logging``, by the name of
    this module. Equal parameters and pictures give equal bits, those of the command.

    Pictures are a folder, or whatever else the command takes for DATA; or an array (n, H, W), (n, H, W, 3) or another
    that ``.npz`` files may have. Of numbers other than uint8, black and white are 0 and 1 where ``fit`` finds none
    outside; or 0 and 255 where it finds none outside of these and one of 128 or more; else the lowest and the highest
    that it finds. A row of an array (n, features) is taken for a grey picture with as many rows as columns, 28 x 28 of
    784, the last of them black where features are missing.

    After ``fit``: ``classes_``, the labels, sorted, or a folder's names of classes; ``n_features_in_``, numbers of a
    picture, where it was given arrays; ``trained_``, the checkpoint with its options.

    Raises ``ValueError`` for what cannot be used, and ``DeviceError``.
    """

    def __init__(
        self,
        *,
        model: str = "alexnet-tiny",
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        augment: bool = True,
        val_split: float = 0.1,
        device: str = "auto",
        random_state: int = 0,
        verbose: bool = False,
    ):
        self.model, self.epochs, self.batch_size, self.lr = model, epochs, batch_size, lr
        self.augment, self.val_split, self.device = augment, val_split, device
        self.random_state, self.verbose = random_state, verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; ``deep`` is there for scikit-learn."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Classifier:
        """Raises ``ValueError`` for a name that is no parameter's."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"{type(self).__name__}: no parameter is called {name!r}; there are {', '.join(known)}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """With the parameters that are not as they are by default."""
        shown = ", ".join(f"{name}={value!r}" for name, value in self._changed().items())
        return f"{type(self).__name__}({shown})"

    def _changed(self) -> dict[str, Any]:
        """The parameters that are not as they are by default."""
        defaults = inspect.signature(type(self)).parameters
        return {name: v for name, v in self.get_params().items() if repr(v) != repr(defaults[name].default)}

    # ---- learning

    def fit(self, X: Any, y: Any = None) -> Classifier:
        """Learns the labels ``y`` (n,), numbers or text, of the pictures ``X``; those of a folder are in it."""
        flags = {"seed" if name == "random_state" else name: value for name, value in self._changed().items()}
        flags.pop("verbose", None)
        flags = {name: value.item() if isinstance(value, np.generic) else value for name, value in flags.items()}
        found, classes, kept = None, None, {}
        if isinstance(X, (str, os.PathLike)):
            if y is not None:
                raise ValueError(f"fit: the labels of {os.fspath(X)!r} are in it; leave y out")
            flags["data"] = os.fspath(X)
        else:
            values = _numbers(X)
            classes, labels = np.unique(_labels(y, len(values)), return_inverse=True)
            levels = _levels(values, 128) or (float(values.min()), max(float(values.max()), float(values.min()) + 1))
            found = _found(_pictures(values, levels), classes, labels.astype(np.int32))
            kept = {"flat": values.ndim == 2, "features": math.prod(values.shape[1:])}
            kept["levels"] = None if values.dtype == np.uint8 else levels
            flags["data"] = "arrays"
        console = _Console(quiet=not self.verbose)
        with tempfile.TemporaryDirectory(prefix="convnet-") as place, _as_value_error():
            folder = Path(place) / "run"
            if run(flags, {}, str(folder), None, console, found, stays=False) == STOPPED:
                raise KeyboardInterrupt
            trained = load_trained(folder, console.warn)
        self._take(trained, trained.classes if classes is None else classes, kept)
        return self

    def _take(self, trained: Trained, classes: Any, kept: dict[str, Any]) -> None:
        self.trained_, self.classes_, self._kept = trained, np.asarray(classes), kept
        if kept:
            self.n_features_in_: int = kept["features"]
        elif hasattr(self, "n_features_in_"):
            del self.n_features_in_

    # ---- asking

    def predict_proba(self, X: Any) -> Values:
        """The probability of each of ``classes_`` for each picture, float64 (n, classes).

        ``X`` are arrays as in ``fit``, or a path: a file with a picture, or a folder, whose pictures come sorted by
        their paths, as ``convnet-predict`` has them.
        """
        split = self._split(X)
        with _as_value_error(), self._trained.open_network(self.device, min(BATCH, len(split))) as network:
            found = evaluate.probabilities(network, split).astype(np.float64)
        for index, reason in sorted(getattr(split, "bad", {}).items())[:1]:
            raise ValueError(f"{split.name(index)}: {reason}")
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> Values:
        """The most probable label of each picture, (n,); see ``predict_proba``."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def score(self, X: Any, y: Any = None) -> float:
        """The share of pictures whose label is found. Of a folder, or other DATA, those count that ``convnet-eval``
        looks at, where it is what the network was trained on those that were held out."""
        if not isinstance(X, (str, os.PathLike)):
            found = self.predict(X)
            return float(np.mean(found == _labels(y, len(found))))
        with _as_value_error():
            looked = self._trained.open_dataset(os.fspath(X)).valid
            with self._trained.open_network(self.device, min(BATCH, len(looked) or 1)) as network:
                return 1 - evaluate.outcomes(network, looked).scores().top1_error

    @property
    def _trained(self) -> Trained:
        if not hasattr(self, "trained_"):
            kind = _theirs("NotFittedError", NotFittedError)
            raise kind(f"this {type(self).__name__} instance is not fitted yet; call fit first, or load one")
        return self.trained_

    def _split(self, X: Any) -> Split:
        """The pictures to look at, of which there is one at least, at the network's size."""
        trained = self._trained
        if isinstance(X, (str, os.PathLike)):
            unusable: list[str] = []
            files = list(image_files([os.fspath(X)], (), lambda name, reason: unusable.append(f"{name}: {reason}")))
            if unusable:
                raise ValueError(unusable[0])
            return ImageFiles(files, trained.image_size, trained.depth)
        values = _numbers(X)
        flat = self._kept.get("flat", False)
        if (values.ndim == 2) != flat:
            raise ValueError(
                f"X of shape {values.shape}: {'rows of numbers' if flat else 'pictures'} are expected, as in fit"
            )
        if flat and values.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {values.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        levels = self._kept.get("levels") if values.dtype != np.uint8 else None
        levels = levels or _levels(values, 0)  # not the lowest and the highest: pictures do not depend on each other
        if levels is None:
            raise ValueError(
                f"X has numbers from {values.min():g} to {values.max():g}, and the network has learnt from pixels: "
                "give whole numbers from 0 to 255, or fractions from 0 to 1"
            )
        pixels = _pictures(values, levels)
        nothing = np.zeros(len(pixels), np.int32)
        return PixelSplit(Part(nothing, [f"X {k}" for k in range(len(pixels))], pixels), size=trained.image_size)

    # ---- keeping

    def save(self, path: str | Path) -> None:
        """Into a file that ``load`` takes, and every command that takes a RUN. Raises ``OSError``, and ``ValueError``
        for weights that others have trained."""
        found = self._trained.checkpoint
        if found is None:
            raise ValueError(f"what was loaded is {self._trained.path} as it is; copy that file")
        kept = {"classes": self.classes_.tolist(), **self._kept}
        checkpoint.save(Path(path), found.tensors, {**found.state, KEY: kept})

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """From what ``save`` wrote, or from a run folder or a checkpoint of ``convnet-train``, in whose folder's best
        one it then has learnt; with the parameters it was trained with, on whatever device there is. Or from a file of
        weights that ``convnet-predict`` takes, whose classes are called by their numbers."""
        with _as_value_error():
            trained = load_trained(path, _log.warning)
            classes, kept = _kept(trained)
        config = trained.config
        names = ("model", "epochs", "batch_size", "lr", "augment", "val_split")
        loaded = cls(**{name: getattr(config, name) for name in names}, random_state=config.seed)
        loaded._take(trained, classes, kept)
        return loaded

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn, which asks for it, may expect."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(three_d_array=True),
        )


class _Console(Console):
    """Warnings go to ``logging``."""

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")
        _log.warning("%s", text)


@contextmanager
def _as_value_error() -> Iterator[None]:
    """What is wrong with data, files and numbers is a ``ValueError`` to those who know no commands."""
    try:
        yield
    except (DataError, CheckpointError, Diverged) as error:
        raise ValueError(str(error)) from error


def _theirs(name: str, ours: Any) -> Any:
    """scikit-learn's exception of that name where it is loaded, so that those who know it can catch it."""
    return getattr(sys.modules.get("sklearn.exceptions"), name, ours)


# ---- pictures and labels from arrays


def _numbers(X: Any) -> Values:
    """Of pictures or rows, of which there is one at least. Raises ``ValueError`` and ``TypeError``."""
    if hasattr(X, "toarray"):
        raise TypeError("X is a sparse matrix, which is not supported; give an array: X.toarray()")
    try:
        values = np.asarray(X)
        if values.dtype.kind == "O":
            values = values.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"X is no array of numbers ({error}); pictures of several sizes go into a folder") from error
    if values.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: X is {values.dtype} {values.shape}; pixels are real numbers")
    if values.ndim < 2:
        raise ValueError(
            f"X is {values.dtype} {values.shape}, one picture or row at most; several are expected. Reshape your data: "
            "X.reshape(1, -1)"
        )
    if values.ndim == 3 and values.shape[2] in (3, 4):
        raise ValueError(f"X of shape {values.shape} is one picture; several are expected, (n, H, W, 3): X[None]")
    if 0 in values.shape[1:]:
        raise ValueError(f"0 feature(s) (shape={values.shape}) while a minimum of 1 is required.")
    if len(values) == 0:
        raise ValueError(f"X of shape {values.shape}: 0 pictures; one at least is needed")
    if values.dtype.kind not in "biuf" or (values.ndim != 2 and not layout_of(values.shape)):
        raise ValueError(
            f"X is {values.dtype} {values.shape}: no pictures; needed are numbers of shape (n, H, W), (n, H, W, 3) or "
            "(n, 3, H, W), or rows of features"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("X contains NaN or infinity; pixels are finite numbers")
    return values


def _levels(values: Values, least: float) -> Levels | None:
    """Which numbers black and white are, where they are those of pixels: of whole ones the largest is ``least`` or
    more. Else None."""
    low, high = float(values.min()), float(values.max())
    if values.dtype != np.uint8 and low >= 0 and high <= 1:
        return 0.0, 1.0
    return (0.0, 255.0) if values.dtype == np.uint8 or (low >= 0 and least <= high <= 255) else None


def _pictures(values: Values, levels: Levels) -> Values:
    """As uint8 (n, H, W) or (n, H, W, 3)."""
    if values.ndim == 2:
        side = math.ceil(math.sqrt(values.shape[1]))
        squares = np.full((len(values), side * side), levels[0], np.result_type(values, np.uint8))
        squares[:, : values.shape[1]] = values
        values = squares.reshape(len(values), side, side)
    return np.ascontiguousarray(converted(values, layout_of(values.shape), levels))


def _labels(y: Any, count: int) -> Values:
    """One for each of ``count`` pictures, (n,). Raises ``ValueError``."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None; only a folder says its labels itself")
    values = np.asarray(y)
    if values.dtype.kind == "O":
        texts = [isinstance(label, str) for label in values.reshape(-1)]
        values = np.array(values.tolist()) if all(texts) or not any(texts) else values
    if values.ndim == 2 and values.shape[1] == 1:
        told = f"A column-vector y was passed when a 1d array was expected: y is {values.shape}; give y.ravel()"
        warnings.warn(told, _theirs("DataConversionWarning", UserWarning), stacklevel=3)
        values = values.reshape(-1)
    if values.ndim != 1:
        raise ValueError(
            f"y should be a 1d array, got an array of shape {values.shape} instead; a label each is needed"
        )
    if len(values) != count:
        raise ValueError(f"y has {len(values):,} labels for {count:,} pictures; one each is needed")
    if values.dtype.kind not in "biufU":
        raise ValueError(f"Unknown label type: {values.dtype}; labels are whole numbers or text, all of one kind")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError("Input y contains NaN or infinity; labels are whole numbers or text")
        if (values != np.rint(values)).any():
            raise ValueError("Unknown label type: continuous; labels are whole numbers or text, y has fractions")
    return values


def _found(pixels: Values, classes: Values, labels: Values) -> Found:
    """As a reader of ``.npz`` files would have found them."""
    if classes.dtype.kind in "biu" and classes.min() >= 0:
        names, _, _ = numbered({"all": classes.astype(np.int64)}, {}, "y")
    else:
        names = [printable(str(label)) for label in classes.tolist()]
    parts = {"all": Part(labels, [f"X {k}" for k in range(len(labels))], pixels)}
    return Found("arrays", names, parts, known=digest(names, parts))


def _kept(trained: Trained) -> tuple[Any, dict[str, Any]]:
    """The labels and what else ``save`` kept; of other checkpoints the names of classes, and nothing. Raises
    ``CheckpointError`` where it is not what ``save`` writes."""
    state = trained.checkpoint.state.get(KEY) if trained.checkpoint else None
    if state is None:
        return trained.classes, {}
    try:
        classes, kept = np.array(state["classes"]), {name: state[name] for name in state if name != "classes"}
        fits = classes.shape == (len(trained.classes),) and classes.dtype.kind in "biufU"
        if kept:
            low, high = map(float, kept["levels"] or (0, 255))
            fits = fits and -math.inf < low < high < math.inf and type(kept["flat"]) is bool
            fits = fits and type(kept["features"]) is int and kept.keys() == {"levels", "flat", "features"}
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        fits = False
    if not fits:
        raise CheckpointError(f'{trained.path}: expected labels and levels of pixels as "{KEY}", found {state!r:.80}')
    return classes, kept
