"""What ``convnet-train`` does: options, data, network and run folder put together for ``trainer.Trainer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import cached, open_dataset, statistics
from ..devices.protocol import DeviceLost, KernelFault
from ..network.footprint import Use
from ..network.spec import network as network_spec
from ..output.console import Console
from .checkpoint import CheckpointError
from .config import merged, read_toml
from .resident import keep_on_device
from .run import (
    RunFolder,
    check_dataset,
    check_layers,
    default_folder,
    find_checkpoint,
    saved_options,
    saved_statistics,
)
from .trained import load_trained
from .trainer import Trainer
from .transfer import transfer


def run(flags: dict[str, Any], file: dict[str, Any], output: str | None, resume: str | None, console: Console) -> int:
    """What ``convnet-train`` does with its options, ``flags`` from the command line, ``file`` from TOML; the exit code.

    Raises ``ValueError``, ``DataError``, ``CheckpointError``, ``DeviceError`` and ``Diverged``.
    """
    path, saved = find_checkpoint(Path(output) if output else None, resume, console.warn)
    if saved:
        inherited = saved_options(saved, {**file, **flags})
    elif resume and path and (path / "config.toml").exists():  # ended before its first checkpoint
        inherited = {name: value for name, value in read_toml(str(path / "config.toml")).items() if name != "steps"}
    else:
        inherited = {}
    config = merged(flags, file, inherited)
    source = None
    if config.init_from and not saved:
        source = load_trained(config.init_from, console.warn)
        config = merged(flags, file, {**source.settings(), **inherited})
    spec = network_spec(config.model, **config.network_options())
    config = config.resolved(spec.defaults, spec.crop)
    check_layers(spec, config)
    dataset = open_dataset(config.data, size=spec.image_size, seed=config.seed)
    console.say(f"data: {dataset.name}")
    if saved:
        check_dataset(saved, dataset, config.batch_size)
    elif resume:
        console.say(f"there is no checkpoint in {path} yet: this is a new run")
    if config.cache == "memory":
        dataset = cached(dataset)

    from ..network.model import Network

    spec = network_spec(config.model, num_classes=len(dataset.classes), **config.network_options())
    kept = len(dataset.train) if config.cache == "device" else 0
    use = Use(spec, config.device, config.precision, spec.image_size, training=True, kept=kept)
    fits = "a new run with -b {} would fit" if saved else "-b {} would fit"
    most = min(config.batch_size, max(len(dataset.train), len(dataset.valid)))  # more images never come at a time

    def opened() -> Network:
        try:
            return Network(spec, config.device, most, config.precision, seed=config.seed)
        except ValueError as error:  # these devices and this precision do not go together
            if saved is None or "device" in {**file, **flags}:
                raise
            raise CheckpointError(f"{saved.path}: expected the options of a run, found others: {error}") from error

    with use.explained(most, fits), opened() as network:
        new = transfer(source, network, dataset.classes) if source else []
        if source:
            loaded = [name for name in network.layers if name not in new]
            console.say(
                f"from {source.path}, step {source.checkpoint.state['step']}: {', '.join(loaded)}; new: "
                f"{', '.join(new) or 'none'}; frozen: {config.freeze or 'none'}"
            )
        if config.cache == "device":
            keep_on_device(network, dataset.train, config.workers, console)
        found = saved_statistics(saved, spec.crop) if saved else statistics(dataset, spec.crop, config.workers)
        with RunFolder(path or default_folder(config)) as folder:
            console.log = folder.log
            try:
                trainer = Trainer(network, dataset, found, config, folder, console, saved, new)
                return trainer.train()
            except (DeviceLost, KernelFault) as error:  # nothing more is asked of the device, nor written
                told = type(error)(f"{error}; {folder.last_checkpoint()}")
                console.note(f"error: {told}")
                raise told from error
            except Exception as error:
                console.note(f"error: {error}")
                raise
            finally:
                console.clear()
                console.log = None
