"""Our layers for users of PyTorch: operators with gradients, and modules with the arguments and names of torch's own.

>>> import convnet.torch
>>> model[0] = convnet.torch.Conv2d(3, 64, kernel_size=11, stride=4, padding=2)  # as torch.nn.Conv2d; state dicts fit

The operators are ``torch.ops.convnet.*``, with fake versions, so that ``torch.compile`` takes them as they are. They
compute on the device "cpu" in float32: tensors are read where they lie, and results are tensors in the memory that the
kernels wrote. A tensor of another dtype or device, and geometry that cannot be, raise ``ValueError``. Nothing is
differentiable twice. Nobody but who imports this module needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import functional
from .kernels.shapes import ConvShape, Padding, PoolShape, four_paddings

Values = np.ndarray[Any, Any]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """``convnet.functional.conv2d``: (N, C, H, W), (K, C/groups, R, S) and (K,) -> (N, K, P, Q).

    ``padding`` is a number or (top, bottom, left, right). With ``ceil_mode``, which torch has for pooling alone, the
    last window may overhang and reads zeros there.
    """
    y: Tensor = torch.ops.convnet.conv2d(x, weight, bias, stride, four_paddings(padding), groups, ceil_mode)
    return y


def max_pool2d(x: Tensor, size: int, stride: int, *, padding: Padding = 0, ceil_mode: bool = False) -> Tensor:
    """``convnet.functional.max_pool2d``: (N, C, H, W) -> (N, C, P, Q), windows clipped to the image.

    With ``ceil_mode`` the last window may overhang. One that would begin behind the image is refused, where torch
    leaves it out.
    """
    y: Tensor = torch.ops.convnet.max_pool2d(x, size, stride, four_paddings(padding), ceil_mode)
    return y


def local_response_norm(x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Tensor:
    """``convnet.functional.local_response_norm``, (N, C, H, W) -> the same: x / (k + alpha * sum of squares) ** beta.

    As in the paper, alpha is not divided by ``size``: ``torch.nn.functional.local_response_norm`` divides, and gives
    the same for alpha * size.
    """
    y: Tensor = torch.ops.convnet.local_response_norm(x, size, alpha, beta, k)
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``convnet.functional.linear``, for any axes in front: (..., C), (K, C) and (K,) -> (..., K)."""
    y: Tensor = torch.ops.convnet.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.reshape(*x.shape[:-1], weight.shape[0])


# ---- modules


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` by our kernels: the same arguments, first weights and state dict, and ``ceil_mode``.

    Raises ``ValueError`` for dilation, other paddings than zeros, and strides that differ between the axes.
    """

    def __init__(self, *args: Any, ceil_mode: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ceil_mode = ceil_mode
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            raise ValueError(
                f"Conv2d: padding must be zeros, and their number, got padding={padding!r} "
                f'padding_mode="{self.padding_mode}"; use torch.nn.Conv2d'
            )
        self._padding = (padding[0], padding[0], padding[1], padding[1])
        _same("Conv2d", "dilation", (*self.dilation, 1))
        self._stride = _same("Conv2d", "stride", self.stride)

    def forward(self, x: Tensor) -> Tensor:
        options: dict[str, Any] = {"stride": self._stride, "padding": self._padding, "groups": self.groups}
        return conv2d(x, self.weight, self.bias, **options, ceil_mode=self.ceil_mode)


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` by our kernels, with the same arguments.

    Raises ``ValueError`` for dilation, indices, windows that are not square and strides that differ.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.return_indices:
            raise ValueError("MaxPool2d: there are no indices; use torch.nn.MaxPool2d")
        _same("MaxPool2d", "dilation", (*_pair(self.dilation), 1))
        self._size = _same("MaxPool2d", "kernel_size", _pair(self.kernel_size))
        self._stride = _same("MaxPool2d", "stride", _pair(self.stride))

    def forward(self, x: Tensor) -> Tensor:
        above, left = _pair(self.padding)
        padding = (above, above, left, left)
        return max_pool2d(x, self._size, self._stride, padding=padding, ceil_mode=self.ceil_mode)


class LocalResponseNorm(nn.LocalResponseNorm):
    """``torch.nn.LocalResponseNorm`` by our kernels: with the same arguments it computes the same.

    So its ``alpha`` is torch's, which is divided by ``size``, and not that of ``local_response_norm``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, self.size, self.alpha / self.size, self.beta, self.k)


class Linear(nn.Linear):
    """``torch.nn.Linear`` by our kernels: the same arguments, first weights and state dict."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)


def _same(module: str, name: str, values: tuple[int, ...]) -> int:
    """The one number that all ``values`` are."""
    if len(set(values)) > 1:
        raise ValueError(
            f"{module}: {name} must be {values[-1]} along both axes, got {values[:2]}; use torch.nn.{module}"
        )
    return values[0]


# ---- operators


def _checked(op: str, **tensors: Tensor | None) -> list[Tensor | None]:
    """What kernels can read. Fake tensors have a dtype and a device, too: what cannot be is told when a model is
    compiled."""
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(
                f"convnet.torch: {op}: {name} must be a float32 tensor on the CPU, got {tensor.dtype} on "
                f'{tensor.device}; give {name}.to("cpu", torch.float32)'
            )
    return list(tensors.values())


def _arrays(op: str, **tensors: Tensor | None) -> list[Any]:
    """The same memory as NumPy arrays."""
    return [None if t is None else t.detach().numpy() for t in _checked(op, **tensors)]


def _tensors(arrays: tuple[Values, ...]) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, arrays))


def _operator(name: str, schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function the operator ``convnet::name``; ``fake`` gives the shapes of its results."""

    def register(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"convnet::{name}", function, mutates_args=(), schema=schema)
        made.register_fake(fake)
        return made

    return register


def _fake_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: list[int], groups: int, ceil_mode: bool
) -> Tensor:
    _checked("conv2d", x=x, weight=weight, bias=bias)
    (N, _, H, W), (K, C, R, S) = x.shape, weight.shape
    geometry: dict[str, Any] = {"stride": stride, "padding": tuple(padding), "groups": groups, "ceil_mode": ceil_mode}
    shape = ConvShape.of(N, C * groups, H, W, K, R, S, **geometry, lanes=1)
    return x.new_empty((N, K, shape.P, shape.Q))


@_operator(
    "conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, int stride, int[] padding, int groups, bool ceil_mode) -> Tensor",
    _fake_conv2d,
)
def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: list[int], groups: int, ceil_mode: bool
) -> Tensor:
    arrays = _arrays("conv2d", x=x, weight=weight, bias=bias)
    options: dict[str, Any] = {"stride": stride, "padding": tuple(padding), "groups": groups, "ceil_mode": ceil_mode}
    return torch.from_numpy(functional.conv2d(*arrays, **options))


@_operator(
    "conv2d_backward",
    "(Tensor dy, Tensor x, Tensor weight, int stride, int[] padding, int groups, bool ceil_mode)"
    " -> (Tensor, Tensor, Tensor)",
    lambda dy, x, weight, *_: (x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(weight.shape[:1])),
)
def _conv2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], groups: int, ceil_mode: bool
) -> tuple[Tensor, ...]:
    arrays = _arrays("conv2d_backward", dy=dy, x=x, weight=weight)
    options: dict[str, Any] = {"stride": stride, "padding": tuple(padding), "groups": groups, "ceil_mode": ceil_mode}
    return _tensors(functional.conv2d_backward(*arrays, **options))


def _fake_max_pool2d(x: Tensor, size: int, stride: int, padding: list[int], ceil_mode: bool) -> Tensor:
    _checked("max_pool2d", x=x)
    N, C, H, W = x.shape
    geometry: dict[str, Any] = {"padding": tuple(padding), "ceil_mode": ceil_mode}
    shape = PoolShape.of(N, C, H, W, size, stride, **geometry, lanes=1)
    return x.new_empty((N, C, shape.P, shape.Q))


@_operator("max_pool2d", "(Tensor x, int size, int stride, int[] padding, bool ceil_mode) -> Tensor", _fake_max_pool2d)
def _max_pool2d(x: Tensor, size: int, stride: int, padding: list[int], ceil_mode: bool) -> Tensor:
    (values,) = _arrays("max_pool2d", x=x)
    options: dict[str, Any] = {"padding": tuple(padding), "ceil_mode": ceil_mode}
    return torch.from_numpy(functional.max_pool2d(values, size, stride, **options))


@_operator(
    "max_pool2d_backward",
    "(Tensor dy, Tensor x, int size, int stride, int[] padding, bool ceil_mode) -> Tensor",
    lambda dy, x, *_: x.new_empty(x.shape),
)
def _max_pool2d_backward(dy: Tensor, x: Tensor, size: int, stride: int, padding: list[int], ceil_mode: bool) -> Tensor:
    d, values = _arrays("max_pool2d_backward", dy=dy, x=x)
    options: dict[str, Any] = {"padding": tuple(padding), "ceil_mode": ceil_mode}
    return torch.from_numpy(functional.max_pool2d_backward(d, values, size, stride, **options))


def _fake_lrn(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    _checked("local_response_norm", x=x)
    return x.new_empty(x.shape)


@_operator("local_response_norm", "(Tensor x, int size, float alpha, float beta, float k) -> Tensor", _fake_lrn)
def _local_response_norm(x: Tensor, *constants: Any) -> Tensor:
    return torch.from_numpy(functional.local_response_norm(*_arrays("local_response_norm", x=x), *constants))


@_operator(
    "local_response_norm_backward",
    "(Tensor dy, Tensor x, int size, float alpha, float beta, float k) -> Tensor",
    lambda dy, x, *_: x.new_empty(x.shape),
)
def _local_response_norm_backward(dy: Tensor, x: Tensor, *constants: Any) -> Tensor:
    arrays = _arrays("local_response_norm_backward", dy=dy, x=x)
    return torch.from_numpy(functional.local_response_norm_backward(*arrays, *constants))


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _checked("linear", x=x, weight=weight, bias=bias)
    return x.new_empty((x.shape[0], weight.shape[0]))


@_operator("linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _fake_linear)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.from_numpy(functional.linear(*_arrays("linear", x=x, weight=weight, bias=bias)))


@_operator(
    "linear_backward",
    "(Tensor dy, Tensor x, Tensor weight) -> (Tensor, Tensor, Tensor)",
    lambda dy, x, weight: (x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(weight.shape[:1])),
)
def _linear_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return _tensors(functional.linear_backward(*_arrays("linear_backward", dy=dy, x=x, weight=weight)))


# ---- gradients: of every operator what its backward reads, and the options that it shares with it


def _keep(tensors: int, skipped: int = 0) -> Callable[..., None]:
    """Keeps the first ``tensors`` inputs and the options, which begin behind ``skipped`` more."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.skipped, ctx.options = inputs[tensors : tensors + skipped], inputs[tensors + skipped :]

    return setup


def _weighted_gradients(backward: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    def gradients(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        dx, dweight, dbias = backward(dy, *ctx.saved_tensors, *ctx.options)
        return dx, dweight, None if ctx.skipped == (None,) else dbias, *[None] * len(ctx.options)

    return gradients


def _input_gradient(backward: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    def gradients(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return backward(dy, *ctx.saved_tensors, *ctx.options), *[None] * len(ctx.options)

    return gradients


_conv2d.register_autograd(_weighted_gradients(_conv2d_backward), setup_context=_keep(2, skipped=1))
_linear.register_autograd(_weighted_gradients(_linear_backward), setup_context=_keep(2, skipped=1))
_max_pool2d.register_autograd(_input_gradient(_max_pool2d_backward), setup_context=_keep(1))
_local_response_norm.register_autograd(_input_gradient(_local_response_norm_backward), setup_context=_keep(1))
