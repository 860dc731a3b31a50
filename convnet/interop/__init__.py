"""Networks out, and in what others have trained. Imported on demand: ``from convnet import interop``."""

from .checkpoints_2012 import Checkpoint2012, read_checkpoint
from .onnx_in import read_onnx
from .onnx_out import check_onnx, export_onnx
from .weights import WeightsError, caffe_weights, load, read_weights, torchvision_weights

__all__ = [
    "Checkpoint2012", "WeightsError", "caffe_weights", "check_onnx", "export_onnx", "load", "read_checkpoint",
    "read_onnx", "read_weights", "torchvision_weights",
]  # fmt: skip
