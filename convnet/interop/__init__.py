"""What others have trained: their weights under our names. Imported on demand: ``from convnet import interop``."""

from .weights import WeightsError, caffe_weights, load, read_weights, torchvision_weights

__all__ = ["WeightsError", "caffe_weights", "load", "read_weights", "torchvision_weights"]
