"""What ``convnet-export`` does: a run's network into a file that others read, and a model card beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ..data import DataError, normalisation
from ..definitions.files import read
from ..interop import checkpoints_2012, starts_2012
from ..interop.arrays import npz_file, safetensors_file
from ..interop.onnx_out import TOLERANCE, Input, check_onnx, onnx_file
from ..interop.torch_names import torch_weights
from ..network.defined import defined
from ..network.spec import Conv, Local, placed_layers
from ..output.console import Console
from ..output.files import write_atomically
from ..output.results import output_file
from ..training.trained import Trained, load_trained
from .card import Export, card_path, card_text

Values = np.ndarray[Any, Any]

KINDS = (".onnx", ".safetensors", ".npz")
IMAGES = 8  # random ones, and as many pictures, that a file is checked with


@dataclass(frozen=True)
class Options:
    """``input`` is what an ONNX file takes, "uint8" or "float32", ``names`` how arrays are called, "convnet" or
    "torch"; None is the first of each. ``model`` and ``classes`` as in ``load_trained``. ``layer_def`` is the
    definition file of a checkpoint of the 2012 program, and ``crop`` the side of its images, None the usual one.
    """

    input: str | None = None
    names: str | None = None
    check: bool = False
    data_licence: str | None = None
    model: str | None = None
    classes: str | None = None
    layer_def: str | None = None
    crop: int | None = None


class Disagreement(Exception):
    """onnxruntime computes something else than we do from the same file."""


def export(run: str, output: str, options: Options, console: Console) -> None:
    """Writes the network of ``run``, or of a file of weights, into the file ``output``, of the kind that its name ends
    in, and its card.

    Raises ``ValueError`` for options that cannot be, ``CheckpointError``, ``WeightsError``, and ``Disagreement``, in
    which case there is no file.
    """
    path = _checked(output, options)
    if checkpoints_2012.recognises(Path(run)):
        _of_2012(Path(run), path, options, console)
        return
    if options.layer_def is not None or options.crop is not None:
        raise ValueError(f"--layer-def and --crop are for checkpoints of the 2012 program, and {run} is none")
    trained = load_trained(run, console.warn, options.model, options.classes)
    spec, weights = trained.spec, trained.weights
    mean, factors = normalisation(trained.statistics, trained.config.normalisation)
    sees: Input = mean, factors or (spec.input_scale,) * 3
    told = json.dumps({"model": trained.config.model, **trained.config.network_options()})
    if path.suffix == ".onnx":
        content = onnx_file(spec, weights, None if options.input == "float32" else sees, trained.classes, told)
        if options.check:
            _check(trained, content, sees, options, console)
    else:
        named = torch_weights(spec, weights) if options.names == "torch" else weights
        arrays = {**named, "input.mean": sees[0], "input.scale": np.array(sees[1], np.float32).reshape(3, 1, 1)}
        content = (npz_file if path.suffix == ".npz" else safetensors_file)(arrays, trained.classes, told)
    write_atomically(path, content)
    console.say(f"written: {path}")
    card = card_path(path)
    if card is None:
        console.warn(f"no model card: {path.with_name('README.md')} and {path.name}.md are files of others")
        return
    text = card_text(
        Export(path, trained, sees, options.input or "uint8", options.names or "convnet"), options.data_licence
    )
    write_atomically(card, text.encode())
    left = "" if card.name == "README.md" else "; the README.md there is not about this file, and stays"
    console.say(f"written: {card}{left}")


def _of_2012(checkpoint: Path, path: Path, options: Options, console: Console) -> None:
    """Its weights alone, by its layers' names; or with its definition file by those of the network that it becomes
    here, and the channels that were drawn beside them, as ``conv2.connections``, with several inputs
    ``conv2.connections0``, ..."""
    if path.suffix != ".safetensors" or options != Options(layer_def=options.layer_def, crop=options.crop):
        raise ValueError(
            f"{checkpoint} is a checkpoint of the 2012 program: its weights go into a .safetensors file, under the "
            "names of its layers, or of ours with --layer-def FILE, and no other option says more"
        )
    if options.layer_def is None and options.crop is not None:
        raise ValueError("--crop needs --layer-def FILE")
    found = checkpoints_2012.read_checkpoint(checkpoint)
    arrays = found.arrays() if options.layer_def is None else _by_our_names(found, options.layer_def, options.crop)
    write_atomically(path, safetensors.numpy.save(arrays))
    numbers = sum(values.size for values in arrays.values() if values.dtype == np.float32)
    layers = ", ".join(dict.fromkeys(name.partition(".")[0] for name in arrays))
    console.say(f"of epoch {found.epoch}, data batch {found.batchnum}: {numbers:,} weights and biases of {layers:.400}")
    console.say(f"written: {path}")


def _by_our_names(found: checkpoints_2012.Checkpoint2012, layer_def: str, crop: int | None) -> dict[str, Values]:
    network = starts_2012.connected(defined(read(layer_def), crop), found.layers, own=True)
    arrays = starts_2012.all_weights(network, found.layers)
    for placed in placed_layers(network.spec):
        for name, term in zip(placed.weight_names, placed.terms, strict=False):
            if isinstance(term.layer, (Conv, Local)) and term.layer.connections:
                called = f"{placed.layer.name}.{name.replace('weight', 'connections')}"
                arrays[called] = np.array(term.layer.connections, np.int32)
    return arrays


def _checked(output: str, options: Options) -> Path:
    """The file's path, when all options go together."""
    suffix = Path(output).suffix
    if suffix not in KINDS:
        raise ValueError(f"-o {output}: the name of this file must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if suffix == ".onnx" and options.names:
        raise ValueError("--names is for .safetensors and .npz; an ONNX file knows its layers itself")
    if suffix != ".onnx" and (options.input or options.check):
        option = "--input" if options.input else "--check"
        raise ValueError(f"{option} is for .onnx; {suffix} holds arrays, which nothing runs")
    return output_file("-o", output, suffix)


def _check(trained: Trained, content: bytes, sees: Input, options: Options, console: Console) -> None:
    crop = trained.spec.crop
    batches = [np.random.default_rng(0).integers(0, 256, (IMAGES, crop, crop, 3), dtype=np.uint8)]
    real = _pictures(trained, console)
    batches += [] if real is None else [real]
    told = f"{IMAGES} random pictures" + ("" if real is None else f" and {len(real)} of the run's")
    if options.input == "float32":
        scale = np.array(sees[1], np.float32)
        batches = [
            np.ascontiguousarray(((b - sees[0].transpose(1, 2, 0)) * scale).transpose(0, 3, 1, 2)) for b in batches
        ]
    with trained.open_network("cpu", IMAGES, "fp32") as network:
        apart = check_onnx(network, content, batches)
    text = f"onnxruntime, on {told}: at most {apart:.1e} of the largest logit apart"
    if not apart <= TOLERANCE:
        raise Disagreement(f"{text}, and {TOLERANCE:g} are allowed; nothing is written")
    console.say(f"checked with {text}")


def _pictures(trained: Trained, console: Console) -> Values | None:
    """A corner of some validation images, where the run's data is there."""
    try:
        with console.waiting(f"looking through {trained.config.data}"):
            split = trained.open_dataset().valid
    except DataError as error:
        console.say(f"the run's own pictures are not there to check with ({error})")
        return None
    crop, count = trained.spec.crop, min(IMAGES, len(split))
    images = [split.image(index * len(split) // count)[:crop, :crop] for index in range(count)]
    return np.stack(images) if images else None
