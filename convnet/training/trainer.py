"""The training loop: batches in, checkpoints and records out. It can stop after any step and go on bit for bit."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import DataSet, Loader, Statistics, normalisation
from ..data.minibatches import Minibatches
from ..devices.protocol import DeviceError
from ..group.group import Group
from ..group.shares import Shares
from ..kernels.rng import RATES
from ..network.spec import paces, parameter_shapes
from ..output import files
from ..output.console import Console, percent
from ..output.versions import versions
from . import checkpoint
from .checkpoint import Checkpoint
from .config import BEFORE, Config, spelled, to_toml
from .loggers import Loggers
from .metrics import Meter, Speed, losses_and_ranks
from .run import RunFolder, StopRequest, frozen_layers
from .schedule import LARGEST, Schedule, progress, stages_of, tensor_schedule
from .verdict import Chance, Last, standard_error, verdict

if TYPE_CHECKING:
    from ..data import Batch
    from ..network.model import Network, StepResult

RECORD_STEPS = 10  # a train record is the mean over so many steps
FIGURE_SECONDS = 60  # figures are drawn after an evaluation when the last ones are older than this
# a hint is given when more than this share of so many steps went by waiting for data
HINT_STEPS, HINT_SHARE = 100, 0.3
FAILED_SAVES = 3  # in a row, until a run gives up
STOPPED = 75  # EX_TEMPFAIL: batch systems start such a job again


class Diverged(Exception):
    """Loss or weights are no longer finite. Exit code 5."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One under way: its results, where its images stood in the epoch, how many they are, and how long they took."""

    result: StepResult
    position: int
    images: int
    wait_seconds: float
    rate: float


def schedule_of(config: Config, steps: int) -> Schedule:
    """What the options say, for epochs of so many steps."""
    stages = stages_of(config.stages or [])
    return Schedule(config.lr_schedule, config.lr, config.epochs, config.patience, config.warmup, steps, stages)


def minibatches(config: Config, dataset: DataSet) -> Minibatches:
    """How an epoch is cut: in file order into the data batches that the images come in, else it is one."""
    batches = dataset.batches if config.order == "file" else ()
    return Minibatches(config.batch_size, batches or (len(dataset.train),))


class Trainer:
    """A run between two steps: what ``_state`` lists is all there is to know.

    All processes of ``group`` train alike, each on its share of every batch, and know the same. The first one alone
    writes to the folder.
    """

    def __init__(
        self,
        network: Network,
        dataset: DataSet,
        found: Statistics,
        config: Config,
        folder: RunFolder,
        console: Console,
        saved: Checkpoint | None,
        new_layers: list[str],
        loggers: Loggers,
        stays: bool,
        group: Group,
    ):
        self.group, self.writes = group, group.rank == 0
        self.shares = Shares.of(group, config.shards or group.size)
        self.network, self.dataset, self.statistics = network, dataset, found
        self.config, self.folder, self.console, self.loggers = config, folder, console, loggers
        self.epochs, self.batch_size = config.epochs, config.batch_size
        self.momentum, self.weight_decay = config.momentum, config.weight_decay
        self.images = len(dataset.train)
        self.step = self.epoch = self.position = 0  # position: images of this epoch already trained on
        self.minibatches = minibatches(config, dataset)
        self.steps = self.minibatches.steps  # of an epoch
        self.schedule = schedule_of(config, self.steps)
        self.chance = Chance.of(dataset.valid.labels)
        self.new_layers = new_layers  # those that the network this one started from did not have
        self.falling = {
            name: tensor_schedule(pace.schedule) for name, pace in paces(network.spec) if pace.schedule is not None
        }
        self.rates: dict[str, float] = {}  # factors on the learning rate, by parameter
        self.running = Meter()  # what no train record has shown yet
        self.best: dict[str, Any] = {"error": None, "step": None}
        self.last: Last | None = None  # what the last evaluation found
        self.stays = stays  # will anybody look into the folder?
        self.written = False  # is the present state on disk?
        self.failed_saves = 0
        self.speed = Speed()
        self.drawn = time.monotonic()
        self.jump: str | None = None  # of the learning rate, in words, where a resumed run is told other options
        self.recut: str | None = None  # the same of how batches are cut
        self._set_input(training=False)
        if saved:
            self._restore(saved)
        folder.rewind(self.step, evaluated=self.position < self.images)
        if self.writes:
            files.write_atomically(folder.path / "config.toml", to_toml(config).encode("utf-8", "backslashreplace"))
        loggers.begin(folder.path, dataclasses.asdict(config), self.step)

    def _restore(self, saved: Checkpoint) -> None:
        state = saved.state
        self.network.load_weights(saved.part("weights"))
        self.network.load_velocity(saved.part("velocity"))
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.network.steps_done = self.step
        self.schedule.restore(state["schedule"], self.epoch * self.steps)
        self.jump = self._jump(saved)
        before = {**BEFORE, **state["config"]}
        cut, now = ((each["shards"], each["parallel"]) for each in (before, dataclasses.asdict(self.config)))
        if cut != now:
            words = (f"{count} {'shard' if count == 1 else 'shards'}, {kind}" for count, kind in (cut, now))
            self.recut = "batches were cut into {}, and are now into {}: sums are in another order".format(*words)
        self.running = Meter(**state["running"])
        self.best = state["best"]
        self.last = Last(**state["last"]) if state.get("last") else None
        self.new_layers = state.get("new_layers") or []
        self.written = saved.path.resolve() == self.folder.checkpoint(self.step).resolve()

    def _jump(self, saved: Checkpoint) -> str | None:
        """From which learning rate to which the run goes on, and why, where options change its course."""
        config = self.config
        said = {name: saved.state["config"].get(name) for name in ("lr", "lr_schedule", "epochs", "warmup")}
        said = {name: value for name, value in said.items() if value is not None}
        before = dataclasses.replace(config, stages=saved.state["config"].get("stages"), **said)
        earlier = schedule_of(before, self.steps)
        earlier.restore(saved.state["schedule"], self.epoch * self.steps)
        done = self.epoch * self.steps + self.minibatches.step(self.position)
        last, straight = (earlier.rate(*divmod(max(step, 0), self.steps)) for step in (done - 1, done))
        rate = self.schedule.rate(*divmod(done, self.steps))
        if self.epoch >= self.epochs or math.isclose(rate, straight, abs_tol=1e-30):
            return None
        changed = [f"{spelled(n)} is {getattr(config, n)}, not {v}" for n, v in said.items() if getattr(config, n) != v]
        why = ", ".join(changed) or "the stages are others"
        if self.schedule.kind in ("cosine", "flat-cosine", "step"):
            why += f", and a {self.schedule.kind} schedule spreads over all epochs"
        return f"learning rate: from {last:.3g} at the last step to {rate:.3g} at the next: {why}"

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.config.seed,
            "schedule": self.schedule.state(),
            "running": self.running.state(),
            "best": self.best,
            "last": dataclasses.asdict(self.last) if self.last else None,
            "new_layers": self.new_layers,
            "config": dataclasses.asdict(self.config),
            "classes": self.dataset.classes,
            "dataset": {
                "name": self.dataset.name,
                "fingerprint": self.dataset.fingerprint,
                "depth": self.dataset.depth,
                "held_out": dataclasses.asdict(self.dataset.held_out) if self.dataset.held_out else None,
            },
            "colour": self.statistics.colour(),
            "versions": versions(),
        }

    @property
    def batches_per_epoch(self) -> int:
        """Data batches: those that the images come in, in file order; else an epoch is one."""
        return len(self.minibatches.sizes)

    def batches_done(self, position: int) -> int:
        """Data batches that have been trained on to their end, in all epochs, at ``position`` of this one."""
        return self.epoch * self.batches_per_epoch + self.minibatches.batches(position)

    # ---- the loop

    def train(self) -> int:
        """Trains to the end or until asked to stop; the exit code."""
        network, console = self.network, self.console
        console.say(
            f"network: {self.config.model}, {network.parameters:,} parameters, {len(self.dataset.classes)} classes, "
            f"{self.config.precision} on {', '.join(network.devices)}"
        )
        if network.shards > 1:
            cut = ", and the neurons of fully-connected layers" if self.config.parallel == "hybrid" else ""
            console.say(f"processes: {self.group.size}, which share {network.shards} parts of every batch{cut}")
        console.say(
            f"training: {self.epochs} epochs of {self.steps} steps of {self.batch_size} images, in {self.folder.path}"
        )
        if self.step:
            console.say(f"resumed at step {self.step}, in epoch {self.epoch + 1}")
        if self.jump:
            console.say(self.jump)
        if self.recut:
            console.say(self.recut)
        self._append({**self._place("start"), "classes": len(self.dataset.classes), "images": self.images})
        self._log_filters()
        began = time.monotonic()
        try:
            with StopRequest() as stop:
                status = self._loop(stop)
                console.clear()
                self._save(final=True)
        except Diverged:
            self._end("diverged", began)
            raise
        except ValueError as error:  # the options were checked before: this is nobody's mistake but ours
            raise RuntimeError(f"step {self.step + 1}: {error}") from error
        self._end(status, began)
        return self._summary(status)

    def _loop(self, stop: StopRequest) -> str:
        with self._loader(self.dataset.train, self.config.augment) as loader:
            while self.epoch < self.epochs and not self.schedule.finished:
                self._set_rates()
                self._set_input(training=True)
                status = self._epoch(loader, stop)
                if status is not None:
                    return status
                if not self._finish_epoch(stop):
                    return "stopped"
        return "done"

    def _epoch(self, loader: Loader, stop: StopRequest) -> str | None:
        """Trains on what is left of the epoch; how the run ends if it ends here.

        What a step found out is looked at when the next one is under way, so that devices never wait for us: all that
        ``self`` knows is then one step old. Before anything is saved, the last step is waited for.
        """
        running: Step | None = None
        for batch in self._batches(loader):
            issued = self.step + (running is not None)
            if self.config.steps and issued >= self.config.steps:
                break
            before, running = running, self._train_step(batch)
            if before:
                self._finish_step(before)
            ends, saves = self._asked(stop)
            if not (ends or saves or (issued + 1) % self.config.save_every == 0):
                continue
            self._finish_step(running)
            running = None
            if ends:
                return "stopped"
            if self.position < self.images:
                self._save()
                stop.save = False
        if running:
            self._finish_step(running)
        return "done" if self.config.steps and self.step >= self.config.steps and self.position < self.images else None

    def _asked(self, stop: StopRequest) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether one was asked for a checkpoint."""
        asked = stop.requested or self.console.broken, stop.save
        ends, saves = zip(*self.group.everyone(asked, f"step {self.step + 1}"), strict=True)
        return any(ends), any(saves)

    def _set_input(self, training: bool) -> None:
        """What images go through on their way in; where the noise is divided by, what is in training."""
        mean, factors = normalisation(self.statistics, self.config.normalisation)
        divided = training and self.config.noise_scaled and self.config.augment
        smaller = 1 + self._noise() if divided else 1.0
        scale = factors or (self.network.spec.input_scale,) * 3
        self.network.set_input(mean, [each / smaller for each in scale])

    def _loader(self, split: Any, augment: bool) -> Loader:
        trains = split is self.dataset.train
        return Loader(
            split,
            batch_size=self.batch_size,
            crop=self.network.spec.crop,
            seed=self.config.seed,
            augment=augment,
            shuffle=trains and self.config.order != "file",
            statistics=self.statistics,
            workers=self.config.workers,
            batches=self.minibatches.sizes if trains and self.config.order == "file" else (),
            crop_chunk=self.config.crop_chunk,
            decode=not (self.config.cache == "device" and trains),
            share=self.shares.part,
            **({"cuts": self.shares.cuts} if self.config.order == "parts" else {}),
        )

    def _batches(self, loader: Loader) -> Iterator[Batch]:
        """What is left of the epoch: nothing when only its evaluation is outstanding."""
        self.speed.restart()
        if self.position == self.images:
            return iter(())
        return loader.epoch(self.epoch, self.position, self._noise())

    def _noise(self) -> float:
        """The colour noise of this epoch."""
        of_stage = self.schedule.stage(self.epoch).noise
        return self.config.noise if of_stage is None else of_stage

    def _set_rates(self) -> None:
        """What this epoch's stage and the options say of single layers."""
        stage, head = self.schedule.stage(self.epoch), self.config.head_lr
        self.network.freeze(frozen_layers(self.config, stage))
        self.rates = {
            name: min(stage.factor(name) * (head if name.partition(".")[0] in self.new_layers else 1.0), LARGEST)
            for name in parameter_shapes(self.network.spec)
        }

    def _rates_at(self, position: int, step: int) -> dict[str, float]:
        """The factors of a step, with the schedules that single tensors have: constant within a data batch, but for
        their noise, which is drawn for every step and tensor."""
        if not self.falling:
            return self.rates
        stands = progress(self.batches_done(position), self.epochs * self.batches_per_epoch)
        counter = np.array([0, self.epoch * self.steps + step, 0, RATES], np.uint64)
        random = np.random.Generator(np.random.Philox(key=self.config.seed, counter=counter))
        found = dict(self.rates)
        for name, falling in self.falling.items():
            noise = 1 + falling.noise * abs(random.standard_normal()) if falling.noise else 1.0
            found[name] *= falling.factor(stands) * noise
        return found

    def _train_step(self, batch: Batch) -> Step:
        """Sets a step going."""
        step = self.minibatches.step(batch.position)
        rate = self.schedule.rate(self.epoch, step)
        options = (
            batch.labels,
            batch.windows,
            batch.noise,
            rate,
            self.momentum,
            self.weight_decay,
            self._rates_at(batch.position, step),
            batch.of,
        )
        if self.config.cache == "device":
            result = self.network.train_step_kept(batch.indices, *options)
        else:
            result = self.network.train_step(batch.images, *options)
        return Step(result, batch.position, batch.of, batch.wait_seconds, rate)

    def _finish_step(self, done: Step) -> None:
        """Takes note of what a step found out. The network itself does not learn from what is not finite."""
        losses, ranks = done.result.get()
        sound = np.isfinite(losses).all()
        if not sound or not done.result.gradients_finite():
            first, last = done.position, done.position + done.images - 1
            what = "a gradient is not finite" if sound else f"the loss is {losses.mean()}"
            origin = self._first_not_finite(done)
            named = f"; computed once more, the first that is not finite: {origin}" if origin else ""
            raise self._diverged(f"{what} (images {first} to {last} of epoch {self.epoch + 1}{named})")
        self.step += 1
        self.position = done.position + done.images
        self.running.add(losses, ranks)
        self.written = False
        self.speed.add(done.images, done.wait_seconds)
        self._show(done.rate)
        if self.speed.steps == HINT_STEPS and self.speed.all_waiting > HINT_SHARE:
            self._hint()
        if self.step % RECORD_STEPS == 0 or self.position == self.images:
            self._record(done.rate)

    def _first_not_finite(self, done: Step) -> str | None:
        """Takes the images of a step through the network once more, with the weights as they are now: other ones where
        only a gradient was not finite, or where the step behind it was under way, so that all may be finite."""
        network = self.network
        if network.shards > 1:
            return None
        network.steps_done = self.step
        with self._loader(self.dataset.train, self.config.augment) as loader:
            batch = next(loader.epoch(self.epoch, done.position, self._noise()))
        options = batch.labels, batch.windows, batch.noise
        try:
            if self.config.cache == "device":
                network.train_batch_kept(batch.indices, *options)
            else:
                network.train_batch(batch.images, *options)
            return network.first_not_finite(batch.labels)
        except DeviceError:  # gradients take memory that a step does without
            return None

    def _diverged(self, what: str, place: str = "") -> Diverged:
        kept = checkpoint.files(self.folder.checkpoints)
        return Diverged(
            f"{place or f'step {self.step + 1}'}: {what}: training has diverged; "
            + (f"the last good checkpoint is {kept[-1]}; " if kept else "there is no checkpoint yet; ")
            + f"try a smaller --lr than {self.config.lr:g}, and look at the images if it happens again"
        )

    def _show(self, rate: float) -> None:
        means = self.running.means()
        left = (self.epochs - self.epoch) * self.images - self.position
        if self.config.steps:
            left = min(left, (self.config.steps - self.step) * self.batch_size)
        self.console.progress(
            self.minibatches.step(self.position),
            self.steps,
            f"epoch {self.epoch + 1}/{self.epochs}",
            f"loss {means['loss']:.3f}",
            f"error {100 * means['top1_error']:.1f} %",
            f"eta {self.speed.eta(left)}",
            f"{self.speed.rate:.0f} images/s",
            f"data {100 * self.speed.waiting:.0f} %",
            f"lr {rate:.3g}",
        )

    def _hint(self) -> None:
        ways = [f"more threads (-j {2 * max(self.config.workers, 1)})"]
        ways += ["--cache memory"] if self.config.cache == "none" else []
        ways += ["convnet-prepare"] if self.dataset.decodes else []
        waited = f"{100 * self.speed.all_waiting:.0f} % of the time went by waiting for images"
        self.console.say(f"{waited}; what can help: {'; '.join(ways)}")

    def _record(self, rate: float) -> None:
        speed = {"images_per_second": round(self.speed.rate, 1), "data_share": round(self.speed.waiting, 3)}
        self._append({**self._place("train"), **self.running.means(), "lr": rate, **speed})
        self.running = Meter()
        self.speed.recorded()

    def _place(self, event: str) -> dict[str, Any]:
        return {"event": event, "step": self.step, "epoch": min(self.epoch + 1, self.epochs)}

    def _append(self, record: dict[str, Any]) -> None:
        if not self.writes:
            return
        try:
            self.folder.metrics.append(record)
        except OSError as error:
            self.console.warn(f"{error.filename or self.folder.metrics.path}: a record is lost: {error.strerror}")
        self.loggers.record(record)

    def _log_filters(self) -> None:
        name = self.network.spec.first_filters
        if self.loggers and name:
            self.loggers.filters(name, self.network.weight(name), self.network.spec.towers, self.step)

    # ---- between epochs

    def _finish_epoch(self, stop: StopRequest) -> bool:
        """Evaluates where that is due and goes to the next epoch; False, with nothing done, if asked to stop."""
        ended = self.epoch + 1
        if ended % self.config.eval_every == 0 or ended == self.epochs:
            result = self._evaluate(stop)
            if result is None:
                return False
            means = result.means()
            error = means["top1_error"]
            if not math.isfinite(means["loss"]):
                raise self._diverged(f"the loss of the validation images is {means['loss']}", f"after step {self.step}")
            self._append({**self._place("valid"), **means, "views": 1})
            self._log_filters()
            deviation = standard_error(error, result.images)
            top5 = f"  top-5 error {percent(means['top5_error'])}" if len(self.dataset.classes) > 5 else ""
            self.console.clear()
            self.console.say(
                f"epoch {ended}/{self.epochs}  step {self.step}  validation: top-1 error {percent(error)} "
                f"(+- {percent(deviation)}){top5}  loss {means['loss']:.4f}"
            )
            if self.best["error"] is None or error < self.best["error"]:
                self.best = {"error": error, "step": self.step}
            self.last = Last(error, means["loss"])
            begun = self.chance.begun(error, means["loss"])
            if self.schedule.evaluated(error, deviation, self.step, begun) and ended < self.epochs:
                self.console.say(
                    f"the error has stopped falling: learning rate divided by 10, {self.schedule.rate(ended):g}"
                )
        self.epoch, self.position, self.written = ended, 0, False
        self._save()
        if time.monotonic() - self.drawn >= FIGURE_SECONDS:
            self._draw()
        return True

    def _evaluate(self, stop: StopRequest) -> Meter | None:
        """Loss and errors over the validation images, one centre crop each; None when asked to stop meanwhile."""
        result, total = Meter(), len(self.dataset.valid)
        self._set_input(training=False)
        with self._loader(self.dataset.valid, augment=False) as loader:
            for batch in loader.epoch(0):
                own = *self._scored(batch), stop.requested
                losses, ranks, stops = zip(*self.group.everyone(own, "validation"), strict=True)
                result.add(np.concatenate(losses), np.concatenate(ranks))
                self.console.progress(result.images, total, f"epoch {self.epoch + 1}/{self.epochs}  validating")
                if any(stops):
                    return None
        return result

    def _scored(self, batch: Batch) -> tuple[Any, Any]:
        """Losses and ranks: of a network with costs of its own, the sums of these."""
        if self.network.spec.costs:
            return self.network.score_batch(batch.images, batch.labels, batch.windows, batch.of)
        return losses_and_ranks(self.network.evaluate_batch(batch.images, batch.windows, batch.of), batch.labels)

    def _save(self, final: bool = False) -> None:
        """Writes a checkpoint unless the present state has one. A full disk is a warning, and an error at the end or
        when it happens ``FAILED_SAVES`` times in a row."""
        if self.written:
            return
        tensors = {f"weights/{name}": values for name, values in self.network.weights().items()}
        tensors |= {f"velocity/{name}": values for name, values in self.network.velocity().items()}
        self.written = self.group.from_first(lambda: self._write(tensors, final), "a checkpoint")
        self.speed.restart()

    def _write(self, tensors: dict[str, Any], final: bool) -> bool:
        """Whether a checkpoint was written."""
        for name, values in tensors.items():
            if not np.isfinite(values).all():
                raise self._diverged(f"{name} is not finite")
        tensors["mean"] = np.asarray(self.statistics.mean, np.float32)
        path = self.folder.checkpoint(self.step)
        try:
            checkpoint.save(path, tensors, self._state())
            checkpoint.point(self.folder.path / "last", path)
            best = self.folder.checkpoint(self.best["step"] or 0)
            if self.best["step"] is not None and best.exists():
                checkpoint.point(self.folder.path / "best", best)
            checkpoint.prune(self.folder.checkpoints, self.config.keep, best)
        except OSError as error:
            self.failed_saves += 1
            if final or self.failed_saves == FAILED_SAVES:
                raise
            self.console.warn(f"{path}: not written: {error.strerror}; will try again with the next checkpoint")
            return False
        self.failed_saves = 0
        return True

    def _draw(self) -> None:
        """Whatever goes wrong with a figure is a warning: the import of matplotlib, its fonts, a full disk."""
        if not self.stays or not self.writes:
            return
        self.drawn = time.monotonic()
        try:
            from ..output import figures

            name = self.folder.path.name
            figures.save_curves(self.folder.path / "curves.png", {name: self.folder.metrics.records()}, name)
            spec = self.network.spec
            if first := spec.first_filters:
                filters = self.network.weight(first)
                figures.save_filters(self.folder.path / "filters.png", filters, spec.towers, first.partition(".")[0])
        except OSError as error:
            told = error.strerror or " ".join(str(error).split())
            self.console.warn(f"{error.filename or self.folder.path}: figure not written: {told}")
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            self.console.warn(f"{self.folder.path}: figure not drawn: {told}")

    # ---- the end

    def _end(self, status: str, began: float) -> None:
        if self.speed.images and status == "done":
            self._record(self.schedule.rate(self.epoch))
        best = {"best_top1_error": self.best["error"], "best_step": self.best["step"]}
        self._append({**self._place("end"), "status": status, **best, "seconds": round(time.monotonic() - began, 3)})
        self.console.clear()
        self._draw()

    def _summary(self, status: str) -> int:
        say, path = self.console.say, self.folder.path
        if self.best["error"] is not None:
            say(f"best: top-1 error {percent(self.best['error'])} at step {self.best['step']}")
        if status == "stopped":
            say(f"stopped on request at step {self.step}; go on with: convnet-train --resume auto -o {path}")
            return STOPPED
        if self.epoch < self.epochs:
            say(self._why_early())
        if not self.writes:
            return 0
        self._judge()
        if not self.stays:
            return 0
        say(f"run folder: {path}")
        say(f"  look at        {path}/curves.png and {path}/filters.png")
        if not self.schedule.finished:
            longer = f" --epochs {2 * self.epochs}" if self.epoch == self.epochs else ""
            say(f"  train longer   convnet-train --resume auto -o {path}{longer}")
        if self.config.data == "shapes":
            say("  own images     convnet-train FOLDER, with a folder of pictures for each class in it")
        return 0

    def _why_early(self) -> str:
        """Why a run ended before its last epoch."""
        if not self.schedule.finished:
            return f"ended before the last of {self.epochs} epochs, as --steps {self.config.steps} says"
        return (
            f"ended after epoch {self.epoch} of {self.epochs}: for {self.schedule.patient_steps} steps at the lowest "
            "learning rate the validation error has not fallen by more than its standard error; --lr-schedule "
            "flat-cosine trains as long as --epochs says"
        )

    def _judge(self) -> None:
        """Says whether anything was learnt; where nothing was as a warning, which ``--quiet`` lets through."""
        records = [record for record in self.folder.metrics.records() if record.get("event") == "train"]
        loss = records[-1].get("loss") if records else None
        training_loss = loss if isinstance(loss, float) else None
        config = self.config
        learnt, sentence = verdict(self.chance, self.last, training_loss, self.step, config.lr, config.init)
        (self.console.say if learnt else self.console.warn)(sentence)
