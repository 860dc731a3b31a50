"""``convnet-info --layer-def``: what a definition file becomes here, and what of it is not built."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from definition_files import CHAIN, CHAIN_PARAMS, COLUMNS, COLUMNS_PARAMS, TWISTED, write
from runs import call

from convnet.analysis.definition import TIMES, as_text, report
from convnet.cli.info import main
from convnet.definitions.files import read
from convnet.definitions.geometry import parameters, sizes
from convnet.network.defined import defined
from convnet.network.spec import parameter_count


def shown(capsys, *arguments: object, code: int = 0) -> str:
    assert call(main, *map(str, arguments)) == code
    told = capsys.readouterr()
    return told.out if code == 0 else told.err


def test_layers_of_columns_and_where_they_lie(tmp_path):
    path, _ = write(tmp_path, TWISTED)
    found = report(str(path), None, 8, False)
    assert (found["towers"], found["crop"], found["crop_is_usual"]) == (2, 8, False)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == ["conv1", "rnorm1", "conv2", "conv3", "local4", "fc5", "fc6"]
    conv2 = layers["conv2"]
    assert conv2["output"] == [16, 5, 5]
    assert conv2["parameters"] == 2 * (8 * 16 * 9 + 8)
    assert conv2["multiply_adds"] == 25 * 2 * 8 * 16 * 9
    assert conv2["of"] == [
        {"name": "conv2a", "tower": 1, "gpus": [0]},
        {"name": "conv2b", "tower": 2, "gpus": [1]},
    ]
    assert layers["fc6"]["of"] == [{"name": "fc6", "tower": None, "gpus": [1]}]
    # weights of local layers are as many as multiply-adds
    assert layers["local4"]["multiply_adds"] == 25 * 16 * 4 * 9 == layers["local4"]["parameters"] - 16 * 25
    assert found["parameters"] == parameter_count(defined(read(path), 8).spec)
    assert found["multiply_adds"] == sum(layer["multiply_adds"] for layer in found["layers"])
    assert found["others"] == ["data", "labels", "both", "probs", "logprob"]
    assert found["costs"] == [{"kind": "softmax", "of": "fc6", "coefficient": 1.0}]
    assert [sentence.partition("layers.cfg, ")[2] for sentence in found["misnamed"]] == [
        f"line {line}: rnorm1{column} is of type cmrnorm: it divides by the squares of the maps around each map, at "
        "the same pixel"
        for line, column in ((33, "a"), (39, "b"))
    ]


# Every reason for which a layer may not be built, as a section, and what is said of it.
UNBUILT = {
    "resize": ("type=resize", "type=resize is not built"),
    "treefc": ("type=treefc\ninitW=0.1", "type=treefc is not built: its tree of classes comes with the data"),
    "maxabs": ("type=pool\npool=maxabs\nchannels=3\nsizeX=3\nstride=2", "pool=maxabs is not built"),
    "outputs": ("type=pool\npool=max\nchannels=3\nsizeX=3\nstride=2\noutputsX=4", "outputsX is not built"),
    "early": ("type=pool\npool=max\nchannels=3\nsizeX=3\nstride=2\nstart=-1", "start=-1 of a maximum is not built"),
    "late": ("type=pool\npool=avg\nchannels=3\nsizeX=3\nstride=2\nstart=1", "start=1 leaves out pixels: not built"),
    "drawn": (
        "type=conv\nchannels=100000\nfilters=1\ngroups=100\nrandSparse=1\nfilterChannels=100000\nfilterSize=1\ninitW=1\n"
        "partialSum=1",
        "10,000,000 drawn channels (randSparse), more than 1,048,576, are not built",
    ),
    "blocked": ("type=cmrnorm\nchannels=3\nsize=3\nblocked=1", "blocked norms are not built"),
    "drelu": ("type=neuron\nneuron=drelu[1]", "the neuron drelu is not built"),
}  # fmt: skip
MORE = """
[odd]
{section}
inputs=data

[behind]
type=neuron
neuron=abs
inputs=odd

[further]
type=cost.sum2
inputs=behind

[bag]
type=cost.tica
inputs=fc6
"""


@pytest.mark.parametrize("kind", list(UNBUILT))
def test_all_that_is_not_built_is_told_and_the_rest_shown(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "400")  # so that no sentence is broken
    section, reason = UNBUILT[kind]
    path, _ = write(tmp_path, TWISTED + MORE.format(section=section))
    text = shown(capsys, "--layer-def", path, "--crop", "8")
    line = TWISTED.count("\n") + 2
    told = re.search(r"\n\nnot built here, nor what reads it\n(.*?)\n\n", text, re.DOTALL)[1].split("\n  ")
    assert [sentence.strip() for sentence in told] == [
        f"line {line}: [odd] {reason}",
        f"line {line + 13 + section.count(chr(10))}: [bag] cost.tica is not built",
    ]
    assert re.search(r"^fc6 +4 .* fc6 \(GPU 1\)$", text, re.MULTILINE)
    assert not re.search(r"^(odd|behind) ", text, re.MULTILINE)
    with pytest.raises(ValueError, match=re.escape(f"line {line}: [odd] {reason}")):
        defined(read(path), 8)


@pytest.mark.parametrize("what", ["probs", "labels", "apart"])
def test_what_reads_labels_or_a_softmax_is_not_built(tmp_path, what):
    """Nor what reads a difference to the labels, which is the squared error's."""
    apart = "\n[apart]\ntype=eltsum\ninputs=labels,fc6\ncoeffs=1,-1\n\n[error]\ntype=cost.sum2\ninputs=apart\n"
    more = f"\n[again]\ntype=neuron\nneuron=relu\ninputs={what}\n\n[more]\ntype=cost.sum2\ninputs=again\n"
    path, _ = write(tmp_path, TWISTED + apart + more)
    (told,) = report(str(path), None, 8, False)["not_built"]
    assert told.endswith(f"[again] reads {what}, which costs alone read here: not built")
    path, _ = write(tmp_path, TWISTED + apart)
    found = report(str(path), None, 8, False)
    assert not found["not_built"]
    assert [cost["kind"] for cost in found["costs"]] == ["softmax", "squared-error"]


def test_a_definition_of_nothing_that_is_built(tmp_path, capsys):
    more = MORE[: MORE.index("[bag]")].format(section="type=resize")
    path, _ = write(tmp_path, TWISTED[: TWISTED.index("[labels]")] + more)
    text = shown(capsys, "--layer-def", path)
    assert "layer " not in text
    assert "not built here\n" in text


def test_local_layers_of_several_inputs_and_their_table(tmp_path, capsys):
    """The tests' widest file, of which a part is built."""
    path, params = write(tmp_path, COLUMNS, COLUMNS_PARAMS)
    found = report(str(path), str(params), 32, False)
    assert [sentence.partition("[")[2] for sentence in found["not_built"]] == [
        "local3] local layers with several inputs are not built"
    ]
    assert {"conv2a", "cnorm2a", "pool4"} <= {layer["name"] for layer in found["layers"]}
    assert not {"local3", "fc5", "fc6"} & {layer["name"] for layer in found["layers"]}
    conv2a = next(layer for layer in found["layers"] if layer["name"] == "conv2a")
    assert conv2a["inputs"] == ["nails0", "pool1a_neuron"]
    assert conv2a["parameters"] == 32 * 3 * 9 + 32 * 8 * 9 + 32


@pytest.mark.parametrize("width", [50, 80, 120])
def test_no_line_is_wider_than_the_terminal(tmp_path, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)  # a short name: the first line has it whole
    write(tmp_path, TWISTED)
    lines = shown(capsys, "--layer-def", "layers.cfg", "--crop", "8").split("\n")
    numbers = re.compile(rf"^\w+ +[\d {TIMES}]+ +[\d,]+ +[\d,]+ ")
    beside = next(line for line in lines if line.startswith("layer ")).index("in the file")
    assert max(len(line) for line in lines[3:]) <= max(width, beside + 24)
    assert sum(bool(numbers.match(line)) for line in lines) == 6


def test_notes_costs_and_rates(tmp_path):
    path, params = write(tmp_path, CHAIN.replace("sum=1\n", "") + "\n[odd]\ntype=cost.sum2\ninputs=fcb\nsched=3\n",
                         CHAIN_PARAMS + "\n[odd]\ncoeff=2\n")  # fmt: skip
    found = report(str(path), str(params), 24, False)
    assert not found["not_built"]
    assert [(cost["kind"], cost["of"], cost["coefficient"]) for cost in found["costs"]] == [
        ("softmax", "fc", 1.0), ("squares", "fca", 0.001), ("squares", "fcb", 2.0),
    ]  # fmt: skip
    text = as_text(found, 200)
    assert "\ncost: 0.001 times the squares of fca\n" in text
    assert re.search(r"\nnotes\n.*\[odd\]: 'sched' is ignored: rates stay constant", text, re.DOTALL)
    rates = {tuple(one["tensors"]): one for one in found["rates"]}
    assert sorted(name for names in rates for name in names) == [
        "conv1.bias", "conv1.weight", "fc.bias", "fc.weight0", "fc.weight1", "fca.bias", "fca.weight", "fcb.bias",
        "fcb.weight",
    ]  # fmt: skip
    own = rates["fca.bias", "fcb.bias"]
    assert (own["rate"], own["momentum"], own["decay"], own["schedule"]) == (0.04, 0.9, 0.0, None)
    assert "  0.04, momentum 0.9, decay 0: fca.bias, fcb.bias\n" in text


def test_a_parameter_file_at_the_end_of_a_run(tmp_path, capsys):
    weights = "[{name}]\nepsW=0.00001\nepsB=0.002\nmomW=0.9\nmomB=0.9\nwc=0.004\n\n"
    chain = CHAIN.replace("sum=1\n", "")
    params = "".join(weights.format(name=name) for name in ("conv1", "fca", "fcb")) + (
        "[fc]\nepsW=0.00001,0.00001\nepsB=0.002\nmomW=0.9,0.9\nmomB=0.9\nwc=0,0\n\n"
    ) + CHAIN_PARAMS[CHAIN_PARAMS.index("[kept]") :]  # fmt: skip
    path, parameters = write(tmp_path, chain, params)
    options = "--layer-def", path, "--layer-params", parameters, "--crop", "24"
    text = " ".join(shown(capsys, *options).split())
    assert "params.cfg stands where a run stepped by hand had got to: 5 of 5 rates" in text
    assert text.endswith("began with epsW=0.001, as is usual, where its comments say nothing; --from-start begins so")
    assert "rates 1e-05, momentum 0.9, decay 0.004: conv1.weight, fca.weight, fcb.weight" in text
    begun = " ".join(shown(capsys, *options, "--from-start").split())
    assert "rates 0.001, momentum 0.9, decay 0.004: conv1.weight, fca.weight, fcb.weight" in begun
    assert begun.endswith("; the rates above are those")


def test_json_is_the_report(tmp_path, capsys):
    path, _ = write(tmp_path, TWISTED)
    found = json.loads(shown(capsys, "--layer-def", path, "--json"))
    assert found == json.loads(json.dumps(report(str(path), None, None, False)))
    assert (found["crop"], found["crop_is_usual"], found["program"]) == (32, True, "the program of 2012")


def test_the_usual_side_is_told(tmp_path, capsys):
    path, _ = write(tmp_path, TWISTED)
    assert f"images of 3 {TIMES} 32 {TIMES} 32 pixels, as is usual" in shown(capsys, "--layer-def", path)
    text = shown(capsys, "--layer-def", path, "--crop", "16")
    assert f"images of 3 {TIMES} 16 {TIMES} 16 pixels\n" in text
    assert "as is usual" not in text


MISTAKES = {
    "params alone": (["--layer-params", "x"], "--layer-params, --crop and --from-start need --layer-def FILE"),
    "crop alone": (["--crop", "32"], "need --layer-def FILE"),
    "nothing to start": (
        ["--layer-def", "x", "--from-start"],
        "--from-start is about rates, which --layer-params FILE",
    ),
    "crop": (["--layer-def", "x", "--crop", "0"], "--crop must be at least 1, got 0"),
    "both": (["--layer-def", "x", "--kernels"], "--layer-def shows a file, .*: not both at once"),
    "no file": (["--layer-def", "nowhere.cfg"], "nowhere.cfg"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes(capsys, mistake):
    arguments, text = MISTAKES[mistake]
    error = shown(capsys, *arguments, code=2)
    assert error.count("\n") == 1
    assert re.search(rf"^convnet-info: error: .*{text}", error), error


PLACE = os.environ.get("CONVNET_DEFINITIONS")
PUBLISHED = sorted(Path(PLACE).glob("*/*/layers*.cfg")) if PLACE else []


@pytest.mark.skipif(not PUBLISHED, reason="CONVNET_DEFINITIONS names no folder with the published files")
def test_every_published_file_is_told():
    """What it has in all is what its own keys say, and what is left out has a sentence with its line."""
    for path in PUBLISHED:
        found = report(str(path), None, None, False)
        assert found["layers"], path
        parts = [part["name"] for layer in found["layers"] for part in layer["of"]]
        if found["not_built"]:
            assert all(re.search(r"\.cfg, line \d+: \[.+\] ", sentence) for sentence in found["not_built"])
            continue
        definition = read(path)
        side = found["crop"]
        assert found["parameters"] == parameters(definition, sizes(definition, side)), path
        own = [node.name for node in definition.nodes if not node.name.endswith("_neuron")]
        assert sorted([*(name for name in parts if not name.startswith("neuron of ")), *found["others"]]) == sorted(own)
