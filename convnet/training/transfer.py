"""What the layers of a new network start from: a run of ours, or a file of weights, perhaps of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..interop import checkpoints_2012
from ..interop.files import WeightsError, holds_weights
from ..interop.weights import recognised
from .config import Config
from .trained import Trained, load_trained, of_ours

if TYPE_CHECKING:
    import numpy as np

    from ..network.model import Network


@dataclass(frozen=True)
class Start:
    """``told`` names it to the user, ``network`` its network; ``settings`` are the options that a network which starts
    from it takes over unless told otherwise; ``classes`` None where it does not name them.
    """

    told: str
    network: str
    settings: Mapping[str, Any]
    weights: Mapping[str, np.ndarray[Any, Any]]
    classes: list[str] | None


def start(path: str, model: str | None, config: Config, warn: Callable[[str], None]) -> Start:
    """What lies at ``path``. ``model`` is the network that the user wants, None where nothing was said; a checkpoint of
    the 2012 program is for the network that ``config`` has from a definition file.

    Raises ``CheckpointError`` and ``WeightsError``.
    """
    if checkpoints_2012.recognises(Path(path)):
        if config.definition is None:
            raise WeightsError(
                f"{path}: a checkpoint of the 2012 program is for a network of its files: say --layer-def"
            )
        from ..interop.starts_2012 import weights_of_checkpoint
        from ..network.defined import defined_by

        weights = weights_of_checkpoint(path, defined_by(config.definition, config.crop))
        return Start(path, f'"{config.model}"', {}, weights, None)
    if holds_weights(Path(path)):
        found = recognised(path)
        if found.said:
            ours = of_ours(Path(path), found.said, found.weights)
            return Start(path, _told(ours), ours.settings(), ours.weights, ours.classes)
        settings: dict[str, Any] = {"model": found.network(model)}
        if found.colours:
            settings["normalisation"] = found.colours.normalisation
        return Start(path, f'"{settings["model"]}"', settings, found.weights, None)
    run = load_trained(path, warn)
    return Start(f"{run.path}, step {run.step}", _told(run), run.settings(), run.weights, run.classes)


def _told(trained: Trained) -> str:
    return f'"{trained.config.model}" of width {trained.config.width:g}'


def transfer(source: Start, network: Network, classes: list[str]) -> list[str]:
    """Loads into ``network`` every layer whose weight and bias have the same shape in ``source``, and returns the
    names of the others, which stay as they were drawn. The last layer is one of those where ``source`` names other
    classes, or the same in another order.

    Raises ``ValueError`` when no layer fits.
    """
    weights, found = network.weights(), source.weights
    layers = list(dict.fromkeys(name.partition(".")[0] for name in weights))
    new = layers[-1:] if source.classes not in (None, classes) else []
    for layer in layers:
        own = [name for name in weights if name.partition(".")[0] == layer]
        if layer not in new and any(name not in found or found[name].shape != weights[name].shape for name in own):
            new.append(layer)
    if len(new) == len(layers):
        raise ValueError(
            f"--init-from {source.told}: no layer of its network, {source.network}, fits into "
            f'"{network.spec.name}"; leave out --model and --width to take the same'
        )
    kept = {name: found[name] for name in weights if name.partition(".")[0] not in new}
    network.load_weights({**weights, **kept})
    return [layer for layer in layers if layer in new]
