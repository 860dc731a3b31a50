"""Fuzzes what reads other people's files: pictures, checkpoints, weights, published data sets, stores, configurations.

    python tools/fuzz.py --inputs 1000000                  # the long campaign, over all targets
    python tools/fuzz.py --inputs 10000 --target pickle    # one target
    python tools/fuzz.py --replay tests/fuzz               # inputs that were findings once

Small valid files are mutated, byte by byte and by structure, and given to the reader. Allowed are success and the
errors that the reader's documentation names. Everything else is a finding: another exception, the death of the
process, more than SECONDS of time or MEMORY of memory. It is printed with its number, and its files are kept in
the folder --keep. Input i of a target is the same whenever and wherever it is made: --seed chooses another series.

Inputs run in a process of their own, which is started again where one kills it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import hashlib
import io
import json
import math
import mmap
import os
import pickle
import pickletools
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process that forks should have one thread
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import safetensors.numpy  # noqa: E402
from checkpoint_2012 import written  # noqa: E402
from data_files import cifar_files, python2_batch, python2_meta, write_cifar, write_colmajor  # noqa: E402
from definition_files import PAIRS  # noqa: E402
from PIL import Image, features  # noqa: E402

from convnet.data import cifar, idx, jpeg, npz, webdataset  # noqa: E402
from convnet.data.dataset import DataError, DataSet  # noqa: E402
from convnet.data.images import depth_of, fitted  # noqa: E402
from convnet.data.jpeg import BadImage  # noqa: E402
from convnet.data.labels import keys, read_labels  # noqa: E402
from convnet.data.pickles import read_plain  # noqa: E402
from convnet.data.source import divided, ranged  # noqa: E402
from convnet.data.splits import as_dataset  # noqa: E402
from convnet.data.statistics import statistics  # noqa: E402
from convnet.data.store import FORMAT, HASHED, INDEX, VERSION, open_store, shard_name  # noqa: E402
from convnet.definitions.columns import columns, misnamed  # noqa: E402
from convnet.definitions.files import read  # noqa: E402
from convnet.definitions.geometry import parameters, sizes  # noqa: E402
from convnet.definitions.ini import DefinitionError  # noqa: E402
from convnet.definitions.start import final_state, from_start  # noqa: E402
from convnet.devices.protocol import DeviceError  # noqa: E402
from convnet.interop import checkpoints_2012, onnx_in  # noqa: E402
from convnet.interop.arrays import safetensors_file  # noqa: E402
from convnet.interop.onnx_out import onnx_file  # noqa: E402
from convnet.interop.weights import WeightsError, read_weights  # noqa: E402
from convnet.network.defined import defined  # noqa: E402
from convnet.network.networks import network  # noqa: E402
from convnet.network.spec import parameter_count, parameter_shapes  # noqa: E402
from convnet.output.console import Console  # noqa: E402
from convnet.training import checkpoint, train  # noqa: E402
from convnet.training.checkpoint import CheckpointError  # noqa: E402
from convnet.training.config import OPTIONS, Config, merged, read_toml, to_toml  # noqa: E402
from convnet.training.run import saved_options  # noqa: E402
from convnet.training.trained import load_trained  # noqa: E402
from convnet.training.trainer import Diverged, Trainer  # noqa: E402

SECONDS = 5.0  # of computing for one input: the slowest takes some milliseconds
STUCK = 60.0  # by the clock: for code that waits, or does not return to Python
MEMORY = 400 * 2**20  # a reader may take a file, and unpack it
LARGEST = 2**20  # of a mutated file
# Of all inputs; the quick readers take more.
SHARES = {
    "checkpoint": 20, "checkpoint-state": 10, "cifar-binary": 10, "cifar-python": 8,
    "run-state": 1, "pickle": 20, "store": 6, "store-arrays": 6, "config": 20, "definition": 20,
    "batches": 10, "idx": 10, "npz": 10, "shard": 10,
    "pictures": 8, "table": 10, "weights": 20, "onnx": 10, "checkpoint-2012": 20, "colmajor": 20,
}  # fmt: skip
Files = dict[str, bytes]
Random = random.Random

NUMBERS = [0, 1, -1, 127, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [
    *(str(number).encode() for number in NUMBERS),
    *(b"nan", b"NaN", b"inf", b"-Infinity", b"1e999", b"-0.0", b"9" * 400, b"9" * 5000, b"0x" + b"f" * 400),
    *(b"null", b"true", b"None", b"False", b"[]", b"{}", b"()", b'""', b"''", b'"\\ud800"', b"\\u0000"),
    *(b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b"\\", b"../../etc/passwd", b"~nobody-of-that-name/x"),
    *(b"[" * 3000, b"(" * 300, b'{"a":' * 3000, b"[" * 100_000, b"'<u8'", b"'O'", b"'|V24'", b"(9223372036854775807,)"),
]
DEEP = "deep below"  # replaced by arrays in arrays in the text, since the writer of JSON has a limit too
VALUES: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -1e308, float("nan"), float("inf")]
VALUES += ["", "\ud800", "\0", "x" * 5000, "conv1", [], {}, [None], [[1, 2], [3]], {"": 0}, [1e30] * 3, DEEP]


@dataclass(frozen=True)
class Target:
    """``files``: valid ones. ``run``: reads them in a folder. ``finish``: mends sums that the mutation broke, so that
    what lies behind them is reached. ``shapers``: mutations of one file that know its structure."""

    files: Files
    run: Callable[[Path], object]
    allowed: tuple[type[Exception], ...]
    shapers: dict[str, Callable[[Random, bytes], bytes]]
    finish: Callable[[Random, Files], Files] = lambda random, files: files
    words: tuple[bytes, ...] = ()


# ---- mutations ----


def mutate(random: Random, raw: bytes, words: tuple[bytes, ...]) -> bytes:
    """One to some changes of a few bytes."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        size = len(data)
        # headers are at the start, and small beside what follows
        at = random.randrange(min(size, 256) if random.random() < 0.4 else size) if size else 0
        kind = random.randrange(9)
        if kind == 0 and size:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1 and size:
            data[at] = random.randrange(256)
        elif kind == 2:
            length = random.choice((1, 2, 4, 8))
            number = random.choice((*NUMBERS, size, size - 1, size + 1)) % 256**length
            data[at : at + length] = number.to_bytes(length, random.choice(("little", "big")))
        elif kind == 3:
            data[at:at] = random.choice((*WORDS, *words))
        elif kind == 4:
            word = random.choice((*WORDS, *words))
            data[at : at + len(word)] = word
        elif kind == 5:
            found = [match.span() for match in re.finditer(rb"[0-9]+", data[:4096])]
            if found:
                start, end = random.choice(found)
                data[start:end] = random.choice(WORDS)
        elif kind == 6:
            del data[at : at + random.choice((1, 4, 64, size))]
        elif kind == 7:
            part = data[at : at + random.choice((1, 8, 64, 512))]
            data[at:at] = part * random.choice((1, 2, 100))
        else:
            data[at : at + 16] = random.randbytes(16)
    return bytes(data[:LARGEST])


def mutate_value(random: Random, value: Any) -> Any:
    """A JSON value with one part of it replaced, removed, doubled or renamed."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.85:
        changed = value.copy()
        keys = list(changed) if isinstance(changed, dict) else list(range(len(changed)))
        key, action = random.choice(keys), random.random()
        if action < 0.1:
            del changed[key]
        elif action < 0.2:
            other = random.choice(keys)
            if isinstance(changed, dict) and random.random() < 0.5:
                changed[random.choice(("", "x", "\ud800", "../x", str(key).upper()))] = changed.pop(key)
            else:
                changed[key], changed[other] = changed[other], changed[key]
        else:
            changed[key] = mutate_value(random, changed[key])
        return changed
    if isinstance(value, (int, float)) and random.random() < 0.5:
        return random.choice((*NUMBERS, value + 1, value - 1, value * 0.5 if abs(value) < 2**64 else 0.5, -value))
    return random.choice(VALUES)


def mutate_json(random: Random, raw: bytes) -> bytes:
    value = json.loads(raw)
    for _ in range(random.choice((1, 1, 2, 4))):
        value = mutate_value(random, value)
    text = json.dumps(value, sort_keys=True)  # as checkpoints write it
    return text.replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000).encode()


# ---- checkpoints ----


def checkpoint_files() -> Files:
    state = {
        "step": 120, "epoch": 1, "position": 64, "seed": 7,
        "schedule": {"lowest": 0.1, "since": 40, "judged": 80, "drops": 1},
        "running": {"images": 3, "loss": 0.5, "top1": 1, "top5": 0}, "best": {"error": None, "step": None},
        "config": json.loads(json.dumps(Config().__dict__)), "classes": ["a", "b"],
        "dataset": {"name": "n", "fingerprint": "f"}, "versions": {"convnet": "0"},
        "colour": {"std": [1.0] * 3, "deviations": [1.0] * 3, "directions": [[1.0] * 3] * 3},
    }  # fmt: skip
    ones = np.ones((2, 3), np.float32)
    tensors = {"weights/a": ones, "velocity/a": ones, "mean": np.ones((3, 4, 4), np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        checkpoint.save(path, tensors, state)
        return {"file": path.read_bytes()}


def split_header(raw: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack("<Q", raw[:8])[0]
    return raw[8 : 8 + length], raw[8 + length :]


def mutate_header(random: Random, raw: bytes) -> bytes:
    """safetensors' own header: names, types, shapes and offsets of the tensors."""
    header, data = split_header(raw)
    header = mutate_json(random, header)
    return struct.pack("<Q", len(header)) + header + data


def mutate_state(random: Random, raw: bytes) -> bytes:
    """A checkpoint with a right hash and wrong contents."""
    header, _ = split_header(raw)
    text = mutate_json(random, json.loads(header)["__metadata__"][checkpoint.KEY].encode()).decode()
    tensors = safetensors.numpy.load(raw)
    try:
        state = json.loads(text)
    except RecursionError:
        return safetensors.numpy.save(tensors, {checkpoint.KEY: text})
    if random.random() < 0.3:
        name = random.choice(list(tensors))
        values: Any = random.choice((np.nan, np.inf, 1e-42, 0.0))
        tensors[name] = np.full(random.choice(((), (0,), (2, 3), (5, 1, 1))), values, random.choice((np.float32, "f8")))
    if random.random() < 0.1:
        tensors.pop(random.choice(list(tensors)))
    if not isinstance(state, dict):
        return raw
    state.pop("sha256", None)
    text = json.dumps(state, sort_keys=True)  # NaN and all: what checkpoint.save refuses to write
    sealed = {**state, "sha256": checkpoint._digest(tensors, text)}
    return safetensors.numpy.save(tensors, {checkpoint.KEY: json.dumps(sealed, sort_keys=True)})


def run_checkpoint(folder: Path) -> None:
    found = checkpoint.load(folder / "file")
    saved_options(found, {"epochs": 1})  # one that may change, or nothing behind it is reached
    load_trained(folder / "file", lambda text: None)


# ---- runs that go on ----


class Few:
    """Six grey images of two classes: data is not what is tested."""

    size, labels = 37, np.array([0, 1] * 3, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(index)

    def image(self, index: int, out: Any = None) -> Any:
        out = np.empty((37, 37, 3), np.uint8) if out is None else out
        out[:] = 40 * index
        return out


def run_files() -> Files:
    """A whole checkpoint of the smallest network there is."""
    spec = network("alexnet-tiny", num_classes=2, crop=32, width=0.01)
    config = Config(model="alexnet-tiny", crop=32, width=0.01, batch_size=2, epochs=2, workers=0, device="cpu")
    state = {
        "step": 1, "epoch": 0, "position": 2, "seed": 0,
        "schedule": {"lowest": 0.5, "since": 0, "judged": 1, "drops": 1}, "last": {"error": 0.5, "loss": 0.5},
        "running": {"images": 2, "loss": 0.5, "top1": 1, "top5": 0}, "best": {"error": 0.5, "step": 1},
        "config": json.loads(json.dumps(config.resolved(spec.defaults, 32).__dict__)), "classes": ["a", "b"],
        "dataset": {"name": "n", "fingerprint": "f"}, "versions": {"convnet": "0"}, "new_layers": ["fc8"],
        "colour": {"std": [1.0] * 3, "deviations": [1.0] * 3, "directions": [[1.0] * 3] * 3},
    }  # fmt: skip
    tensors = {"mean": np.ones((3, 32, 32), np.float32)}
    for name, shape in parameter_shapes(spec).items():
        tensors[f"weights/{name}"], tensors[f"velocity/{name}"] = np.full(shape, 0.01, "f4"), np.zeros(shape, "f4")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        checkpoint.save(path, tensors, state)
        return {"file": path.read_bytes()}


SMALL = [0, 1, 2, 3, 6, 7, 100, 2**20, 2**31 - 1]
PLAUSIBLE = [*SMALL, 0.0, 1e-300, 0.5, 1.0, 1.5, 1e300, True, False, None, "auto", "emu", "cpu", "cuda:1", "conv1,fc8"]
PLAUSIBLE += [[{"epoch": 0, "lr": 0.1, "layers": {"conv1": 0.0}}], [{"epoch": 0, "lr": 1e-300, "bias_lr": 1e300}]]


def mutate_run(random: Random, raw: bytes) -> bytes:
    """The same with values that each may be meant, beside others that they do not go with."""
    if random.random() < 0.3:
        return mutate_state(random, raw)
    tensors = safetensors.numpy.load(raw)
    state = json.loads(json.loads(split_header(raw)[0])["__metadata__"][checkpoint.KEY])
    for _ in range(random.choice((1, 1, 2, 5))):
        part = state[random.choice(("schedule", "running", "best", "last", "config", "config", "config"))]
        name = random.choice(list(part))
        choices = OPTIONS[name].choices if part is state["config"] else ()
        part[name] = random.choice(choices or PLAUSIBLE)
        if random.random() < 0.3:
            state[random.choice(("step", "epoch", "position"))] = random.choice(SMALL)
    if random.random() < 0.3:
        tensors[random.choice(list(tensors))][...] = random.choice((-3e38, 1e30, 1e-42, 0.0))
    del state["sha256"]
    text = json.dumps(state, sort_keys=True)
    sealed = {**state, "sha256": checkpoint._digest(tensors, text)}
    return safetensors.numpy.save(tensors, {checkpoint.KEY: json.dumps(sealed, sort_keys=True)})


def run_resumed(folder: Path) -> None:
    """``convnet-train --resume FILE``, to the end of an epoch if it gets so far, but for its figures; and what takes
    up a trained network."""
    with load_trained(folder / "file", lambda text: None).open_network("cpu", 2, "fp32"):
        pass
    data = DataSet("six", ["a", "b"], Few(), Few(), "f")
    train.open_dataset = lambda *_, **__: data
    Trainer._draw = lambda self: None  # type: ignore[method-assign]
    asked = {"workers": 0, "epochs": 1}
    try:
        train.run(asked, {}, str(folder / "run"), str(folder / "file"), Console(quiet=True))
    finally:
        shutil.rmtree(folder / "run", ignore_errors=True)


# ---- networks of others ----


def onnx_files() -> Files:
    """One of ours, with towers and pixels that are prepared; and one as others write them, with all that is read."""
    from onnx import helper, numpy_helper

    spec = network("alexnet-tiny", num_classes=2, crop=32, width=0.01)
    weights = {name: np.full(shape, 0.01, np.float32) for name, shape in parameter_shapes(spec).items()}
    ours = onnx_file(spec, weights, (np.ones((3, 32, 32), np.float32), (1.0, 1.0, 1.0)), ["a", "b"])
    floats = functools.partial(np.full, fill_value=0.5, dtype=np.float32)
    constants = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "c": floats((4, 3, 3, 3)), "sizes": np.array([4, 2, 3, 3]),
        "turned": floats((64, 5)).T, "shape": np.array([-1, 64]), "bias": floats(5), "factor": floats(()),
        "last": floats((5, 2)).astype(np.float64), "ratio": floats(()),
    }  # fmt: skip
    nodes: list[tuple[str, str, dict[str, Any]]] = [
        ("Identity", "x", {}), ("Pad", "0 pads", {}), ("Conv", "1 c", {"strides": [2, 2], "auto_pad": "NOTSET"}),
        ("Relu", "2", {}), ("LRN", "3", {"size": 3, "alpha": 0.1}), ("ConstantOfShape", "sizes", {}),
        ("Conv", "4 5", {"group": 2, "pads": [1, 1, 1, 1]}), ("Tanh", "6", {}),
        ("MaxPool", "7", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}), ("Reshape", "8 shape", {}),
        ("Transpose", "turned", {"perm": [1, 0]}), ("MatMul", "9 10", {}), ("Add", "11 bias", {}), ("Relu", "12", {}),
        ("Mul", "13 factor", {}), ("Dropout", "14 ratio", {}), ("Gemm", "15 last", {}), ("Softmax", "16", {}),
    ]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node(op, read.split(), [str(k)], f"n{k}", **told) for k, (op, read, told) in enumerate(nodes)],
        "theirs",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("17", 1, ["n", 2])],
        [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in constants.items()],
    )
    return {"ours": ours, "theirs": helper.make_model(graph).SerializeToString()}


def mutate_graph(random: Random, raw: bytes) -> bytes:
    """Nodes, attributes, tensors and sizes of a model."""
    from onnx import ModelProto, helper

    model = ModelProto.FromString(raw)
    graph, wholes = model.graph, [0, 1, -1, 2, 3, 4, 7, 99, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63)]
    for _ in range(random.choice((1, 1, 2, 4))):
        node, tensor = random.choice(list(graph.node)), random.choice(list(graph.initializer))
        names = [*(name for each in graph.node for name in (*each.input, *each.output)), "", "nowhere", tensor.name]
        kind = random.randrange(12)
        if kind == 0 and node.attribute:
            attribute = random.choice(list(node.attribute))
            values = random.choice(([], [random.choice(wholes)], [random.choice(wholes)] * 4, [0.5], [math.nan], ["x"]))
            value = values if random.random() < 0.8 or not values else values[0]
            node.attribute.remove(attribute)
            if value != []:
                node.attribute.append(helper.make_attribute(attribute.name, value))
        elif kind == 1 and node.attribute:
            attribute = random.choice(list(node.attribute))
            if attribute.ints:
                attribute.ints[random.randrange(len(attribute.ints))] = random.choice(wholes)
            attribute.i, attribute.f = (
                random.choice(wholes),
                random.choice((0.0, -1.0, math.inf, math.nan, 1e-42, 3e38)),
            )
        elif kind == 2:
            node.op_type = random.choice((*onnx_in.STEPS, "Constant", "ConstantOfShape", "If", "", "Concat"))
        elif kind in (3, 4):
            field = node.input if kind == 3 else node.output
            if field and random.random() < 0.8:
                field[random.randrange(len(field))] = random.choice(names)
            elif random.random() < 0.5:
                field.append(random.choice(names))
            else:
                del field[:]
        elif kind == 5 and tensor.dims:
            tensor.dims[random.randrange(len(tensor.dims))] = random.choice(wholes)
        elif kind == 6:
            tensor.data_type = random.choice((0, 1, 6, 7, 8, 10, 11, 16, 17, 99))
        elif kind == 7:
            size = random.choice((0, 1, 7, 8, 64, 4096))
            tensor.raw_data = random.choice((random.randbytes(size), b"", b"\xff" * size, tensor.raw_data * 2))
        elif kind == 8:
            tensor.external_data.add(key="location", value=random.choice(("/etc/passwd", "file", "../x")))
            tensor.data_location = random.choice((0, 1))
        elif kind == 9:
            sizes = graph.input[0].type.tensor_type.shape.dim
            sizes[random.randrange(len(sizes))].dim_value = random.choice((*wholes, 16, 3))
        elif kind == 10:
            if random.random() < 0.5:
                graph.node.remove(node)
            else:
                graph.node.extend([node] * random.choice((1, 2, 1000)))
        elif random.random() < 0.5:
            model.opset_import[0].version = random.choice(wholes)
        else:
            graph.initializer.remove(tensor)
        if not graph.node or not graph.initializer:
            break
    return bytes(model.SerializeToString()[:LARGEST])


def run_onnx(folder: Path) -> None:
    for name in ("ours", "theirs"):
        found = onnx_in.read(folder / name)
        shapes = parameter_shapes(found.spec)
        assert {key: values.shape for key, values in found.weights.items()} == shapes, "weights of other shapes"


# ---- published data sets ----


def archive(kind: str) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        return {"file": write_cifar(Path(folder, "x"), kind, cifar_files(kind, 2), mode="w:").read_bytes()}


def mend_archive(random: Random, files: Files) -> Files:
    """Right checksums in most of the headers, and sometimes a compressed file."""
    data = bytearray(files["file"])
    if random.random() < 0.8:
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    raw = bytes(data)
    if random.random() < 0.05:
        raw = gzip.compress(raw, 1, mtime=0)
        raw = mutate(random, raw, ()) if random.random() < 0.5 else raw
    return {"file": raw}


def mutate_member(random: Random, raw: bytes) -> bytes:
    """A header of a tar archive: names, sizes, types."""
    data = bytearray(raw)
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    at = random.choice(headers)
    field, length = random.choice(
        ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))
    )
    if field == 156:
        data[at + field] = random.choice(b"01234567gxLKSDMVNX\0")
    elif field == 124:
        size = random.choice(
            (b"%011o\0" % random.choice(NUMBERS[:10]), b"77777777777\0", b"\x80" + random.randbytes(11))
        )
        data[at + field : at + field + length] = size[:length].ljust(length, b"\0")
    else:
        data[at + field : at + field + length] = mutate(random, bytes(data[at + field : at + field + length]), ())[
            :length
        ].ljust(length, b"\0")
    return bytes(data)


def run_reader(reader: Any, name: str = "file") -> Callable[[Path], None]:
    """Recognises, reads, and looks at the first pictures of every part."""

    def run(folder: Path) -> None:
        path = folder / name
        reader.recognises(path, sorted(os.listdir(path)) if path.is_dir() else ())
        found = reader.read(path)
        for part in found.parts.values():
            for image in part.images[:2]:
                if not isinstance(image, np.ndarray):
                    with contextlib.suppress(BadImage):
                        image.read()
        divided(found, str(path), seed=0)

    return run


def batch_files() -> Files:
    """Own batches in CIFAR's layout, with labels as NumPy has them."""
    labels = np.array([0, 1, 1, 0])
    data = np.arange(4 * 48, dtype=np.uint8).reshape(4, 48)
    return {
        "data_batch_1": pickle.dumps({"data": data, "labels": list(labels)}, protocol=2),
        "data_batch_2": pickle.dumps({"data": data, "labels": labels.astype(np.int16)}, protocol=4),
        "test_batch": pickle.dumps({"data": data, "fine_labels": labels.tolist()}, protocol=5),
        "batches.meta": pickle.dumps({"label_names": ["a", "b"]}, protocol=2),
    }


def idx_files() -> Files:
    images = b"\0\0\x08\x03" + struct.pack(">3I", 4, 5, 6) + bytes(range(120))
    labels = b"\0\0\x08\x01" + struct.pack(">I", 4) + b"\0\1\1\0"
    return {
        "train-images-idx3-ubyte": images,
        "train-labels-idx1-ubyte": labels,
        "t10k-images-idx3-ubyte.gz": gzip.compress(images, mtime=0),
        "t10k-labels-idx1-ubyte.gz": gzip.compress(labels, mtime=0),
        "classes.txt": b"cat\ndog\n",
    }


def mutate_packed(random: Random, raw: bytes) -> bytes:
    """What is inside, packed again."""
    return gzip.compress(mutate(random, gzip.decompress(raw), ()), 1, mtime=0)


def npz_files() -> Files:
    file = io.BytesIO()
    images = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    tests = np.asfortranarray(np.linspace(0, 1, 480, dtype=np.float32).reshape(4, 5, 6, 4))
    onehot, names = np.eye(2)[[0, 1, 1, 0]], np.array(["cat", "dog"])
    np.savez_compressed(
        file, x_train=images, y_train=np.array([0, 1, 1, 0]), x_test=tests, y_test=onehot, classes=names
    )
    return {"file": file.getvalue()}


def mutate_arrays(random: Random, raw: bytes) -> bytes:
    """An archive with right sums, and an array or a name in it that is not as it was."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(list(arrays))
    if random.random() < 0.1:
        arrays[random.choice(("images.npy", "x.npy", "../x_train.npy", "x_val.npy", ""))] = arrays.pop(name)
    else:
        shaper = mutate_npy_header if random.random() < 0.7 else lambda random, raw: mutate(random, raw, ())
        arrays[name] = shaper(random, arrays[name])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in arrays.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def shard_files() -> Files:
    image = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(image, "JPEG")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as shard:
        for k in range(4):
            label = (
                {"a/%d.cls": b"%d" % (k % 2)} if k < 3 else {"a/%d.json": b'{"label": 1, "caption": ["x", {"y": 2}]}'}
            )
            for name, raw in {"a/%d.jpg": image.getvalue(), **label}.items():
                member = tarfile.TarInfo(name % k)
                member.size = len(raw)
                shard.addfile(member, io.BytesIO(raw))
    return {"file": file.getvalue()}


def pickle_files() -> Files:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8), np.array([3])
    return {"batch": python2_batch(images, labels), "meta": python2_meta()}


def colmajor_files() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        write_colmajor(Path(folder, "x"), (2, 3, 2), side=4)
        return {path.name: path.read_bytes() for path in Path(folder, "x").iterdir()}


def run_colmajor(folder: Path) -> None:
    """As it is and by ranges, to the mean image."""
    found = cifar.read(folder)
    for ranges in ((None, None), ("1-2", "3"), (None, "2")):
        with contextlib.suppress(DataError):
            source = divided(ranged(found, "x", *ranges), "x", seed=0)
            dataset = as_dataset(source, size=4, depth=16)
            statistics(dataset, 2)


@functools.cache
def checkpoint_2012_files() -> Files:
    raw, packed = written(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("data"), raw)
    return {"12.3": raw, "named": written(named=False), "zipped": packed.getvalue()}


def mutate_data(random: Random, raw: bytes) -> bytes:
    """An archive with a right sum whose pickle is not as it was."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        program = archive.read("data")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("data"), mutate(random, program, words_2012()))
    return file.getvalue()


def mutate_number(random: Random, raw: bytes) -> bytes:
    """One number of a layer's geometry, or a name of its: the structure of the pickle stays."""
    data = bytearray(raw)
    places = [match.start() for match in re.finditer(rb"K[^\0](?=[Uq(]|r|e|t|K|\x85)", raw)]
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.choice(places)
        data[at + 1] = random.choice((0, 1, 2, 3, 4, 5, 8, 9, 25, 255))
    return bytes(data)


@functools.cache
def words_2012() -> tuple[bytes, ...]:
    names = ("options\nOption", "options\nOptionsParser", "copy_reg\n_reconstructor", "__builtin__\nobject")
    names += ("numpy.core.multiarray\nscalar", "numpy\ndtype", "os\nsystem")
    keys = (
        "weights",
        "weightsInc",
        "biases",
        "filters",
        "filterSize",
        "modulesX",
        "layers",
        "inputLayers",
        "conv",
        "fc",
    )
    words = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
    words += [f"c{name}\n".encode() for name in names]
    words += [b"U" + bytes([len(key)]) + key.encode() for key in keys]
    return (*words, *(b"j" + struct.pack("<i", k) for k in range(20)))


def run_checkpoint_2012(folder: Path) -> None:
    """What is not as it was."""
    for name, raw in checkpoint_2012_files().items():
        if (folder / name).read_bytes() != raw:
            checkpoints_2012.recognises(folder / name)
            checkpoints_2012.read_checkpoint(folder / name).arrays()


def run_pickle(folder: Path) -> None:
    for name in ("batch", "meta"):
        read_plain((folder / name).read_bytes(), name)


# ---- weights of others ----


def torch_program() -> bytes:
    """The pickle that PyTorch writes of a state dict with two tensors in two storages, of which one is a view."""

    def text(value: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value

    def tensor(name: bytes, kind: bytes, key: bytes, count: int, place: bytes) -> bytes:
        storage = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu") + b"K%ctQ" % count
        hooks = b"\x89ccollections\nOrderedDict\n)RtR"
        return text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + hooks

    first = tensor(b"features.0.weight", b"FloatStorage", b"0", 24, b"K\x02K\x02K\x03\x86K\x04K\x01\x86")
    second = tensor(b"features.0.bias", b"BFloat16Storage", b"1", 8, b"K\x00K\x08\x85K\x01\x85")
    versions = b"}" + text(b"_metadata") + b"ccollections\nOrderedDict\n)Rsb"
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + first + second + b"u" + versions + b"."


@functools.cache
def weight_files() -> Files:
    """Small tensors, that no network of ours has, with names that others use; and what we export ourselves."""
    torch, arrays = io.BytesIO(), io.BytesIO()
    members = {"data.pkl": torch_program(), "byteorder": b"little", "data/0": bytes(96), "data/1": bytes(16)}
    with zipfile.ZipFile(torch, "w") as archive:
        for name, raw in {**members, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"alexnet/{name}"), raw)
    np.savez_compressed(arrays, conv1_w=np.ones((2, 3, 2, 2), np.float16), conv1_b=np.ones(2))
    plain = {"conv1.weight": np.ones((2, 3), np.float32), "fc8.weight": np.ones((2, 3), np.float16)}
    options = {"crop": 32, "width": 0.01}
    shapes = parameter_shapes(network("alexnet-tiny", num_classes=2, **options))
    ours = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    ours |= {"input.mean": np.ones((3, 32, 32), np.float32), "input.scale": np.ones((3, 1, 1), np.float32)}
    export = safetensors_file(ours, ["a", "b"], json.dumps({"model": "alexnet-tiny", **options}))
    plain_file = safetensors.numpy.save(plain)
    return {"torch": torch.getvalue(), "arrays": arrays.getvalue(), "plain": plain_file, "export": export}


def mutate_export(random: Random, raw: bytes) -> bytes:
    """One of ours that says something else of itself."""
    header, _ = split_header(raw)
    texts = json.loads(header)["__metadata__"]
    name = random.choice(list(texts))
    texts[name] = mutate_json(random, texts[name].encode()).decode("utf-8", "replace")
    return safetensors.numpy.save(safetensors.numpy.load(raw), texts)


def mutate_torch(random: Random, raw: bytes) -> bytes:
    """An archive with right sums, in which the program or another member is not as it was."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(iter(members)) if random.random() < 0.8 else random.choice(list(members))
    members[name] = mutate(random, members[name], torch_words())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED if random.random() < 0.95 else zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


@functools.cache
def torch_words() -> tuple[bytes, ...]:
    names = (
        "torch\nFloatStorage",
        "torch\nLongStorage",
        "torch._utils\n_rebuild_tensor_v2",
        "collections\nOrderedDict",
    )
    names += ("torch._utils\n_rebuild_parameter", "torch.nn.modules.linear\nLinear", "os\nsystem")
    words = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
    words += [f"c{name}\n".encode() for name in names]
    return (*words, b"\x8a\x09" + bytes(8) + b"\x01", b"J\xff\xff\xff\xff", b"data/0", b"K\x00", b"\x85", b"Q")


def run_weights(folder: Path) -> None:
    """What is not as it was, to the last number."""
    for name, raw in weight_files().items():
        if (folder / name).read_bytes() != raw:
            with contextlib.suppress(WeightsError):
                for values in read_weights(folder / name).values():
                    np.isfinite(values).all()
            load_trained(folder / name, lambda text: None)


# ---- pictures ----


@functools.cache
def picture_files() -> Files:
    """A small picture in every format that Pillow writes here, some in several ways."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8))
    grey = Image.fromarray(rng.integers(0, 4096, (24, 30), dtype=np.uint16))
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 6, 0)
    ways: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", image, {"exif": exif}), ("JPEG", image.convert("CMYK"), {"progressive": True}),
        ("MPO", image, {"save_all": True, "append_images": [image]}), ("PNG", image.convert("RGBA"), {"exif": exif}),
        ("PNG", image.quantize(9), {"transparency": 3}), ("PNG", grey, {}), ("WEBP", image, {"exif": exif}),
        ("WEBP", image, {"lossless": True}), ("GIF", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("BMP", image, {}), ("TIFF", image, {"compression": "tiff_lzw"}), ("TIFF", grey, {}), ("PPM", image, {}),
        ("PPM", grey, {}), ("JPEG2000", image, {}), ("ICO", image, {"sizes": [(30, 24), (15, 12)]}),
        ("ICO", image, {"sizes": [(30, 24)], "bitmap_format": "bmp"}), ("PCX", image, {}), ("SGI", image, {}),
        ("QOI", image, {}), ("DDS", image, {}), ("TGA", image, {"compression": "tga_rle"}),
    ]  # fmt: skip
    if features.check("avif"):
        ways.append(("AVIF", image, {"exif": exif}))
    files: Files = {}
    for number, (kind, picture, options) in enumerate(ways):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files[f"{number:02}-{kind}"] = file.getvalue()
    return files


def mend_png(random: Random, files: Files) -> Files:
    """Right checksums of the chunks, mostly."""
    made = dict(files)
    for name, raw in files.items():
        data, at = bytearray(raw), 8
        while name.endswith("PNG") and at + 12 <= len(data) and random.random() < 0.99:
            end = at + 8 + int.from_bytes(data[at : at + 4], "big")
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))[: max(0, len(data) - end)]
            at = end + 4
        made[name] = bytes(data)
    return made


def run_pictures(folder: Path) -> None:
    """Those that are not as they were, scaled to a size for which the largest are decoded smaller."""
    jpeg.MAX_PIXELS = 10**6  # what is larger is found out about all the same, and sooner
    for name, raw in picture_files().items():
        if (found := (folder / name).read_bytes()) != raw:
            depth_of(lambda _, found=found: found, 1)  # type: ignore[misc]
            fitted(found, 4, 12)


# ---- prepared stores ----


def store_files() -> Files:
    files: Files = {}
    told: dict[str, Any] = {"format": FORMAT, "version": VERSION, "size": 8, "classes": ["a", "b"], "fingerprint": "f"}
    told |= {"keep_aspect": False, "std": [1.0] * 3, "deviations": [1.0] * 3, "directions": [[1.0] * 3] * 3}
    image = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(image, "JPEG")
    raw = image.getvalue()
    for part in ("train", "val"):
        index = np.zeros(2, INDEX)
        index["offset"], index["length"], index["label"], index["crc32"] = (
            (0, len(raw)),
            len(raw),
            (0, 1),
            zlib.crc32(raw),
        )
        files[shard_name(part, 0)] = raw * 2
        files[f"{part}.npy"] = as_npy(index)
        files[f"{part}-names.txt"] = b"a/1.jpg\nb/2.jpg\n"
    files["mean.npy"] = as_npy(np.ones((3, 8, 8), np.float32))
    files["store.json"] = json.dumps(told).encode()
    return seal(random.Random(0), files)


def as_npy(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def seal(random: Random, files: Files) -> Files:
    """Right hashes in store.json, where it is still an object."""
    try:
        told = json.loads(files["store.json"])
    except (ValueError, RecursionError):
        return files
    if not isinstance(told, dict) or random.random() < 0.05:
        return files
    hashes = {name: hashlib.sha256(files[name]).hexdigest() for name in HASHED}
    try:
        return {**files, "store.json": json.dumps({**told, "sha256": hashes}).encode()}
    except RecursionError:
        return files


def mutate_index(random: Random, raw: bytes) -> bytes:
    """Numbers of an index whose header is right."""
    values = np.load(io.BytesIO(raw)).copy()
    flat = values.view(np.uint8).reshape(-1)
    at, length = random.randrange(len(flat)), random.choice((1, 4, 8))
    number = random.choice(NUMBERS) % 256**length
    flat[at : at + length] = list(number.to_bytes(length, "little"))[: len(flat) - at]
    return as_npy(values)


def mutate_npy_header(random: Random, raw: bytes) -> bytes:
    """The text of an array's header, of the right length."""
    length = struct.unpack("<H", raw[8:10])[0]
    header = mutate(random, raw[10 : 10 + length], ())[:65535]
    return raw[:8] + struct.pack("<H", len(header)) + header + raw[10 + length :]


def run_store(folder: Path) -> None:
    dataset = open_store(folder, size=8)
    for split in (dataset.train, dataset.valid):
        for index in range(min(len(split), 4)):
            split.name(index)
            split.image(index)


# ---- configurations ----


def config_files() -> Files:
    text = to_toml(Config(stages=[{"epoch": 0, "lr": 0.1}, {"epoch": 3, "lr": 0.01, "layers": {"conv1": 0.0}}]))
    return {"config.toml": text.encode()}


def mutate_line(random: Random, raw: bytes) -> bytes:
    """One option of the file with another value."""
    lines = raw.split(b"\n")
    at = random.randrange(len(lines))
    name = lines[at].split(b" = ")[0]
    lines[at] = name + b" = " + random.choice((*WORDS, b'"text"', b"1.5", b"2024-01-01", b"{ a = 1 }", b'["x"]'))
    return b"\n".join(lines)


TABLE = [f"images/{k}.jpg" for k in range(8)]


def table_files() -> Files:
    rows = [f"{k},{'ab'[k % 2]},{'train' if k < 6 else 'val'}" for k in range(8)]
    return {"labels": ("id,label,split\n" + "\n".join(rows) + "\n").encode()}


def run_table(folder: Path) -> None:
    found = read_labels(folder / "labels", keys(TABLE), "images")
    assert found is None or found.of.keys() <= set(TABLE)


def run_config(folder: Path) -> None:
    merged({}, read_toml(str(folder / "config.toml")), {})


def definition_files() -> Files:
    files: Files = {}
    for name, (layers, params) in PAIRS.items():
        files |= {f"{name}.cfg": layers.encode(), f"{name}-params.cfg": params.encode()}
    files["old-params.cfg"] += b"# init epsw 0.02 on conv1-5, 0.001 on fc\n# epoch 2: set epsw to 0.001 from 0.02\n"
    return files


def mutate_section(random: Random, raw: bytes) -> bytes:
    """Lines with other keys, values and places."""
    lines = raw.split(b"\n")
    values = [line.partition(b"=")[2] for line in lines if b"=" in line]
    names = [line[1:-1] for line in lines if line.startswith(b"[")]
    for _ in range(random.choice((1, 1, 2, 4))):
        at, kind = random.randrange(len(lines)), random.randrange(7)
        key, _, value = lines[at].partition(b"=")
        if kind < 2:
            made = random.choice((*WORDS, *values, *names, b"%(inputs)s", b"2,2", b"exp[10]", b"os.system(ls)", b"-1"))
            lines[at] = key + b"=" + made
        elif kind == 2:
            lines[at] = key + b"=" + value + random.choice((b",", b"[", b" ;", b"%")) + random.choice(values)
        elif kind == 3:
            lines.insert(at, random.choice(lines))
        elif kind == 4 and len(lines) > 1:
            del lines[at]
        elif kind == 5:
            lines[at] = random.choice((b" ", b"[DEFAULT]\n", b"rem ", b"weightSource=", b"type=")) + lines[at]
        else:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
    return b"\n".join(lines)


def run_definitions(folder: Path) -> None:
    """All pairs: the first that is refused ends it, as no more than one is not as it was."""
    for name in PAIRS:
        definition = read(folder / f"{name}.cfg", folder / f"{name}-params.cfg")
        columns(definition), misnamed(definition)
        final_state(from_start(definition))
        for side in (24, 32):
            with contextlib.suppress(DefinitionError):
                found = parameters(definition, sizes(definition, side))
                made = defined(definition, side)
                assert parameter_count(made.spec) == found


def targets() -> dict[str, Target]:
    opcodes = tuple(opcode.code.encode("latin1") for opcode in pickletools.opcodes)
    opcodes += (b"cos\nsystem\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n")
    state = {"file": mutate_state}
    npy = {f"{name}.npy": mutate_npy_header for name in ("train", "val", "mean")}
    index = {"train.npy": mutate_index, "val.npy": mutate_index, "store.json": mutate_json}
    members = {"file": mutate_member}
    weights = {"torch": mutate_torch, "arrays": mutate_arrays, "plain": mutate_header, "export": mutate_export}
    packed = {f"t10k-{name}-ubyte.gz": mutate_packed for name in ("images-idx3", "labels-idx1")}
    graphs = {"ours": mutate_graph, "theirs": mutate_graph}
    # where the package is missing there is nothing that reads such files
    networks = {"onnx": Target(onnx_files(), run_onnx, (WeightsError,), graphs)} if find_spec("onnx") else {}
    return {
        **networks,
        "checkpoint": Target(checkpoint_files(), run_checkpoint, (CheckpointError,), {"file": mutate_header}),
        "checkpoint-state": Target(run_files(), run_checkpoint, (CheckpointError,), state),
        "run-state": Target(run_files(), run_resumed, (CheckpointError, DeviceError, Diverged), {"file": mutate_run}),
        "cifar-binary": Target(archive("bin"), run_reader(cifar), (DataError,), members, mend_archive),
        "cifar-python": Target(archive("py"), run_reader(cifar), (DataError,), members, mend_archive, opcodes),
        "pickle": Target(pickle_files(), run_pickle, (DataError,), {}, words=opcodes),
        "store": Target(store_files(), run_store, (DataError,), index, seal),
        "store-arrays": Target(store_files(), run_store, (DataError,), npy, seal),
        "weights": Target(weight_files(), run_weights, (WeightsError, CheckpointError), weights, words=opcodes),
        "checkpoint-2012": Target(
            checkpoint_2012_files(),
            run_checkpoint_2012,
            (WeightsError,),
            {"12.3": mutate_number, "named": mutate_number, "zipped": mutate_data},
            words=words_2012(),
        ),
        "colmajor": Target(colmajor_files(), run_colmajor, (DataError,), {}, words=opcodes),
        "table": Target(table_files(), run_table, (DataError,), {"labels": mutate_line}),
        "pictures": Target(picture_files(), run_pictures, (BadImage,), {}, mend_png),
        "batches": Target(batch_files(), run_reader(cifar, "."), (DataError,), {}, words=opcodes),
        "idx": Target(idx_files(), run_reader(idx, "."), (DataError,), packed),
        "npz": Target(npz_files(), run_reader(npz), (DataError,), {"file": mutate_arrays}),
        "shard": Target(shard_files(), run_reader(webdataset), (DataError,), members, mend_archive),
        "config": Target(config_files(), run_config, (ValueError,), {"config.toml": mutate_line}),
        "definition": Target(
            definition_files(), run_definitions, (DefinitionError,), dict.fromkeys(definition_files(), mutate_section)
        ),
    }


# ---- the campaign ----


class Hang(BaseException):
    """Not an Exception, which a reader may catch."""


def too_long(*_: object) -> None:
    raise Hang(f"more than {SECONDS} s of computing")


def make(target: Target, name: str, seed: int, number: int) -> Files:
    """Input ``number`` of a target: the files that are not as they were."""
    random = Random(f"{name} {seed} {number}")
    file = random.choice(list(target.files))
    raw, shaper = target.files[file], target.shapers.get(file)
    raw = shaper(random, raw) if shaper and random.random() < 0.6 else mutate(random, raw, target.words)
    made = target.finish(random, {**target.files, file: raw})
    return {file: raw for file, raw in made.items() if raw != target.files[file]}


def check(target: Target, folder: Path, files: Files) -> str | None:
    """What is wrong with how a target reads ``files``: one line, the same for the same fault."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    fault = None
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        target.run(folder)
    except target.allowed:
        pass
    except (Exception, Hang) as error:
        places = traceback.extract_tb(error.__traceback__)
        here = [place for place in places if f"{ROOT}/convnet/" in place.filename] or places
        text = " ".join(str(error).split())
        fault = f"{type(error).__name__} at {Path(here[-1].filename).name}:{here[-1].lineno}: {text:.100}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for name in files:
        (folder / name).write_bytes(target.files[name])
    return f"memory: {grown // 1024} MiB for one input" if fault is None and grown * 1024 > MEMORY else fault


def prepare_process(target: Target) -> Path:
    """Limits, and a folder with the target's files."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, too_long)
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None))
    for name, raw in target.files.items():
        (folder / name).write_bytes(raw)
    return folder


def guarded(work: Callable[[mmap.mmap], None]) -> tuple[int, int]:
    """Runs ``work`` in a process of its own: the signal that ended it (0 for none), and the number it noted last."""
    noted = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(noted)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    last, since = b"", time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.02)
        if noted[:] != last:
            last, since = noted[:], time.monotonic()
        elif time.monotonic() - since > STUCK:
            os.kill(child, signal.SIGKILL)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the fuzzer itself failed; see above")
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0), struct.unpack("<q", noted[:])[0]


class Findings:
    """Prints each fault once, and keeps the files of its first input. Counts across processes by what lies there."""

    def __init__(self, keep: Path) -> None:
        self.keep = keep

    def add(self, name: str, seed: int, number: int, fault: str, files: Files) -> None:
        label = hashlib.sha256(re.sub(r": .*", "", fault).encode()).hexdigest()[:8]
        folder = self.keep / name / label
        if folder.exists():
            return
        folder.mkdir(parents=True)
        for file, raw in files.items():
            (folder / file).write_bytes(raw)
        print(f"FINDING {name}, seed {seed}, input {number}: {fault}; kept in {folder}", flush=True)

    def count(self) -> int:
        return sum(1 for _ in self.keep.glob("*/*"))


def campaign(name: str, inputs: int, seed: int, findings: Findings) -> None:
    """Inputs 0 to ``inputs`` - 1 of a target."""
    target = targets()[name]
    done, began = 0, time.monotonic()

    def work(noted: mmap.mmap) -> None:
        folder = prepare_process(target)
        try:
            for number in range(done, inputs):
                noted[:] = struct.pack("<q", number)
                files = make(target, name, seed, number)
                if fault := check(target, folder, files):
                    findings.add(name, seed, number, fault, files)
        finally:
            shutil.rmtree(folder)

    while done < inputs:
        killer, number = guarded(work)
        if killer:
            findings.add(name, seed, number, f"ended by signal {killer}", make(target, name, seed, number))
        done = number + 1
    seconds = time.monotonic() - began
    print(
        f"{name}: {inputs:,} inputs of seed {seed} in {seconds:.0f} s ({inputs / max(seconds, 1e-9):,.0f}/s)",
        flush=True,
    )


def replay(corpus: Path) -> list[str]:
    """Faults of the inputs that are kept as CORPUS/TARGET/LABEL/FILE."""
    faults: list[str] = []
    cases = sorted(corpus.glob("*/*"))
    known = targets()
    for case in cases:
        if case.parent.name not in known:
            print(f"{case.parent.name}/{case.name} is left out: the package onnx is not installed")
            continue
        target = known[case.parent.name]
        files = {path.name: path.read_bytes() for path in case.iterdir()}
        reader, writer = os.pipe()

        def work(noted: mmap.mmap, target: Target = target, files: Files = files, writer: int = writer) -> None:
            folder = prepare_process(target)
            try:
                os.write(writer, (check(target, folder, files) or "").encode()[:1000])
            finally:
                shutil.rmtree(folder)

        killer, _ = guarded(work)
        os.close(writer)
        with open(reader, "rb") as file:
            fault = file.read().decode() or (f"ended by signal {killer}" if killer else "")
        if fault:
            faults.append(f"{case.parent.name}/{case.name}: {fault}")
    print(f"{len(cases)} kept inputs, {len(faults)} of them findings")
    return faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzzes the readers of files; exit code 1 where something was found.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in total, shared by the targets")
    parser.add_argument("--seed", type=int, default=0, help="of the series of inputs")
    parser.add_argument("--target", choices=list(targets()), action="append", help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for inputs that fail")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="only run the inputs kept there")
    options = parser.parse_args(arguments)
    if options.replay:
        faults = replay(options.replay)
        print(*faults, sep="\n")
        return 1 if faults else 0
    findings = Findings(options.keep)
    before = findings.count()
    wanted = options.target or list(targets())
    if "onnx" not in targets():
        print("onnx is left out: the package is not installed")
    shares = {name: share for name, share in SHARES.items() if name in wanted}
    for name, share in shares.items():
        campaign(name, max(1, round(options.inputs * share / sum(shares.values()))), options.seed, findings)
    print(f"{findings.count() - before} findings")
    return 1 if findings.count() > before else 0


if __name__ == "__main__":
    sys.exit(main())
