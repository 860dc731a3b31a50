"""Columns of a definition file that are alike, found: they become the towers of one network.

Nodes of equal type and keys whose inputs are alike form a class. Where every class has one node or T of them, and every
node reads of a class with T either the node of its own column or all of them, the network is one of T towers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from ..definitions.nodes import Concat, Conv, FullyConnected, Local, Node, Weighted


@dataclass(frozen=True)
class Read:
    """What a part reads of another one, ``part`` by its place, -1 for the images. ``inputs``: of every node, the places
    of the inputs that are meant and of the nodes that they read, by column.
    """

    part: int
    own: bool  # a node reads that of its own column alone
    inputs: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Part:
    """Nodes that are alike, one in each column, or one alone."""

    nodes: tuple[Node, ...]
    reads: tuple[Read, ...]


def in_columns(nodes: list[Node], images: str) -> list[Part] | None:
    """``nodes`` as parts of T nodes and of one; None where they are in no such columns. ``images`` is what the first of
    them read. Whoever reads layers that are put one behind the other reads all of them; a concat that no node reads is
    what a cost reads: of all columns in their order it needs no part of its own.
    """
    known = {node.name: node for node in nodes}
    classes = _classes(nodes, images)
    width = max((len(members) for members in classes), default=1)
    if width == 1 or any(len(members) not in (1, width) for members in classes):
        return None
    place, column = {images: -1}, {images: 0}
    read = {name for node in nodes for name in node.inputs}
    found: list[Part] = []
    for members in classes:
        if isinstance(members[0], Concat):
            for concat in members:
                assert isinstance(concat, Concat)
                if concat.name in read:
                    continue
                if any(place.get(name, -1) < 0 for name in concat.inputs):
                    return None  # images, or another of these
                if _is_part(concat, place, column, found):
                    continue
                if any(len(found[place[name]].nodes) > 1 for name in concat.inputs):
                    return None
                place[concat.name], column[concat.name] = len(found), 0
                whole = (Read(place[name], False, (((i, 0),),)) for i, name in enumerate(concat.inputs))
                found.append(Part((concat,), tuple(whole)))
            continue
        flat = [_flat(node, known) for node in members]
        reads = [_by_part(names, place) for names in flat]
        if any(list(by_part) != list(reads[0]) for by_part in reads):
            return None
        own: set[int] = set()
        for part in reads[0]:
            counts = {len(by_part[part]) for by_part in reads}
            if part >= 0 and len(found[part].nodes) == width and counts != {width}:
                own.add(part)
            joins = part >= 0 and len(found[part].nodes) == width and part not in own
            if counts != {width if joins else 1}:
                return None
            if any(
                len({column[names[i][1]] for i in by_part[part]}) != len(by_part[part])
                for by_part, names in zip(reads, flat, strict=True)
            ):
                return None  # one of its columns twice
        columns = []
        for k, (by_part, names) in enumerate(zip(reads, flat, strict=True)):
            mine = {column[names[by_part[part][0]][1]] for part in own}
            if len(mine) > 1 or (mine and len(members) == 1):
                return None
            columns.append(mine.pop() if mine else k)
        by_input = {part: [flat[0][i][0] for i in places] for part, places in reads[0].items()}
        if sorted(columns) != list(range(len(members))) or not all(_in_order(names, place) for names in flat):
            return None
        if not _can_be_one(members, width, by_input, own, found):
            return None
        order = sorted(range(len(members)), key=columns.__getitem__)
        for k, node in enumerate(members):
            place[node.name], column[node.name] = len(found), columns[k]
        terms = []
        for part in reads[0]:
            at = [tuple((flat[k][i][0], column[flat[k][i][1]]) for i in reads[k][part]) for k in order]
            terms.append(Read(part, part in own, tuple(at)))
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


def _is_part(concat: Concat, place: dict[str, int], column: dict[str, int], found: list[Part]) -> bool:
    """Whether it puts all nodes of one part one behind the other in the order of the columns."""
    of = {place[name] for name in concat.inputs}
    columns = [column[name] for name in concat.inputs]
    return len(of) == 1 and columns == list(range(len(found[min(of)].nodes)))


def _flat(node: Node, known: dict[str, Node]) -> list[tuple[int, str]]:
    """The place of each input and what it consists of: several nodes where it puts them one behind the other."""

    def of(name: str) -> list[str]:
        other = known.get(name)
        return [part for one in other.inputs for part in of(one)] if isinstance(other, Concat) else [name]

    return [(i, part) for i, name in enumerate(node.inputs) for part in of(name)]


def _by_part(names: list[tuple[int, str]], place: dict[str, int]) -> dict[int, list[int]]:
    """The places in ``names`` of what belongs to each part."""
    found: dict[int, list[int]] = {}
    for i, (_, name) in enumerate(names):
        found.setdefault(place[name], []).append(i)
    return found


def _in_order(names: list[tuple[int, str]], place: dict[str, int]) -> bool:
    """Whether each input has the nodes of every part next to each other."""
    runs = [key for key, _ in groupby((i, place[name]) for i, name in names)]
    return len(runs) == len(set(runs))


def _can_be_one(members: list[Node], width: int, reads: dict[int, list[int]], own: set[int], found: list[Part]) -> bool:
    """Whether a layer of towers is the same as such nodes. ``reads``: by part the inputs that do; those of their own
    columns are in ``own``.
    """
    node, single = members[0], len(members) < width
    pieces = [i for inputs in reads.values() for i in inputs]
    several = {i for i in pieces if pieces.count(i) > 1}  # inputs in which layers lie one behind the other
    if isinstance(node, FullyConnected):
        return not own and all(_alike(node, inputs) for inputs in reads.values())
    if isinstance(node, Local):  # it never reads all towers
        return not several and all(part in own or part < 0 for part in reads)
    if isinstance(node, Conv):
        # what reads all towers, or several layers as one, is in no groups, and all maps are cut into as many parts as
        # there are towers
        whole = several.union(*(inputs for part, inputs in reads.items() if part not in own))
        simple = all(node.kernels[i].groups == 1 for i in whole)
        cut = not single or node.filters % width == 0
        return simple and cut and all(_alike(node, inputs) for inputs in reads.values())
    uncut = all(part < 0 or len(found[part].nodes) == 1 for part in reads)
    return not several and (uncut if single else own == set(reads))


def _alike(node: FullyConnected | Conv, inputs: list[int]) -> bool:
    """Whether these inputs of a node have the same geometry and rates, so that their weights are slices of one."""
    kinds = {
        (
            node.kernels[i] if isinstance(node, Conv) else node.std[i],
            node.weights[i] if node.weights else None,
            node.weight_sources[i],
        )
        for i in inputs
    }
    return len(kinds) == 1
