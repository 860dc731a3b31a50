"""A kernel under glass: what one op's launches do, counted by the emulator while it executes them.

>>> from convnet.analysis import glass
>>> seen = glass.look("pack", "N=64 C=3")
>>> seen.launches[0].grid, dataclasses.asdict(seen)  # everything as numbers, and as JSON types

The module ``convnet.kernels._glass`` is the emulator with kernels that tell of every load and store. What is counted:
instructions of warps, put together from lanes that the emulator runs one after the other; passes through the banks of
shared memory; sectors of global memory; who arrives at barriers and who waits there; what copies bring into shared
memory and when it is read. ``convnet-info --emulate`` shows it.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, is_dataclass
from difflib import get_close_matches
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..devices.opening import open_watched
from ..devices.protocol import Array, Device, Stream, padded
from ..kernels.control import control_words
from ..kernels.precision import BF16, activation_dtype
from ..kernels.shapes import (
    BlurShape,
    ConvShape,
    DropoutShape,
    GatherShape,
    IngestShape,
    LinearShape,
    LocalShape,
    LrnShape,
    NailbedShape,
    PackShape,
    PoolShape,
    SoftmaxShape,
    SpatialNormShape,
)
from ..ops import ops
from ..ops.declare import DECLARED, Scratch, Tensor
from ..ops.layout import to_bf16, to_float32

SECTOR = 32  # bytes, the unit in which global memory is read and written
SEEDS = (1, 2, 3)  # orders of threads in which a launch runs without one of its calls


Values = np.ndarray[Any, Any]
Sizes = dict[str, Any]  # whole numbers by their names


# ---- what was seen ----


@dataclass(frozen=True)
class Access:
    """All executions of one load or store.

    In shared memory by the watched warp of block 0; in global memory by the whole launch, ``array`` being the op's name
    for what is accessed. ``bytes`` are those of a lane, or of a row of a tensor copy. ``asked`` bytes count every lane,
    ``used`` those that differ within an execution. ``wavefronts``: passes through the banks of shared memory, of which
    there would be ``fewest`` without conflicts; ``sectors`` of 32 bytes in global memory. ``lanes``: where every lane
    went in the worst execution (which took ``worst`` wavefronts or sectors), in bytes from the start of shared memory,
    or of the first sector; None for a lane that took no part.
    """

    operation: str
    where: str
    array: str
    bytes: int
    requests: int
    asked: int
    used: int
    wavefronts: int
    fewest: int
    sectors: int
    worst: int
    lanes: tuple[int | None, ...]

    @property
    def share(self) -> float:
        """Of the bytes in all sectors, those that somebody asked for."""
        return self.used / (self.sectors * SECTOR)


@dataclass(frozen=True)
class Ordering:
    """A call that orders something: ``number`` is what ``without`` takes. ``calls`` of ``threads`` of block 0, both
    nothing where other blocks alone come there."""

    number: int
    operation: str
    where: str
    launch: int
    calls: int
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Use:
    """How one call takes part in a barrier: which threads, how often in all, and the bytes that it announces or
    brings."""

    operation: str
    where: str
    count: int
    bytes: int
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Barrier:
    """An mbarrier at a byte of shared memory, or a named barrier by its id: of block 0. A phase takes ``arrivals``."""

    kind: str
    at: int
    arrivals: int
    phases: int
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class Fill:
    """What asynchronous copies brought into shared memory together, between the bytes ``begin`` and ``end``: a group of
    cp.async, or the tensor copies of one phase of an mbarrier. The rest are times, as numbers of events; 0: never."""

    begin: int
    end: int
    bytes: int
    issued: int
    landed: int
    first_read: int
    last_read: int


@dataclass(frozen=True)
class Launch:
    """One launch. ``warp`` of block 0 is that whose accesses to shared memory were chosen to be shown."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: int  # blocks
    shared_bytes: int
    warp: int
    shared: tuple[Access, ...]
    arrays: tuple[Access, ...]
    barriers: tuple[Barrier, ...]
    fills: tuple[Fill, ...]


@dataclass(frozen=True)
class Verdict:
    """What the emulator says without a call, in one of several orders of threads: an error, or "" and how many values
    of every array that is written became others, and how many of them no number."""

    seed: int
    error: str
    changed: dict[str, tuple[int, int]]

    @property
    def noticed(self) -> bool:
        return bool(self.error) or any(changed for changed, _ in self.changed.values())


@dataclass(frozen=True)
class Glass:
    """An op under glass. ``images``: N padded to whole blocks of lanes, 0 where an op has none. ``variant``: the name
    of a product's kernel as ``convnet-info --kernels`` shows it."""

    op: str
    precision: str
    sizes: Sizes
    images: int
    variant: str
    launches: tuple[Launch, ...]
    calls: tuple[Ordering, ...]
    without: int | None
    verdicts: tuple[Verdict, ...]


# ---- problems ----

Shapes = dict[str, Any]  # of an op's parameters, by their names


def _conv(v: Sizes, lanes: int) -> Shapes:
    return {"shape": ConvShape.of(**v, lanes=lanes)}


def _local(v: Sizes, lanes: int) -> Shapes:
    return {"shape": LocalShape.of(**v, lanes=lanes)}


def _linear(v: Sizes, lanes: int) -> Shapes:
    return {"shape": LinearShape(**v, lanes=lanes)}


def _pool(v: Sizes, lanes: int) -> Shapes:
    return {"shape": PoolShape.of(**v, lanes=lanes)}


def _rand_pool(v: Sizes, lanes: int) -> Shapes:
    shape = PoolShape.of(**v, lanes=lanes)
    features = shape.C * shape.P * shape.Q
    return {"shape": shape, "draw": DropoutShape(shape.N, features, lanes, 0, features, 0.0, 0, 0)}


def _lrn(v: Sizes, lanes: int) -> Shapes:
    return {"shape": LrnShape(**v, groups=1, lanes=lanes, alpha=1e-4, beta=0.75, k=2.0)}


def _spatial_norm(v: Sizes, lanes: int) -> Shapes:
    return {"shape": SpatialNormShape(**v, lanes=lanes, alpha=1e-4, beta=0.75, k=1.0)}


def _blur(v: Sizes, lanes: int) -> Shapes:
    return {"shape": BlurShape(**v, lanes=lanes, std=1.0)}


def _nailbed(v: Sizes, lanes: int) -> Shapes:
    return {"shape": NailbedShape.of(**v, lanes=lanes)}


def _lrn_pool(v: Sizes, lanes: int) -> Shapes:
    images = {name: v[name] for name in "NCHW"}
    lrn = LrnShape(**images, groups=1, lanes=lanes, size=5, alpha=1e-4, beta=0.75, k=2.0)
    return {"lrn": lrn, "pool": PoolShape.of(**v, lanes=lanes)}


def _dropout(v: Sizes, lanes: int) -> Shapes:
    layer = {"feature_offset": 0, "features_total": v["features"], "p": 0.5, "seed": 0, "layer": 0}
    return {"shape": DropoutShape(**v, **layer, lanes=lanes)}


def _softmax(v: Sizes, lanes: int) -> Shapes:
    return {"shape": SoftmaxShape(**v, valid=v["N"], lanes=lanes)}


def _ingest(v: Sizes, lanes: int) -> Shapes:
    return {"shape": IngestShape(**v, valid=v["N"], lanes=lanes, scale=(1.0, 1.0, 1.0))}


def _pack(v: Sizes, lanes: int) -> Shapes:
    C, H, W = v["C"], v["H"], v["W"]
    steps = {"offset": 0, "step_n": C * H * W, "step_c": H * W, "step_h": W, "step_w": 1}
    return {"shape": PackShape(**v, **steps, valid=v["N"], lanes=lanes)}


def _gather(v: Sizes, lanes: int) -> Shapes:
    return {"shape": GatherShape(**v, lanes=lanes)}


# By the shapes that an op takes: sizes with their defaults, in the order in which they may be given without a name.
_CONV = {"N": 64, "C": 16, "H": 6, "W": 6, "K": 32, "R": 3, "S": 3, "stride": 1, "padding": 1, "groups": 1}
_POOL = {"N": 64, "C": 4, "H": 9, "W": 9, "size": 3, "stride": 2, "padding": 0}
_KINDS: dict[tuple[Any, ...], tuple[Sizes, Callable[[Sizes, int], Shapes]]] = {
    (): ({"count": 1024}, lambda v, lanes: {}),
    (ConvShape,): (_CONV, _conv),
    (LocalShape,): ({**_CONV, "H": 4, "W": 4}, _local),
    (LinearShape,): ({"N": 64, "C": 256, "K": 64}, _linear),
    (PoolShape,): (_POOL, _pool),
    (PoolShape, DropoutShape): (_POOL, _rand_pool),
    (LrnShape,): ({"N": 64, "C": 16, "H": 2, "W": 2, "size": 5}, _lrn),
    (LrnShape, PoolShape): ({**_POOL, "C": 16}, _lrn_pool),
    (SpatialNormShape,): ({"N": 64, "C": 4, "H": 9, "W": 9, "size": 3}, _spatial_norm),
    (BlurShape,): ({"N": 64, "C": 3, "H": 9, "W": 9, "size": 5}, _blur),
    (NailbedShape,): ({"N": 64, "C": 3, "H": 8, "W": 8, "stride": 4}, _nailbed),
    (DropoutShape,): ({"N": 64, "features": 32}, _dropout),
    (SoftmaxShape,): ({"N": 64, "K": 10}, _softmax),
    (IngestShape,): ({"N": 64, "H": 12, "W": 12, "crop": 8, "fold": 1}, _ingest),
    (GatherShape,): ({"N": 64, "C": 4, "H": 8, "W": 8, "K": 8}, _gather),
    (PackShape,): ({"N": 64, "C": 3, "H": 8, "W": 8, "fold": 1}, _pack),
}
# Of the convolution whose weights are folded.
_FOLDED = {"N": 64, "C": 3, "H": 19, "W": 19, "K": 16, "R": 11, "S": 11, "stride": 4, "padding": 0, "groups": 1}
_OWN = {"fold_weight": _FOLDED, "unfold_gradient": _FOLDED}
NAMES = [op for op in DECLARED if op != "sgd_many"]  # whose arguments are no arrays but lists of them


def _op(name: str) -> str:
    """Raises ``ValueError`` where there is no such op."""
    named = [op for op in NAMES if name in (op, DECLARED[op].title)]
    if name in named or len(named) == 1:
        return name if name in named else named[0]
    close = named or [op for op in NAMES if name in op] or get_close_matches(name, NAMES, 1)
    meant = f"; did you mean {' or '.join(close)}?" if close else "."
    raise ValueError(f'--emulate: there is no op "{name}"{meant} There are {", ".join(NAMES)}')


@dataclass(frozen=True)
class Problem:
    """What is launched: an op with its shapes, which have ``images`` instead of the N in ``sizes``: whole blocks of
    lanes. 0 where an op has no images."""

    op: str
    precision: str
    sizes: Sizes
    images: int
    shapes: Shapes


def _problem(op: str, text: str, precision: str, device: Device) -> Problem:
    """``text`` names sizes of the op, such as "64,16,8,8" or "N=64 padding=2"; the others have their defaults.

    Raises ``ValueError`` for what is no size of this op, and for impossible ones.
    """
    op = _op(op)
    device.check_precision(precision)
    kinds = tuple(p.kind for p in DECLARED[op].parameters.values() if is_dataclass(p.kind) and not p.optional)
    defaults, shapes = _KINDS[kinds]
    sizes = dict(_OWN.get(op, defaults))
    names = list(sizes)
    wanted = " ".join(f"{name}={size}" for name, size in sizes.items())
    for place, part in enumerate(text.replace(",", " ").split()):
        name, _, number = part.rpartition("=")
        if not name and place < len(names):
            name = names[place]
        if name not in sizes or not re.fullmatch("[0-9]{1,9}", number):
            raise ValueError(f'--emulate {op}: "{part}" is no size of it; sizes and their defaults are {wanted}')
        sizes[name] = int(number)
    for name, size in sizes.items():
        if size < 1 and name != "padding":
            raise ValueError(f"--emulate {op}: {name} must be at least 1, got {size}")
    if "N" not in sizes:
        return Problem(op, precision, sizes, 0, {})
    lanes = device.lanes(sizes["N"])
    images = padded(sizes["N"], lanes)
    return Problem(op, precision, sizes, images, shapes({**sizes, "N": images}, lanes))


def _extent(name: str, mark: Tensor, given: dict[str, Any], count: int) -> tuple[int, ...]:
    if callable(mark.extent):
        # How many planes there are is said by the planes themselves.
        known = {name: SimpleNamespace(shape=(getattr(given.get("shape"), "valid", count),)), **given}
        wanted = mark.extent(*[known[needed] for needed in inspect.signature(mark.extent).parameters])
    else:
        owner, path = mark.extent.split(".", 1) if "." in mark.extent else ("shape", mark.extent)
        wanted = attrgetter(path)(given[owner]) if is_dataclass(given.get(owner)) else count
    return (wanted,) if isinstance(wanted, int) else wanted


def _values(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], places: bool) -> Values:
    """Something to compute with, the same in every run."""
    random = np.random.default_rng(len(name))
    if name == "control":
        return control_words(lr=0.01, momentum=0.9, weight_decay=5e-4)
    if places or name == "argmax":
        return np.zeros(shape, dtype)  # the first
    if dtype == np.float32:
        return random.standard_normal(shape, np.float32)
    if dtype == BF16:
        return to_bf16(random.standard_normal(shape, np.float32))
    return random.integers(0, 2 if name == "mask" else 256, shape, dtype)


def _arguments(problem: Problem, stream: Stream) -> dict[str, Any]:
    """All of them by name, with arrays on the stream's device."""
    device, precision = stream.device, problem.precision
    given: dict[str, Any] = {"stream": stream, "precision": precision, **problem.shapes}
    for name, parameter in DECLARED[problem.op].parameters.items():
        if name in given:
            continue
        absent = name in ("control", "dropout", "mask") or (name == "copy" and precision != "bf16")
        if parameter.optional and absent:
            given[name] = None
        elif not parameter.marks:
            words = {"kind": "logistic", "cost": "squared-error"}
            given[name] = words.get(name) or {float: 0.5, bool: False}[parameter.kind]
        elif isinstance(mark := parameter.marks[0], Scratch):
            nbytes = getattr(device.kernels, mark.size)(given["shape"], precision)
            given[name] = device.empty((nbytes,), np.uint8) if nbytes else None
        else:
            shape = _extent(name, mark, given, problem.sizes.get("count", 0))
            dtype = mark.dtype or activation_dtype(precision)
            given[name] = device.empty(shape, dtype)
            stream.upload(given[name], _values(name, shape, dtype, mark.places))
    return {name: given[name] for name in DECLARED[problem.op].parameters}


# ---- looking ----


_one_at_a_time = threading.Lock()  # the module counts for one


def look(op: str, sizes: str = "", precision: str = "fp32", without: int | None = None) -> Glass:
    """Runs ``op`` once under glass; and once more for every one of ``SEEDS`` without the call of number ``without``.

    ``op`` is the name of a kernel in ``convnet.ops.ops``, or of a function in ``convnet.functional`` that has but one.
    Raises ``ValueError`` for an op, a size or a number that there is not, and ``DeviceError`` where the module is not
    built.
    """
    with _one_at_a_time:
        return _look(op, sizes, precision, without)


def _look(op: str, sizes: str, precision: str, without: int | None) -> Glass:
    device = open_watched()
    kernels = device.kernels
    try:
        problem = _problem(op, sizes, precision, device)
        expected, (launches, calls) = _run(problem, device, SEEDS[0], watch=True)
        where = _Places(kernels.__file__, launches)
        verdicts: tuple[Verdict, ...] = ()
        if without is not None:
            if not 1 <= without <= len(calls):
                there = f"there are 1 to {len(calls)}" if calls else "it has none"
                raise ValueError(f"--without-barrier: {problem.op} has no call {without} that orders; {there}")
            site = calls[without - 1]["site"]
            kernels.leave_out(site["file"], site["line"], site["column"])
            verdicts = tuple(_verdict(problem, device, seed, expected) for seed in SEEDS)
        return Glass(
            problem.op, precision, problem.sizes, problem.images, _variant(problem, device),
            tuple(_launch(launch, where) for launch in launches),
            tuple(
                Ordering(n, c["operation"], where.of_site(c["site"]), c["launch"], c["calls"], tuple(c["threads"]))
                for n, c in enumerate(calls, 1)
            ),
            without, verdicts,
        )  # fmt: skip
    finally:
        kernels.leave_out("", 0, 0)
        device.close()


def _run(problem: Problem, device: Device, seed: int, watch: bool) -> tuple[dict[str, Values], Any]:
    """Launches the op once: what it has written, by name, and what was watched, with names instead of arrays."""
    kernels, stream = device.kernels, device.stream()
    given = _arguments(problem, stream)
    device.synchronize()
    arrays = {name: value for name, value in given.items() if isinstance(value, Array)}
    kernels.seed_order(seed)
    if watch:
        kernels.watch([(array.handle, array.nbytes) for array in arrays.values()])
    try:
        getattr(ops, problem.op)(*given.values())
        device.synchronize()
    finally:
        seen = kernels.watched()
    for launch in seen[0]:
        for access in launch["accesses"]:
            access["array"] = "" if access["array"] < 0 else list(arrays)[access["array"]]
    parameters = DECLARED[problem.op].parameters
    written = {name for name in arrays if any(isinstance(m, Tensor) and m.written for m in parameters[name].marks)}
    return {name: arrays[name].download() for name in arrays if name in written}, seen


def _verdict(problem: Problem, device: Device, seed: int, expected: dict[str, Values]) -> Verdict:
    try:
        found, _ = _run(problem, device, seed, watch=False)
    except RuntimeError as error:
        return Verdict(seed, str(error), {})
    changed = {}
    for name, values in found.items():
        bits = f"u{values.itemsize}"
        others = values[values.view(bits) != expected[name].view(bits)]
        lost = np.isnan(to_float32(others)) if others.dtype in (BF16, np.float32) else np.zeros(0)
        changed[name] = (others.size, int(lost.sum()))
    return Verdict(seed, "", changed)


def _variant(problem: Problem, device: Device) -> str:
    """The name of a product's kernel; "" for what is no product."""
    op = problem.op.removesuffix("_update")  # which is the same product
    if op not in {row["op"] for row in device.kernels.variants()}:
        return ""
    shape = problem.shapes["shape"]
    ask = getattr(device.kernels, f"{op.partition('_')[0]}_variant")
    return str(ask(op, shape, problem.precision))


def _launch(launch: dict[str, Any], where: _Places) -> Launch:
    accesses = [_access(a, where) for a in launch["accesses"]]
    warps = [a["warp"] for a in launch["accesses"]]
    work: dict[int, int] = {}  # executions in shared memory, of every warp
    for access, warp in zip(accesses, warps, strict=True):
        if warp >= 0:
            work[warp] = work.get(warp, 0) + access.requests
    chosen = min(work, key=lambda warp: (-work[warp], warp), default=0)
    return Launch(
        kernel_name(launch["kernel"]), launch["grid"], launch["block"], launch["cluster"], launch["shared_bytes"],
        chosen,
        tuple(a for a, warp in zip(accesses, warps, strict=True) if warp == chosen),
        tuple(a for a in accesses if a.array),
        tuple(
            Barrier(b["kind"], b["at"], b["arrivals"], b["phases"], tuple(
                Use(u["operation"], where.of_site(u["site"]), u["count"], u["bytes"], tuple(u["threads"]))
                for u in b["uses"]
            ))
            for b in launch["barriers"]
        ),
        tuple(Fill(**fill) for fill in launch["fills"]),
    )  # fmt: skip


def _access(a: dict[str, Any], where: _Places) -> Access:
    origin = 0 if not a["array"] else min((at for at in a["worst_at"] if at >= 0), default=0) // SECTOR * SECTOR
    return Access(
        a["operation"], where.of_code(a["code"]) if a["code"] else where.of_site(a["site"]),
        a["array"], a["bytes"], a["requests"], a["asked"], a["used"], a["wavefronts"],
        a["fewest"], a["sectors"], a["worst"], tuple(None if at < 0 else at - origin for at in a["worst_at"]),
    )  # fmt: skip


def kernel_name(signature: str) -> str:
    """From "void convnet::{anonymous}::kernel(int, const T*) [with T = float]" to "kernel [T = float]"."""
    name, _, types = signature.partition("[")
    name = name.replace("{anonymous}", "").replace("(anonymous namespace)", "").partition("(")[0]
    name = name.replace("::", " ").split()[-1]
    return f"{name} [{types.removeprefix('with ').replace('convnet::', '')}" if types else name


class _Places:
    """Names of places in the source: "pack.cu:70". Of code they come from the compiler's line tables, which binutils
    reads; where there are none of either, instructions are numbered as they follow each other in the code."""

    def __init__(self, file: str, launches: list[dict[str, Any]]):
        codes = sorted({a["code"] for launch in launches for a in launch["accesses"] if a["code"]})
        self.names = {code: f"instruction {number}" for number, code in enumerate(codes, 1)} | dict(_lines(file, codes))

    def of_code(self, code: int) -> str:
        return self.names[code]

    def of_site(self, site: dict[str, Any]) -> str:
        return f"{_short(site['file'])}:{site['line']}"


def _short(path: str) -> str:
    """From the folder of kernels on: "" for what lies elsewhere."""
    return path.rpartition("/src/kernels/")[2].removeprefix("arch/../") if "/src/kernels/" in path else ""


def _lines(file: str, codes: list[int]) -> Iterator[tuple[int, str]]:
    """The innermost line of a kernel's own source, not of the emulator's, for each address that has one."""
    program = shutil.which("addr2line")
    if program is None or not codes:
        return
    command = [program, "-a", "-i", "-e", file, *(f"{code:#x}" for code in codes)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    code = None
    for line in listed.splitlines():
        where = _short(line.partition(" (")[0])  # behind which the program may say what it knows of the line
        if line.startswith("0x"):
            code = int(line, 16)
        elif code is not None and where and not where.startswith("emu/") and not where.endswith(("?", ":0")):
            yield code, where
            code = None


def as_json(seen: Glass) -> dict[str, Any]:
    """Everything as JSON types."""
    return asdict(seen)
