"""The files as they were published, where they are at hand: CONVNET_DEFINITIONS names a folder with A/, C2/ and V1/."""

from __future__ import annotations

import configparser
import math
import os
import re
from pathlib import Path

import pytest

from convnet.definitions.columns import columns, misnamed
from convnet.definitions.files import read, read_ini
from convnet.definitions.geometry import parameters, sizes
from convnet.definitions.ini import DefinitionError
from convnet.definitions.nodes import Neuron, Weighted
from convnet.definitions.start import final_state, from_start

PLACE = os.environ.get("CONVNET_DEFINITIONS")
pytestmark = pytest.mark.skipif(
    not (PLACE and Path(PLACE).is_dir()), reason="CONVNET_DEFINITIONS names no folder with the published files"
)
ROOT = Path(PLACE or "")
LAYERS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*/layers*.cfg")) if PLACE else []
PARAMS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*/layer-params*")) if PLACE else []

UNREADABLE = "A/layers/layer-params-147.cfg.save"  # has three letters in front of its first bracket
WITHOUT = "A/layers/layer-params-107.cfg"  # for a definition that was not published, as its comment says
# Parameter files for definitions of other names, as their comments say, or the widths of their layers.
ELSEWHERE = {
    "126-2012-full": "126", "136": "135", "139": "137", "170-4gpu": "153-4gpu", "170-4gpu-exp": "153-4gpu",
    "18pct-noisylr": "18pct", "conv-local-13pct-noisylr": "conv-local-13pct",
}  # fmt: skip
# A tree of classes, which is not in the file.
TREES = {"A/layers/layers-137-tree.cfg", "A/layers/layers-146-2009-tree.cfg"}


def definition_of(params: str) -> str | None:
    """The definition file that a parameter file goes with: of its own name, of the longest beginning of it, or 153, of
    which most of the later runs are variations."""
    folder, _, name = params.rpartition("/")
    name = re.sub(r"^layer-params[-.]?(.*)\.cfg$", r"\1", name)
    separator = "." if name == "gc" else "-"
    words = name.split("-")
    candidates = ["-".join(words[:count]) for count in range(len(words), 0, -1)]
    candidates = [ELSEWHERE[name]] if name in ELSEWHERE else candidates
    candidates += ["153"] if re.match(r"1[567]\d|180", name) else []
    found = (f"{folder}/layers{separator}{candidate}.cfg" for candidate in candidates)
    return next((path for path in found if path in LAYERS), None)


def side_of(name: str) -> int:
    """Of the pictures that a network was made for."""
    if "/layers/" in name and "cifar" not in name:
        return 224
    if name == "V1/example-layers/layers.gc.cfg":
        return 8
    return 24 if "local" in name or "11pct" in name else 32


def counted(path: Path, side: int) -> int:
    """The number of parameters by another reader, the standard library's, and by a walk of its own."""
    parser = configparser.RawConfigParser(strict=False)
    parser.read(path)
    features: dict[str, int] = {}
    count = 0
    for name in parser.sections():
        section = dict(parser[name])
        inputs = [i.strip() for i in section.get("inputs", "").split(",")]

        def whole(key: str, default: int = 0, section=section, inputs=inputs) -> list[int]:
            values = [int(v) for v in section[key].split(",")] if key in section else [default]
            return values * len(inputs) if len(values) == 1 else values

        kind = section["type"]
        if kind == "data":
            features[name] = 3 * side * side
        elif kind in ("conv", "local"):
            for i, source in enumerate(inputs):
                channels, size, groups = (whole(key, 1)[i] for key in ("channels", "filtersize", "groups"))
                old = math.isqrt(features[source] // channels)
                out = math.ceil((old + 2 * whole("padding")[i] - size) / whole("stride", 1)[i]) + 1
                drawn = section.get("randsparse", "0").split(",")[i if "," in section.get("randsparse", "") else 0]
                own = (
                    whole("filterchannels")[i]
                    if "filterchannels" in section and drawn in ("1", "true")
                    else channels // groups
                )
                filters = whole("filters")[i] * groups
                count += filters * own * size * size * (out * out if kind == "local" else 1)
            apart = kind == "local" or section.get("sharedbiases", "1").lower() in ("0", "false")
            count += filters * (out * out if apart else 1)
            features[name] = filters * out * out
        elif kind == "fc":
            count += (sum(features[source] for source in inputs) + 1) * int(section["outputs"])
            features[name] = int(section["outputs"])
        elif kind == "pool":
            channels, start, size, stride = (whole(key)[0] for key in ("channels", "start", "sizex", "stride"))
            out = (
                whole("outputsx")[0]
                or math.ceil((math.isqrt(features[inputs[0]] // channels) - start - size) / stride) + 1
            )
            features[name] = channels * out * out
        elif kind == "nailbed":
            channels, stride = whole("channels")[0], whole("stride")[0]
            features[name] = channels * ((math.isqrt(features[inputs[0]] // channels) + stride - 1) // stride) ** 2
        elif kind in ("concat", "pass"):
            features[name] = sum(features[source] for source in inputs)
        elif not kind.startswith("cost."):
            features[name] = features[inputs[-1]]
    return count


def test_all_of_them_are_here():
    assert (len(LAYERS), len(PARAMS)) == (85, 120)


@pytest.mark.parametrize("name", LAYERS)
def test_definitions(name):
    definition = read(ROOT / name)
    assert definition.notes == ()
    dialect = name.split("/")[0]
    old = name.startswith("A/example-layers/") and not name.endswith("gc.cfg")
    assert definition.dialect == ("V1" if old else dialect)  # copies of cuda-convnet's among the files of 2012
    found = sizes(definition, side_of(name))
    assert all(len(shape) in (1, 3) for shape in found.values() if shape)
    if name in TREES:
        with pytest.raises(DefinitionError, match="as many weights as the data's tree"):
            parameters(definition, found)
    else:
        assert parameters(definition, found) == counted(ROOT / name, side_of(name))
    lies = columns(definition)
    assert all(lies[node.name] for node in definition.nodes if node.inputs) == (definition.dialect != "V1")
    assert all(isinstance(node, (Weighted, Neuron)) or "type" not in vars(node) for node in definition.nodes)


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        ("A/layers/layers-145.cfg", 224, 60_965_224),
        ("V1/example-layers/layers-80sec.cfg", 32, 145_578),
        ("V1/example-layers/layers-19pct.cfg", 32, 89_578),
        ("V1/example-layers/layers-conv-local-13pct.cfg", 24, 1_116_490),
        ("C2/layers/layers-cifar10-11pct.cfg", 24, 2_112_970),
    ],
)
def test_numbers_that_are_known(name, side, count):
    definition = read(ROOT / name)
    assert parameters(definition, sizes(definition, side)) == count


@pytest.mark.parametrize("name", [name for name in PARAMS if name not in (UNREADABLE, WITHOUT)])
def test_pairs(name):
    layers = definition_of(name)
    assert layers is not None
    definition = read(ROOT / layers, ROOT / name)
    for node in definition.nodes:
        if isinstance(node, Weighted):
            assert node.weights is not None
            assert len(node.weights) == len(node.inputs)
    begun = from_start(definition)
    assert final_state(begun) is None
    rates = [rate.eps for node in begun.nodes if isinstance(node, Weighted) for rate in node.weights or ()]
    # toys apart, whose rates are as they are, every network begins with rates that train it
    assert "example" in name or min(rates) >= 0.0001
    ignored = [re.search(r"'(\w+)' is ignored", note) for note in definition.notes]
    assert {key[1] for key in ignored if key} <= {"sched", "wcnorm"}


def test_pairs_that_are_none():
    with pytest.raises(DefinitionError, match=r"147.cfg.save, line 1: 'ano\[conv1a\]' stands in front of the first"):
        read_ini(ROOT / UNREADABLE)
    assert definition_of(WITHOUT) is None
    assert len(read_ini(ROOT / WITHOUT).sections) > 10


def test_how_many_stand_at_an_end():
    """By what their rates are, whatever the comments say: of A's, rates of weights all .001 or below, and more that are
    frozen alone."""
    ended = {
        name
        for name in PARAMS
        if name not in (UNREADABLE, WITHOUT) and final_state(read(ROOT / definition_of(name), ROOT / name))
    }
    low = set()
    for name in PARAMS:
        texts = re.findall(r"^epsW=(.*)$", (ROOT / name).read_text(), re.MULTILINE)
        rates = [float(rate) for text in texts if "[" not in text for rate in text.split(",")]
        if name.startswith("A/layers/") and rates and max(rates) <= 0.001:
            low.add(name)
    low -= {UNREADABLE}
    assert len(low) > 40
    assert low <= ended
    assert {
        "A/layers/layer-params-145.cfg",
        "A/layers/layer-params-155.cfg",
        "A/example-layers/layer-params-conv-local-12pct.cfg",
    } <= ended
    assert not any(name.startswith(("V1/", "C2/")) for name in ended)


def test_names_that_lie():
    told = [sentence.split(": ")[1] for sentence in misnamed(read(ROOT / "A/layers/layers-145.cfg"))]
    assert told == [
        *(f"rnorm{k}{column} is of type cmrnorm" for k in "12" for column in "ab"),
        "cnorm2a is of type rnorm", "cnorm2b is of type rnorm",
    ]  # fmt: skip
