"""The networks that are open, what is asked of them at once, and what takes longer and is computed meanwhile.

All that networks compute is done by one thread, first come, first served, so that two never share a device's memory; a
job in the background asks for one batch at a time, and a picture that somebody drops waits for one batch at most.
Pictures are kept in memory, few, and nowhere else.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..analysis import evaluate, retrieval
from ..data import DataSet, NotThere, Subset
from ..training.trained import Trained
from . import looks
from .listing import Run

if TYPE_CHECKING:
    from ..network.model import Network

T = TypeVar("T")
Values = np.ndarray[Any, Any]

BATCH = 16  # images at a time: few make somebody wait less, and are as quick
OPEN = 2  # networks
KEPT = 32  # pictures of each
NEAREST = 6  # as in the paper
ROWS = 2**28  # bytes of that layer's activations of training pictures that are kept
PAIRS, EXAMPLES = 8, 6  # of classes that are confused, and pictures of each
SEED = 0  # of the pictures that are shown, and of those that are searched where there are too many


class Job:
    """What is computed in the background, once: ``done`` of ``total`` images, ``error`` where it failed."""

    def __init__(self, work: Callable[[Job], None]):
        self.done = self.total = 0
        self.finished, self.error = False, ""
        self._work = work
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._work(self)
            self.finished = True
        except Exception as error:
            self.error = sentence(error)

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def state(self) -> dict[str, Any]:
        told = {"done": self.done, "total": self.total, "finished": self.finished}
        return {**told, "error": self.error} if self.error else told


def sentence(error: BaseException) -> str:
    """What went wrong, in one line for a person."""
    if isinstance(error.__cause__, NotThere):  # its own text names an option that is not there
        return f"{error.__cause__.what}; the run's data is needed where it was when the run began"
    return " ".join(str(error).split()) or type(error).__name__


class Forgotten(Exception):
    """A picture that is no longer kept, or a network that is no longer open."""


class Subject:
    """A run whose network is open. Methods may be called from any thread."""

    def __init__(self, run: Run, trained: Trained, compute: Callable[..., Any]):
        self.run, self.trained, self.stamp = run, trained, run.stamp
        self.spec = looks.checked(trained.spec)
        self._compute = compute
        self._stack = ExitStack()
        self._opened: Network | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._dataset: DataSet | None = None
        self._pictures: OrderedDict[str, tuple[Values, list[int]]] = OrderedDict()
        self._features: Features | None = None
        self._confusion: tuple[Job, list[dict[str, Any]]] | None = None

    # ---- networks and data

    def _network(self) -> Network:
        """In the computing thread alone."""
        if self._closed:
            raise Forgotten("other runs have been opened since; load the page again")
        if self._opened is None:
            opening = self.trained.open_network("cpu", BATCH, "fp32", fused=False)
            self._opened = self._stack.enter_context(opening)
        return self._opened

    def close(self) -> None:
        self._closed = True
        self._compute(self._stack.close)

    def dataset(self) -> DataSet:
        """The run's. Raises ``DataError``; the first call may take long."""
        with self._lock:
            if self._dataset is None:
                self._dataset = self.trained.open_dataset()
            return self._dataset

    def picture(self, split: str, index: int) -> tuple[Values, str]:
        """A stored picture and its class. Raises ``LookupError`` where there is none of these names."""
        chosen = {"train": self.dataset().train, "val": self.dataset().valid}[split]
        if not 0 <= index < len(chosen):
            raise LookupError(f"{split} has pictures 0 to {len(chosen) - 1}, not {index}")
        return chosen.image(index), self.dataset().classes[chosen.labels[index]]

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Validation pictures to begin with, of as many classes as possible."""
        valid, classes = self.dataset().valid, self.dataset().classes
        order = np.random.default_rng(SEED).permutation(len(valid))
        _, firsts = np.unique(valid.labels[order], return_index=True)
        chosen = [*order[np.sort(firsts)], *np.delete(order, firsts)][:count]
        return [{"split": "val", "index": int(k), "label": classes[valid.labels[k]]} for k in chosen]

    # ---- at once

    def look(self, picture: Values) -> tuple[str, looks.Look]:
        """What the network makes of a picture, and a name by which the picture is kept for a while."""
        weights = self.trained.weights[f"{self.spec.layers[0].name}.weight"]
        found: looks.Look = self._compute(lambda: looks.look(self._network(), weights, picture))
        token = secrets.token_hex(8)
        with self._lock:
            self._pictures[token] = picture, [k for k, _ in found.guesses]
            while len(self._pictures) > KEPT:
                self._pictures.popitem(last=False)
        return token, found

    def _kept(self, token: str) -> tuple[Values, list[int]]:
        try:
            return self._pictures[token]
        except KeyError:
            raise Forgotten("this picture is no longer kept; choose it again") from None

    def occlusion(self, token: str) -> Values:
        """Of the guesses of a picture, see ``looks.occlusion``."""
        picture, guesses = self._kept(token)
        found: Values = self._compute(lambda: looks.occlusion(self._network(), picture, guesses))
        return found

    # ---- meanwhile

    def neighbours(self, token: str) -> dict[str, Any]:
        """The training pictures nearest to a picture among those that have been looked at so far."""
        picture, _ = self._kept(token)
        with self._lock:
            features = self._features = self._features or Features(self)
        return features.nearest(picture)

    def features(self, pictures: Values) -> Values:
        """Activations of the features' layer (n, entries) of at most ``BATCH`` pictures."""

        def work() -> Values:
            network = self._network()
            looks.answers(network, pictures)
            return network.activation(self.spec.features_layer).reshape(len(pictures), -1)

        found: Values = self._compute(work)
        return found

    def confusion(self) -> dict[str, Any]:
        """Which classes of validation pictures are taken for which: how far that is, or what came out."""
        with self._lock:
            if self._confusion is None:
                found: list[dict[str, Any]] = []
                self._confusion = Job(lambda job: found.append(self._count(job))), found
            job, found = self._confusion
        return {**job.state(), **(found[0] if job.finished else {})}

    def _count(self, job: Job) -> dict[str, Any]:
        dataset = self.dataset()
        valid, classes = dataset.valid, dataset.classes
        parts: list[evaluate.Outcomes] = []
        network = self._compute(self._network)
        batches = evaluate.probability_batches(network, valid)
        job.progress(0, len(valid))
        while (shares := self._compute(lambda: next(batches, None))) is not None:
            parts.append(evaluate.Outcomes.of(shares, valid.labels[job.done : job.done + len(shares)]))
            job.progress(job.done + len(shares), len(valid))
        found = evaluate.Outcomes.joined(parts)
        counted = evaluate.Confusion.of(found, len(classes))
        return {
            "classes": classes,
            "rows": [row.tolist() for row in counted.rows()] if len(classes) <= SQUARE else None,
            "mistakes": int((found.ranks > 0).sum()),
            "images": len(valid),
            "pairs": [
                {
                    **{"true": true, "taken": taken, "count": count, "of": of},
                    "pictures": _surest(found, classes.index(true), classes.index(taken)),
                }
                for true, taken, count, of in counted.most(classes, PAIRS)
            ],
            "doubtful": [
                {
                    **{"index": int(k), "label": classes[valid.labels[k]], "taken": classes[found.taken[k]]},
                    "probability": float(found.own[k]),
                }
                for k in np.argsort(found.own, kind="stable")[:EXAMPLES]
            ],
        }


SQUARE = 40  # classes whose confusions are shown as a square


def _surest(found: evaluate.Outcomes, true: int, taken: int) -> list[int]:
    """Pictures of one class taken for another, those first of which the network is least aware of what they are."""
    which = np.flatnonzero((found.labels == true) & (found.taken == taken))
    return [int(k) for k in which[np.argsort(found.own[which], kind="stable")][:EXAMPLES]]


class Features:
    """Activations of training pictures, all of them or so many as fit into ``ROWS`` bytes, as they are computed."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.rows: Values = np.empty((0, 0), np.float32)
        self.order: Values = np.empty(0, np.int64)
        self.job = Job(self._gather)

    def _gather(self, job: Job) -> None:
        train = self.subject.dataset().train
        entries = self.subject.features(train.image(0)[None]).shape[1]
        order = np.random.default_rng(SEED).permutation(len(train))[: max(ROWS // (4 * entries), 1)]
        self.rows, self.order = np.empty((len(order), entries), np.float32), order
        chosen = Subset(train, order)
        job.progress(0, len(order))
        network = self.subject._compute(self.subject._network)
        for images in evaluate.image_batches(network, chosen):
            batch = self.subject.features(images)
            self.rows[job.done : job.done + len(batch)] = batch
            job.progress(job.done + len(batch), len(order))

    def nearest(self, picture: Values) -> dict[str, Any]:
        state, found = self.job.state(), []
        if state["done"]:
            dataset = self.subject.dataset()
            query = self.subject.features(picture[None])
            rows, distances = retrieval.nearest(query, self.rows[: state["done"]], NEAREST)
            found = [
                {"index": int(k), "label": dataset.classes[dataset.train.labels[k]], "distance": float(d)}
                for k, d in zip(self.order[rows[0]], distances[0], strict=True)
            ]
            state["all"] = len(dataset.train)
        return {**state, "layer": self.subject.spec.features_layer, "nearest": found}


class Study:
    """The runs whose networks are open, the ``OPEN`` that were asked for last; ``load`` loads one."""

    def __init__(self, load: Callable[[Path], Trained]) -> None:
        self._load = load
        self._thread = ThreadPoolExecutor(1, "network")
        self._lock = threading.Lock()
        self._subjects: OrderedDict[str, Subject] = OrderedDict()

    def compute(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result()

    def subject(self, run: Run) -> Subject:
        """Raises what ``load`` does."""
        with self._lock:
            known = self._subjects.get(run.id)
            if known is None or known.stamp != run.stamp:
                fresh = Subject(run, self._load(run.path), self.compute)
                if known is not None:
                    known.close()
                self._subjects[run.id] = fresh
                self._thread.submit(fresh._network)  # before somebody waits for it
            self._subjects.move_to_end(run.id)
            while len(self._subjects) > OPEN:
                self._subjects.popitem(last=False)[1].close()
            return self._subjects[run.id]

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
