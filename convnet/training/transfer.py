"""What the layers of a new network start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .trained import Trained

if TYPE_CHECKING:
    from ..network.model import Network


def transfer(source: Trained, network: Network, classes: list[str]) -> list[str]:
    """Loads into ``network`` every layer whose weight and bias have the same shape in ``source``, and returns the
    names of the others, which stay as they were drawn. The last layer is one of those unless ``source`` knows the same
    classes in the same order.

    Raises ``ValueError`` when no layer fits.
    """
    weights, found = network.weights(), source.checkpoint.part("weights")
    layers = [layer.name for layer in network.spec.layers if f"{layer.name}.weight" in weights]
    new = layers[-1:] if source.classes != classes else []
    for layer in layers:
        kinds = (f"{layer}.weight", f"{layer}.bias")
        if layer not in new and any(kind not in found or found[kind].shape != weights[kind].shape for kind in kinds):
            new.append(layer)
    if len(new) == len(layers):
        raise ValueError(
            f'--init-from {source.path}: no layer of its network, "{source.config.model}" of width '
            f'{source.config.width:g}, fits into "{network.spec.name}"; leave out --model and --width to take the same'
        )
    kept = {name: found[name] for name in weights if name.partition(".")[0] not in new}
    network.load_weights({**weights, **kept})
    return [layer for layer in layers if layer in new]
