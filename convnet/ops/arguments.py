"""Checks of what users pass to ``convnet.functional`` and ``Network``, and the problem shapes that follow from it.

Every image is a lane of its own in the shapes made here. Raises ``ValueError`` that names the operation, the rule, the
values and the remedy.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..devices.foreign import KINDS as ARRAYS
from ..devices.foreign import CudaMemory, Given, seen
from ..devices.protocol import Device
from ..kernels.activations import ACTIVATIONS
from ..kernels.precision import activation_dtype
from ..kernels.shapes import (
    BlurShape,
    ConvShape,
    LinearShape,
    LocalShape,
    LrnShape,
    NailbedShape,
    Padding,
    PoolShape,
    SpatialNormShape,
)

Values = np.ndarray[Any, Any]
Shape = TypeVar("Shape")


def taken(op: str, device: str | None, **given: Any) -> list[Any]:
    """The arrays among the arguments, of whichever library, as NumPy arrays or memory of a GPU; the rest as it is.

    ``device`` will compute on them; None: they are looked at here before. Raises ``ValueError`` for arrays that cannot
    be read, and those on a GPU where they cannot stay there.
    """
    found = []
    for name, value in given.items():
        try:
            values = seen(value)
        except ValueError as error:
            raise ValueError(f"{op}: {name} {error}") from error
        if isinstance(values, CudaMemory) and not (device or "").startswith("cuda"):
            raise ValueError(
                f"{op}: {name} must not lie on a GPU: "
                f"{f'the device is {device}' if device else 'it is checked on the host first'}; "
                f"give {name}.cpu() (PyTorch) or {name}.get() (CuPy, pycuda)"
            )
        found.append(values)
    return found


def floats(op: str, name: str, values: Given, like: str | tuple[int, ...] | None = None) -> None:
    """Checks the dtype, and the shape where it matters: the letters of its axes, or the sizes themselves."""
    if not isinstance(values, ARRAYS) or values.dtype != np.float32:
        found = values.dtype if isinstance(values, ARRAYS) else type(values).__name__
        raise ValueError(f"{op}: {name} must be a float32 array, got {found}; convert it to float32")
    if isinstance(like, tuple) and values.shape != like:
        raise ValueError(f"{op}: {name} must have shape {like} to fit the other arguments, got {values.shape}")
    if isinstance(like, str) and (values.ndim != len(like) or values.size == 0):
        axes = ", ".join(like)
        raise ValueError(f"{op}: {name} must have shape ({axes}), no size 0, got {values.shape}; reshape it")


# Kinds of numbers, and the letters that NumPy has for them.
KINDS = {"integers": "iu", "real numbers": "iuf"}


def array(op: str, name: str, values: Given, shape: tuple[int | str, ...], dtype: str) -> None:
    """Checks the shape, where a letter stands for any size but 0, and the dtype: its name, or one of ``KINDS``."""
    sizes = values.shape if isinstance(values, ARRAYS) else ()
    fits = len(sizes) == len(shape) and all(
        size == wanted or (isinstance(wanted, str) and size > 0) for size, wanted in zip(sizes, shape, strict=True)
    )
    if not fits or (values.dtype.kind not in KINDS[dtype] if dtype in KINDS else values.dtype.name != dtype):
        axes = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(f"{op}: {name} must be an array of {dtype} of shape ({axes}), got {described(values)}")


def described(values: Any) -> str:
    """What was passed, in words."""
    return f"{values.dtype} of shape {values.shape}" if isinstance(values, ARRAYS) else type(values).__name__


def number(op: str, name: str, value: float) -> None:
    """Checks that it is a real number within float32."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not abs(value) <= float(np.finfo(np.float32).max):
        raise ValueError(f"{op}: {name} must be a finite number, got {value!r}")


def alike(op: str, device: str, xs: Sequence[Given]) -> list[Given]:
    """Checks that there are arrays, of one shape."""
    if not isinstance(xs, (list, tuple)) or not xs:
        raise ValueError(
            f"{op}: xs must be a list of one array or more, got {'[]' if isinstance(xs, list) else type(xs).__name__}"
        )
    arrays = [taken(op, device, **{f"xs[{i}]": x})[0] for i, x in enumerate(xs)]
    for i, x in enumerate(arrays):
        floats(op, f"xs[{i}]", x, getattr(arrays[0], "shape", None))
    return arrays


def coefficients(op: str, values: Sequence[float], count: int) -> None:
    """Checks that there is one for each of ``count`` arrays."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise ValueError(f"{op}: coefficients must be a list of {count}, one for each array, got {values!r}")
    for i, value in enumerate(values):
        number(op, f"coefficients[{i}]", value)


def activation(op: str, kind: str, a: float | None, b: float | None) -> tuple[float, float]:
    """Checks the name of an activation and its parameters; both, 0 in place of what it has not."""
    if not isinstance(kind, str) or kind not in ACTIVATIONS:
        raise ValueError(f"{op}: there is no activation {kind!r}; there are {', '.join(ACTIVATIONS)}")
    names = ACTIVATIONS[kind].parameters
    given = {name: value for name, value in (("a", a), ("b", b)) if value is not None}
    if tuple(given) != names:
        takes, got = (" and ".join(found) or "no parameters" for found in (names, given))
        raise ValueError(f"{op}: {kind} = {ACTIVATIONS[kind].formula} takes {takes}, got {got}")
    for name, value in given.items():
        number(op, name, value)
    first, second = (np.float32(given.get(name, 0)) for name in ("a", "b"))
    if (kind == "tanh" and first == 0) or (kind == "brelu" and not first > 0):
        raise ValueError(f"{op}: {kind} needs an a {'above' if kind == 'brelu' else 'other than'} 0, got {a}")
    return float(first), float(second)


def count(op: str, n: int, most: int) -> None:
    """Checks the number of images of a batch."""
    if not 1 <= n <= most:
        raise ValueError(
            f"{op}: there must be 1 to {most} images (the batch size), got {n}; use smaller batches, or a network of a "
            "larger batch size"
        )


def labels(given: Any, n: int, classes: int) -> Values:
    """Those of ``n`` images, checked; a list will do."""
    (found,) = taken("a batch", None, labels=given)
    values: Values = np.asarray(found)
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape {(n,)}, got {values.dtype} of shape {values.shape}")
    if values.min() < 0 or values.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {values.min()}..{values.max()}")
    return values


def classes(op: str, given: Any, N: int, K: int) -> Values:
    """Labels of ``N`` images, checked."""
    (labels,) = taken(op, None, labels=given)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (N,):
        what = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise ValueError(f"{op}: labels must be whole numbers of shape ({N},), one for each image, got {what}")
    if labels.min() < 0 or labels.max() >= K:
        raise ValueError(f"{op}: labels must lie between 0 and {K - 1}, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int32)


def constants(op: str, values: Sequence[float], rates: Mapping[str, float], parameters: Sequence[str]) -> None:
    """Checks what an update multiplies by: lr, momentum, weight_decay, and factors on lr by parameter. One that is no
    number would spoil all weights."""
    for name, value in zip(("lr", "momentum", "weight_decay"), values, strict=True):
        number(op, name, value)
    for name, value in rates.items():
        if name not in parameters:
            raise ValueError(f'{op}: rates: no parameter is called "{name}"; there are {", ".join(parameters)}')
        number(op, f"rates[{name!r}]", value)


def channels(op: str, table: Any, count: int) -> Values:
    """A table of channels, checked: int32; a list will do."""
    (found,) = taken(op, None, table=table)
    values: Values = np.asarray(found)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu":
        raise ValueError(f"{op}: table must be whole numbers of shape (K,), got {values.dtype} of shape {values.shape}")
    if values.min() < 0 or values.max() >= count:
        raise ValueError(f"{op}: table must lie in 0..{count - 1}, the channels, got {values.min()}..{values.max()}")
    return values.astype(np.int32)


def integer(op: str, name: str, value: int, low: int, high: int) -> int:
    """``value`` as an int from ``low`` to ``high``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{op}: {name} must be a whole number, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{op}: {name} must lie between {low} and {high}, got {number}")
    return number


def check_precision(op: str, precision: str, device: Device | None = None) -> None:
    """Whether it exists at all, and on ``device``."""
    try:
        activation_dtype(precision) if device is None else device.check_precision(precision)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None


_LARGE = 2**31 - 1


def _four(op: str, padding: Padding) -> Padding:
    if isinstance(padding, (tuple, list)):
        if len(padding) != 4:
            raise ValueError(f"{op}: padding must be a number or (top, bottom, left, right), got {padding}")
        top, bottom, left, right = (integer(op, "padding", value, 0, _LARGE) for value in padding)
        return (top, bottom, left, right)
    return integer(op, "padding", padding, 0, _LARGE)


def _geometry(op: str, build: Callable[..., Shape], *sizes: int, **options: Any) -> Shape:
    """A problem shape; the error of an impossible one names the operation that the user called."""
    try:
        return build(*sizes, **options)
    except ValueError as error:
        _, named, text = str(error).rpartition("2d: ")
        raise ValueError(f"{op}: {text if named else error}") from None


def conv(op: str, x: Given, weight: Given, stride: int, padding: Padding, groups: int, ceil_mode: bool) -> ConvShape:
    floats(op, "x", x, "NCHW")
    floats(op, "weight", weight, "KCRS")
    (N, C, H, W), (K, group_C, R, S) = x.shape, weight.shape
    groups = integer(op, "groups", groups, 1, _LARGE)
    if group_C * groups != C:
        raise ValueError(
            f"{op}: weight must have C/groups channels, got x {x.shape}, weight {weight.shape}, groups={groups}; "
            "choose groups so that weight.shape[1] * groups = x.shape[1]"
        )
    stride, padding = integer(op, "stride", stride, 1, _LARGE), _four(op, padding)
    options = {"stride": stride, "padding": padding, "groups": groups, "ceil_mode": ceil_mode, "lanes": N}
    return _geometry(op, ConvShape.of, N, C, H, W, K, R, S, **options)


def local(op: str, x: Given, weight: Given, stride: int, padding: Padding, groups: int) -> LocalShape:
    floats(op, "x", x, "NCHW")
    floats(op, "weight", weight, "PQKCRS")
    (N, C, H, W), (P, Q, K, group_C, R, S) = x.shape, weight.shape
    groups = integer(op, "groups", groups, 1, _LARGE)
    if group_C * groups != C:
        raise ValueError(
            f"{op}: weight must have C/groups channels, got x {x.shape}, weight {weight.shape}, groups={groups}; "
            "choose groups so that weight.shape[3] * groups = x.shape[1]"
        )
    stride, padding = integer(op, "stride", stride, 1, _LARGE), _four(op, padding)
    options = {"stride": stride, "padding": padding, "groups": groups, "lanes": N}
    shape = _geometry(op, LocalShape.of, N, C, H, W, K, R, S, **options)
    if (shape.P, shape.Q) != (P, Q):
        raise ValueError(
            f"{op}: weight must have filters for each of the {shape.P} x {shape.Q} pixels of the output, got those of "
            f"{P} x {Q}; windows are counted up to the last one that overhangs"
        )
    return shape


def pool(op: str, x: Given, size: int, stride: int, padding: Padding, ceil_mode: bool) -> PoolShape:
    floats(op, "x", x, "NCHW")
    size, stride = integer(op, "size", size, 1, 15), integer(op, "stride", stride, 1, _LARGE)
    options = {"padding": _four(op, padding), "ceil_mode": ceil_mode, "lanes": x.shape[0]}
    return _geometry(op, PoolShape.of, *x.shape, size, stride, **options)


def draw(op: str, seed: int, step: int, layer: int) -> dict[str, int]:
    """What decides a draw, checked."""
    found = {"seed": integer(op, "seed", seed, 0, 2**64 - 1)}
    return found | {name: integer(op, name, n, 0, 2**32 - 1) for name, n in (("step", step), ("layer", layer))}


def _norm(op: str, alpha: float, beta: float, k: float) -> tuple[float, float, float]:
    """The constants of a normalisation, checked."""
    if not (alpha >= 0 and k > 0 and np.isfinite([alpha, beta, k]).all()):
        raise ValueError(
            f"{op}: needs finite alpha >= 0, k > 0 and beta, got alpha={alpha} beta={beta} k={k}; "
            "the denominator would not be positive"
        )
    return float(alpha), float(beta), float(k)


def lrn(op: str, x: Given, size: int, alpha: float, beta: float, k: float) -> LrnShape:
    floats(op, "x", x, "NCHW")
    N, C, H, W = x.shape
    constants = _norm(op, alpha, beta, k)
    return LrnShape(N, C, H, W, 1, N, integer(op, "size", size, 1, 16), *constants)


def spatial_norm(op: str, x: Given, size: int, alpha: float, beta: float, k: float) -> SpatialNormShape:
    floats(op, "x", x, "NCHW")
    N, C, H, W = x.shape
    constants = _norm(op, alpha, beta, k)
    return SpatialNormShape(N, C, H, W, N, integer(op, "size", size, 1, max(H, W)), *constants)


def blur(op: str, name: str, x: Given, size: int, std: float) -> BlurShape:
    floats(op, name, x, "NCHW")
    number(op, "std", std)
    if integer(op, "size", size, 3, 9) % 2 == 0 or not np.float32(std) > 0:
        raise ValueError(f"{op}: size must be 3, 5, 7 or 9 pixels and std positive, got size={size} std={std}")
    N, C, H, W = x.shape
    return BlurShape(N, C, H, W, N, operator.index(size), float(std))


def nailbed(op: str, x: Given, stride: int) -> NailbedShape:
    floats(op, "x", x, "NCHW")
    N, C, H, W = x.shape
    return NailbedShape.of(N, C, H, W, integer(op, "stride", stride, 1, _LARGE), lanes=N)


def linear(op: str, x: Given, weight: Given) -> LinearShape:
    floats(op, "x", x, "NC")
    floats(op, "weight", weight, "KC")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"{op}: x (N, C) and weight (K, C) must have the same C, got x {x.shape} and weight {weight.shape}; "
            "a weight stored as (in, out) must be transposed"
        )
    return LinearShape(x.shape[0], x.shape[1], weight.shape[0], x.shape[0])
