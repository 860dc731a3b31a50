"""The network that won ILSVRC-2012, in hand-written CUDA kernels.

>>> import convnet
>>> net = convnet.Network("alexnet", devices="cpu", batch_size=8)
>>> logits = net.forward(images)  # float32 (n, 3, 224, 224) -> (n, 1000)

Its rooms, from the top; each imports only those below it:

    cli          a module per command
    classifier   a network as scikit-learn's classifiers are
    explore      a page that shows runs and what their networks see; beside classifier, neither sees the other
    analysis     what one does with trained networks, and asks of the machine
    training     the loop and its folder
    interop      networks out, and in what others have trained
    network      networks as data, and on devices
    prepare      stores made; beside network, neither sees the other
    torch        layers for users of PyTorch, imported on demand; beside both
    functional   every op, arrays in, NumPy out
    ops          checked calls of kernels
    group        several processes as one; beside ops, neither sees the other
    devices      where kernels run
    data         pictures in; beside devices, neither sees the other
    definitions  networks as the files of 2012 describe them; beside both
    output       what people see and keep
    kernels      the Python twins of src/kernels/*.hpp, and the compiled modules
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import functional
from .devices.opening import device_names
from .devices.protocol import DeviceError
from .network.model import Network
from .version import __version__

if TYPE_CHECKING:
    from .classifier import Classifier
    from .interop.definitions import read_definition

__all__ = ["Classifier", "DeviceError", "Network", "__version__", "devices", "functional", "read_definition"]


def __getattr__(name: str) -> Any:
    """``Classifier`` and ``read_definition``, when they are asked for: what they import would make every other use
    wait."""
    if name == "Classifier":
        from .classifier import Classifier

        return Classifier
    if name == "read_definition":
        from .interop.definitions import read_definition

        return read_definition
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def devices() -> list[str]:
    """Devices usable here, best last: always "cpu", "emu" where it is built, "cuda:i" for every usable GPU.

    The room of this name is imported from, ``from convnet.devices import ...``; its name as an attribute is this
    function.
    """
    return device_names()
