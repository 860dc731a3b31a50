"""Weights as plain arrays in one file: safetensors, or NumPy's ``.npz``.

Names and layouts are those of ``Network.weights``: ``conv1.weight`` (K, C/groups, R, S), ``fc6.weight`` (out, in), in
which a layer behind maps reads them as C, H, W, and ``conv1.bias`` (K,), all float32. ``input.mean`` (3, crop, crop)
and ``input.scale`` (3, 1, 1) are what pixels, 0 to 255, go through first: (pixel - mean) * scale.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

Values = np.ndarray[Any, Any]


def npz_file(arrays: Mapping[str, Values], classes: Sequence[str]) -> bytes:
    """An archive, not compressed, with the names of the classes as one array more, ``classes``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, values in {**arrays, "classes": np.array(list(classes), np.str_)}.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)
    return file.getvalue()


def safetensors_file(arrays: Mapping[str, Values], classes: Sequence[str]) -> bytes:
    """With the names of the classes in the metadata, as JSON."""
    native = {name: np.asarray(values, np.float32, order="C") for name, values in arrays.items()}
    return safetensors.numpy.save(native, {"classes": json.dumps(list(classes))})
