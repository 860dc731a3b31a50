"""Networks out and in: formats of others, and our weights under documented names."""

from .onnx_in import read_onnx
from .onnx_out import check_onnx, export_onnx

__all__ = ["check_onnx", "export_onnx", "read_onnx"]
