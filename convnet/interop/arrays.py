"""Weights as plain arrays in one file: safetensors, or NumPy's ``.npz``.

Names and layouts are those of ``Network.weights``: ``conv1.weight`` (K, C/groups, R, S), ``fc6.weight`` (out, in), in
which a layer behind maps reads them as C, H, W, and ``conv1.bias`` (K,), all float32. ``input.mean`` (3, crop, crop)
and ``input.scale`` (3, 1, 1) are what pixels, 0 to 255, go through first: (pixel - mean) * scale. Beside them lie
texts: ``classes``, the names of the classes, and ``network``, JSON that says which network of ours it is.
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


def npz_file(arrays: Mapping[str, Values], classes: Sequence[str], network: str = "") -> bytes:
    """An archive, not compressed, with the texts as arrays, too."""
    texts = {"classes": np.array(list(classes), np.str_)} | ({"network": np.array(network)} if network else {})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, values in {**arrays, **texts}.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)
    return file.getvalue()


def safetensors_file(arrays: Mapping[str, Values], classes: Sequence[str], network: str = "") -> bytes:
    """With the texts in the metadata, the names of the classes as JSON."""
    native = {name: np.asarray(values, np.float32, order="C") for name, values in arrays.items()}
    texts = {"classes": json.dumps(list(classes))} | ({"network": network} if network else {})
    return safetensors.numpy.save(native, texts)
