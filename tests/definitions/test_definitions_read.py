"""Sections become nodes of one form, whatever the dialect; what cannot be is told by file, line and layer."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from definition_files import CHAIN, CHAIN_PARAMS, COLUMNS, COLUMNS_PARAMS, OLD, OLD_PARAMS, write
from runs import ENVIRONMENT

from convnet.definitions.columns import columns, misnamed
from convnet.definitions.files import read
from convnet.definitions.ini import DefinitionError
from convnet.definitions.nodes import (
    Blur,
    Concat,
    Conv,
    Cost,
    Data,
    Dropout,
    EltMax,
    EltSum,
    FullyConnected,
    Href,
    Kernel,
    Local,
    Nailbed,
    Neuron,
    Norm,
    Pool,
    Rate,
    Schedule,
    Source,
    TreeFC,
    Unknown,
)  # fmt: skip


@pytest.fixture
def reading(tmp_path):
    """Reads two texts, with what is replaced in both."""

    def function(layers: str, params: str | None = None, *changes: tuple[str, str]):
        for old, new in changes:
            assert old in layers + (params or "")
            layers = layers.replace(old, new)
            params = params and params.replace(old, new)
        return read(*write(tmp_path, layers, params))

    return function


def by_name(definition):
    return {node.name: node for node in definition.nodes}


def test_columns(reading):
    definition = reading(COLUMNS, COLUMNS_PARAMS)
    assert definition.dialect == "A"
    nodes = by_name(definition)
    assert nodes["data"] == Data(name="data", line=1, index=0)
    assert nodes["labels"] == Data(name="labels", line=5, index=1)
    assert nodes["blur0"] == Blur(name="blur0", line=9, inputs=("data",), gpu=(0,), channels=3, size=5, std=2)
    assert nodes["nails0"] == Nailbed(name="nails0", line=17, inputs=("blur0",), channels=3, stride=2)
    falls = Schedule("dexp", 250, 0, 4)
    conv2 = nodes["conv2a"]
    assert conv2 == Conv(
        name="conv2a", line=conv2.line, inputs=("nails0", "pool1a_neuron"), gpu=(0,), init_b=1,
        weight_sources=(None, None), weights_from="conv2a", bias_from="conv2a", connections_from="conv2a",
        kernels=(Kernel(3, 32, 3, 0, 2, 1, 3, False, 0.01), Kernel(16, 16, 3, 1, 1, 2, 8, True, 0.02)),
        weights=(Rate(0.01, 0.9, 0.0005, falls), Rate(0.02, 0.8, 3, falls)), bias=Rate(0.02, 0.9),
    )  # fmt: skip
    assert COLUMNS.split("\n")[conv2.line - 1] == "[conv2a]"
    assert conv2.filters == 32  # 32 of one group, 16 of two
    local = nodes["local3"]
    assert isinstance(local, Local)
    assert [(k.filters, k.groups, k.filter_channels) for k in local.kernels] == [(8, 2, 16), (16, 1, 32)]
    assert nodes["both"] == Concat(name="both", line=nodes["both"].line, inputs=("cnorm2b", "cnorm2a"))
    pool = nodes["pool4"]
    assert (pool.kind, pool.size, pool.stride, pool.start, pool.outputs) == ("avg", 4, 4, -2, 0)
    assert (nodes["fc5"].outputs, nodes["fc5"].std, nodes["fc6"].init_b) == (20, (0.01, 0.02), -5)
    hs = nodes["hs5"]
    assert hs == Dropout(name="hs5", line=hs.line, inputs=("fc5_neuron",), keep=0.25, enabled=False, scaled=False)
    cost = nodes["logprob"]
    assert cost == Cost(name="logprob", line=cost.line, inputs=("labels", "probs"), kind="logreg", coeff=0.5, topk=5)


def test_neurons_are_layers_behind_theirs(reading):
    definition = reading(COLUMNS)
    names = [node.name for node in definition.nodes]
    nodes = by_name(definition)
    assert names[names.index("pool1a") + 1] == "pool1a_neuron"
    neuron = nodes["pool1a_neuron"]
    assert COLUMNS.split("\n")[neuron.line - 1] == "neuron=relu"
    assert neuron == Neuron(name="pool1a_neuron", line=neuron.line, inputs=("pool1a",), kind="relu")
    assert nodes["cnorm2a"].inputs == ("conv2a_neuron",)
    assert nodes["cnorm2b"].inputs == ("conv2b",)  # ident is none
    assert "conv2b_neuron" not in nodes
    assert (nodes["local3_neuron"].kind, nodes["local3_neuron"].a, nodes["local3_neuron"].b) == ("tanh", 1.7, 0.5)


def test_norms_by_dialect(reading):
    nodes = by_name(reading(COLUMNS, COLUMNS_PARAMS))
    numbers = {name: (n.kind, n.size, n.scale, n.pow, n.min_div) for name, n in nodes.items() if isinstance(n, Norm)}
    assert numbers == {
        "rnorm1a": ("cmrnorm", 5, 0.0001, 0.75, 2), "rnorm1b": ("cmrnorm", 5, 0.0001, 0.75, 1),
        "cnorm2a": ("rnorm", 3, 0.001, 0.5, 1),  # the program of 2012 knew no other constant there
        "cnorm2b": ("cnorm", 3, 0.001, 0.75, 1),
    }  # fmt: skip
    two = by_name(reading(COLUMNS.replace("partialSum", "sumWidth"), COLUMNS_PARAMS))
    assert two["cnorm2a"].min_div == 2  # cuda-convnet2 did
    assert by_name(reading(COLUMNS))["rnorm1a"].scale is None
    old = by_name(reading(OLD, OLD_PARAMS))["norm1"]
    assert (old.size, old.scale, old.pow, old.min_div) == (3, 0.00005, 0.75, 1)
    later = reading(OLD, OLD_PARAMS + "[norm1]\nscale=0.5\npow=1\nminDiv=2\n")
    norm = by_name(later)["norm1"]
    assert (norm.scale, norm.pow, norm.min_div) == (0.5, 1, 1)
    assert any("'mindiv' is ignored" in note for note in later.notes)
    assert by_name(reading(COLUMNS.replace("size=5", "size=5\nblocked=yes")))["rnorm1a"].blocked


def test_chain(reading):
    definition = reading(CHAIN, CHAIN_PARAMS)
    assert definition.dialect == "C2"
    assert not definition.notes
    nodes = by_name(definition)
    falls = Schedule("dexp", 250, 0, 4)
    assert nodes["conv1"].weights == (Rate(0.02, 0.9, 0.001, falls),)
    assert nodes["conv1"].bias == Rate(0.04, 0.9, 0, Schedule("exp", 10))
    assert nodes["fc"].weights == (Rate(0.02, 0.9, 0.001, falls),) * 2  # one entry serves all inputs
    assert nodes["fcb"].bias == Rate(0.04, 0.9)
    assert nodes["fc"].std == (0.01, 0.01)
    assert nodes["pool1"].kind == "sum"
    assert nodes["conv1"].gpu == (0, 1)
    kept, halved = nodes["kept"], nodes["halved"]
    assert (kept.keep, kept.enabled, kept.scaled) == (0.8, True, True)
    assert (halved.keep, halved.enabled, halved.scaled) == (0.5, False, False)
    assert isinstance(nodes["joined"], Concat)
    assert nodes["added"].coeffs == (1, -1)
    assert nodes["small"] == Cost(
        name="small", line=nodes["small"].line, inputs=("fca",), kind="sum2", coeff=0.001, topk=1
    )
    assert by_name(reading(CHAIN))["added"].coeffs is None
    conv = by_name(reading(CHAIN, None, ("sumWidth=4", "sumWidth=4\nmodulesX=30")))["conv1"]
    assert conv.modules == 30


def test_old_files(reading):
    definition = reading(OLD, OLD_PARAMS)
    assert definition.dialect == "V1"
    conv = by_name(definition)["conv1"]
    assert not conv.tied
    assert conv.weights == (Rate(0.001, 0.9, 0.004, Schedule("linear", 1, 1)),)
    neuron = by_name(definition)["conv1_neuron"]
    assert (neuron.kind, neuron.a, neuron.b) == ("linear", 3, 2.2)
    assert by_name(definition)["fc10"].weights[0].decay == 3


@pytest.mark.parametrize(
    ("change", "dialect"),
    [
        (("partialSum=4", "partialSum=4\ngpu=0"), "A"),
        (("partialSum=4", "sumWidth=4"), "C2"),
        (("type=softmax", "type=softmax"), "V1"),
    ],
)
def test_dialects(reading, change, dialect):
    assert reading(OLD, None, change).dialect == dialect


def test_without_parameters(reading):
    nodes = by_name(reading(COLUMNS))
    assert nodes["conv1a"].weights is None
    assert nodes["conv1a"].bias is None
    assert nodes["logprob"].coeff is None
    assert (nodes["hs5"].keep, nodes["hs5"].enabled) == (0.25, True)


def test_keys_in_any_case_and_sections_twice(reading):
    layers = OLD.replace("filterSize=3", "FILTERSIZE : 3") + "[fc10]\noutputs=12\n"
    definition = reading(layers, OLD_PARAMS + "[conv1]\nWC=0.5\n")
    nodes = by_name(definition)
    assert nodes["conv1"].kernels[0].size == 3
    assert nodes["fc10"].outputs == 12
    assert [node.name for node in definition.nodes][-3] == "fc10"  # where it was first
    assert nodes["conv1"].weights[0].decay == 0.5


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("default", None),
        ("exp[tgtFactor=1000,noiseStdev=0]", Schedule("exp", 1000)),
        ("dexp[tgtFactor=10,noiseStdev=.5,numSteps=2]", Schedule("dexp", 10, 0.5, 2)),
        ("linear[tgtFactor=10,noiseStdev=0]", Schedule("linear", 10)),
        ("exp[1000]", Schedule("exp", 1000)),
        ("dexp[1000,3]", Schedule("dexp", 1000, 0, 3)),
        ("jdexp[250,0,4]", Schedule("jdexp", 250, 0, 4)),
        ("jdexp[250, .1, 4]", Schedule("jdexp", 250, 0.1, 4)),
        ("linear[1,1]", Schedule("linear", 1, 1)),
    ],
)
def test_schedules(reading, text, schedule):
    nodes = by_name(reading(OLD, OLD_PARAMS, ("linear[1,1]", text), ("epsB=0.002", f"epsB=0.002\nschedB={text}")))
    assert nodes["conv1"].weights[0].schedule == schedule
    assert nodes["conv1"].bias.schedule == schedule


@pytest.mark.parametrize(
    "text",
    ["", "soon", "soon[10]", "exp", "exp[]", "exp[x]", "exp[0]", "exp[-1]", "exp[1e30]", "exp[10,0,3]", "dexp[10]",
     "dexp[10,1]", "dexp[10,2.5]", "dexp[10,0,1]", "dexp[10,0,4,5]", "dexp[10,-1,4]", "exp[tgtFactor=]",
     "exp[tgtFactor=10,numSteps=4]", "dexp[tgtFactor=10]", "exp[noiseStdev=0]", "exp[tgtFactor=1,tgtFactor=2]",
     "exp[target=10]", "exp[base=1;tgtFactor=10]", "exp[10]]"],
)  # fmt: skip
def test_schedules_that_are_none(reading, text):
    with pytest.raises(
        DefinitionError, match=rf"params.cfg, line 7: \[conv1\] schedW='{re.escape(text)}': ".replace("\n", "")
    ):
        reading(OLD, OLD_PARAMS, ("linear[1,1]", text))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # definitions.md, by hand: .01 falls to .01 / 250
        (Schedule("dexp", 250, 0, 4), {0: 1, 0.25: 1, 0.2501: 250 ** (-1 / 3), 0.5: 250 ** (-1 / 3),
                                       0.75: 250 ** (-2 / 3), 0.76: 1 / 250, 1: 1 / 250}),
        (Schedule("dexp", 10, 0, 2), {0: 1, 0.5: 1, 0.51: 0.1, 1: 0.1}),
        # (.5, .75] is the third step; behind its middle the mean with the second, but not from .9 on
        (Schedule("jdexp", 1000, 0, 4), {0.1: 1, 0.24: 1, 0.3: 0.1, 0.375: 0.1, 0.38: 10**-0.5, 0.6: 0.01,
                                         0.7: 10**-1.5, 0.8: 0.001, 0.88: 10**-2.5, 0.9: 0.001, 1: 0.001}),
        (Schedule("exp", 100), {0: 1, 0.5: 0.1, 1: 0.01}),
        (Schedule("linear", 10), {0: 1, 0.5: 0.55, 1: 0.1}),
        (Schedule("linear", 1, 1), {0: 1, 0.3: 1, 1: 1}),
    ],
    ids=lambda v: v.kind if isinstance(v, Schedule) else "",
)  # fmt: skip
def test_factors(schedule, rates):
    assert {p: schedule.factor(p) for p in rates} == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 4, 7, 10, 49, 100, 1000])
def test_steps_begin_where_they_are_said_to(steps):
    """The first i with p <= (i + 1) / n, also where p n is rounded."""
    for k in range(steps + 1):
        first = next(i for i in range(steps) if k / steps <= (i + 1) / steps)
        assert Schedule("dexp", 10, 0, steps).factor(k / steps) == pytest.approx(10 ** (-first / (steps - 1)))


def test_shared_weights(reading):
    nodes = by_name(reading(COLUMNS, None, ("initB=1\n", "initB=1\nweightSource=,conv1a[0]\n")))
    assert nodes["conv2a"].weight_sources == (None, Source("conv1a", 0))
    assert by_name(reading(CHAIN, None, ("[fcb]\n", "[fcb]\nweightSource=fca\n")))["fcb"].weight_sources == (
        Source("fca", 0),
    )
    for text, found in (("fca[1]", "no 'fca' with weights for an input 1"), ("fc", "no 'fc' with"),
                        ("pool1", "no 'pool1' with"), ("a[b]", "must be LAYER or")):  # fmt: skip
        with pytest.raises(DefinitionError, match=re.escape(found)):
            reading(CHAIN, None, ("[fcb]\n", f"[fcb]\nweightSource={text}\n"))


ONE = "[data]\ntype=data\ndataIdx=0\n[labels]\ntype=data\ndataIdx=1\n{}\n[end]\ntype=cost.sum2\ninputs=x,labels\n"


OTHER = [
    (Href, "type=href\ninputs=data\nchannels=3", {"channels": 3}),
    (TreeFC, "type=treefc\ninputs=data\ninitW=.1", {"init_b": 0, "std": (0.1,), "weight_sources": (None,)}),
    (EltMax, "type=eltmax\ninputs=data,data", {}),
    (EltSum, "type=eltsum\ninputs=data,data\ncoeffs=1,-1", {"coeffs": (1, -1)}),
    (EltSum, "type=eltsum\ninputs=data,data", {"coeffs": (1, 1)}),
    (Neuron, "type=neuron\ninputs=data\nneuron=brelu[6]", {"kind": "brelu", "a": 6}),
    (Unknown, "type=resize\ninputs=data\nscale=2", {"type": "resize"}),
    (
        FullyConnected,
        "type=fc\ninputs=data\noutputs=3\ninitW=.5",
        {"init_b": 0, "outputs": 3, "std": (0.5,), "weight_sources": (None,)},
    ),
    (
        Pool,
        "type=pool\npool=rand\ninputs=data\nchannels=3\nsizeX=2\nstride=2",
        {"kind": "rand", "channels": 3, "size": 2, "stride": 2, "start": 0, "outputs": 0},
    ),
]


@pytest.mark.parametrize(("kind", "text", "fields"), OTHER)
def test_other_types(reading, kind, text, fields):
    inputs = ("data", "data") if "data,data" in text else ("data",)
    assert by_name(reading(ONE.format("[x]\n" + text)))["x"] == kind(name="x", line=7, inputs=inputs, **fields)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("type=hs\nkeep=1", "A"), ("type=treefc\ninitW=1", "A"), ("type=pass", "C2"), ("type=dropout", "C2"),
        ("type=dropout2", "C2"), ("type=softmax", "V1"),
    ],
)  # fmt: skip
def test_dialects_of_networks_without_convolutions(reading, text, dialect):
    assert reading(ONE.format(f"[x]\ninputs=data\n{text}")).dialect == dialect


def test_layers_of_neurons_that_do_nothing_disappear(reading):
    definition = reading(ONE.format("[y]\ntype=neuron\nneuron=ident\ninputs=data\n[x]\ntype=softmax\ninputs=y"))
    assert by_name(definition)["x"].inputs == ("data",)
    assert "y" not in by_name(definition)


@pytest.mark.parametrize(
    "kind", ["logreg", "sum2", "crossent", "crossent2", "rflickr", "gsum2", "tica", "msm", "bce", "dce"]
)
def test_costs(reading, kind):
    layer = SOFTMAX + "[c]\ntype=cost.{}\ninputs=labels,x"
    assert by_name(reading(ONE.format(layer.format(kind))))["c"].kind == kind


FC = "[x]\ntype=fc\ninputs=data\noutputs=2\ninitW=.1\n"
SOFTMAX = "[x]\ntype=softmax\ninputs=data\n"
POOL = "[x]\ntype=pool\ninputs=data\nchannels=3\nsizeX=2\n"
REFUSED = [
    # what a section lacks, or is
    ("[x]\ninputs=data", "line 7: [x] has no type"),
    ("[x]\ntype=convolution\ninputs=data", "line 7: [x] type='convolution' is no type; known: data, conv"),
    ("[x]\ntype=cost.none\ninputs=data", "type='cost.none' is no type"),
    ("[x]\ntype=softmax", "line 7: [x] (softmax) has no inputs"),
    ("[x]\ntype=data\ndataIdx=2\ninputs=data", "line 7: [x] (data) reads nothing, and has inputs"),
    ("[x]\ntype=softmax\ninputs=y", "line 7: [x] reads 'y', which is nowhere"),
    ("[x]\ntype=softmax\ninputs=data,", "reads '', which is nowhere"),
    ("[x]\ntype=softmax\ninputs=end", "reads 'end', which is not above it"),
    ("[x]\ntype=softmax\ninputs=x", "reads 'x', which is not above it"),
    ("[x]\ntype=softmax\ninputs=c\n[c]\ntype=cost.sum2\ninputs=data", "not above it"),
    ("[c]\ntype=cost.sum2\ninputs=data\n[x]\ntype=softmax\ninputs=c", "reads 'c', which is a cost"),
    ("[x]\ntype=softmax\ninputs=data,labels", "(softmax) reads one layer, got 2"),
    ("[x]\ntype=eltmax\ninputs=data", "(eltmax) reads two layers or more, got 1"),
    (SOFTMAX + "[y]\ntype=softmax\ninputs=data", "line 10: [y] is read by no layer and is no cost"),
    ("[x]\ntype=concat\ninputs=" + ",".join(["data"] * 101), "has 101 inputs, more than 100"),
    ("[a b]\ntype=softmax\ninputs=data", "line 7: 'a b' is no name of a layer"),
    (SOFTMAX + "[c]\ntype=cost.logreg\ninputs=x", "[c] (cost.logreg) reads labels and a softmax, got 1"),
    (SOFTMAX + "[c]\ntype=cost.logreg\ninputs=x,data", "reads data, which is no softmax"),
    ("[x]\ntype=data\ndataIdx=2\nstart=4\nend=4", "no rows from start=4 to end=4"),
    # keys
    ("[x]\ntype=data\ndataIdx=-1", "line 9: [x] dataIdx='-1': must be a whole number from 0 to 1,000,000"),
    ("[x]\ntype=data\ndataIdx=1.0", "line 9: [x] dataIdx='1.0': must be a whole number"),
    ("[x]\ntype=fc\ninputs=data\ninitW=.1", "line 7: [x] has no outputs, which fc needs"),
    ("[x]\ntype=fc\ninputs=data\noutputs=2", "line 7: [x] has no initW, which fc needs"),
    ("[x]\ntype=fc\ninputs=data\noutputs=0\ninitW=.1", "outputs='0': must be a whole number from 1"),
    ("[x]\ntype=fc\ninputs=data\noutputs=" + "9" * 5000 + "\ninitW=.1", "...': must be a whole number"),
    ("[x]\ntype=fc\ninputs=data\noutputs=2\ninitW=nan", "initW='nan': must be a number"),
    ("[x]\ntype=fc\ninputs=data\noutputs=2\ninitW=1e999", "initW='1e999': must be a number"),
    ("[x]\ntype=fc\ninputs=data\noutputs=2\ninitW=.1,.1", "initW='.1,.1': has 2 entries for 1 inputs"),
    ("[x]\ntype=fc\ninputs=data,data\noutputs=2\ninitW=.1", "initW='.1': has 1 entries for 2 inputs"),
    (FC + "gpu=a", "gpu='a': must be a whole number from -1"),
    (FC + "neuron=swish", "line 12: [x] neuron='swish': is no neuron; known"),
    (FC + "neuron=tanh", "neuron='tanh': is no neuron"),
    (FC + "neuron=tanh[1,x]", "neuron='tanh[1,x]': is no neuron"),
    (FC + "neuron=relu[1]", "neuron='relu[1]': is no neuron"),
    (FC + "neuron=relu\n[x_neuron]\ntype=softmax\ninputs=x", "called x_neuron, as another layer is"),
    ("[x]\ntype=softmax\ninputs=y_neuron\n[y]\ntype=softmax\ninputs=data\nneuron=relu", "'y_neuron', which is nowhere"),
    ("[x]\ntype=hs\ninputs=data\nkeep=0", "keep=0 must be above 0 and at most 1"),
    ("[x]\ntype=hs\ninputs=data", "has no keep, which hs needs"),
    ("[x]\ntype=blur\ninputs=data\nchannels=3\nfilterSize=4\nstdev=1", "filterSize=4, stdev=1: must be"),
    ("[x]\ntype=blur\ninputs=data\nchannels=3\nfilterSize=3\nstdev=0", "filterSize=3, stdev=0: must be"),
    (POOL + "pool=min\nstride=2", "pool='min': must be max, avg, maxabs or rand"),
    (POOL + "pool=max\nstride=3", "stride=3 leaves out pixels between windows"),
    ("[x]\ntype=cmrnorm\ninputs=data\nchannels=3\nsize=4", "size=4: must be from 2 to the number of channels, 3"),
    ("[x]\ntype=cmrnorm\ninputs=data\nchannels=3\nsize=1", "size=1: must be from 2 to the number of channels, 3"),
    (
        "[x]\ntype=rnorm\ninputs=data\nchannels=3\nsize=3\nblocked=maybe",
        "blocked='maybe': must be one of 1, yes, true,",
    ),
    ("[x]\ntype=rnorm\ninputs=data\nchannels=3\nsizeX=3", "has no scale, which rnorm needs"),
]


@pytest.mark.parametrize(("text", "found"), REFUSED, ids=range(len(REFUSED)))
def test_refused(reading, text, found):
    with pytest.raises(DefinitionError) as raised:
        reading(ONE.format(text))
    assert found in str(raised.value)
    assert "layers.cfg, line " in str(raised.value)
    assert "\n" not in str(raised.value)


CONV = "[x]\ntype=conv\npartialSum=1\ninputs={inputs}\nchannels={channels}\nfilters={filters}\n"
CONV += "filterSize={size}\ninitW={std}\n"


@pytest.mark.parametrize(
    ("inputs", "channels", "filters", "size", "std", "more", "found"),
    [
        ("data", "3", "16", "3", ".1", "groups=2", "3 channels cannot be cut into 2 groups"),
        ("data,data", "3,3", "16,32", "3,3", ".1,.1", "", "differ between its inputs (16 x 1, 32 x 1)"),
        ("data,data", "3,3", "16", "3,3", ".1,.1", "", "filters='16': has 1 entries for 2 inputs"),
        ("data", "8", "16", "3", ".1", "randSparse=1", "randSparse with 1 groups"),
        ("data", "8", "16", "3", ".1", "randSparse=1\ngroups=2\nfilterChannels=16", "filterChannels=16 of 8 channels"),
        ("data", "8", "16", "3", ".1", "randSparse=1\ngroups=2\nfilterChannels=3", "filterChannels=3 of 8 channels"),
        ("data", "8", "16", "3", ".1", "randSparse=true\ngroups=2\nfilterChannels=2", "every channel equally often"),
        ("data", "3", "16", "3", ".1", "padding=-1", "padding='-1': must be a whole number from 0"),
        ("data", "3", "16", "3", ".1", "stride=0", "stride='0': must be a whole number from 1"),
        ("data", "3", "16", "3", ".1", "sharedBiases=2", "sharedBiases='2': must be one of"),
    ],
)
def test_convolutions_refused(reading, inputs, channels, filters, size, std, more, found):
    text = CONV.format(inputs=inputs, channels=channels, filters=filters, size=size, std=std) + more
    with pytest.raises(DefinitionError, match=re.escape(found)):
        reading(ONE.format(text))


def test_convolutions_need_their_sums_and_ignore_them(reading):
    text = ONE.format(CONV.format(inputs="data", channels=3, filters=16, size=3, std=0.1))
    for dialect, other in (("V1", "partialSum"), ("C2", "sumWidth")):
        definition = reading(text.replace("partialSum", other))
        assert definition.dialect == dialect
    with pytest.raises(DefinitionError, match=r"\[x\] has no partialSum, which conv needs"):
        reading(text.replace("partialSum=1\n", ""))


def test_what_only_their_kernels_refused_is_noted(reading):
    text = CONV.format(inputs="data", channels=3, filters=10, size=3, std=0.1)
    text += "[y]\ntype=conv\ninputs=x\nchannels=10\nfilters=8\nfilterSize=1\ninitW=.1\npartialSum=0\ngroups=2\n"
    definition = reading(ONE.format(text.replace("[x]", "[w]").replace("=x\n", "=w\n").replace("[y]", "[x]")))
    assert [note.split("layers.cfg, ")[1] for note in definition.notes] == [
        "line 7: [w]: 10 filters in a group, not a multiple of 16, which its program refused; here it is built",
        "line 15: [x]: 10 channels in 2 groups, not four by four in each, which its program refused; here it is built",
        "line 15: [x]: 8 filters in a group, not a multiple of 16, which its program refused; here it is built",
    ]


PARAMS_REFUSED = [
    (("[conv1]\n", "[other]\n"), "layers.cfg, line 10: [conv1] has no section in "),
    (("epsW=0.001\n", ""), "params.cfg, line 1: [conv1] has no epsW, which conv needs"),
    (("epsB=0.002\n", ""), "[conv1] has no epsB"),
    (("momW=0.9\n", ""), "[conv1] has no momW"),
    (("momB=0.9\n", ""), "[conv1] has no momB"),
    (("wc=0.004\n", ""), "[conv1] has no wc"),  # cuda-convnet asks for it, its successors do not
    (("coeff=1", ""), "[logprob] has no coeff"),
    (("coeff=1", "coeff=1\ntopk=0"), "topk='0': must be a whole number from 1"),
    (("epsW=0.001", "epsW=fast"), "params.cfg, line 2: [conv1] epsW='fast': must be a number"),
    (("epsW=0.001", "epsW=-1"), "epsW='-1': must be a number from 0 on"),
    (("momW=0.9", "momW=-.9"), "momW='-.9': must be a number from 0 on"),
    (("wc=3", "wc=-3"), "wc='-3': must be a number from 0 on"),
    (("epsW=0.001", "epsW=0.001,0.001"), "epsW='0.001,0.001': has 2 entries for 1 inputs"),
    (("epsB=0.002", "epsB=exp[tgtFactor=10]"), "needs a base that is not negative"),
    (("epsB=0.002", "epsB=dexp[base=1;tgtFactor=10]"), "dexp needs a whole number of steps"),
    (("epsB=0.002", "epsB=soon[base=1;tgtFactor=10]"), "'soon' is no schedule"),
]


@pytest.mark.parametrize(("change", "found"), PARAMS_REFUSED, ids=range(len(PARAMS_REFUSED)))
def test_parameters_refused(reading, change, found):
    with pytest.raises(DefinitionError) as raised:
        reading(OLD, OLD_PARAMS.replace(*change))
    assert change[0] in OLD_PARAMS
    assert found in str(raised.value)
    assert "\n" not in str(raised.value)


def test_layers_that_need_parameters(reading):
    sections = re.findall(r"^\[(\w+)\]", COLUMNS_PARAMS, re.MULTILINE)
    for name in sections:
        kept = re.sub(rf"^\[{name}\]\n(.+\n)*", "", COLUMNS_PARAMS, flags=re.MULTILINE)
        with pytest.raises(DefinitionError, match=rf"\[{name}\] has no section in .*params.cfg, which \S+ needs"):
            reading(COLUMNS, kept)
    for name in ("kept", "halved", "added"):
        kept = re.sub(rf"^\[{name}\]\n(.+\n)*", "", CHAIN_PARAMS, flags=re.MULTILINE)
        with pytest.raises(DefinitionError, match=rf"\[{name}\] has no section in"):
            reading(CHAIN, kept)
    rand = COLUMNS.replace("pool=avg", "pool=rand")
    with pytest.raises(DefinitionError, match=r"\[pool4\] has no section in .*params.cfg, which pool needs"):
        reading(rand, COLUMNS_PARAMS)
    assert by_name(reading(rand, COLUMNS_PARAMS + "[pool4]\ndoMax=true\n"))["pool4"].do_max
    with pytest.raises(DefinitionError, match=r"\[hs5\] has no enable, which hs needs"):
        reading(COLUMNS, COLUMNS_PARAMS.replace("enable=false\n", ""))


def test_defaults_serve_all_sections(reading):
    params = "[DEFAULT]\nmomW=0.9\nmomB=%(momW)s\nwc=0\nepsB=2\n[conv1]\nepsW=1\n[fc10]\nepsW=1\n[logprob]\ncoeff=1\n"
    definition = reading(OLD, params)
    assert by_name(definition)["fc10"].bias == Rate(2, 0.9)
    assert not definition.notes


def test_what_is_not_built_or_means_nothing_is_noted(reading):
    more = "wball=0\nwcNormMin=0.1\nsuperEps=1\nsched=exp[1000]\nspeed=9\nquantF=half\nquantB=default\n"
    params = OLD_PARAMS.replace("wc=3\n", "wc=3\n" + more).replace(
        "wc=0.004\n", "wc=0.004\nwball=0.5\nSched=exp[1000]\n"
    )
    notes = reading(OLD, params + "[gone]\nwc=1\n[gone2]\n").notes
    assert [note.split("params.cfg, ")[1] for note in notes] == [
        "line 7: [conv1]: wball, a limit of every filter's norm, is not built: training goes on without",
        "line 18: [fc10]: wcNormMin, a least spread of every filter, is not built: training goes on without",
        "line 19: [fc10]: superEps, rates divided by the gradient's spread, is not built: training goes on without",
        "line 22: [fc10]: quantF, activations rounded between devices, is not built: training goes on without",
        "line 8: [conv1], [fc10]: 'sched' is ignored: rates stay constant; the program that knew this key is lost, "
        "schedW and schedB came after it",
        "line 21: [fc10]: 'speed' is ignored: such layers have no such key",
        "line 27: [gone], [gone2]: no layer is called so; ignored",
    ]
    period = reading(CHAIN, CHAIN_PARAMS.replace("wc=0.001\n", "wc=0.001\nupdatePeriod=2\n")).notes
    assert [re.sub("^.*: updatePeriod", "updatePeriod", note) for note in period] == [
        "updatePeriod, an update every so many minibatches, is not built: training goes on without"
    ]
    assert "[conv1], [fca], [fcb] and 1 more" in period[0]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("initWFunc", "os.system(rm)"), ("initWFunc", "initw.makew(conv1,os)"), ("initWFunc", "initw.makew"),
        ("initWFunc", "initw.makeb(conv1)"), ("initBFunc", "initw.makew(conv1)"), ("initBFunc", "__import__(os)"),
        ("initCFunc", "evil.f()"), ("initWFunc", "initw.makew(conv1); import os"), ("initWFunc", ""),
    ],
)  # fmt: skip
def test_functions_are_refused_by_name(reading, key, text):
    with pytest.raises(DefinitionError, match=rf"\[conv1\] {key}='.*': names a Python function, which is not run"):
        reading(OLD, None, ("sharedBiases=false", f"sharedBiases=false\n{key}={text}"))


def test_nothing_is_imported_or_run(tmp_path):
    """A module of the name that files use, beside them and first on the path, is left alone."""
    (tmp_path / "initw.py").write_text("raise SystemExit('run')\n")
    write(tmp_path, COLUMNS, COLUMNS_PARAMS)
    code = "from convnet.definitions.files import read; print(read('layers.cfg', 'params.cfg').nodes[-1].name)"
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "logprob\n", done.stderr


def test_an_empty_file(reading):
    with pytest.raises(DefinitionError, match=r"layers.cfg: has no layer"):
        reading("# nothing\n")


def test_where_layers_lie(reading):
    found = columns(reading(COLUMNS))
    assert found["data"] == ()
    assert found["pool1b_neuron"] == found["conv2b"] == found["cnorm2b"] == (1,)  # from the first input
    assert found["local3"] == (0,)
    assert found["both"] == found["pool4"] == (1,)
    assert columns(reading(CHAIN))["probs"] == (0, 1)
    assert set(columns(reading(OLD)).values()) == {()}


def test_what_layers_really_are(reading):
    definition = reading(COLUMNS, None, ("local3", "conv3"))
    told = [sentence.split("layers.cfg, ")[1] for sentence in misnamed(definition)]
    across = "it divides by the squares of the maps around each map, at the same pixel"
    within = "it divides by the squares of the pixels around each pixel, of the same map"
    assert told == [
        f"line 48: rnorm1a is of type cmrnorm: {across}",
        f"line 54: rnorm1b is of type cmrnorm: {across}",
        f"line 109: cnorm2a is of type rnorm: {within}",
        "line 121: conv3 is of type local",
    ]
    assert misnamed(reading(OLD)) == []
