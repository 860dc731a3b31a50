"""Weights of others under our names: whose they are is told by the names and shapes of their tensors.

torchvision names its layers by their place, and Caffe as we do, with other endings. Caffe's networks read blue, green,
red, and ours red, green, blue: the channels of the first filters are turned round.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..network.networks import NETWORKS, network
from ..network.spec import parameter_shapes
from ..output.files import printable
from .files import Values, WeightsError, read_file, read_weights

if TYPE_CHECKING:
    from ..network.model import Network

__all__ = ["Colours", "Found", "WeightsError", "caffe_weights", "load", "read_weights", "recognised",
           "torchvision_weights"]  # fmt: skip

TORCHVISION = {
    "features.0": "conv1", "features.3": "conv2", "features.6": "conv3", "features.8": "conv4", "features.10": "conv5",
    "classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8",
}  # fmt: skip
# conv1_w, conv1_w_0, conv1.weight, or the blobs of a layer by number, conv1_0
CAFFE = re.compile(r"(conv[1-5]|fc[678])[._](?:(w|weight|0)|(b|bias|1))(?:_0)?")
OURS = re.compile(r".+\.(weight\d*|bias)", re.DOTALL)
PREFIXES = ("module.", "_orig_mod.")  # of models that were trained on several devices, or compiled


@dataclass(frozen=True)
class Colours:
    """What a network of others expects: pixels less ``mean``, divided by ``std``, both by channel in levels of 0..255;
    without ``std`` not divided.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] | None

    @property
    def normalisation(self) -> str:
        """The option of a run whose network expects the same, with the colours of its own data."""
        return "mean-std" if self.std else "mean-image"


IMAGENET = Colours((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255))
CAFFES = Colours((122.679, 116.669, 104.007), None)  # the mean of the mean image that comes with its networks


@dataclass(frozen=True)
class Said:
    """What ``convnet-export`` writes beside weights: the network's name and its options (keywords of ``network``), the
    names of the classes, and what pixels go through, a mean (3, crop, crop) and a factor for each channel.
    """

    model: str
    options: dict[str, Any]
    classes: list[str]
    mean: Values
    scale: list[float]


@dataclass(frozen=True)
class Found:
    """Weights by our names, float32. ``networks``: ours that they fit into, apart from the number of classes; none
    where they are of ours, but narrower or wider. ``colours`` are None where they have our names. ``said`` is there
    where we have written the file.
    """

    path: Path
    weights: dict[str, Values]
    networks: list[str]
    colours: Colours | None
    said: Said | None = None

    @property
    def classes(self) -> int:
        """How many the last layer tells apart."""
        return len(self.weights["fc8.weight"])

    def network(self, model: str | None) -> str:
        """The name of the network that they are of. ``model`` decides where several have the same names and shapes.

        Raises ``ValueError`` where nothing does.
        """
        if len(self.networks) == 1:
            return self.networks[0]
        if model in self.networks or (model and not self.networks):
            return str(model)
        if self.networks:
            fits = f"fit {' and '.join(self.networks)}"
        else:
            fits = "have our names, and the shapes of none of our networks at full width"
        raise ValueError(f"{str(self.path)!r}: its tensors {fits}; say with --model which network they are of")


def recognised(path: str | Path) -> Found:
    """The weights in a file, whoever's they are.

    Raises ``WeightsError`` where their names are nobody's that we know, one is missing, extra or of another shape, or a
    value is not finite.
    """
    path = Path(path)
    read, texts = read_file(path)
    tensors = _plain_names(read)
    if any(name.rpartition(".")[0] in TORCHVISION for name in tensors):
        theirs = _torchvision(path, tensors)  # under these names we export, too
        return replace(theirs, said=_said(path, texts, read, theirs.weights))
    if "conv1.weight" in tensors:
        weights = {
            name: np.ascontiguousarray(_finite(path, name, values))
            for name, values in tensors.items()
            if OURS.fullmatch(name)
        }
        fitting = [name for name in NETWORKS if "fc8.weight" in weights and not _misfit(weights, name)]
        return Found(path, weights, fitting, None, _said(path, texts, read, weights))
    if any(CAFFE.fullmatch(name) for name in tensors):
        return _caffe(path, tensors)
    names = ", ".join(printable(name) for name in list(tensors)[:4]) or "none"
    raise WeightsError(
        f"{str(path)!r}: its tensors have neither the names of torchvision's AlexNet (features.0.weight), nor Caffe's "
        f"(conv1_w), nor ours (conv1.weight), but {names:.200}"
    )


def torchvision_weights(path: str | Path) -> dict[str, Values]:
    """Weights for ``Network("alexnet-torchvision")`` from a state dict of torchvision's AlexNet. Raises
    ``WeightsError``.
    """
    return _torchvision(Path(path), _plain_names(read_weights(path))).weights


def caffe_weights(path: str | Path) -> dict[str, Values]:
    """Weights for ``Network("bvlc_alexnet")`` or ``Network("caffenet")``, which have the same names and shapes, from
    those that a program of Caffe's has written as arrays: ``conv1_w``, ``conv1.weight`` or ``conv1_0``.

    Their networks read blue, green, red. Ours read red, green, blue, hence here the channels of the filters of conv1
    are in the opposite order. Raises ``WeightsError``.
    """
    return _caffe(Path(path), _plain_names(read_weights(path))).weights


def load(net: Network, path: str | Path) -> None:
    """Replaces all weights of ``net`` by those in a file, whoever's they are. Raises ``WeightsError`` for what cannot
    be read, and ``ValueError`` where names or shapes are not the network's.
    """
    net.load_weights(recognised(path).weights)


# ---- whose they are ----


def _plain_names(tensors: dict[str, Values]) -> dict[str, Values]:
    """Without what a wrapper around the model has put in front of all of them, and without what our own files say of
    pixels."""
    tensors = {name: values for name, values in tensors.items() if name not in ("input.mean", "input.scale")}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): values for name, values in tensors.items()}
    return tensors


def _said(
    path: Path, texts: Mapping[str, str], tensors: Mapping[str, Values], weights: Mapping[str, Values]
) -> Said | None:
    """Nothing is built from what a file says before it is known to fit. Raises ``WeightsError``."""
    if not ({"network", "classes"} <= texts.keys() and {"input.mean", "input.scale"} <= tensors.keys()):
        return None
    try:
        options, classes = json.loads(texts["network"]), json.loads(texts["classes"])
        model = options.pop("model")
        spec = network(model, num_classes=len(classes), **options)
        mean, scale = tensors["input.mean"], tensors["input.scale"]
        fits = {name: values.shape for name, values in weights.items()} == parameter_shapes(spec)
        fits = fits and mean.shape == (3, spec.crop, spec.crop) and scale.shape == (3, 1, 1)
        fits = fits and bool(np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all())
        fits = fits and type(classes) is list and all(type(name) is str for name in classes)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        fits = False
    if not fits:
        raise WeightsError(
            f"{str(path)!r}: its weights are not those of the network, the classes and the pixels it tells of: "
            f"{printable(texts['network']):.80}; export the run again"
        )
    return Said(model, options, classes, mean, scale.ravel().tolist())


def _torchvision(path: Path, tensors: Mapping[str, Values]) -> Found:
    theirs = {f"{ours}.{kind}": f"{name}.{kind}" for name, ours in TORCHVISION.items() for kind in ("weight", "bias")}
    weights = _ours(path, tensors, theirs, "alexnet-torchvision", "torchvision's AlexNet")
    return Found(path, weights, ["alexnet-torchvision"], IMAGENET)


def _caffe(path: Path, tensors: Mapping[str, Values]) -> Found:
    theirs: dict[str, str] = {}
    for name in tensors:
        if match := CAFFE.fullmatch(name):
            theirs[f"{match[1]}.{'weight' if match[2] else 'bias'}"] = name
    for name in parameter_shapes(network("bvlc_alexnet")):  # for the message that it is missing
        theirs.setdefault(name, name)
    shaped = {name: _without_ones(values) for name, values in tensors.items()}
    weights = _ours(path, shaped, theirs, "bvlc_alexnet", "Caffe's AlexNet and CaffeNet")
    weights["conv1.weight"] = np.ascontiguousarray(weights["conv1.weight"][:, ::-1])
    return Found(path, weights, ["bvlc_alexnet", "caffenet"], CAFFES)


def _without_ones(values: Values) -> Values:
    """Blobs of Caffe's earlier files have four extents, the first of which are 1 where there are fewer."""
    while values.ndim in (2, 3, 4) and values.shape[0] == 1:
        values = values[0]
    return values


def _ours(
    path: Path, tensors: Mapping[str, Values], theirs: Mapping[str, str], name: str, whose: str
) -> dict[str, Values]:
    """``tensors`` by our names, of which ``theirs`` says what they are called in the file, with the shapes of the
    network ``name``, apart from the number of classes.
    """
    if missing := [called for called in theirs.values() if called not in tensors]:
        raise WeightsError(f"{str(path)!r}: {missing[0]} of {whose} is missing{_more(missing)}")
    if extra := sorted(tensors.keys() - set(theirs.values())):
        raise WeightsError(f"{str(path)!r}: {printable(extra[0]):.80} is no tensor of {whose}{_more(extra)}")
    weights = {ours: tensors[called] for ours, called in theirs.items()}
    if misfit := _misfit(weights, name):
        found, wanted = weights[misfit].shape, _shapes(weights, name)[misfit]
        raise WeightsError(f"{str(path)!r}: {theirs[misfit]} has shape {found}; {whose} has {wanted}")
    return {
        ours: np.ascontiguousarray(_finite(path, theirs[ours], weights[ours]))
        for ours in parameter_shapes(network(name))
    }


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _shapes(weights: Mapping[str, Values], name: str) -> dict[str, tuple[int, ...]]:
    """Of the network ``name``, for as many classes as ``weights`` know."""
    last = weights["fc8.weight"]
    return parameter_shapes(network(name, num_classes=max(1, len(last)) if last.ndim else 1))


def _misfit(weights: Mapping[str, Values], name: str) -> str | None:
    """The first tensor whose name or shape is not that of the network ``name``."""
    shapes = _shapes(weights, name)
    names = [*shapes, *(other for other in weights if other not in shapes)]
    return next((n for n in names if n not in weights or weights[n].shape != shapes.get(n)), None)


def _finite(path: Path, name: str, values: Values) -> Values:
    if not np.isfinite(values).all():
        raise WeightsError(f"{str(path)!r}: {printable(name):.80} has values that are not finite in float32")
    return values
