"""The network that won ILSVRC-2012, in hand-written CUDA kernels.

>>> import convnet
>>> net = convnet.Network("alexnet", devices="cpu", batch_size=8)
>>> logits = net.forward(images)  # float32 (n, 3, 224, 224) -> (n, 1000)
"""

from . import functional
from .backend import DeviceError
from .backend import device_names as devices
from .model import Network

__version__ = "0.1.0"
__all__ = ["DeviceError", "Network", "devices", "functional"]
