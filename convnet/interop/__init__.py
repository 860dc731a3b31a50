"""Networks out, and in what others have trained. Imported on demand: ``from convnet import interop``."""

from .onnx_in import read_onnx
from .onnx_out import check_onnx, export_onnx
from .weights import WeightsError, caffe_weights, load, read_weights, torchvision_weights

__all__ = [
    "WeightsError", "caffe_weights", "check_onnx", "export_onnx", "load", "read_onnx", "read_weights",
    "torchvision_weights",
]  # fmt: skip
