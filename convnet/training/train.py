"""What ``convnet-train`` does: options, data, network and run folder put together for ``trainer.Trainer``."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..data import (
    DataError,
    DataSet,
    Loader,
    NotThere,
    Statistics,
    cached,
    normalisation,
    open_dataset,
    open_found,
    statistics,
)
from ..data.cache import kept
from ..data.dataset import left_out_lines
from ..data.source import Found
from ..devices.opening import device_of
from ..devices.protocol import DeviceLost, KernelFault
from ..group.group import Group
from ..group.shares import Shares
from ..network.footprint import Use
from ..network.head import stages
from ..network.networks import network as network_spec
from ..network.spec import NetworkSpec
from ..network.traffic import data_parallel, hybrid
from ..output.console import Console
from .alike import check_alike
from .check_grads import LARGEST_ERROR, check_gradients, without_chance
from .checkpoint import Checkpoint, CheckpointError
from .config import BEFORE, Config, merged, read_toml
from .loggers import Loggers, chosen
from .resident import keep_on_device
from .run import (
    Bystander,
    RunFolder,
    alike,
    check_dataset,
    check_layers,
    default_folder,
    find_checkpoint,
    holds_run,
    saved_options,
    saved_statistics,
)
from .trainer import Trainer, minibatches
from .transfer import start, transfer


def run(
    flags: dict[str, Any],
    file: dict[str, Any],
    output: str | None,
    resume: str | None,
    console: Console,
    given: Found | None = None,
    stays: bool = True,
    check_grads: bool = False,
    group: Group | None = None,
) -> int:
    """What ``convnet-train`` does with its options, ``flags`` from the command line, ``file`` from TOML; the exit code.

    ``given`` are pictures that are there already, whatever the options say of data. Where the run folder does not
    ``stay`` no figure is drawn, and nobody is told to look there.
    Of a ``group`` every process calls this, alike; the first one alone writes and speaks.
    With ``check_grads`` nothing is trained or written: the gradients of the first images are compared with differences.
    Raises ``ValueError``, ``DataError``, ``CheckpointError``, ``DeviceError`` and ``Diverged``.
    """
    group = group or Group()
    path, saved, inherited = group.from_first(
        lambda: _begun(output, resume, {**file, **flags}, console), "what the run folder holds"
    )
    config = merged(flags, file, inherited)
    shares = Shares.of(group, config.shards or group.size)
    config = replace(config, shards=shares.shards)
    if config.device == "auto" and group.size > 1:
        config = replace(config, device=device_of(group.place))
    source = None
    if config.init_from and not saved:
        source = start(config.init_from, {**file, **flags}.get("model"), config, console.warn)
        config = merged(flags, file, {**source.settings, **inherited})
    spec = network_spec(config.model, **config.network_options())
    check_layers(spec, config)
    wanted = config.stored_size(spec.image_size)
    kinds = chosen(config.log, "log" in flags, console.warn)
    try:
        with console.waiting(f"looking through {config.data}"):
            if given is None:
                dataset = open_dataset(
                    config.data, size=wanted, seed=config.seed, val_split=config.val_split, ranges=config.ranges
                )
            else:
                dataset = open_found(given, size=wanted, seed=config.seed, val_split=config.val_split)
    except NotThere as error:
        if saved is None or "data" in {**file, **flags}:
            raise
        moved = f"convnet-train DATA --resume {resume}" + (f" -o {output}" if output else "")
        raise DataError(f"{error.what}; where the data of the run has moved, name it: {moved}") from error
    size = dataset.train.size
    try:
        config = config.with_size(size, own=config.size is None and config.crop_border is None)
        spec = network_spec(config.model, **config.network_options())
        if spec.crop > size:
            raise ValueError(
                f"--size {size}: the network takes crops of {spec.crop} x {spec.crop}; say --crop, or more"
            )
    except ValueError as error:  # what is fixed was checked when the run began
        if saved is None:
            raise
        raise CheckpointError(f"{saved.path}: expected the options of a run, found others: {error}") from error
    config = config.resolved(spec.defaults, spec.crop, len(dataset.train))
    if config.batch_size < shares.shards:
        raise ValueError(
            f"--batch-size {config.batch_size} cannot be cut into {shares.shards} shards; use larger batches"
        )
    if "val_split" in flags and (dataset.held_out is None or dataset.held_out.share != config.val_split):
        console.warn(f"--val-split {config.val_split:g} changes nothing: the data has validation images of its own")
    lines = [f"data: {dataset.name}", *dataset.notes, *left_out_lines(dataset.left_out)]
    if config.definition is not None and not saved:
        lines += told_by(config.definition, spec.classes, len(dataset.classes))
    for line in lines:
        console.say(line)
    if saved:
        check_dataset(saved, dataset, config, minibatches(config, dataset))
    elif resume:
        console.say(f"there is no checkpoint in {path} yet: this is a new run")
    splits = (dataset.train, dataset.valid)  # themselves, not what keeps their images
    if config.cache == "memory":
        dataset = cached(dataset)
    elif config.cache == "auto":
        dataset, said = kept(dataset)
        if said:
            console.say(said)

    from ..network.model import Network

    spec = network_spec(config.model, num_classes=len(dataset.classes), **config.network_options())
    config = replace(config, parallel=chosen_parallel(spec, config))
    if check_grads:
        return _check_grads(without_chance(spec), config, dataset, saved, console)
    on_device = len(dataset.train) if config.cache == "device" else 0
    use = Use(spec, config.device, config.precision, size, training=True, kept=on_device)
    fits = "a new run with -b {} would fit" if saved else "-b {} would fit"
    most = min(config.batch_size, max(len(dataset.train), len(dataset.valid)))  # more images never come at a time

    def opened() -> Network:
        try:
            return Network(
                spec, config.device, most, config.precision, seed=config.seed,
                group=group, shards=shares.shards, parallel=config.parallel,
            )  # fmt: skip
        except ValueError as error:  # these devices and this precision do not go together
            if saved is None or "device" in {**file, **flags}:
                raise
            raise CheckpointError(f"{saved.path}: expected the options of a run, found others: {error}") from error

    with use.explained(shares.largest(most), fits), opened() as network:
        new = transfer(source, network, dataset.classes) if source else []
        if source:
            loaded = [name for name in network.layers if name not in new]
            console.say(
                f"from {source.told}: {', '.join(loaded)}; new: {', '.join(new) or 'none'}; "
                f"frozen: {config.freeze or 'none'}"
            )
        if config.cache == "device":
            keep_on_device(network, dataset.train, config.workers, console)
        check_alike(group, config, dataset, network)
        if saved:
            found = saved_statistics(saved, spec.crop)
        else:
            look = partial(looked_at, dataset, spec.crop, config.workers, console)
            found = group.from_first(look, "a look at the images")
        home = group.from_first(lambda: path or default_folder(config), "the run folder")
        kind, kinds = (RunFolder, kinds) if group.rank == 0 else (Bystander, {})
        with kind(home) as folder, Loggers(kinds, console.warn) as loggers:
            console.log = folder.log
            for line in lines:
                console.note(line)
            try:
                trainer = Trainer(network, dataset, found, config, folder, console, saved, new, loggers, stays, group)
                code = trainer.train()
                for split in splits:
                    for bad in group.everyone(getattr(split, "bad", {}), "the end", patient=True):
                        getattr(split, "bad", {}).update(bad)
                return code
            except (DeviceLost, KernelFault) as error:  # nothing more is asked of the device, nor written
                told = type(error)(f"{error}; {folder.last_checkpoint()}")
                console.note(f"error: {told}")
                raise told from error
            except Exception as error:
                console.note(f"error: {error}")
                raise
            finally:
                console.clear()
                try:
                    folder.list_left_out(dataset.left_out, splits)
                except OSError as error:  # whatever else ends the run is worth more than this
                    console.warn(f"{folder.path / 'left-out.csv'}: not written: {error.strerror}")
                console.log = None


def chosen_parallel(spec: NetworkSpec, config: Config) -> str:
    """What processes share, where it is left to the traffic."""
    V, size = config.shards, 2 if config.precision == "bf16" else 4
    if config.parallel != "auto" or V == 1:
        return "data" if V == 1 else config.parallel
    try:
        stages(spec, V)
    except ValueError:
        return "data"
    cut = hybrid(spec, V, -(-config.batch_size // V), size)
    return "hybrid" if cut.bytes < data_parallel(spec, V).bytes else "data"


def _begun(
    output: str | None, resume: str | None, asked: dict[str, Any], console: Console
) -> tuple[Path | None, Checkpoint | None, dict[str, Any]]:
    """The run folder, the checkpoint to go on from and the options that come with them, as far as there are any."""
    path, saved = find_checkpoint(Path(output) if output else None, resume, console.warn)
    if saved:
        return path, saved, saved_options(saved, asked)
    if resume and path and (path / "config.toml").exists():  # ended before its first checkpoint
        written = {**BEFORE, **read_toml(str(path / "config.toml"))}
        return path, None, {name: value for name, value in written.items() if name != "steps"}
    if resume and not (path and holds_run(path)) and "data" not in asked:
        raise ValueError(
            f"--resume {resume}: there is no run in {path}{alike(path)}; to start one there, name its DATA: "
            f"convnet-train DATA --resume {resume} -o {path}"
        )
    return path, None, {}


def _check_grads(
    spec: NetworkSpec, config: Config, dataset: DataSet, saved: Checkpoint | None, console: Console
) -> int:
    """A line for every tensor; the exit code."""
    from ..network.defined import definition_read
    from ..network.model import Network

    dialect = definition_read(config.definition).dialect if config.definition is not None else "V1"
    found = saved_statistics(saved, spec.crop) if saved else looked_at(dataset, spec.crop, config.workers, console)
    size = min(config.batch_size, len(dataset.train))
    failed = seen = 0
    with (
        Network(spec, config.device, size, config.precision, seed=config.seed, fused=False) as network,
        Loader(
            dataset.train,
            batch_size=size,
            crop=spec.crop,
            seed=config.seed,
            augment=False,
            statistics=found,
            workers=config.workers,
        ) as loader,
    ):
        network.set_input(*normalisation(found, config.normalisation))
        if saved:
            network.load_weights(saved.part("weights"))
        console.say(f"gradients of {size} images beside differences of their cost, one value at a time:")
        for checked in check_gradients(network, next(loader.epoch(0)), dialect, config.seed):
            what = f"relative error {checked.error:.4f}"
            if not checked.tells:
                what = "too small a gradient for costs in float32 to show"
            elif checked.error >= LARGEST_ERROR:
                what, failed = f"{what}, not below {LARGEST_ERROR}", failed + 1
            seen += checked.tells
            console.say(f"{checked.tensor:24} {checked.values:4} values moved by {checked.step:g}: {what}")
    console.say(f"{failed} do not agree" if failed else f"all {seen} that can be seen agree")
    return 1 if failed else 0


def told_by(definition: dict[str, Any], outputs: int, classes: int) -> list[str]:
    """What there is to say of a pair of definition files before a run: what of them is ignored, whether the rates are
    those at the end of a run, and that the last layer has as many outputs as the data has classes."""
    from ..definitions.start import final_state
    from ..network.defined import definition_read

    told = definition_read(definition)
    lines = list(told.notes)
    if (state := final_state(told)) is not None:
        begins = "it begins so (--from-start)" if definition.get("from_start") else "to begin so, say --from-start"
        lines.append(f"{state.sentence}; {begins}")
    if outputs != classes:
        lines.append(
            f"{definition['name']}.cfg has {outputs} outputs and the data {classes} classes: it gets {classes}"
        )
    return lines


def looked_at(dataset: DataSet, crop: int, workers: int, console: Console) -> Statistics:
    """The statistics of the training images, with a line that moves while they are decoded."""
    try:
        return statistics(dataset, crop, workers, lambda done, of: console.progress(done, of, "looking at images"))
    finally:
        console.clear()
        console.last_line = -math.inf  # the first epoch's first line is to be seen too
