"""Sizes and numbers of parameters, from the definition alone; what does not fit is told."""

from __future__ import annotations

import re

import pytest
from definition_files import CHAIN, COLUMNS, OLD, write

from convnet.definitions.files import read
from convnet.definitions.geometry import parameters, sizes, weight_shapes
from convnet.definitions.ini import DefinitionError


@pytest.fixture
def sized(tmp_path):
    def function(text: str, side: int = 32):
        definition = read(write(tmp_path, text)[0])
        return definition, sizes(definition, side)

    return function


def test_sizes(sized):
    _, found = sized(COLUMNS)
    assert found["labels"] is None
    assert {name: found[name] for name in ("nails0", "conv1a", "pool1a", "pool1a_neuron", "conv2a", "cnorm2a")} == {
        "nails0": (3, 16, 16),
        "conv1a": (16, 17, 17),  # 15.5 strides become 16
        "pool1a": (16, 8, 8), "pool1a_neuron": (16, 8, 8), "conv2a": (32, 8, 8), "cnorm2a": (32, 8, 8),
    }  # fmt: skip
    assert (found["local3"], found["both"], found["pool4"]) == ((16, 6, 6), (64, 8, 8), (64, 3, 3))
    assert (found["fc5"], found["hs5"], found["probs"]) == ((20,), (20,), (10,))
    assert "logprob" not in found
    _, found = sized(CHAIN, 24)
    assert (found["conv1"], found["pool1"], found["joined"], found["added"]) == (
        (16, 24, 24),
        (16, 12, 12),
        (16,),
        (16,),
    )
    assert sized(CHAIN.replace("sumWidth=4", "sumWidth=4\nmodulesX=25"), 24)[1]["conv1"] == (16, 25, 25)


# By hand: shared biases are one per filter, others one per filter and pixel.
COUNTS = [
    (
        COLUMNS,
        32,
        2 * (16 * 3 * 25 + 16)  # conv1a, conv1b
        + (32 * 3 * 9 + 32 * 8 * 9 + 32)  # conv2a: all channels of one input, 8 drawn of 16 of the other, one bias
        + (32 * 32 // 2 * 9 + 32)  # conv2b
        + 36 * (16 * 16 * 9 + 16 * 32 * 25 + 16)  # local3, groups of two halves and of one
        + (16 * 36 + 64 * 9) * 20 + 20  # fc5
        + 20 * 10 + 10,
    ),
    (CHAIN, 24, 16 * 3 * 25 + 16 + 2 * (16 * 144 * 8 + 8) + 2 * 16 * 4 + 4),
    (OLD, 32, 16 * 3 * 9 + 16 * 32 * 32 + 16 * 1024 * 10 + 10),
    (CHAIN.replace("[fcb]\n", "[fcb]\nweightSource=fca\n"), 24, 1216 + 2304 * 8 + 2 * 8 + 132),  # the bias is its own
]  # fmt: skip


@pytest.mark.parametrize(("text", "side", "expected"), COUNTS, ids=["columns", "chain", "old", "shared"])
def test_parameters(sized, text, side, expected):
    definition, found = sized(text, side)
    assert parameters(definition, found) == expected


def test_shapes_of_weights(sized):
    definition, found = sized(COLUMNS)
    nodes = {node.name: node for node in definition.nodes}
    assert weight_shapes(nodes["conv2a"], found) == [(32, 3, 3, 3), (32, 8, 3, 3)]
    assert weight_shapes(nodes["local3"], found) == [(6, 6, 16, 16, 3, 3), (6, 6, 16, 32, 5, 5)]
    assert weight_shapes(nodes["fc5"], found) == [(20, 576), (20, 576)]


HEAD = "[data]\ntype=data\ndataIdx=0\n[labels]\ntype=data\ndataIdx=1\n"
TAIL = "\n[end]\ntype=cost.sum2\ninputs=x,labels\n"


@pytest.mark.parametrize(
    ("text", "side", "shape"),
    [
        ("type=pool\npool=max\nchannels=3\nsizeX=3\nstride=2", 32, (3, 16, 16)),
        ("type=pool\npool=max\nchannels=3\nsizeX=3\nstride=2", 24, (3, 12, 12)),
        ("type=pool\npool=max\nchannels=3\nsizeX=2\nstride=2", 55, (3, 28, 28)),
        ("type=pool\npool=avg\nchannels=3\nsizeX=4\nstride=4\nstart=-2", 6, (3, 2, 2)),
        ("type=pool\npool=avg\nchannels=3\nsizeX=3\nstride=2\noutputsX=5", 32, (3, 5, 5)),
        ("type=nailbed\nchannels=3\nstride=4", 224, (3, 56, 56)),
        ("type=nailbed\nchannels=3\nstride=3", 7, (3, 3, 3)),
        ("type=conv\nchannels=3\nfilters=16\nfilterSize=11\nstride=4\ninitW=1\npartialSum=1", 224, (16, 55, 55)),
        ("type=conv\nchannels=3\nfilters=16\nfilterSize=9\npadding=2\nstride=3\ninitW=1\npartialSum=1", 5, (16, 1, 1)),
        ("type=href\nchannels=3", 8, (3, 8, 8)),
        ("type=softmax", 8, (3, 8, 8)),
        ("type=treefc\ninitW=1", 8, None),
    ],
)
def test_formulas(sized, text, side, shape):
    assert sized(f"{HEAD}[x]\ninputs=data\n{text}{TAIL}", side)[1]["x"] == shape


def test_features_become_pictures(sized):
    """What comes from a fully connected layer, or from some of the rows, has no form but what its reader says."""
    fc = "[f]\ntype=fc\ninputs=data\noutputs={}\ninitW=1\n[x]\ntype=rnorm\ninputs=f\nchannels=2\nsize=3"
    assert sized(HEAD + fc.format(50) + TAIL)[1]["x"] == (2, 5, 5)
    for outputs in (49, 52, 1):
        with pytest.raises(DefinitionError, match=rf"channels=2: {outputs} features are no square pictures"):
            sized(HEAD + fc.format(outputs) + TAIL)
    rows = HEAD + "[d]\ntype=data\ndataIdx=0\nstart={}\nend={}\n[x]\ntype=concat\ninputs=d,data" + TAIL
    assert sized(rows.format(8, 24), 4)[1]["x"] == (16 + 48,)
    assert sized(rows.format(0, 48), 4)[1]["x"] == (6, 4, 4)
    for start, end in ((48, 49), (40, 49)):
        with pytest.raises(DefinitionError, match=rf"\[d\] rows {start} to 49 of 48"):
            sized(rows.format(start, end), 4)


CONV = "type=conv\ninputs=data\nchannels=3\nfilters=16\nfilterSize=3\ninitW=1\npartialSum=1"


@pytest.mark.parametrize(
    ("text", "side", "found"),
    [
        (CONV.replace("channels=3", "channels=1"), 8, "channels=1, and its input 3 x 8 x 8 has 3"),
        (CONV, 2, "filterSize=3 is larger than 2 pixels with padding=0"),
        (CONV.replace("inputs=data", "inputs=labels"), 8, "reads what has the data's size, and needs pictures"),
        ("type=fc\ninputs=labels\noutputs=3\ninitW=1", 8, "reads labels, whose size only the data says"),
        (CONV.replace("partialSum=1", "sumWidth=1\nmodulesX=5"), 8, "modulesX=5 do not cover 8 pixels; 6 would"),
        ("type=pool\npool=max\ninputs=data\nchannels=3\nsizeX=9\nstride=2", 8, "sizeX=9 is larger than its"),
        ("type=pool\npool=max\ninputs=data\nchannels=3\nsizeX=3\nstride=2\nstart=-3", 8, "a window lies outside"),
        ("type=pool\npool=max\ninputs=data\nchannels=3\nsizeX=3\nstride=2\nstart=8", 8, "a window lies outside"),
        ("type=pool\npool=max\ninputs=data\nchannels=3\nsizeX=3\nstride=2\noutputsX=5", 8, "a window lies outside"),
        ("type=rnorm\ninputs=data\nchannels=3\nsize=9", 8, "size=9 is larger than its pictures of 8 pixels"),
        ("type=eltsum\ninputs=data,f", 8, "its inputs differ in size: data 3 x 8 x 8, f 9"),
        ("type=eltmax\ninputs=f,labels,data", 8, "its inputs differ in size: f 9, labels of the data's size, data"),
        (CONV.replace("inputs=data", "inputs=data,data").replace("=3\n", "=3,3\n").replace("16", "16,16")
         .replace("initW=1", "initW=1,1\nstride=1,2"), 8, "its inputs make pictures of sides 4, 6"),
        ("type=resize\ninputs=data", 8, "type=resize: nothing is known about what such a layer yields"),
        ("type=conv\ninputs=data\nchannels=3\nfilters=1000000\nfilterSize=1\ninitW=1\npartialSum=1", 200, "too many"),
    ],
)  # fmt: skip
def test_what_does_not_fit(sized, text, side, found):
    extra = "[f]\ntype=fc\ninputs=data\noutputs=9\ninitW=1\n[g]\ntype=cost.sum2\ninputs=f\n"
    with pytest.raises(DefinitionError) as raised:
        sized(f"{HEAD}{extra}[x]\n{text}{TAIL}", side)
    assert re.search(r"layers.cfg, line 15: \[x\] ", str(raised.value))
    assert found in str(raised.value)


def test_numbers_that_double_with_every_layer_end(sized):
    text = "".join(
        f"[c{n}]\ntype=concat\ninputs={f'c{n - 1}' if n else 'data'},{f'c{n - 1}' if n else 'data'}\n"
        for n in range(900)
    )
    with pytest.raises(DefinitionError, match=r"\[c19\] yields 3.22e\+09 numbers a picture: too many"):
        sized(HEAD + text + "[x]\ntype=softmax\ninputs=c899" + TAIL)


def test_trees_have_weights_that_only_the_data_knows(sized):
    definition, found = sized(f"{HEAD}[x]\ntype=treefc\ninputs=data\ninitW=1{TAIL}")
    with pytest.raises(DefinitionError, match=r"line 7: \[x\] has as many weights as the data's tree"):
        parameters(definition, found)
    with pytest.raises(ValueError, match="x: the weights of a tree"):
        weight_shapes(definition.nodes[2], found)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("[fc]\n", "[fc]\nweightSource=fca,\n", r"weightSource of input 0: 4 x 16 against 8 x 2304 of fca\[0\]"),
        ("[fc]\n", "[fc]\nweightSource=,fc[1]\n", "weightSource of input 1 is not above it"),
        ("[fc]\n", "[fc]\nweightSource=fc[1],\n", "weightSource of input 0 is not above it"),
    ],
)
def test_shared_weights_that_are_not_alike(sized, old, new, found):
    with pytest.raises(DefinitionError, match=found):
        sized(CHAIN.replace(old, new), 24)


def test_a_layer_may_share_among_its_inputs(sized):
    definition, found = sized(CHAIN.replace("[fc]\n", "[fc]\nweightSource=,fc\n"), 24)
    assert parameters(definition, found) == 38228 - 64
