"""The machine code of kernels for sm_90a, from a listing by nvdisasm, in basic blocks for ``execute.py``."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

# Global memory by threads; tensor copies count by their boxes.
ACCESSES = {"LDG", "STG", "LDGSTS", "ATOMG", "RED", "REDG"}
TENSOR_COPIES = {"UTMALDG", "UTMASTG"}
JUMPS = {"BRA", "EXIT", "RET", "CALL", "BRX"}
LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+([^;]*?)\s*(?:\(\*\"BRANCH_TARGETS ([^\"]*)\"\*\))?;")
LABEL = re.compile(r"^([.$\w]+):")


@dataclass(frozen=True)
class Basic:
    """A stretch of code without a branch but its last instruction, and without a target but its first."""

    address: int
    code: list[Instruction]


@dataclass(frozen=True)
class Code:
    """A kernel's. ``table``: the words that its indirect branches read."""

    blocks: list[Basic]
    table: list[int]


# ---- instructions


class Instruction(NamedTuple):
    predicate: str  # "!P0", "" for always
    name: str  # with modifiers: "IMAD.WIDE.U32"
    operands: tuple[str, ...]

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]


def instruction(text: str) -> Instruction:
    """From "@!P0 IMAD.WIDE R2, R3, 0x4, R6"."""
    predicate, rest = "", text.strip()
    if rest.startswith("@"):
        predicate, rest = rest[1:].split(None, 1)
    name, _, operands = rest.partition(" ")
    return Instruction(predicate, name, tuple(part.strip() for part in operands.split(",") if part.strip()))


def width(name: str) -> int:
    """Bytes that one thread loads or stores."""
    parts = name.split(".")
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((sizes[part] for part in parts[1:] if part in sizes), 4)


def kind(code: Instruction) -> str:
    """What an instruction is counted as: its name, with the shape of a product or the bytes of an access."""
    if code.base == "HGMMA":
        shape = ".".join(code.name.split(".")[:2])  # of which the first operand may be in registers
        return "HGMMA.none" if code.operands[0] == "RZ" else shape + ".R" * is_register(code.operands[1])
    if code.base in ("HMMA", "MUFU"):
        return ".".join(code.name.split(".")[:2])
    if code.base in ACCESSES | {"LDS", "STS"}:
        return f"{code.base}.{8 * width(code.name)}"
    return code.base


def is_register(operand: str) -> bool:
    return re.fullmatch(r"U?R(\d+|Z)", operand) is not None


def is_predicate(operand: str) -> bool:
    return re.fullmatch(r"U?P(\d+|T)", operand) is not None


_TWO_PREDICATES = {"ISETP", "UISETP", "FSETP", "DSETP", "PLOP3", "UPLOP3", "HSETP2"}
_NO_RESULT = ACCESSES - {"LDG", "ATOMG"} | TENSOR_COPIES | JUMPS | {
    "BAR", "BSSY", "BSYNC", "STS", "STSM", "NOP", "WARPSYNC", "CCTL", "DEPBAR", "LDGDEPBAR", "MEMBAR", "FENCE",
    "WARPGROUP", "ENDCOLLECTIVE", "UTMACMDFLUSH", "UTMACCTL", "PREEXIT", "ACQBULK", "STL", "ERRBAR", "YIELD",
    "HGMMA", "HMMA",  # sums, which nothing depends on
}  # fmt: skip


@functools.cache
def split(code: Instruction) -> tuple[list[str], list[str]]:
    """Operands that are written, and the others."""
    operands = [o.removesuffix(".reuse") for o in code.operands]
    if code.base in _NO_RESULT:
        return [], operands
    if code.base in _TWO_PREDICATES:
        return operands[:2], operands[2:]
    if code.base in ("VOTE", "VOTEU"):
        return operands[:1], operands[1:]
    if code.base == "R2P":
        return [f"P{i}" for i in range(7) if int(operands[2], 16) >> i & 1], operands[1:]
    count = 0
    while count < len(operands) and is_predicate(operands[count]):
        count += 1
    if count < len(operands) and is_register(operands[count]):
        count += 1
        # a carry; no sum has a predicate as its first source
        while code.base not in ("SEL", "USEL") and count < len(operands) - 1 and is_predicate(operands[count]):
            count += 1
    return operands[:count], operands[count:]


def pair(register: str) -> list[str]:
    """A register and the next, of a 64-bit value."""
    if register.endswith("Z"):
        return [register, register]
    letters, number = re.fullmatch(r"(U?R)(\d+)", register).groups()  # type: ignore[union-attr]
    return [register, f"{letters}{int(number) + 1}"]


def _wide_result(code: Instruction) -> int:
    """Registers of the result."""
    parts = code.name.split(".")
    if code.base in ("LDG", "LDS"):
        return max(1, width(code.name) // 4)
    if code.base == "LDSM":
        return 4
    wide = "WIDE" in parts or "64" in parts[1:] or (code.base == "CS2R" and "32" not in parts)
    return 2 if wide or code.name == "F2I.U64.TRUNC" else 1


@functools.cache
def results(code: Instruction) -> list[str]:
    """Registers and predicates that it writes."""
    found = []
    for operand in split(code)[0]:
        if is_register(operand) and not operand.endswith("Z"):
            letters, number = re.fullmatch(r"(U?R)(\d+)", operand).groups()  # type: ignore[union-attr]
            found += [f"{letters}{int(number) + i}" for i in range(_wide_result(code))]
        elif is_predicate(operand) and not operand.endswith("T"):
            found.append(operand)
    return found


# ---- kernels


def sections(listing: str, kind: str) -> dict[str, str]:
    """Text of all sections of this kind by kernel."""
    parts = re.split(r"^\s*\.section\s+(\S+?),", listing, flags=re.MULTILINE)[1:]
    return {
        name.removeprefix(kind): text
        for name, text in zip(parts[::2], parts[1::2], strict=True)
        if name.startswith(kind)
    }


def code_of(text: str, table: list[int]) -> Code:
    """The blocks of one kernel."""
    found: list[tuple[int, Instruction, list[str]]] = []  # address, instruction, where an indirect branch may go
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            waiting.append(label[1])
        elif match := LINE.match(line):
            address = int(match[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting = []
            found.append((address, instruction(match[2]), (match[3] or "").split(",")))
    resolved = []
    for address, code, targets in found:
        operands = tuple(re.sub(r"^`\((.+)\)$", lambda m: hex(labels.get(m[1], 0)), o) for o in code.operands)
        resolved.append((address, code._replace(operands=operands), [labels[t] for t in targets if t]))
    starts = {0}
    for (_, code, targets), (after, *_) in zip(resolved, [*resolved[1:], (-1,)], strict=True):
        if code.base in JUMPS:
            starts.update([after, *targets])
        if code.base in ("BRA", "CALL"):
            starts.add(int(code.operands[-1], 16))
    blocks: list[Basic] = []
    for address, code, _ in resolved:
        if address in starts:
            blocks.append(Basic(address, []))
        blocks[-1].code.append(code)
    return Code(blocks, table)
