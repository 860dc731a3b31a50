"""Calls every function of the kernel table with arguments that are right, nearly right and wrong.

    python tests/fuzz_bindings.py emu 1000         # the compiled module of a device, so many calls
    python tests/fuzz_bindings.py functional 1000  # convnet.functional
    python tests/fuzz_bindings.py cpu 1000 FILE    # FILE holds the call that is being made

The compiled modules take addresses, so that they cannot know how much memory lies behind one. What they promise, and
what is tried here: every type, every size, null and misaligned addresses end in a TypeError or ValueError, or the call
is carried out within the memory that the shape describes. Operands may overlap: then the values are undefined, and
nothing else. test_fuzz_bindings.py runs it in a process of its own, also under AddressSanitizer.

Shapes that are valid and describe more than there is memory for here are not called.
"""

from __future__ import annotations

import ctypes
import dataclasses
import inspect
import math
import mmap
import resource
import sys
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convnet import functional
from convnet.devices.opening import open_device
from convnet.devices.protocol import DeviceError
from convnet.kernels import shapes
from convnet.kernels.activations import ACTIVATIONS
from convnet.kernels.costs import COSTS
from convnet.ops.declare import DECLARED

SLOT, MEMORY = 2**24, 2**20  # bytes from one address to the next, of which so many can be read and written
MOST_VALUES = 2**14  # that a shape of a call may describe
MOST_MACS = 2**21
LARGEST = 2**31 - 1  # of an extent; the bindings refuse what is above
SHARED = 20  # slots that arguments take in their order, and may share
# What is read as places in other tensors, and the control block, get memory that nothing else writes to.
PLACES = {
    name
    for declaration in DECLARED.values()
    for name, parameter in declaration.parameters.items()
    if any(getattr(mark, "places", False) for mark in parameter.marks)
}
KEPT = {name: slot for slot, name in enumerate(sorted({*PLACES, "control"}), SHARED)}
SLOTS = mmap.mmap(-1, (SHARED + len(KEPT)) * SLOT)
BASE = np.frombuffer(SLOTS, np.uint8).ctypes.data
for slot in range(SHARED + len(KEPT)):
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(BASE + slot * SLOT + MEMORY), ctypes.c_size_t(SLOT - MEMORY), 0):
        raise OSError("mprotect failed")
JUNK: list[Any] = [None, -1, -(2**63), 2**64, 2**1000, 1.5, math.nan, "x", "", b"fp32", [], (1, 2), {}, object(), SLOTS]
NUMBERS = [*range(10), 15, 16, 64, 255, 256, 65535, 2**16, 2**28, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63]
PRECISIONS = ("fp32", "tf32", "bf16")
KERNELS = open_device("cpu" if sys.argv[1:2] == ["cpu"] else "emu").kernels


# The kernels of all ops and what is asked about them: names, kinds and more of their arguments. The rest of the module
# changes how it goes on.
TABLE = {
    function: rows
    for function, rows in KERNELS.signatures().items()
    if function in DECLARED or function.endswith(("_workspace", "_variant"))
}
ARRAYS = {"activations", "float32", "int32", "uint8", "uint16", "uint32"}
small = st.integers(1, 9)
blocks = st.sampled_from([(8, 8), (16, 8), (16, 16), (64, 64)])  # N and lanes


def valid_shape(draw: Any, kind: str) -> Any:
    N, L = draw(blocks)
    a, b, c, d = (draw(small) for _ in range(4))
    if kind in ("ConvShape", "LocalShape"):
        R, stride, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        C, K, H, W = a * groups, b * groups, c + R, d + R
        options = {"stride": stride, "padding": R // 2, "groups": groups, "lanes": L}
        return getattr(shapes, kind).of(N, C, H, W, K, R, R, **options)
    if kind == "PoolShape":
        return shapes.PoolShape.of(N, a, c + 3, d + 3, draw(st.integers(1, 3)), draw(st.integers(1, 3)), lanes=L)
    if kind == "LrnShape":
        return shapes.LrnShape(N, a, b, c, 1, L, d, 1e-4, 0.75, 2.0)
    if kind == "SpatialNormShape":
        return shapes.SpatialNormShape(N, a, b, c, L, min(d, max(b, c)), 1e-4, 0.75, 2.0)
    return {
        "BlurShape": lambda: shapes.BlurShape(N, a, b, c, L, 3 + d % 4 * 2, 1.0),
        "NailbedShape": lambda: shapes.NailbedShape.of(N, a, b, c, d, lanes=L),
        "LinearShape": lambda: shapes.LinearShape(N, a, b, L),
        "DropoutShape": lambda: shapes.DropoutShape(N, a, L, b, a + b + c, 0.5, 1, d),
        "SoftmaxShape": lambda: shapes.SoftmaxShape(N, min(N, a), b, L),
        "IngestShape": lambda: shapes.IngestShape(N, min(N, a), b + c, b + d, b, L, (1.0, 1.0, 1.0)),
        "GatherShape": lambda: shapes.GatherShape(N, a, b, c, d, L),
        "PackShape": lambda: shapes.PackShape(N, min(N, a), b, c, d, L, 1, a % 4, b * c * d, c * d, d, 1),
    }[kind]()


def values_of(shape: Any) -> int:
    """Of the largest tensor that a shape describes, or of the work, in exact numbers; 0 where it is no shape."""
    f = vars(shape)
    numbers = [value for value in f.values() if isinstance(value, (int, float))]
    if len(numbers) < len(f) - 1 or any(isinstance(f[name], float) for name in f if name in "NCHWKRSPQ"):
        return 0
    g = {name: max(1, value) if isinstance(value, int) else 1 for name, value in f.items()}
    N, K, C, L = g["N"], g.get("K", 1) + 8, g.get("C", 1), g["lanes"]
    image, output = g.get("H", 1) * g.get("W", 1), g.get("P", 1) * g.get("Q", 1)
    s = g.get("stride", 1)
    taps = (g.get("R", 1) + s) * (g.get("S", 1) + s)
    filters = K * C * taps * (output if isinstance(shape, shapes.LocalShape) else 1)
    counts = [max(N, L) * C * image * 3, max(N, L) * max(K, C) * output, filters, N * C * L, N * K]
    counts += [N * g.get("features_total", 1), N * g.get("features", 1), g.get("crop", 1) ** 2 * N * 3]
    if "step_n" in f:  # as far as x goes, and folded sizes rounded up
        steps = zip(("valid", "C", "H", "W"), ("step_n", "step_c", "step_h", "step_w"), strict=True)
        counts += [g["offset"] + sum(g[size] * g[step] for size, step in steps)]
        counts += [max(N, L) * C * (g["H"] + g["fold"]) * (g["W"] + g["fold"])]
    work = N * K * C * output * taps if "R" in f else N * K * C
    return max(*counts, work * MOST_VALUES // MOST_MACS)


def must_be_refused(shape: Any) -> bool:
    f = vars(shape)
    extents = [
        value for name, value in f.items() if name not in ("alpha", "beta", "k", "p", "scale", "seed", "layer", "std")
    ]
    return any(type(value) is not int or not 0 <= value <= LARGEST for value in extents)


def address(draw: Any, name: str, slot: int) -> int:
    return BASE + SLOT * KEPT.get(name, draw(st.integers(0, 15)) if draw(st.integers(0, 9)) == 0 else slot)


def valid_update(draw: Any) -> tuple[Any, ...]:
    """Of a folded weight, too, where a device has any."""
    arrays = [BASE + SLOT * k for k in (1, 2, 3)]
    if sys.argv[1] != "emu" or draw(st.booleans()):
        return 64, *arrays, None, 8, 1.0, 1.0, 1.0, None
    shape = valid_shape(draw, "ConvShape")
    count = shape.C // shape.groups * shape.R * shape.S * shape.K
    return count, *arrays, BASE + SLOT * 4, 8, 1.0, 1.0, 1.0, (shape, draw(st.sampled_from(PRECISIONS)))


def valid(draw: Any, name: str, kind: str, optional: bool, slot: int) -> Any:
    if kind in shapes.__dict__:
        return None if optional else valid_shape(draw, kind)
    if kind in ARRAYS:
        left_out = optional and name not in ("workspace", "control") and draw(st.booleans())
        return None if left_out else address(draw, name, slot)
    if kind == "updates":
        return tuple(valid_update(draw) for _ in range(draw(st.integers(0, 3))))
    if name == "precision":  # others, which a CPU does not compute in, are wrong values there
        return draw(st.sampled_from(PRECISIONS if sys.argv[1] == "emu" else ("fp32",)))
    if kind == "kind":
        return draw(st.sampled_from(sorted(ACTIVATIONS)))
    if kind == "cost":
        return draw(st.sampled_from(sorted(COSTS)))
    if name in ("count", "columns"):
        return 64 if name == "count" else 8
    return {"stream": 0, "float": 0.5, "bool": True}.get(kind, "conv_forward")


def changed(draw: Any, name: str, kind: str, value: Any) -> Any:
    """A wrong or another value for an argument."""
    if dataclasses.is_dataclass(value) and draw(st.integers(0, 9)):
        fields = [field.name for field in dataclasses.fields(value)]
        for _ in range(draw(st.integers(1, 3))):
            new = draw(st.sampled_from(NUMBERS) if draw(st.integers(0, 3)) else st.sampled_from(JUNK))
            value = dataclasses.replace(value, **{draw(st.sampled_from(fields)): new})  # type: ignore[type-var]
        return value
    if kind in ARRAYS:
        wrong = [value + offset for offset in (1, 2, 4, 8)] if isinstance(value, int) else []
        return draw(st.sampled_from([0, *JUNK, *wrong]))
    if kind == "updates" and value:
        update = list(value[0])
        at = draw(st.integers(0, 9))
        update[at] = draw(st.sampled_from([*JUNK, 0, update[at]]))
        return draw(st.sampled_from([(tuple(update),), (update,), (update[:3],), value * 100]))
    if name in ("count", "columns"):
        return draw(st.sampled_from([*NUMBERS, *JUNK]))
    return draw(st.sampled_from([*JUNK, *NUMBERS, "bf16", "tf32", valid_shape(draw, "LrnShape")]))


def callable_here(function: str, arguments: dict[str, Any]) -> bool:
    """Whether the shapes describe as much as lies behind the addresses, or must be refused."""
    given_shapes = [value for value in arguments.values() if dataclasses.is_dataclass(value)]
    if any(must_be_refused(shape) for shape in given_shapes):
        return True
    counts = [arguments.get("count", 0), arguments.get("columns", 0)]
    if any(isinstance(count, int) and 2**16 < count <= 2**41 for count in counts):
        return False
    return all(values_of(shape) <= MOST_VALUES for shape in given_shapes)


@st.composite
def calls(draw: Any) -> tuple[str, dict[str, Any]]:
    function = draw(st.sampled_from(sorted(set(TABLE) - {"force_variant"})))
    rows = enumerate(TABLE[function])
    arguments = {name: valid(draw, name, kind, optional, slot) for slot, (name, kind, _, optional) in rows}
    for name, kind, *_ in draw(st.lists(st.sampled_from(TABLE[function]), max_size=3, unique=True)):
        arguments[name] = changed(draw, name, kind, arguments[name])
    windows = arguments.get("shape")
    drawn = function == "rand_pool_forward" and isinstance(windows, shapes.PoolShape) and draw(st.integers(0, 3))
    if drawn and not must_be_refused(windows):
        features = windows.C * windows.P * windows.Q
        arguments["draw"] = shapes.DropoutShape(windows.N, features, windows.lanes, 9, features + 9, 0.5, 1, 2)
    if "lrn" in arguments and draw(st.booleans()) and isinstance(arguments["pool"], shapes.PoolShape):
        same = {name: getattr(arguments["pool"], name) for name in ("N", "C", "H", "W", "lanes")}
        if isinstance(arguments["lrn"], shapes.LrnShape):
            arguments["lrn"] = dataclasses.replace(arguments["lrn"], **same)
    return function, arguments


def note(*call: object) -> None:
    """Remembers the call that is made now, for the case that it is the last one."""
    if LAST:
        LAST.seek(0)
        LAST.truncate()
        print(*call, file=LAST, flush=True)


COUNTS = {"returned": 0, "refused": 0, "not called": 0}


def call_raw(call: tuple[str, dict[str, Any]]) -> None:
    function, arguments = call
    if not callable_here(function, arguments):
        COUNTS["not called"] += 1
        return
    note(function, arguments)
    try:
        getattr(KERNELS, function)(*arguments.values())
    except (TypeError, ValueError):
        COUNTS["refused"] += 1
    else:
        COUNTS["returned"] += 1
        for name, kind, _, optional in TABLE[function]:
            assert kind not in ARRAYS or optional or arguments[name] not in (None, 0), f"{function} took no {name}"


# ---- convnet.functional ----

FUNCTIONS = {
    name: f
    for name, f in vars(functional).items()
    if inspect.isfunction(f) and f.__module__ == functional.__name__ and name[0] != "_"
}


def ones(*dims: int) -> Any:
    return np.ones(dims, np.float32)


def valid_functional(draw: Any) -> tuple[str, dict[str, Any]]:
    """A function and arguments that fit."""
    name = draw(st.sampled_from(sorted(FUNCTIONS)))
    N, a, b, H, W = (draw(st.integers(1, 5)) for _ in range(5))
    groups, R, stride, padding = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3)), 0
    C, K, H, W = a * groups, b * groups, H + R, W + R
    P, Q = (H - R) // stride + 1, (W - R) // stride + 1
    window = {"stride": stride, "padding": padding, "ceil_mode": False}
    if name.startswith("conv2d"):
        arguments = {"x": ones(N, C, H, W), "weight": ones(K, a, R, R), "groups": groups, **window}
        extra = {"dy": ones(N, K, P, Q)} if "backward" in name else {"bias": ones(K), "relu": draw(st.booleans())}
    elif name.startswith("local2d"):
        P, Q = -(-(H - R) // stride) + 1, -(-(W - R) // stride) + 1
        arguments = {"x": ones(N, C, H, W), "weight": ones(P, Q, K, a, R, R), "groups": groups}
        arguments |= {"stride": stride, "padding": padding}
        backward = "backward" in name
        extra = {"dy": ones(N, K, P, Q)} if backward else {"bias": ones(K, P, Q), "relu": draw(st.booleans())}
    elif name.startswith("add_position_bias"):
        arguments = {"dy": ones(N, K, P, Q)} if "backward" in name else {"x": ones(N, K, P, Q)}
        extra = {} if "backward" in name else {"bias": ones(K, P, Q)}
    elif name.startswith(("max_pool2d", "avg_pool2d", "rand_pool2d")):
        arguments = {"x": ones(N, C, H, W), "size": R, **window}
        if name in ("rand_pool2d", "rand_pool2d_backward"):
            arguments |= {"seed": 1, "step": 2, "layer": 0}
        extra = {"dy": ones(N, C, P, Q)} if "backward" in name else {}
    elif name.startswith("blur2d"):
        arguments = {"dy" if "backward" in name else "x": ones(N, C, H, W)}
        extra = {"size": 5, "std": 1.0}
    elif name.startswith("nailbed2d"):
        arguments = {"x": ones(N, C, H, W), "stride": stride}
        extra = {"dy": ones(N, C, -(-H // stride), -(-W // stride))} if "backward" in name else {}
    elif name.startswith("linear"):
        arguments = {"x": ones(N, C), "weight": ones(K, C)}
        extra = {"dy": ones(N, K)} if "backward" in name else {"bias": None, "relu": False}
    else:
        parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
        arrays = [p.name for p in parameters if str(p.annotation) == "Given"]
        normalises = "_norm" in name
        shape = (N, C, H, W) if normalises or name.startswith(("gather", "mirror")) else (N, K)
        arguments = {array: ones(*shape) for array in arrays}
        extra = {
            "dropout": {"p": 0.5, "seed": 1, "step": 2, "layer": 0},
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
            "softmax_cross_entropy": {"labels": np.zeros(N, np.int64)},
            "cost": {"kind": draw(st.sampled_from(sorted(COSTS))), "labels": np.zeros(N, np.int64)},
            "weighted_sum": {"xs": [ones(N, K)] * a, "coefficients": [0.5] * a},
            "weighted_sum_backward": {"coefficients": [0.5] * a},
            "elementwise_max": {"xs": [ones(N, K)] * a},
            "elementwise_max_backward": {"xs": [ones(N, K)] * a},
            "gather_channels": {"table": np.arange(K) % C},
            "gather_channels_backward": {"table": np.arange(C) % b, "channels": b},
            "activation": {"kind": "linear", "a": 1.5, "b": 0.5},
            "activation_backward": {"kind": "softrelu", "a": None, "b": None},
        }.get(name, {})
        if normalises:
            size = 5 if name.startswith("local_response") else draw(st.integers(1, max(H, W)))
            extra = {"size": size, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
    arguments = {**arguments, **extra, "device": draw(st.sampled_from(["cpu", "emu"]))}
    if name != "sgd":
        arguments["precision"] = draw(st.sampled_from(PRECISIONS))
    return name, arguments


def other_array(draw: Any, array: Any) -> Any:
    """Another shape, type, order or kind of values."""
    kind = draw(st.integers(0, 6))
    if kind == 0:
        array = array.T
    elif kind == 1:
        array = np.repeat(array, 2, 0)[:: draw(st.sampled_from([2, -2]))]
    elif kind == 2:
        array = np.broadcast_to(array, (draw(st.sampled_from([1, 2, 2**20, 2**40])), *array.shape))
    elif kind == 3:
        array = np.full_like(array, draw(st.sampled_from([0, -1, 2**30, *([np.nan, np.inf] * (array.dtype == "f4"))])))
    elif kind == 4:
        array = array.astype(draw(st.sampled_from([">f4", "f8", "f2", "i4", "u1", "?", "c8", "O", "S1"])))
    elif kind == 5:
        array = np.ones(draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8]), max_size=5)), array.dtype)
    else:
        return draw(st.sampled_from([*JUNK, array.tolist()]))
    return array


@st.composite
def functional_calls(draw: Any) -> tuple[str, dict[str, Any]]:
    function, arguments = valid_functional(draw)
    for name in draw(st.lists(st.sampled_from(sorted(arguments)), max_size=3, unique=True)):
        value = arguments[name]
        if isinstance(value, np.ndarray):
            arguments[name] = other_array(draw, value)
        elif name == "device":
            arguments[name] = draw(st.sampled_from(["emu:7", "cuda:99", "gpu", "", 3, None, "cpu\0"]))
        else:
            arguments[name] = draw(st.sampled_from([*JUNK, *NUMBERS, *PRECISIONS, 0.5, (1, 0, 2, 1), [1, 1]]))
    return function, arguments


def call_functional(call: tuple[str, dict[str, Any]]) -> None:
    name, arguments = call
    huge = any(isinstance(a, np.ndarray) and a.size > 2**19 for a in arguments.values())
    huge |= isinstance(arguments.get("channels"), int) and arguments["channels"] > 2**19
    note(name, {k: (a.shape, a.dtype) if isinstance(a, np.ndarray) else a for k, a in arguments.items()})
    try:
        with np.errstate(all="ignore"):
            FUNCTIONS[name](**arguments)
    except (TypeError, ValueError, DeviceError):
        COUNTS["refused"] += 1
    except MemoryError:
        assert huge, call
        COUNTS["refused"] += 1
    else:
        COUNTS["returned"] += 1


def main(layer: str, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = {"max_examples": count, "deadline": None, "derandomize": True, "database": None}
    configure = settings(**options, suppress_health_check=list(HealthCheck))
    open_device("emu").kernels.set_threads(1)
    if layer != "functional":
        configure(given(calls())(call_raw))()
    else:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
        configure(given(functional_calls())(call_functional))()
    print(COUNTS)


LAST = open(sys.argv[3], "w") if len(sys.argv) > 3 else None  # noqa: SIM115

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
