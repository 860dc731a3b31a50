"""What all of this ran on, for logs and reports."""

from __future__ import annotations

import importlib.metadata
import platform

LIBRARIES = ("numpy", "pillow", "safetensors", "tqdm", "matplotlib", "threadpoolctl")
OPTIONAL = ("pycuda", "simplejpeg", "torch", "onnx", "onnxruntime")


def versions() -> dict[str, str]:
    """Versions of convnet, Python and the libraries it runs on; what is not installed is left out."""
    from ..version import __version__

    found = {"convnet": __version__, "python": platform.python_version()}
    for name in (*LIBRARIES, *OPTIONAL):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
