"""Small data sets written by the tests: image folders, and CIFAR-10 in both published formats, byte by byte."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from convnet.data.source import divided
from convnet.data.splits import as_dataset

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR_BATCHES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]


def opened(reader, path: Path, *, size: int, seed: int = 0):
    """What a module of ``convnet.data`` reads at ``path``, as it is trained on."""
    return as_dataset(divided(reader.read(path), str(path), seed=seed), size=size, depth=16)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random image, as photographs are: coarse noise enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(root: Path, *, classes: int = 3, train: int = 6, valid: int = 2) -> Path:
    """An image folder of JPEG files of varied sizes; image k of class c is ``picture(..., seed=100 * c + k)``."""
    for part, count, first in (("train", train, 0), ("val", valid, 50)):
        for c in range(classes):
            folder = root / part / f"class{c}"
            folder.mkdir(parents=True)
            for k in range(first, first + count):
                picture(40 + 7 * (k % 3), 36 + 5 * (k % 4), 100 * c + k).save(folder / f"{k:03}.jpg", quality=92)
    return root


def cifar_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 32, 32, 3) and labels (count,)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count)


def cifar_rows(images: np.ndarray) -> np.ndarray:
    """The published order of an image's bytes: all of red, all of green, all of blue, row by row."""
    return np.stack([images[..., c].reshape(len(images), 1024) for c in range(3)], axis=1).reshape(len(images), 3072)


def binary_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, cifar_rows(images), strict=True))


def _text(text: bytes) -> bytes:
    """A Python 2 ``str``: SHORT_BINSTRING or BINSTRING."""
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def _number(value: int) -> bytes:
    if not -(2**31) <= value < 2**31:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def python2_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2's cPickle wrote it in protocol 2, opcode by opcode."""
    dtype = b"cnumpy\ndtype\n" + _text(b"u1") + _number(0) + _number(1) + b"\x87R"
    dtype += b"(" + _number(3) + _text(b"|") + b"NNN" + _number(-1) + _number(-1) + _number(0) + b"tb"
    shape = _number(len(images)) + _number(3072) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _number(0) + b"\x85" + _text(b"b") + b"\x87R"
    array += b"(" + _number(1) + shape + dtype + b"\x89" + _text(cifar_rows(images).tobytes()) + b"tb"
    names = b"](" + b"".join(_text(b"image_%d.png" % k) for k in range(len(images))) + b"e"
    numbers = b"](" + b"".join(_number(int(label)) for label in labels) + b"e"
    entries = _text(b"data") + array + _text(b"labels") + numbers + _text(b"batch_label")
    entries += _text(b"training batch") + _text(b"filenames") + names
    return b"\x80\x02}(" + entries + b"u."


def python2_meta() -> bytes:
    names = b"](" + b"".join(_text(name.encode()) for name in CIFAR_CLASSES) + b"e"
    entries = _text(b"num_cases_per_batch") + _number(10000) + _text(b"label_names") + names
    return b"\x80\x02}(" + entries + _text(b"num_vis") + _number(3072) + b"u."


class Instance:
    """An instance of an old-style class of Python 2, with its attributes."""

    def __init__(self, module: str, name: str, state: object) -> None:
        self.module, self.name, self.state = module, name, state


def python2_pickle(value: object) -> bytes:
    """``value`` as Python 2's cPickle wrote it in protocol 2; ``str`` and ``bytes`` are its byte strings. What occurs
    twice is fetched from the memo, as references to layers are."""
    memo: dict[int, bytes] = {}

    def kept(of: object) -> bytes:
        memo[id(of)] = struct.pack("<i", len(memo))
        return b"r" + memo[id(of)]

    def written(of: object) -> bytes:
        if id(of) in memo and isinstance(of, (dict, list, np.ndarray, Instance)):
            return b"j" + memo[id(of)]
        if of is None or isinstance(of, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[of]
        if isinstance(of, int):
            return _number(of)
        if isinstance(of, float):
            return b"G" + struct.pack(">d", of)
        if isinstance(of, (str, bytes)):
            return _text(of.encode("latin1") if isinstance(of, str) else of)
        if isinstance(of, tuple):
            return b"(" + b"".join(map(written, of)) + b"t"
        if isinstance(of, list):
            return b"]" + kept(of) + b"(" + b"".join(map(written, of)) + b"e"
        if isinstance(of, dict):
            start = b"}" + kept(of)
            return start + b"(" + b"".join(written(key) + written(entry) for key, entry in of.items()) + b"u"
        if isinstance(of, Instance):
            start = b"(c" + f"{of.module}\n{of.name}\n".encode() + b"o" + kept(of)
            return start + written(of.state) + b"b"
        if isinstance(of, np.generic):
            return b"cnumpy.core.multiarray\nscalar\n" + dtype(of.dtype) + _text(of.tobytes()) + b"\x86R"
        assert isinstance(of, np.ndarray), type(of)
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _number(0) + b"\x85" + _text(b"b")
        start += b"\x87R" + kept(of)
        fortran = of.flags.f_contiguous and not of.flags.c_contiguous
        data = of.tobytes("F" if fortran else "C")
        state = _number(1) + written(of.shape) + dtype(of.dtype) + (b"\x88" if fortran else b"\x89") + _text(data)
        return start + b"(" + state + b"tb"

    def dtype(of: np.dtype) -> bytes:
        order, code = of.str[0], of.str[1:]
        start = b"cnumpy\ndtype\n" + _text(code.encode()) + _number(0) + _number(1) + b"\x87R"
        return start + b"(" + _number(3) + _text(order.encode()) + b"NNN" + _number(-1) + _number(-1) + b"K\0tb"

    return b"\x80\x02" + written(value) + b"."


def colmajor_batch(images: np.ndarray, labels: object) -> bytes:
    """A batch as cuda-convnet had them: images (n, S, S, 3), or (n, S, S), in columns."""
    planes = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images
    data = np.ascontiguousarray(planes.reshape(len(images), -1).T)
    return python2_pickle(
        {"batch_label": "batch", "labels": labels, "data": data, "filenames": ["x.png"] * len(images)}
    )


def colmajor_meta(mean: np.ndarray, names: list[str], **more: object) -> bytes:
    """``mean`` (S, S, 3), or (S, S)."""
    column = (mean.transpose(2, 0, 1) if mean.ndim == 3 else mean).reshape(-1, 1).astype(np.float32)
    meta = {"data_mean": np.ascontiguousarray(column), "label_names": names, "num_vis": column.size, **more}
    return python2_pickle({"num_cases_per_batch": 10000, **meta})


def write_colmajor(
    folder: Path, sizes: tuple[int, ...] = (5, 6, 7, 4), *, side: int = 8, classes: int = 3, grey: bool = False
) -> list[np.ndarray]:
    """A folder of such batches, numbered from 1, of random pictures; those of each batch. Labels are 0, 1, 2, 0, ..."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(side)
    pictures = [rng.integers(0, 256, (n, side, side, *[3] * (not grey)), dtype=np.uint8) for n in sizes]
    for number, images in enumerate(pictures, 1):
        labels = [k % classes for k in range(len(images))]
        (folder / f"data_batch_{number}").write_bytes(colmajor_batch(images, labels))
    mean = np.concatenate(pictures[:-1] or pictures).mean(axis=0)
    (folder / "batches.meta").write_bytes(colmajor_meta(mean, [f"class {k}" for k in range(classes)]))
    return pictures


def cifar_files(kind: str, count: int = 20) -> dict[str, bytes]:
    """The files of a small CIFAR-10; ``kind`` is "bin" or "py". Batch k holds ``cifar_images(count, k)``."""
    files = {}
    for k, batch in enumerate(CIFAR_BATCHES):
        images, labels = cifar_images(count, k)
        if kind == "bin":
            files[f"{batch}.bin"] = binary_batch(images, labels)
        else:
            files[batch] = python2_batch(images, labels)
    if kind == "bin":
        files["batches.meta.txt"] = "\n".join(CIFAR_CLASSES).encode() + b"\n\n"
    else:
        files["batches.meta"] = python2_meta()
    return files


def write_cifar(path: Path, kind: str, files: dict[str, bytes] | None = None, *, mode: str = "w:gz") -> Path:
    """A tar archive at ``path`` with the published folder name and a readme that nobody asked for."""
    with tarfile.open(path, mode) as archive:
        for name, raw in {**(files or cifar_files(kind)), "readme.html": b"<html></html>"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-{kind}/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def lay(root: Path, *names: str, texts: dict[str, str] | None = None) -> Path:
    """Small pictures of these names below ``root``, each one's pixels made from its name; and files of text.

    "train/cat/{1..4}.jpg" stands for four.
    """
    for name in names:
        before, _, rest = name.partition("{1..")
        count, _, after = rest.partition("}")
        for each in [f"{before}{k}{after}" for k in range(1, int(count) + 1)] if rest else [name]:
            path = root / each
            path.parent.mkdir(parents=True, exist_ok=True)
            image = picture(24 + len(each) % 5, 20 + len(each) % 3, zlib.crc32(each.encode()))
            image.save(path, Image.registered_extensions().get(path.suffix.lower(), "JPEG"))
    for name, text in (texts or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def member(name: str, raw: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tar archive, with any fields of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, raw
