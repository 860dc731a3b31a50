"""What a finished shard of a store holds, kept beside it until the store is complete."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..data.packing import U32, Packed
from ..output.files import open_regular, printable, read_regular, write_atomically


@dataclass
class Journal:
    """The contents of a shard's file, and the sums over its images where they are training images."""

    length: int = 0
    crc32: int = 0  # of the whole file
    rows: list[list[int]] = field(default_factory=list)  # length, label, crc32 of every image
    names: list[str] = field(default_factory=list)
    bad: list[list[str]] = field(default_factory=list)  # name, reason
    products: list[list[int]] = field(default_factory=lambda: [[0] * 3] * 3)
    total: U32 | None = None  # (size, size, 3)

    def add(self, file: IO[bytes], names: list[str], labels: list[int], packed: Packed) -> None:
        """Writes the next images to the shard's file, and notes them."""
        for name, label, image in zip(names, labels, packed.images, strict=True):
            name = printable(name)
            if isinstance(image, str):
                self.bad.append([name, printable(image)])
                continue
            file.write(image)
            self.length += len(image)
            self.crc32 = zlib.crc32(image, self.crc32)
            self.rows.append([len(image), label, zlib.crc32(image)])
            self.names.append(name)
        self.total = packed.total if self.total is None else self.total + packed.total
        self.products = (np.array(self.products, object) + np.array(packed.products, object)).tolist()

    def write(self, path: Path) -> None:
        told = {name: value for name, value in vars(self).items() if name != "total"}
        assert self.total is not None
        content = json.dumps([told, self.total.shape]).encode() + b"\n" + self.total.tobytes()
        write_atomically(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """None where there is none that is whole."""
        try:
            digest, _, content = read_regular(path).partition(b"\n")
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest().encode() != digest:
            return None
        told, _, raw = content.partition(b"\n")
        values, shape = json.loads(told)
        total: np.ndarray[Any, np.dtype[np.uint32]] = np.frombuffer(raw, np.uint32).reshape(shape)
        return cls(**values, total=total)

    def describes(self, path: Path) -> bool:
        """Whether the file at ``path`` has the bytes that were written."""
        crc32 = length = 0
        try:
            with open_regular(path) as file:
                while block := file.read(2**22):
                    crc32, length = zlib.crc32(block, crc32), length + len(block)
        except FileNotFoundError:
            return False
        return (length, crc32) == (self.length, self.crc32)
