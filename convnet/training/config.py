"""The options of a training run: one table for the command line, TOML files, the run folder and checkpoints.

A flag beats a file, a file beats the checkpoint that a run is resumed from, and that beats the default. What is said
nowhere comes from the network (``spec.TrainDefaults``).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import sys
from dataclasses import dataclass, field, replace
from typing import Any

from ..devices.opening import device_list
from ..kernels.precision import PRECISIONS
from ..network.networks import INITS
from ..network.spec import ACTIVATIONS, TrainDefaults
from ..output.files import open_regular
from .schedule import LARGEST, is_moderate, stages_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


MOST = 2**31  # of what is counted
EPOCH_STEPS, LEAST_BATCH = 32, 16  # of a batch that the user does not choose
FEW_STEPS, MOST_EPOCHS = 1000, 100  # after fewer steps a network may not have begun to learn for no other reason
BEFORE = {
    "init": "paper",
    "shards": 1,
    "parallel": "data",
}  # what a run did that does not name an option because there was none yet


@dataclass(frozen=True)
class Option:
    """How one field of ``Config`` looks to the user.

    ``fixed``: a resumed run cannot change it. ``unset``: what no value means. A list has no flag, it comes from TOML.
    """

    group: str
    help: str
    kind: type
    flags: tuple[str, ...]
    low: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    fixed: bool = False
    unset: str = "the network's"
    metavar: str = ""


def _option(default: Any, group: str, text: str, kind: type, *flags: str, **rules: Any) -> Any:
    return field(default=default, metadata={"option": Option(group, text, kind, flags, **rules)})


@dataclass(frozen=True)
class Config:
    """Fields that the network decides are None until ``resolved`` has filled them in."""

    data: str = _option(
        "shapes", "data", "shapes, a folder of pictures, a prepared store, or a published data set's files", str
    )
    val_split: float = _option(
        0.1,  # data.VAL_SPLIT, whose import would cost every --help its time
        "data",
        "share of every class held out for validation where the data has no images for it",
        float,
        "--val-split",
        above=0,
        below=1,
        fixed=True,
    )
    train_range: str | None = _option(
        None,
        "data",
        "which of the numbered data batches to train on, as 1-4, where the data comes in some (CIFAR); a resumed run "
        "may change it between epochs",
        str,
        "--train-range",
        unset="those that are for it",
        metavar="A-B",
    )
    test_range: str | None = _option(
        None,
        "data",
        "which of them to validate with, as 5",
        str,
        "--test-range",
        unset="those that are for it, else those not trained on",
        metavar="A-B",
    )
    order: str = _option(
        "shuffled",
        "data",
        "shuffled anew in every epoch; within the part of the images that a shard has for the whole run (parts), so "
        "that processes read and cache their own alone; or as the data has it (file): minibatches then start anew in "
        "each data batch",
        str,
        "--order",
        choices=("shuffled", "parts", "file"),
        fixed=True,
    )
    size: int | None = _option(
        None,
        "data",
        "side to which images are scaled before they are cropped",
        int,
        "--size",
        low=1,
        fixed=True,
    )
    crop_border: int | None = _option(
        None,
        "data",
        "pixels on each side by which images are larger than what is cropped out of them; the images stay as large as "
        "they are, unless --size or --crop says more",
        int,
        "--crop-border",
        low=0,
        fixed=True,
    )
    crop_chunk: int = _option(
        1, "data", "images in a row that share one crop and flip, 32 in 2012", int, "--crop-chunk", low=1, fixed=True
    )
    augment: bool = _option(True, "data", "no random crops, flips and colour noise", bool, "--no-augment", fixed=True)
    noise: float = _option(
        0.1, "data", "colour noise, in standard deviations of the training images' colours", float, "--noise", low=0
    )
    noise_scaled: bool = _option(
        False,
        "data",
        "divide what trains by 1 + --noise, as the 2012 program did; test images are not",
        bool,
        "--noise-scaled",
        fixed=True,
    )
    normalisation: str = _option(
        None,
        "data",
        "subtract the mean image, or bring every channel to mean 0 and standard deviation 1",
        str,
        "--normalisation",
        choices=("mean-image", "mean-std"),
        fixed=True,
    )
    cache: str = _option(
        "auto",
        "data",
        "where images stay once they are decoded: in a quarter of the free memory, as far as it goes (auto); nowhere; "
        "all in memory; on the device",
        str,
        "--cache",
        choices=("auto", "none", "memory", "device"),
    )
    workers: int = _option(2, "data", "threads that prepare images ahead of the device", int, "-j", "--workers", low=0)
    model: str = _option("alexnet-tiny", "network", "network to train", str, "--model", fixed=True)
    crop: int = _option(None, "network", "side of the input images", int, "--crop", low=1, fixed=True)
    width: float = _option(1.0, "network", "factor on the numbers of maps", float, "--width", above=0, fixed=True)
    activation: str = _option(
        None, "network", "behind all but the last layer", str, "--activation", choices=ACTIVATIONS, fixed=True
    )
    dropout: float | None = _option(
        None, "network", "probability of dropping, 0 for none", float, "--dropout", low=0, below=1, fixed=True
    )
    towers: int | None = _option(
        None, "network", "1 for one tower, of half the maps", int, "--towers", low=1, below=3, fixed=True
    )
    lrn: bool = _option(True, "network", "no response normalisation", bool, "--no-lrn", fixed=True)
    overlap: bool = _option(
        True, "network", "pooling windows as large as their stride", bool, "--no-overlap", fixed=True
    )
    joins: bool = _option(True, "network", "towers that meet in the last layer only", bool, "--no-joins", fixed=True)
    init: str = _option(
        None,
        "network",
        "weights at the start: scaled to the inputs of each layer, without biases (he), or those of the paper (paper)",
        str,
        "--init",
        choices=INITS,
        fixed=True,
    )
    layer_def: str | None = _option(
        None,
        "network",
        "layer definition file (.cfg) of cuda-convnet, the program of 2012 or cuda-convnet2, in place of --model; a "
        "run keeps what it says",
        str,
        "--layer-def",
        fixed=True,
        unset="none",
        metavar="FILE",
    )
    layer_params: str | None = _option(
        None,
        "network",
        "layer parameter file beside it: rates, weight decay, momentum, costs; a resumed run takes another one",
        str,
        "--layer-params",
        unset="none",
        metavar="FILE",
    )
    from_start: bool = _option(
        False,
        "network",
        "begin with the rates that the comments of a parameter file say its run began with, where it stands at the end",
        bool,
        "--from-start",
    )
    definition: dict[str, Any] | None = _option(None, "network", "what these files say", dict, unset="none")  # noqa: RUF009
    device: str = _option("auto", "device", "auto, cpu, emu[:i] or cuda:i[,cuda:j]", str, "--device")
    precision: str = _option(
        "fp32",
        "device",
        "what products are made of; tf32 and bf16 use tensor cores, which cpu does not have",
        str,
        "--precision",
        choices=PRECISIONS,
        fixed=True,
    )
    shards: int = _option(
        None,
        "device",
        "into how many parts every batch is cut, of which the processes of a run (mpirun) share the work; the same "
        "weights come of it on any number of processes that divides it. A run keeps them unless told otherwise",
        int,
        "--shards",
        low=1,
        unset="as many as processes",
    )
    parallel: str = _option(
        "data",
        "device",
        "what else processes share: nothing, every one has all layers (data); the neurons of fully-connected layers, "
        "whose weights then stay where they are (hybrid); whatever sends fewer bytes (auto)",
        str,
        "--parallel",
        choices=("data", "hybrid", "auto"),
    )
    batch_size: int = _option(
        None,
        "training",
        "images per step, on all devices together; fewer by default where there are few",
        int,
        "-b",
        "--batch-size",
        low=1,
        fixed=True,
    )
    epochs: int = _option(
        None,
        "training",
        "passes over the training images; more by default where there are few",
        int,
        "--epochs",
        low=1,
    )
    steps: int | None = _option(
        None, "training", "stop after so many steps, wherever in an epoch", int, "--steps", low=1, unset="no limit"
    )
    lr: float = _option(
        None,
        "training",
        "learning rate at the start; by default it goes with the square root of the images per step",
        float,
        "--lr",
        above=0,
    )
    momentum: float = _option(None, "training", "momentum", float, "--momentum", low=0, below=1)
    weight_decay: float = _option(None, "training", "weight decay", float, "--weight-decay", low=0)
    lr_schedule: str = _option(
        None,
        "training",
        "keeps the rate for a quarter of the epochs, then lowers it along half a cosine (flat-cosine), or from the "
        "beginning (cosine); divides it by 10 when the error stops falling, thrice, then "
        "ends the run (plateau), or after 1/4, 1/2, 3/4 of the epochs (step); follows a --config file's stages "
        "(stages)",
        str,
        "--lr-schedule",
        choices=("flat-cosine", "cosine", "step", "constant", "plateau", "stages"),
    )
    warmup: float = _option(0.0, "training", "epochs over which the rate rises to --lr", float, "--warmup", low=0)
    stages: list[dict[str, Any]] | None = _option(None, "training", "rates from given epochs on", list, unset="none")  # noqa: RUF009
    patience: int = _option(None, "training", "plateau: epochs without a lower error", int, "--patience", low=1)
    init_from: str | None = _option(
        None,
        "fine-tuning",
        "run folder, checkpoint or file of weights (.safetensors, .npz, .pth, .onnx: ours, torchvision's or Caffe's "
        "AlexNet) to start from; layers whose shape differs are new, and so is the last one where the classes differ. "
        "The network is that one's unless options change it",
        str,
        "--init-from",
        fixed=True,
        unset="none",
        metavar="RUN",
    )
    freeze: str | None = _option(
        None, "fine-tuning", "layers that do not learn, as conv1,conv2", str, "--freeze", unset="none", metavar="LAYERS"
    )
    head_lr: float = _option(1.0, "fine-tuning", "factor on the rate of new layers", float, "--head-lr", above=0)
    seed: int = _option(0, "training", "decides every random number", int, "--seed", low=0, below=2**64, fixed=True)
    eval_every: int = _option(1, "run folder", "epochs between evaluations", int, "--eval-every", low=1)
    save_every: int = _option(
        500,
        "run folder",
        "steps between checkpoints; one is written at each epoch's end anyhow",
        int,
        "--save-every",
        low=1,
    )
    log: str | None = _option(
        None,
        "run folder",
        "loggers besides metrics.jsonl and metrics.csv, as a,b: tensorboard (event files in the run folder), or one of "
        "your own as MODULE:CLASS",
        str,
        "--log",
        unset="none",
    )
    keep: int = _option(3, "run folder", "newest checkpoints kept; the best one is kept too", int, "--keep", low=1)

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            if (value := getattr(self, name)) is not None or name not in OPEN:
                _check(name, option, value)
        stages_of(self.stages or [])
        for flag, said in (("--train-range", self.train_range), ("--test-range", self.test_range)):
            if said is not None:
                from ..data.source import batch_range  # which would cost every --help its time

                batch_range(flag, said)
        if self.crop is not None and self.crop_border is not None and self.size is not None:
            needed = self.crop + 2 * self.crop_border
            if self.size != needed:
                raise ValueError(
                    f"--size {self.size}, --crop {self.crop} and --crop-border {self.crop_border} do not go together: "
                    f"{self.crop} + 2 x {self.crop_border} is {needed}; leave one of them out"
                )
        if self.device != "auto":
            device_list(self.device)
        if self.lr_schedule == "stages" and not self.stages:
            raise ValueError("--lr-schedule stages needs [[stages]] in a --config file")

    def network_options(self) -> dict[str, Any]:
        """What of this changes the network: keywords of ``networks.network``."""
        if self.definition is not None:
            return {"definition": self.definition, **({} if self.crop is None else {"crop": self.crop})}
        names = ("crop", "width", "activation", "dropout", "towers", "lrn", "overlap", "joins", "init")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def stored_size(self, image_size: int) -> int | None:
        """The side that images are scaled to before they are cropped, ``image_size`` being the network's own; None
        where they stay as large as they are."""
        if self.size is None and self.crop is not None and self.crop_border is not None:
            return int(self.crop + 2 * self.crop_border)
        return image_size if self.size is None and self.crop_border is None else self.size

    def with_size(self, size: int, own: bool) -> Config:
        """This configuration for images of ``size``, which is said where it is not the network's ``own``.

        Raises ``ValueError`` where nothing is left to crop.
        """
        crop = self.crop
        if self.crop_border is not None and (crop := size - 2 * self.crop_border) < 1:
            raise ValueError(f"--crop-border {self.crop_border} leaves nothing of images of {size} x {size}")
        return replace(self, crop=crop, size=None if own else size)

    @property
    def ranges(self) -> tuple[str | None, str | None]:
        """Which data batches are for training and which for validation."""
        return self.train_range, self.test_range

    def resolved(self, defaults: TrainDefaults, crop: int, images: int = MOST) -> Config:
        """This configuration with the network's values where nothing was said, for so many training images."""
        batch = self.batch_size or _batch(defaults.batch_size, images)
        network: dict[str, Any] = {
            "crop": crop,
            "init": defaults.init,
            "normalisation": defaults.normalisation,
            "batch_size": batch,
            "epochs": _epochs(defaults.epochs, -(-images // batch)),
            # by fewer images a step learns less, and its noise is greater (Krizhevsky 2014, section 5)
            "lr": self.stages[0]["lr"] if self.stages else defaults.lr * math.sqrt(batch / defaults.batch_size),
            "momentum": defaults.momentum,
            "weight_decay": defaults.weight_decay,
            "lr_schedule": "stages" if self.stages else defaults.schedule,
            "patience": defaults.patience,
        }
        return replace(self, **{name: value for name, value in network.items() if getattr(self, name) is None})


def _batch(most: int, images: int) -> int:
    """A power of two that makes ``EPOCH_STEPS`` or more of an epoch; but at least ``LEAST_BATCH`` and at most ``most``.

    Of few images a network learns more by many small steps than by few large ones.
    """
    return min(most, max(LEAST_BATCH, 1 << (max(images // EPOCH_STEPS, 1).bit_length() - 1)))


def _epochs(least: int, steps: int) -> int:
    """As many as make ``FEW_STEPS``, where an epoch is so many; but at least ``least``, and ``MOST_EPOCHS`` if more."""
    return max(least, min(-(-FEW_STEPS // steps), MOST_EPOCHS))


OPTIONS: dict[str, Option] = {f.name: f.metadata["option"] for f in dataclasses.fields(Config)}
DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Config)}
OPEN = {f.name for f in dataclasses.fields(Config) if f.default is None}  # may be left to the network, or to nobody


def spelled(name: str) -> str:
    """An option as the user writes it: ``--batch-size``, DATA."""
    return OPTIONS[name].flags[-1] if OPTIONS[name].flags else name.upper()


def _check(name: str, option: Option, value: Any) -> None:
    number = option.kind in (int, float)
    fits = isinstance(value, (int, float) if option.kind is float else option.kind)
    if not fits or (number and isinstance(value, bool)):
        raise ValueError(f"{spelled(name)} must be {_KINDS[option.kind]}, got {value!r}")
    if option.kind is int and option.below == math.inf and value >= MOST:
        raise ValueError(f"{spelled(name)} must be less than {MOST}, got {value}")
    if option.choices and value not in option.choices:
        raise ValueError(f"{spelled(name)} must be one of {', '.join(option.choices)}, got {value!r}")
    if number and not (option.low <= value < option.below and option.above < value and is_moderate(value)):
        bounds = [f"at least {option.low}"] if math.isfinite(option.low) else []
        bounds += [f"more than {option.above}"] if math.isfinite(option.above) else []
        bounds += [f"less than {option.below}"] if math.isfinite(option.below) else []
        bounds += [f"at most {LARGEST:g}"] if value > LARGEST else []
        raise ValueError(f"{spelled(name)} must be {' and '.join(bounds)}, got {value}")


_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    bool: "true or false",
    list: "tables",
    dict: "a table",
}


def read_toml(path: str) -> dict[str, Any]:
    """Options from a TOML file. Raises ``ValueError`` for files that cannot be read and names that do not exist."""
    try:
        with open_regular(path) as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--config {path}: not valid TOML: {error}") from error
    for name in values:
        if name not in OPTIONS:
            close = difflib.get_close_matches(name, OPTIONS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(OPTIONS)}"
            raise ValueError(f"--config {path}: no option is called {name}; {hint}")
    return values


def to_toml(config: Config) -> str:
    """The text of a TOML file that ``read_toml`` turns into the same configuration."""
    values = dataclasses.asdict(config)
    tables = values.pop("stages") or []
    text = _lines(values)
    for table in tables:
        text += f"\n[[stages]]\n{_lines(table)}"
    return text


def _lines(values: dict[str, Any]) -> str:
    return "".join(f"{name} = {_value(value)}\n" for name, value in values.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_value(name)} = {_value(entry)}" for name, entry in value.items()) + " }"
    if isinstance(value, str):
        # JSON strings are TOML strings but for the one control character that JSON leaves alone
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def merged(flags: dict[str, Any], file: dict[str, Any], saved: dict[str, Any]) -> Config:
    """One configuration from what the command line, a TOML file and a checkpoint say, in this order of precedence."""
    values = {**{name: value for name, value in saved.items() if name in OPTIONS}, **file, **flags}
    # os.path.expanduser leaves the home of a user who does not exist as it is, Path.expanduser has an error of its own
    if isinstance(data := values.get("data"), str) and data != "shapes":
        values["data"] = os.path.abspath(os.path.expanduser(data))
    if isinstance(start := values.get("init_from"), str):
        values["init_from"] = os.path.abspath(os.path.expanduser(start))
    return Config(**_with_definition(values, {**file, **flags}))


# what changes a network of ours, and a file's is what it is
OURS = ("model", "width", "activation", "dropout", "towers", "lrn", "overlap", "joins", "init")


def _with_definition(values: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The values with what the files of ``layer_def`` and ``layer_params`` say in their place.

    Raises ``ValueError`` where the files cannot be read, or other options do not go with them.
    """
    layers, params = values.pop("layer_def", None), values.pop("layer_params", None)
    begins, kept = values.pop("from_start", False), values.get("definition")
    if layers is None and kept is None:
        if params is not None or begins:
            raise ValueError(f"{'--layer-params' if params else '--from-start'} needs --layer-def, a definition file")
        return values
    for name in OURS:
        if layers is not None and name in asked:
            raise ValueError(f"{spelled(name)} does not go with --layer-def: the network is the file's")
    from ..definitions.files import definition_of, read_text

    if layers is not None:
        values["definition"] = definition_of(layers, params, begins)
        values["model"] = values["definition"]["name"]
    elif params is not None or begins:
        texts = {"params": read_text(params)} if params is not None else {}
        values["definition"] = {**kept, **texts, "from_start": bool(begins)} if kept else kept
    return values


def changed_fixed(asked: dict[str, Any], saved: Config) -> str | None:
    """The first option of ``asked`` that a resumed run cannot change but would, as "--seed 1 (it is 0)"."""
    for name, value in asked.items():
        if OPTIONS[name].fixed and value != getattr(saved, name):
            if OPTIONS[name].kind is bool:
                return f"{spelled(name)} (it was {'not ' if getattr(saved, name) is DEFAULTS[name] else ''}given)"
            return f"{spelled(name)} {value} (it is {getattr(saved, name)})"
    return None
