"""Where activations and their gradients lie: one piece of memory per device, shared by what never meets.

A step is a row of moments: the forward pass of every block, the loss, the backward pass of every block in reverse. A
tensor is needed from one moment to another, and two that are not needed at the same moment may lie in the same place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..devices.protocol import Array, Device

ALIGNMENT = 1024  # bytes: no two tensors share a cache line, and copies by TMA want multiples of 128


@dataclass
class Wish:
    """``owner.name`` will be an array of this shape and dtype, needed from moment ``first`` to ``last``, both included.
    ``offset`` is its place in bytes, once there is a plan.
    """

    owner: Any
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    first: int
    last: int
    offset: int = field(default=-1)

    @property
    def nbytes(self) -> int:
        size = math.prod(self.shape) * self.dtype.itemsize
        return -(-size // ALIGNMENT) * ALIGNMENT


class Plan:
    """Collects wishes, then grants them all. Without ``shared`` everything gets memory of its own."""

    def __init__(self, shared: bool):
        self.shared = shared
        self.wishes: list[Wish] = []

    def want(self, owner: Any, name: str, shape: tuple[int, ...], dtype: Any, first: int, last: int) -> None:
        """Notes that ``owner.name`` is needed from moment ``first`` to ``last``."""
        self.wishes.append(Wish(owner, name, shape, np.dtype(dtype), first, last))

    def place(self) -> int:
        """Gives every wish its offset, and returns the bytes of all.

        The largest first, each at the lowest place that is free as long as it is needed: simple, and within a few per
        cent of the least possible for networks like these, where the largest two or three decide.
        """
        end = 0
        placed: list[Wish] = []
        for wish in sorted(self.wishes, key=lambda wish: -wish.nbytes):
            wish.offset = 0
            for other in sorted(placed, key=lambda other: other.offset):
                apart = wish.last < other.first or other.last < wish.first
                if not apart and wish.offset + wish.nbytes > other.offset:
                    wish.offset = max(wish.offset, other.offset + other.nbytes)
            placed.append(wish)
            end = max(end, wish.offset + wish.nbytes)
        return end

    def grant(self, device: Device) -> None:
        """Allocates, and hands every owner its array."""
        if not self.shared:
            for wish in self.wishes:
                setattr(wish.owner, wish.name, device.empty(wish.shape, wish.dtype))
            return
        memory: Array = device.empty((self.place(),), np.uint8)
        for wish in self.wishes:
            part = memory.view((math.prod(wish.shape) * wish.dtype.itemsize,), wish.offset)
            setattr(wish.owner, wish.name, part.view(wish.shape, dtype=wish.dtype))
