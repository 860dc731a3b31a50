"""What changes over a run: the learning rate, layers' own rates, and the strength of the colour noise."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..definitions.nodes import Schedule as Falling

DROPS = 3
FLAT = 0.25  # of the epochs, at the first rate
LEAST_STEPS = 500  # fewer say nothing about whether an error has stopped falling


@dataclass(frozen=True)
class Stage:
    """From the beginning of ``epoch``, counted from 0, until the next stage: the rates themselves, not factors.

    ``bias_lr`` is that of all biases, ``lr`` where it is None. ``layers`` gives single layers a rate of their own,
    for weights and bias alike; 0 means that the layer is frozen. ``noise`` None leaves the colour noise as it is.
    """

    epoch: int
    lr: float
    bias_lr: float | None = None
    noise: float | None = None
    layers: dict[str, float] = field(default_factory=dict)

    @property
    def frozen(self) -> list[str]:
        return [name for name, rate in self.layers.items() if rate == 0]

    def factor(self, parameter: str) -> float:
        """What ``lr`` is multiplied by for a parameter such as "conv1.bias"."""
        layer, _, kind = parameter.partition(".")
        own = self.bias_lr if kind == "bias" and self.bias_lr is not None else self.lr
        return self.layers.get(layer, own) / self.lr


LARGEST = 1e30  # of an option: what is computed from a few of them stays within float32


def is_moderate(value: float) -> bool:
    """Whether float32 can take it; no number that is none."""
    return abs(value) <= LARGEST


def stages_of(tables: Sequence[dict[str, Any]]) -> tuple[Stage, ...]:
    """Stages from tables as TOML and JSON have them. Raises ``ValueError`` for what they cannot be."""
    names = {f.name for f in dataclasses.fields(Stage)}
    found: list[Stage] = []
    for number, table in enumerate(tables, 1):
        where = f"stages: the {number}. stage"
        if not isinstance(table, dict) or not {"epoch", "lr"} <= table.keys() <= names:
            raise ValueError(f"{where} needs epoch and lr and may have bias_lr, noise and layers, got {table!r}")
        layers = table.get("layers") or {}
        if not isinstance(layers, dict):
            raise ValueError(f"{where}: layers must be a table of names and rates, got {layers!r}")
        rates = {"lr": table["lr"], "bias_lr": table.get("bias_lr"), "noise": table.get("noise"), **layers}
        for name, value in rates.items():
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and (not (real and is_moderate(value)) or value < 0 or (name == "lr" and value == 0)):
                least = "more than 0" if name == "lr" else "at least 0"
                least += f" and at most {LARGEST:g}" if real and value > LARGEST else ""
                raise ValueError(f"{where}: {name} must be a number of {least}, got {value!r}")
        expected = found[-1].epoch + 1 if found else 0
        epoch = table["epoch"]
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < expected or (not found and epoch):
            rule = f"must be a whole number of at least {expected}" if found else "must be 0"
            raise ValueError(f"{where}: epoch {rule}, got {epoch!r}")
        found.append(Stage(**{**table, "layers": dict(layers)}))
    return tuple(found)


def tensor_schedule(text: str) -> Falling:
    """A schedule of one tensor, in the words of the 2012 program: "dexp[tgtFactor=250,noiseStdev=0,numSteps=4]", as
    ``Pace.schedule`` has it. Raises ``ValueError``.
    """
    found = re.fullmatch(r"(linear|exp|dexp|jdexp)\[([^\[\]]*)\]", text)
    try:
        named = dict(entry.split("=") for entry in found[2].split(",")) if found else {}
        steps = int(named["numSteps"]) if "numSteps" in named else None
        told = Falling(found[1] if found else "", float(named["tgtFactor"]), float(named.get("noiseStdev", 0)), steps)
        fits = told.target_factor > 0 and told.noise >= 0 and (steps is not None) == told.kind.endswith("dexp")
        fits = fits and (steps is None or steps > 1) and {*named} <= {"tgtFactor", "noiseStdev", "numSteps"}
    except (KeyError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"{text!r} is no schedule; one is linear, exp, dexp or jdexp[tgtFactor=T,noiseStdev=S,numSteps=N]"
        )
    return told


def progress(batches_done: int, batches: int) -> float:
    """Where in a run of so many data batches its schedules of single tensors stand: (done - 1) / all, from 0 to 1."""
    return min(max((batches_done - 1) / batches, 0.0), 1.0)


@dataclass
class Schedule:
    """``kind`` says how the rate changes.

    - ``cosine``: half a cosine from ``base`` down to 0 over all epochs (Loshchilov and Hutter 2017).
    - ``flat-cosine``: ``base`` for the first quarter of the epochs, then half a cosine over the others.
    - ``plateau``: divided by 10 when the validation error has stopped falling, three times; the run ends when it stops
      falling once more. What the paper's authors did by hand. It falls where it is below its lowest by more than its
      standard error, and has stopped where it did not for ``patience`` epochs, and for ``LEAST_STEPS`` steps, since an
      epoch of few images is little work. Nothing is judged before learning has begun.
    - ``step``: divided by 10 after 1/4, 1/2 and 3/4 of the epochs, the switching points of the 2012 program's
      four-step schedule.
    - ``stages``: as ``stages`` say, such as a recorded run.
    - ``constant``: never.

    Over the first ``warmup`` epochs of ``steps`` steps the rate rises linearly to what it would be.
    """

    kind: str
    base: float
    epochs: int
    patience: int
    warmup: float = 0.0
    steps: int = 1
    stages: tuple[Stage, ...] = ()
    lowest: float | None = None  # error, the last one that was clearly below those before; None: learning has not begun
    since: int = 0  # the step of that evaluation, or of the last drop
    judged: int = 0  # the step of the last evaluation
    drops: int = 0

    def rate(self, epoch: int, step: int = 0) -> float:
        """The learning rate of a step of an epoch, both counted from 0."""
        progress = epoch + step / self.steps
        if self.kind in ("cosine", "flat-cosine"):
            flat = FLAT if self.kind == "flat-cosine" else 0.0
            fallen = min(max(progress / self.epochs - flat, 0.0) / (1 - flat), 1.0)
            rate = self.base * 0.5 * (1 + math.cos(math.pi * fallen))
        elif self.kind == "stages":
            rate = self.stage(epoch).lr
        else:
            drops = {"plateau": self.drops, "step": (DROPS + 1) * epoch // self.epochs, "constant": 0}[self.kind]
            rate = self.base / float(10 ** min(drops, DROPS))
        rising = self.warmup * self.steps
        return rate * min(1.0, (epoch * self.steps + step + 1) / rising) if rising else rate

    def stage(self, epoch: int) -> Stage:
        """The stage that an epoch belongs to; without stages one that changes nothing."""
        return next((s for s in reversed(self.stages) if s.epoch <= epoch), Stage(0, self.base))

    @property
    def patient_steps(self) -> int:
        """How many steps the plateau schedule waits for a lower error."""
        return max(self.patience * self.steps, LEAST_STEPS)

    @property
    def finished(self) -> bool:
        """The plateau schedule has nothing more to try."""
        return self.kind == "plateau" and self.drops == DROPS and self.judged - self.since >= self.patient_steps

    def evaluated(self, error: float, noise: float, step: int, begun: bool) -> bool:
        """Takes note of a validation error and its standard error after ``step`` steps, and whether learning has
        ``begun``; True when the rate drops now because of it."""
        self.judged = step
        if (self.lowest is None and begun) or (self.lowest is not None and error < self.lowest - noise):
            self.lowest, self.since = error, step
        if self.lowest is None or self.kind != "plateau" or self.drops == DROPS:
            return False
        if step - self.since < self.patient_steps:
            return False
        self.drops, self.since = self.drops + 1, step
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; kind, rate and patience may change when a run is resumed."""
        return {"lowest": self.lowest, "since": self.since, "judged": self.judged, "drops": self.drops}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Takes up the state that a checkpoint of an epoch which began at ``step`` has; those of version 0.1 counted
        the evaluations ``waited``, one an epoch."""
        self.lowest, self.drops = state["lowest"], int(state["drops"])
        if "waited" in state:
            self.since, self.judged = max(0, step - int(state["waited"]) * self.steps), step
        else:
            self.since, self.judged = int(state["since"]), int(state["judged"])
