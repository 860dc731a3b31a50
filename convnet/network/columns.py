"""Columns of a definition file that are alike, found: they become the towers of one network.

Nodes of equal type and keys whose inputs are alike form a class. Where every class has one node or T of them, and every
node reads of a class with T either the node of its own column or all of them, the network is one of T towers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..definitions.nodes import Concat, Conv, FullyConnected, Local, Node, Weighted


@dataclass(frozen=True)
class Read:
    """What a part reads of another one, ``part`` by its place, -1 for the images. ``inputs``: of every node, the places
    of the inputs that are meant and the columns of what they read, in the order of those, and its place among all that
    the node reads.
    """

    part: int
    own: bool  # a node reads that of its own column alone
    inputs: tuple[tuple[tuple[int, int, int], ...], ...]


@dataclass(frozen=True)
class Part:
    """Nodes that are alike, one in each column, or one alone."""

    nodes: tuple[Node, ...]
    reads: tuple[Read, ...]


def in_columns(nodes: list[Node], images: str) -> list[Part] | None:
    """``nodes`` as parts of T nodes and of one; None where they are in no such columns. ``images`` is what the first of
    them read. Where layers are put one behind the other in the order of the columns, whoever reads that reads all.
    """
    known = {node.name: node for node in nodes}
    classes = _classes(nodes, images)
    width = max((len(members) for members in classes), default=1)
    if width == 1 or any(len(members) not in (1, width) for members in classes):
        return None
    place, column = {images: -1}, {images: 0}
    found: list[Part] = []
    for members in classes:
        if isinstance(members[0], Concat):
            continue
        flat = [_flat(node, known) for node in members]
        reads = [_by_part(names, place) for names in flat]
        twice = any(len({name for _, name in names}) < len(names) for names in flat)
        if twice or any(list(read) != list(reads[0]) for read in reads):
            return None
        own: set[int] = set()
        for part in reads[0]:
            counts = {len(read[part]) for read in reads}
            if part >= 0 and len(found[part].nodes) == width and counts != {width}:
                own.add(part)
            if counts != {width if part >= 0 and len(found[part].nodes) == width and part not in own else 1}:
                return None
        columns = []
        for k, (read, names) in enumerate(zip(reads, flat, strict=True)):
            mine = {column[names[read[part][0]][1]] for part in own}
            if len(mine) > 1 or (mine and len(members) == 1):
                return None
            columns.append(mine.pop() if mine else k)
        if sorted(columns) != list(range(len(members))) or not _can_be_one(
            members[0], [i for i, _ in flat[0]], reads[0], own, found
        ):
            return None
        order = sorted(range(len(members)), key=columns.__getitem__)
        for k, node in enumerate(members):
            place[node.name], column[node.name] = len(found), columns[k]
        terms = []
        for part in reads[0]:
            inputs = []
            for k in order:
                at = [(flat[k][i][0], column[flat[k][i][1]], i) for i in reads[k][part]]
                inputs.append(tuple(sorted(at, key=lambda read: read[1])))
            terms.append(Read(part, part in own, tuple(inputs)))
        found.append(Part(tuple(members[k] for k in order), tuple(terms)))
    return found


def _classes(nodes: list[Node], images: str) -> list[list[Node]]:
    """Nodes that are alike, in the order of the first of each."""
    kind = {images: 0}
    found: dict[object, list[Node]] = {}
    for node in nodes:
        keys = replace(node, name="", line=0, gpu=(), inputs=())
        if isinstance(keys, Weighted):  # what they begin as may differ
            keys = replace(keys, weights_from=None, bias_from=None)
            keys = replace(keys, connections_from=None) if isinstance(keys, Conv) else keys
        members = found.setdefault((keys, tuple(sorted(kind[name] for name in node.inputs))), [])
        members.append(node)
        kind[node.name] = next(i for i, other in enumerate(found.values(), 1) if other is members)
    return list(found.values())


def _flat(node: Node, known: dict[str, Node]) -> list[tuple[int, str]]:
    """The place of each input and what it consists of: several nodes where it puts them one behind the other."""
    found = []
    for i, name in enumerate(node.inputs):
        other = known.get(name)
        found += [(i, part) for part in (other.inputs if isinstance(other, Concat) else (name,))]
    return found


def _by_part(names: list[tuple[int, str]], place: dict[str, int]) -> dict[int, list[int]]:
    """The places in ``names`` of what belongs to each part."""
    found: dict[int, list[int]] = {}
    for i, (_, name) in enumerate(names):
        found.setdefault(place[name], []).append(i)
    return found


def _can_be_one(node: Node, inputs: list[int], reads: dict[int, list[int]], own: set[int], found: list[Part]) -> bool:
    """Whether a layer of towers is the same as such nodes. ``inputs``: of all that ``node`` reads, which of its inputs
    that is, or is part of."""
    by_part = {part: {inputs[place] for place in places} for part, places in reads.items()}
    joins = [part for part in reads if part >= 0 and len(found[part].nodes) > 1 and part not in own]
    if isinstance(node, FullyConnected):
        return not own and all(_alike(node, places) for places in by_part.values())
    if isinstance(node, Conv) and not isinstance(node, Local):
        whole = [i for part in joins for i in by_part[part]] + [i for i in set(inputs) if inputs.count(i) > 1]
        simple = all(node.kernels[i].groups == 1 for i in whole)
        return simple and all(_alike(node, places) for places in by_part.values())
    return not joins and len(inputs) == len(node.inputs)


def _alike(node: Weighted, places: set[int]) -> bool:
    """Whether the inputs at ``places`` of a node have the same geometry and rates, so that they are one's slices."""
    kinds = {
        (
            node.kernels[i] if isinstance(node, Conv) else node.std[i],  # type: ignore[attr-defined]
            node.weights[i] if node.weights else None,
            node.weight_sources[i],
        )
        for i in places
    }
    return len(kinds) == 1
