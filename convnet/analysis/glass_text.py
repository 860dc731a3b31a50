"""What is seen of a kernel under glass, as text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from .glass import Access, Barrier, Fill, Glass, Launch, Ordering, Verdict

WIDTH = 80
BANKS, BANK_BYTES = 32, 4
EVENTS = 58  # of the ring that are drawn
EMPTY, COMING, THERE, READ = ".", ">", "=", "#"


def as_text(seen: Glass) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in seen.sizes.items())
    padding = f", as {seen.images} images" if seen.images != seen.sizes.get("N", 0) else ""
    variant = f", the kernel {seen.variant}" if seen.variant else ""
    parts = ["\n".join(_wrapped(f"{seen.op} in {seen.precision} on sm_90, emulated{variant}: {sizes}{padding}"))]
    for number, launch in enumerate(seen.launches):
        several = f"Launch {number + 1} of {len(seen.launches)}" if len(seen.launches) > 1 else "Launch"
        calls = [call for call in seen.calls if call.launch == number]
        parts += _launch(several, launch, calls)
    if seen.without is not None:
        parts.append(_without(seen.calls[seen.without - 1], seen.verdicts))
    return "\n\n".join(parts)


def _launch(title: str, launch: Launch, calls: Sequence[Ordering]) -> Iterator[str]:
    blocks, threads = _product(launch.grid), _product(launch.block)
    clusters = f" in clusters of {launch.cluster}" if launch.cluster > 1 else ""
    lines = [
        *_wrapped(launch.kernel, "  kernel         "),
        f"  grid           {_extents(launch.grid)} = {blocks:,} block{'s' * (blocks > 1)}{clusters}",
        f"  block          {_extents(launch.block)} = {threads:,} threads, {-(-threads // 32)} warps",
        f"  shared memory  {launch.shared_bytes:,} bytes a block",
    ]
    yield "\n".join([title, *lines])
    if launch.shared:
        yield _shared(launch)
    if launch.arrays:
        yield _arrays(launch.arrays)
    if calls:
        yield _calls(calls)
    meetings = list(_meetings(launch, calls))
    if meetings:
        yield "\n".join(["Who waits for whom, in block 0", *meetings])
    if len(launch.fills) > 1:
        yield _ring(launch.fills)


# ---- accesses ----


def _shared(launch: Launch) -> str:
    merged: dict[tuple[str, str, int], list[Access]] = {}
    for a in launch.shared:
        merged.setdefault((a.operation, a.where, a.bytes), []).append(a)
    rows = [("source", "operation", "bytes", "times", "wavefronts", "fewest")]
    rows += [
        (
            _file(where), operation, str(size), f"{sum(a.requests for a in same):,}",
            f"{sum(a.wavefronts for a in same):,}", f"{sum(a.fewest for a in same):,}",
        )
        for (operation, where, size), same in merged.items()
    ]  # fmt: skip
    lost = sum(a.wavefronts - a.fewest for a in launch.shared)
    total = sum(a.wavefronts for a in launch.shared)
    verdict = f"  {lost:,} of {total:,} wavefronts are lost to bank conflicts." if lost else "  No bank conflicts."
    worst = max(launch.shared, key=lambda a: (a.worst - _fewest(a), a.worst))
    title = f"Shared memory: what warp {launch.warp} of block 0 loads and stores"
    return "\n".join([title, *_table(rows, 2), verdict, *_lanes(worst)])


def _together(bytes: int) -> int:
    """Lanes whose accesses of so many bytes go through the banks at once."""
    return 32 if bytes <= 4 else 16 if bytes == 8 else 8


def _groups(access: Access) -> list[list[tuple[int, int]]]:
    """Lanes that go at once, with their bytes; those that take no part are left out."""
    step = _together(access.bytes)
    lanes = [(lane, at) for lane, at in enumerate(access.lanes) if at is not None]
    return [group for i in range(0, 32, step) if (group := [(lane, at) for lane, at in lanes if i <= lane < i + step])]


def _fewest(access: Access) -> int:
    return len(_groups(access))


def _lanes(access: Access) -> Iterator[str]:
    """Lanes and their banks, and the bank that the most words of one go to."""
    fewest, step = _fewest(access), _together(access.bytes)
    yield ""
    yield from _wrapped(
        f"The worst: {_file(access.where)}, {access.operation} of {access.bytes} bytes by a lane takes {access.worst} "
        f"wavefront{'s' * (access.worst > 1)}"
        + (f", {fewest} without conflicts" if access.worst > fewest else ", as few as can be")
        + ("." if step == 32 else f": {step} lanes go at once."),
        "  ",
    )
    for start in (0, 16):
        lanes = range(start, start + 16)
        banks = [None if (at := access.lanes[lane]) is None else at // BANK_BYTES % BANKS for lane in lanes]
        yield "  lane " + "".join(f"{lane:4}" for lane in lanes)
        yield "  bank " + "".join("   ." if bank is None else f"{bank:4}" for bank in banks)
    words: dict[tuple[int, int], dict[int, list[int]]] = {}  # by group and bank: of every word, the lanes
    for number, group in enumerate(_groups(access)):
        for lane, at in group:
            for word in range(at // BANK_BYTES, (at + access.bytes - 1) // BANK_BYTES + 1):
                words.setdefault((number, word % BANKS), {}).setdefault(word, []).append(lane)
    (_, bank), fullest = max(words.items(), key=lambda item: len(item[1]))
    if len(fullest) > 1:
        lanes_there = sorted({lane for many in fullest.values() for lane in many})
        yield from _wrapped(
            f"{len(fullest)} different words lie in bank {bank}, of lanes {_ranges(lanes_there)}.", "  "
        )


def _arrays(accesses: Sequence[Access]) -> str:
    merged: dict[tuple[str, str, str], list[Access]] = {}
    for a in accesses:
        merged.setdefault((a.array, a.where, a.operation), []).append(a)
    rows = [("array", "source", "operation", "asked", "sectors", "used")]
    for (array, where, operation), same in sorted(merged.items(), key=lambda item: list(merged).index(item[0])):
        asked, used, sectors = (sum(getattr(a, name) for a in same) for name in ("asked", "used", "sectors"))
        rows.append((array, _file(where), operation, f"{asked:,}", f"{sectors:,}", _percent(used / (32 * sectors))))
    title = "Global memory: bytes asked for by the whole launch, sectors of 32 bytes"
    return "\n".join([title, *_table(rows, 3)])


# ---- barriers ----


def _calls(calls: Sequence[Ordering]) -> str:
    rows = [("N", "call", "source", "by, in block 0", "times")]
    rows += [(str(c.number), c.operation, _file(c.where), _who(c.threads), f"{c.calls:,}") for c in calls]
    return "\n".join(["Calls that order (--without-barrier N takes one out)", *_table(rows, 4)])


def _meetings(launch: Launch, calls: Sequence[Ordering]) -> Iterator[str]:
    """Who arrives at every barrier, and who waits there; barriers alike are one."""
    for call in calls:
        if call.operation == "__syncthreads" and call.threads:
            times = call.calls // len(call.threads)
            yield from _wrapped(
                f"__syncthreads, {_file(call.where)}: {len(call.threads)} threads wait for each other, "
                f"{times:,} time{'s' * (times != 1)}",
                "  ",
            )
    alike: dict[object, list[Barrier]] = {}
    for b in launch.barriers:
        kind = (b.kind, b.arrivals, frozenset((u.operation, u.where, u.threads) for u in b.uses))
        alike.setdefault(kind, []).append(b)
    for barriers in alike.values():
        yield from _barriers(barriers)


def _barriers(barriers: Sequence[Barrier]) -> Iterator[str]:
    first = barriers[0]
    places = ", ".join(str(b.at) for b in barriers)
    most, least = max(b.phases for b in barriers), min(b.phases for b in barriers)
    times = f"{least} to {most}" if least < most else f"{most}"
    if first.kind == "named_barrier":
        yield from _wrapped(f"named barrier {places}, for {first.arrivals} threads, {times} times", "  ")
    else:
        name = f"mbarriers at bytes {places}" if len(barriers) > 1 else f"mbarrier at byte {places}"
        if not first.uses:
            yield from _wrapped(f"{name}: not used", "  ")
            return
        yield from _wrapped(
            f"{name}: {first.arrivals} arrival{'s' * (first.arrivals > 1)} a phase, {times} phase{'s' * (most > 1)}"
            + (" each" if len(barriers) > 1 else ""),
            "  ",
        )
    for use in sorted(first.uses, key=lambda use: (_PARTS.index(_part(use.operation)), use.where)):
        same = [u for b in barriers for u in b.uses if (u.operation, u.where) == (use.operation, use.where)]
        count, size = sum(u.count for u in same), sum(u.bytes for u in same)
        words = f", {size:,} bytes" if size else ""
        part = f"    {_part(use.operation):<8} "
        yield from _wrapped(f"{_who(use.threads)}: {use.operation}, {_file(use.where)}, {count:,} times{words}", part)


_PARTS = ("meet", "arrives", "brings", "waits")


def _part(operation: str) -> str:
    parts = {"named_barrier": "meet", "barrier_wait": "waits", "tma_load": "brings", "tma_load_multicast": "brings"}
    return parts.get(operation, "arrives")


# ---- the ring ----


def _ring(fills: Sequence[Fill]) -> str:
    """Every place that is filled as a line, every event as a column."""
    events = sorted({time for f in fills for time in (f.issued, f.landed, f.first_read, f.last_read) if time})
    shown = events[:EVENTS]
    lines = []
    for begin in sorted({f.begin for f in fills}):
        here = [(number, f) for number, f in enumerate(fills) if f.begin == begin]
        end = max(f.end for _, f in here)
        lines.append(f"  {f'bytes {begin}-{end - 1}':<20}" + "".join(_state(here, time) for time in shown))
    cut = f", the first {len(shown)} of {len(events)} events" if len(events) > len(shown) else ""
    legend = (
        f"A digit: filling of that number (its last digit) begins; {COMING} on its way, {THERE} there, "
        f"{READ} being read, {EMPTY} done with. Left to right is one order that the barriers allow{cut}."
    )
    return "\n".join(["The ring of stages over time, in block 0", *lines, *_wrapped(legend, "  ")])


def _state(fills: Sequence[tuple[int, Fill]], time: int) -> str:
    begun = [(number, fill) for number, fill in fills if fill.issued <= time]
    if not begun:
        return EMPTY
    number, fill = begun[-1]
    if fill.issued == time:
        return str(number % 10)
    if not fill.landed or time < fill.landed:
        return COMING
    if not fill.first_read or time < fill.first_read:
        return THERE
    return READ if time <= fill.last_read else EMPTY


# ---- without a call ----


def _without(call: Ordering, verdicts: Sequence[Verdict]) -> str:
    lines = [f"Without call {call.number}, {call.operation} in {call.where}, the emulator says:"]
    for verdict in verdicts:
        lines += _wrapped(_saying(verdict), f"  order {verdict.seed}:  ")
    noticed = sum(verdict.noticed for verdict in verdicts)
    if noticed == 0:
        lines += _wrapped(
            "Nobody notices: in these orders of threads the launch gives the same bits. What the call guards against "
            "may need another shape, or other hardware.",
            "  ",
        )
    return "\n".join(lines)


def _saying(verdict: Verdict) -> str:
    if verdict.error:
        return f"error: {verdict.error}"
    said = [
        f"{changed:,} value{'s' * (changed > 1)} of {name} became others" + (f", {lost:,} no number" if lost else "")
        for name, (changed, lost) in verdict.changed.items()
        if changed
    ]
    return "; ".join(said) or "the same bits as before"


# ---- words ----


def _product(extents: Iterable[int]) -> int:
    product = 1
    for extent in extents:
        product *= extent
    return product


def _extents(extents: Iterable[int]) -> str:
    return " x ".join(f"{extent:,}" for extent in extents)


def _file(where: str) -> str:
    return where.rpartition("/")[2]


def _percent(share: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(share * 1000) / 10:g} %"


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-3, 7" """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def _who(threads: Sequence[int]) -> str:
    """Whole warps, the same lanes of several, or threads."""
    if not threads:
        return "other blocks"
    warps = sorted({thread // 32 for thread in threads})
    name = f"warp {warps[0]}" if len(warps) == 1 else f"warps {_ranges(warps)}"
    if len(threads) == 32 * len(warps):
        return name
    lanes = sorted({thread % 32 for thread in threads})
    if len(threads) == len(lanes) * len(warps) and len(warps) > 1:
        return f"lane{'s' * (len(lanes) > 1)} {_ranges(lanes)} of {name}"
    return f"thread{'s' * (len(threads) > 1)} {_ranges(threads)}"


def _wrapped(text: str, first: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False)


def _table(rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """The first ``left`` columns begin below each other, the others end so."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
