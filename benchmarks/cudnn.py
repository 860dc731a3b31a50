"""The same products by PyTorch and its libraries (cuDNN, cuBLAS), with every setting that makes them faster.

For each pass of a convolution or linear layer there are several candidates (memory formats); all are timed and the best
counts. cuDNN searches its algorithms without a limit; "fp32" forbids TF32, "tf32" allows it, "bf16" takes bfloat16
operands. Bias and ReLU, which our forward passes include, are left out of theirs. A window that overhangs the image
(the first layer of ``alexnet``) reads an image that was enlarged beforehand, outside of the measured time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from convnet.kernels.shapes import ConvShape, LinearShape

Work = Callable[[], Any]  # computes and returns the result, in PyTorch's layout


@contextmanager
def settings(precision: str) -> Iterator[None]:
    """PyTorch with autotuning, and TF32 for "tf32" alone; as it was afterwards."""
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.benchmark_limit, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.benchmark_limit = True, 0
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.benchmark_limit, cudnn.allow_tf32, matmul.allow_tf32 = before


def _normal(shape: tuple[int, ...], precision: str, device: str, seed: int) -> Any:
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def convolution(
    shape: ConvShape, direction: str, precision: str, device: str = "cuda", seed: int = 0
) -> dict[str, Work]:
    """Candidates for "forward", "backward data" or "backward filter", by name. Needs PyTorch.

    ``shape`` counts padded images too: both sides compute as many. Operands are (N, C, H, W), (K, C/groups, R, S) and
    (N, K, P, Q).
    """
    import torch

    enlarged = [
        max(size, (outputs - 1) * shape.stride + window - 2 * before)
        for size, outputs, window, before in (
            (shape.H, shape.P, shape.R, shape.pad_top),
            (shape.W, shape.Q, shape.S, shape.pad_left),
        )
    ]
    x = _normal((shape.N, shape.C, *enlarged), precision, device, seed)
    x[:, :, shape.H :] = 0
    x[:, :, :, shape.W :] = 0
    weight = _normal((shape.K, shape.C // shape.groups, shape.R, shape.S), precision, device, seed + 1)
    dy = _normal((shape.N, shape.K, shape.P, shape.Q), precision, device, seed + 2)
    padding = [shape.pad_top, shape.pad_left]
    mask = {"backward data": [True, False, False], "backward filter": [False, True, False]}

    def candidate(memory_format: Any) -> Work:
        xs, ws, dys = (t.contiguous(memory_format=memory_format) for t in (x, weight, dy))
        geometry = ([shape.stride] * 2, padding, [1, 1], False, [0, 0], shape.groups)
        if direction == "forward":
            return lambda: torch.ops.aten.convolution(xs, ws, None, *geometry)
        wanted = mask[direction]
        return lambda: torch.ops.aten.convolution_backward(dys, xs, ws, None, *geometry, wanted)[wanted.index(True)]

    return {"contiguous": candidate(torch.contiguous_format), "channels_last": candidate(torch.channels_last)}


def linear(shape: LinearShape, direction: str, precision: str, device: str = "cuda", seed: int = 0) -> dict[str, Work]:
    """Candidates for the three products of a linear layer; x (N, C), weight (K, C), dy (N, K). Needs PyTorch."""
    import torch

    x = _normal((shape.N, shape.C), precision, device, seed)
    weight = _normal((shape.K, shape.C), precision, device, seed + 1)
    dy = _normal((shape.N, shape.K), precision, device, seed + 2)
    products = {
        "forward": lambda: torch.matmul(x, weight.t()),
        "backward data": lambda: torch.matmul(dy, weight),
        "backward filter": lambda: torch.matmul(dy.t(), x),
    }
    return {"matmul": products[direction]}
