"""How often every instruction of a kernel runs: its machine code, executed as far as that can be without memory.

Integers are computed from the kernel's parameters, for all threads of some blocks of the grid at once; they decide
where it goes next. Nothing of a tensor is known: what is loaded from memory is 0, and so is what is computed from it in
floating point. Waits are over at once. Threads of a warp go apart and meet again like this: those run whose next
instruction comes first in the code.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from machine_code import JUMPS, Code, Instruction, is_predicate, is_register, kind, pair, results, split, width

if TYPE_CHECKING:
    from benchmarks.launches import Launch

PARAMETERS = 0x210  # where they begin in the bank of constants of sm_90
CLUSTERS = 0x140  # 1 where the launch asks for clusters
GENERIC = 0x198  # what the address of the parameters is made from; here it is their place in the bank
WARP = 32

Values = np.ndarray[Any, Any]


def constants(launch: Launch) -> bytes:
    """The bank of constants as the kernel finds it."""
    bank = bytearray(PARAMETERS)
    bank[: 4 * 6] = struct.pack("<6I", *launch.block, *launch.grid)
    bank[CLUSTERS : CLUSTERS + 4] = struct.pack("<I", launch.cluster > 1)
    bank[GENERIC : GENERIC + 4] = struct.pack("<I", PARAMETERS)
    for alignment, value in launch.parameters:
        bank += bytes(-len(bank) % alignment) + value
    return bytes(bank) + bytes(16)


def box_bytes(bank: bytes, place: int) -> int:
    """Of the tensor map of the emulator that lies there (emu/tma.hpp)."""
    _, element, *_, a, b, c, d, e = struct.unpack_from("<Q2i10q5i", bank, place)
    return (2 if element == 0 else 4) * a * b * c * d * e


def _spread(total: int, most: int) -> Values:
    """At most so many of ``total`` blocks, the same every time; multiples of the golden ratio have no period in common
    with a grid."""
    if total <= most:
        return np.arange(total)
    return np.unique((np.arange(most) * 0.6180339887498949 % 1 * total).astype(np.int64))


@dataclass
class Counts:
    """What the blocks of a launch execute: arrays have one value per block that was looked at."""

    blocks: int  # of the grid
    instructions: dict[str, Values]  # of warps, by kind
    loaded: Values  # bytes asked of the second level of cache
    stored: Values

    def total(self, *kinds: str) -> float:
        """How many of these kinds all blocks execute together; of all kinds where none are named."""
        chosen = kinds or tuple(self.instructions)
        return float(sum(self.instructions[kind].mean() for kind in chosen if kind in self.instructions)) * self.blocks


# ---- execution


class Machine:
    """All threads of some blocks of a launch."""

    most_steps = 200_000  # of basic blocks; more is a loop without an end

    def __init__(self, code: Code, launch: Launch, most_threads: int):
        self.bank, self.table = np.frombuffer(constants(launch), np.uint8), np.array(code.table, np.uint32)
        self.code = code
        total, threads = launch.blocks, launch.threads
        chosen = _spread(total, max(1, most_threads // threads))
        self.grid_blocks, self.count = total, len(chosen)
        warps = -(-threads // WARP)
        tid = np.arange(warps * WARP)
        self.exists = np.tile(tid < threads, self.count)
        self.warps = warps
        x, y, _ = launch.block
        gx, gy, _ = launch.grid

        def per_thread(values: Values) -> Values:
            return np.tile(values, self.count).astype(np.uint32)

        def per_block(values: Values) -> Values:
            return np.repeat(values, warps * WARP).astype(np.uint32)

        self.special = {
            "SR_TID.X": per_thread(tid % x), "SR_TID.Y": per_thread(tid // x % y),
            "SR_TID.Z": per_thread(tid // (x * y)), "SR_LANEID": per_thread(tid % WARP),
            "SR_CTAID.X": per_block(chosen % gx), "SR_CTAID.Y": per_block(chosen // gx % gy),
            "SR_CTAID.Z": per_block(chosen // (gx * gy)),
            "SR_CgaCtaId": per_block(chosen % launch.cluster),
        }  # fmt: skip
        self.size = len(self.exists)
        self.registers: dict[str, Values] = {}
        self.predicates: dict[str, Values] = {}
        self.zeros, self.true = np.zeros(self.size, np.uint32), np.ones(self.size, bool)
        self.false = ~self.true
        self.bytes = {"load": np.zeros(self.count), "store": np.zeros(self.count)}

    # operands

    def value(self, operand: str) -> Values:
        """32 bits per thread."""
        operand = operand.removesuffix(".reuse")
        if operand.startswith("-"):
            return -self.value(operand[1:])
        if operand.startswith("~"):
            return ~self.value(operand[1:])
        if operand.endswith("RZ"):
            return self.zeros
        if operand[0] == "R" or operand.startswith("UR"):
            return self.registers.get(operand, self.zeros)
        if operand.startswith("c["):
            return self.constant(operand, 4)
        return np.full(self.size, int(operand, 0) & 0xFFFFFFFF, np.uint32)

    def constant(self, operand: str, size: int, offset: int = 0) -> Values:
        bank, index = re.fullmatch(r"c\[(0x\w+)\]\[([^\]]+)\]", operand).groups()  # type: ignore[union-attr]
        at = np.zeros(self.size, np.int64) + offset
        for part in index.split("+"):
            part = part.strip()
            at = at + (self.value(part).astype(np.int32) if "R" in part else int(part, 0))
        at = at.astype(np.int64)
        if bank == "0x2":
            return self.table[np.clip(at // 4, 0, len(self.table) - 1)]
        if bank != "0x0":
            raise ValueError(f"{operand}: constants lie in bank 0x0 (parameters) or 0x2 (places to jump to)")
        at = np.clip(at, 0, len(self.bank) - size)
        return sum(self.bank[at + i].astype(np.uint32) << np.uint32(8 * i) for i in range(size))  # type: ignore[return-value]

    def wide(self, operand: str) -> Values:
        """64 bits per thread: of a register and the next one."""
        operand = operand.removesuffix(".reuse")
        if operand.startswith("-"):
            return -self.wide(operand[1:])
        if operand.startswith("c["):
            return self.constant(operand, 4).astype(np.uint64) | self.constant(operand, 4, 4).astype(
                np.uint64
            ) << np.uint64(32)
        if is_register(operand):
            low, high = pair(operand)
            return self.value(low).astype(np.uint64) | self.value(high).astype(np.uint64) << np.uint64(32)
        return np.full(self.size, int(operand, 0) & 0xFFFFFFFFFFFFFFFF, np.uint64)

    def truth(self, operand: str) -> Values:
        if operand.startswith("!"):
            return ~self.truth(operand[1:])
        return self.true if operand in ("PT", "UPT") else self.predicates.get(operand, self.false)

    # results

    def write(self, register: str, value: Values, mask: Values | None) -> None:
        if register.endswith("Z"):
            return
        value = value.astype(np.uint32)
        self.registers[register] = (
            value if mask is None else np.where(mask, value, self.registers.get(register, self.zeros))
        )

    def write_wide(self, register: str, value: Values, mask: Values | None) -> None:
        low, high = pair(register)
        self.write(low, value & np.uint64(0xFFFFFFFF), mask)
        self.write(high, value >> np.uint64(32), mask)

    def set(self, predicate: str, value: Values, mask: Values | None) -> None:
        if not predicate.endswith("T"):
            old = self.predicates.get(predicate, self.false)
            self.predicates[predicate] = value if mask is None else np.where(mask, value, old)

    # running

    def run(self) -> Counts:
        """To the end of all threads."""
        blocks = self.code.blocks
        index = {block.address: i for i, block in enumerate(blocks)}
        programs = [[(code, _operation(code)) for code in block.code] for block in blocks]
        visits = np.zeros((len(blocks), self.count), np.int64)
        done = len(blocks)
        pc = np.where(self.exists, 0, done)
        steps = 0
        while (now := int(pc.min())) < done:
            steps += 1
            if steps > self.most_steps:
                raise RuntimeError(f"a loop at {blocks[now].address:#x} does not end")
            active = pc == now
            visits[now] += active.reshape(self.count, self.warps, WARP).any(2).sum(1)
            everyone = bool(active.all())
            pc[active] = now + 1
            for code, work in programs[now]:
                taken = active & self.truth(code.predicate) if code.predicate else active
                if code.base not in JUMPS:
                    work(self, code, None if everyone and not code.predicate else taken)
                    continue
                if code.base == "EXIT":
                    pc[taken] = done
                elif code.base in ("RET", "BRX"):  # addresses count from the beginning of the kernel
                    base = self.value(code.operands[0].split()[0])
                    for target in np.unique(base[taken]):
                        pc[taken & (base == target)] = index[int(target)]
                elif code.base == "CALL":
                    pc[taken] = index[int(code.operands[-1], 16)]
                elif code.name != "BRA.DIV":  # which goes where lanes are apart that should not be
                    for operand in code.operands[:-1]:
                        taken = taken & self.truth(operand)
                    pc[taken] = index[int(code.operands[-1], 16)]
        counted: dict[str, Values] = {}
        for block, times in zip(blocks, visits, strict=True):
            for code in block.code:
                counted[kind(code)] = counted.get(kind(code), 0) + times
        counted = {name: counted[name].astype(float) for name in sorted(counted)}
        return Counts(self.grid_blocks, counted, self.bytes["load"], self.bytes["store"])

    def moved(self, direction: str, size: int | Values, mask: Values | None) -> None:
        threads = self.true if mask is None else mask
        self.bytes[direction] += (threads * size).reshape(self.count, -1).sum(1)


def execute(code: Code, launch: Launch, most_threads: int = 1 << 14) -> Counts:
    """Of a launch with more threads than that, some blocks stand for all."""
    return Machine(code, launch, most_threads).run()


# ---- what instructions do

Operation = Callable[[Machine, Instruction, "Values | None"], None]


def _operation(code: Instruction) -> Operation:
    for pattern, work in _OPERATIONS:
        if re.fullmatch(pattern, code.name):
            return work
    written = results(code)
    return _unknown if written else _nothing


def _nothing(m: Machine, code: Instruction, mask: Values | None) -> None:
    pass


def _unknown(m: Machine, code: Instruction, mask: Values | None) -> None:
    """Something of a tensor."""
    for register in results(code):
        if "P" in register:
            m.set(register, m.false, mask)
        elif mask is None:
            m.registers[register] = m.zeros
        elif m.registers.get(register, m.zeros) is not m.zeros:
            m.write(register, m.zeros, mask)


def _long(m: Machine, operand: str) -> Values:
    """As a term of a sum with a carry: minus 0 is 2^32."""
    if operand.startswith("-"):
        return np.uint64(1 << 32) - m.value(operand[1:]).astype(np.uint64)
    return m.value(operand).astype(np.uint64)


def _sum(m: Machine, code: Instruction, mask: Values | None, terms: list[Values], extra: list[str]) -> None:
    """A sum of 32 bits with the carries that go in and out."""
    targets = split(code)[0]
    total = sum(terms, np.zeros(m.size, np.uint64))
    for carry in extra:
        total = total + m.truth(carry)
    for target in targets:
        if is_predicate(target):
            m.set(target, total >> np.uint64(32) != 0, mask)
    for target in targets:
        if is_register(target):
            m.write(target, total & np.uint64(0xFFFFFFFF), mask)


def _add(m: Machine, code: Instruction, mask: Values | None) -> None:
    given = split(code)[1]
    terms = [o for o in given if "P" not in o]
    _sum(m, code, mask, [_long(m, o) for o in terms], [o for o in given if "P" in o] if ".X" in code.name else [])


def _add_wide(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), given = split(code)
    m.write_wide(target, sum((m.wide(o) for o in given), np.zeros(m.size, np.uint64)), mask)


def _multiply(m: Machine, code: Instruction, mask: Values | None) -> None:
    parts = code.name.split(".")
    targets, given = split(code)
    a, b, c = given[:3]
    if "WIDE" in parts or "HI" in parts:
        if "U32" in parts:
            product = m.value(a).astype(np.uint64) * m.value(b).astype(np.uint64)
        else:
            product = (m.value(a).astype(np.int32).astype(np.int64) * m.value(b).astype(np.int32)).astype(np.uint64)
        total = product + m.wide(c)
        for target in targets:
            if is_predicate(target):
                m.set(target, total < product, mask)
            elif "HI" in parts:
                m.write(target, total >> np.uint64(32), mask)
            else:
                m.write_wide(target, total, mask)
    elif "X" in parts:
        product = m.value(a).astype(np.uint64) * m.value(b).astype(np.uint64) & np.uint64(0xFFFFFFFF)
        _sum(m, code, mask, [product, _long(m, c)], given[3:4])
    else:
        m.write(targets[0], m.value(a) * m.value(b) + m.value(c), mask)


def _shifted(m: Machine, low: Values, high: Values, by: Values) -> Values:
    """The upper word of a value shifted to the left."""
    return ((low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)) << by.astype(np.uint64)) >> np.uint64(32)


def _lea(m: Machine, code: Instruction, mask: Values | None) -> None:
    parts = code.name.split(".")
    given = [o for o in split(code)[1] if "P" not in o]
    carries = [o for o in split(code)[1] if "P" in o] if "X" in parts else []
    a, b = m.value(given[0]), _long(m, given[1])
    shift = m.value(given[-1])
    if "HI" not in parts:
        moved = a << shift
    elif "SX32" in parts:
        moved = _shifted(m, a, (a.astype(np.int32) >> 31).astype(np.uint32), shift)
    else:
        moved = _shifted(m, a, m.value(given[2]), shift)
    _sum(m, code, mask, [moved.astype(np.uint64), b], carries)


def _shift(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (low, by, high) = split(code)
    parts = code.name.split(".")
    n = np.minimum(m.value(by), 63).astype(np.uint64)
    both = m.value(low).astype(np.uint64) | m.value(high).astype(np.uint64) << np.uint64(32)
    if "L" in parts:
        moved = both << n
    elif "S32" in parts or "S64" in parts:
        moved = (both.astype(np.int64) >> n.astype(np.int64)).astype(np.uint64)
    else:
        moved = both >> n
    m.write(target, (moved >> np.uint64(32) if "HI" in parts else moved) & np.uint64(0xFFFFFFFF), mask)


def _logic(a: Values, b: Values, c: Values, table: int) -> Values:
    found = a & ~a
    for i in range(8):
        if table >> i & 1:
            found = found | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return found


def _lop3(m: Machine, code: Instruction, mask: Values | None) -> None:
    targets, given = split(code)
    found = _logic(*(m.value(o) for o in given[:3]), int(given[3], 16))
    for target in targets:
        if is_predicate(target):
            m.set(target, (found != 0) | m.truth(given[4]), mask)
        else:
            m.write(target, found, mask)


def _plop3(m: Machine, code: Instruction, mask: Values | None) -> None:
    targets, given = split(code)
    operands = [m.truth(o) for o in given[:3]]
    found = [_logic(*operands, int(table, 16)) for table in given[3:5]]
    for target, value in zip(targets, found, strict=True):
        m.set(target, value, mask)


def _compare(m: Machine, code: Instruction, mask: Values | None) -> None:
    parts = code.name.split(".")
    targets, given = split(code)
    a, b = m.value(given[0]), m.value(given[1])
    if "U32" not in parts:
        a, b = a.astype(np.int32), b.astype(np.int32)
    comparison = parts[1]
    found = {
        "EQ": a == b, "NE": a != b, "LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b,
    }[comparison]  # fmt: skip
    if "EX" in parts:  # of upper words, where the lower ones decide between equals
        below = m.truth(given[3])
        strict = {"EQ": m.false, "NE": a != b, "LT": a < b, "LE": a < b, "GT": a > b, "GE": a > b}[comparison]
        found = strict | (a == b) & below
    other = m.truth(given[2])
    combine = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}[
        parts[3] if "U32" in parts else parts[2]
    ]
    m_values = combine(found, other), combine(~found, other)
    for target, value in zip(targets, m_values, strict=True):
        m.set(target, value, mask)


def _real(m: Machine, operand: str) -> Values:
    """A float32 per thread."""
    if operand.startswith("-"):
        return -_real(m, operand[1:])
    if operand.startswith("|"):
        return np.abs(_real(m, operand.strip("|")))
    if re.match(r"R|UR|c\[", operand):
        return m.value(operand).astype(np.uint32).view(np.float32)
    return np.full(m.size, float(operand.replace("QNAN", "nan")), np.float32)


def _compare_real(m: Machine, code: Instruction, mask: Values | None) -> None:
    targets, given = split(code)
    parts = code.name.split(".")
    a, b = _real(m, given[0]), _real(m, given[1])
    found = {
        "EQ": a == b, "NE": a != b, "LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b,
        "NUM": ~np.isnan(a) & ~np.isnan(b), "NAN": np.isnan(a) | np.isnan(b),
    }[parts[1] if parts[1] in ("NUM", "NAN") else parts[1][:2]]  # fmt: skip
    if len(parts[1]) == 3 and parts[1].endswith("U"):
        found = found | np.isnan(a) | np.isnan(b)
    combine = np.logical_or if "OR" in parts else np.logical_and
    other = m.truth(given[2])
    for target, value in zip(targets, (combine(found, other), combine(~found, other)), strict=True):
        m.set(target, value, mask)


def _select(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (a, b, which) = split(code)
    m.write(target, np.where(m.truth(which), m.value(a), m.value(b)), mask)


def _least(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), given = split(code)
    *values, which = given
    number = np.uint32 if "U32" in code.name else np.int32
    a = m.value(values[0]) + (m.value(values[1]) if "ADD" in code.name else np.uint32(0))
    a, b = a.astype(number), m.value(values[-1]).astype(number)
    m.write(target, np.where(m.truth(which), np.minimum(a, b), np.maximum(a, b)), mask)


def _absolute(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (a,) = split(code)
    m.write(target, np.abs(m.value(a).astype(np.int32)), mask)


def _to_float(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (a,) = split(code)
    if "U64" in code.name:
        exact = m.wide(a).astype(np.float64)
    else:
        unsigned = "U32" in code.name
        exact = m.value(a).astype(np.uint32 if unsigned else np.int32).astype(np.float64)
    rounded = exact.astype(np.float32)
    if ".RP" in code.name:
        rounded = np.where(rounded < exact, np.nextafter(rounded, np.float32(np.inf)), rounded)
    m.write(target, rounded.astype(np.float32).view(np.uint32), mask)


def _to_integer(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (a,) = split(code)
    value = m.value(a).astype(np.uint32).view(np.float32).astype(np.float64)
    value = np.clip(np.nan_to_num(value), 0, 2.0**64 - 4096 if "U64" in code.name else 2.0**32 - 1)
    if "U64" in code.name:
        m.write_wide(target, value.astype(np.uint64), mask)
    else:
        m.write(target, value.astype(np.uint64), mask)


def _reciprocal(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (a,) = split(code)
    with np.errstate(all="ignore"):
        value = np.float32(1) / m.value(a).astype(np.uint32).view(np.float32)
    m.write(target, value.astype(np.float32).view(np.uint32), mask)


def _halves(m: Machine, code: Instruction, mask: Values | None) -> None:
    """A constant: two numbers of 16 bits added to zero."""
    (target,), given = split(code)
    if len(given) != 4 or not (given[0].endswith("RZ") or given[1].endswith("RZ")):
        _unknown(m, code, mask)
        return
    high, low = (int(np.float16(float(x)).view(np.uint16)) for x in given[2:])
    m.write(target, np.full(m.size, high << 16 | low, np.uint32), mask)


def _move(m: Machine, code: Instruction, mask: Values | None) -> None:
    targets, given = split(code)
    m.write(targets[0], m.value(given[0]), mask)


def _special(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (name,) = split(code)
    m.write(target, m.special.get(name, m.zeros), mask)
    if code.base == "CS2R" and ".32" not in code.name:
        m.write(pair(target)[1], m.zeros, mask)


def _constant(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (place,) = split(code)
    if "64" in code.name:
        m.write(target, m.constant(place, 4), mask)
        m.write(pair(target)[1], m.constant(place, 4, 4), mask)
    else:
        m.write(target, m.constant(place, {"U8": 1, "U16": 2}.get(code.name.partition(".")[2], 4)), mask)


def _keep_predicates(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (_, other, which) = split(code)
    bits, wanted = np.zeros(m.size, np.uint32), int(which, 16)
    for i in range(7):
        if wanted >> i & 1:
            bits = bits | m.truth(f"P{i}").astype(np.uint32) << np.uint32(i)
    m.write(target, m.value(other) & np.uint32(~wanted & 0xFFFFFFFF) | bits, mask)


def _restore_predicates(m: Machine, code: Instruction, mask: Values | None) -> None:
    bits = m.value(code.operands[1])
    for predicate in results(code):
        m.set(predicate, (bits >> np.uint32(int(predicate[1:])) & np.uint32(1)) != 0, mask)


def _permute(m: Machine, code: Instruction, mask: Values | None) -> None:
    (target,), (a, selector, c) = split(code)
    values = m.value(a).astype(np.uint64) | m.value(c).astype(np.uint64) << np.uint64(32)
    wanted, found = int(selector, 16), np.zeros(m.size, np.uint64)
    for i in range(4):
        nibble = wanted >> 4 * i & 15
        byte = values >> np.uint64(8 * (nibble & 7)) & np.uint64(255)
        if nibble & 8:
            byte = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        found = found | byte << np.uint64(8 * i)
    m.write(target, found, mask)


def _first_lane(m: Machine, code: Instruction, mask: Values | None) -> None:
    """A shuffle whose index is 0."""
    targets, (value, lane, _) = split(code)
    if not lane.endswith("RZ"):
        _unknown(m, code, mask)
        return
    m.write(targets[-1], np.repeat(m.value(value).reshape(-1, WARP)[:, 0], WARP), mask)


def _vote(m: Machine, code: Instruction, mask: Values | None) -> None:
    targets, given = split(code)
    here = (m.true if mask is None else mask).reshape(-1, WARP)
    said = m.truth(given[-1]).reshape(-1, WARP)
    found = (said & here).any(1) if "ANY" in code.name else (said | ~here).all(1)
    for target in targets:
        if is_predicate(target):
            m.set(target, np.repeat(found, WARP), mask)


def _elect(m: Machine, code: Instruction, mask: Values | None) -> None:
    here = (m.true if mask is None else mask).reshape(-1, WARP)
    first = here & (np.cumsum(here, 1) == 1)
    m.set(code.operands[0], first.reshape(-1), mask)


def _granted(m: Machine, code: Instruction, mask: Values | None) -> None:
    """Waits are over, registers are there."""
    for predicate in results(code):
        if "P" in predicate:
            m.set(predicate, m.true, mask)


def _access(m: Machine, code: Instruction, mask: Values | None) -> None:
    done = m.true if mask is None else mask
    for operand in code.operands[2:] if code.base == "LDGSTS" else []:
        done = done & m.truth(operand)
    m.moved("load" if code.base in ("LDG", "LDGSTS") else "store", width(code.name), done)
    if code.base == "LDG":
        _unknown(m, code, mask)


def _tensor_copy(m: Machine, code: Instruction, mask: Values | None) -> None:
    """One into several blocks of a cluster leaves the second level of cache once."""
    place = m.value(code.operands[1].strip("[]"))
    done = m.true if mask is None else mask
    sizes = np.zeros(m.size, np.int64)
    for at in np.unique(place[done]):
        sizes[place == at] = box_bytes(m.bank.tobytes(), int(at))
    m.moved("load" if code.base == "UTMALDG" else "store", sizes, done)


_OPERATIONS: list[tuple[str, Operation]] = [
    (r"U?IADD3(\.X)?|VIADD(\.\w+)?", _add),
    (r"UIADD3\.64", _add_wide),
    (r"U?IMAD(\.\w+)*", _multiply),
    (r"U?LEA(\.\w+)*", _lea),
    (r"U?SHF(\.\w+)+", _shift),
    (r"U?LOP3\.LUT", _lop3),
    (r"U?PLOP3\.LUT", _plop3),
    (r"U?ISETP(\.\w+)+", _compare),
    (r"FSETP(\.\w+)+", _compare_real),
    (r"U?SEL", _select),
    (r"(VIMNMX|VIADDMNMX)(\.U32)?", _least),
    (r"IABS", _absolute),
    (r"I2FP?(\.F32)?(\.[US](32|64))?(\.RP)?", _to_float),
    (r"F2I(\.FTZ)?\.U(32|64)\.TRUNC(\.NTZ)?", _to_integer),
    (r"MUFU\.RCP", _reciprocal),
    (r"HFMA2\.MMA", _halves),
    (r"U?MOV|R2UR", _move),
    (r"C?S2U?R(\.32)?", _special),
    (r"U?LDC(\.\w+)?", _constant),
    (r"P2R", _keep_predicates),
    (r"R2P", _restore_predicates),
    (r"U?PRMT", _permute),
    (r"SHFL\.IDX", _first_lane),
    (r"VOTEU?\.(ANY|ALL)", _vote),
    (r"ELECT", _elect),
    (r"SYNCS\.PHASECHK.*|USETMAXREG.*", _granted),
    (r"(LDG|STG|LDGSTS|ATOMG|REDG?)(\.\w+)*", _access),
    (r"UTMA(LDG|STG)(\.\w+)*", _tensor_copy),
]
