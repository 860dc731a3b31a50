"""Parameter files that stand at the end of a run stepped by hand, and the rates with which it began."""

from __future__ import annotations

import pytest
from definition_files import CHAIN, CHAIN_PARAMS, COLUMNS, COLUMNS_PARAMS, OLD, OLD_PARAMS, write

from convnet.definitions.files import read
from convnet.definitions.nodes import Weighted
from convnet.definitions.start import final_state, from_start

# the layers of COLUMNS without the weights of another network
FRESH = "\n".join(line for line in COLUMNS.split("\n") if not line.startswith("init") or "Func" not in line)
LAYERS = ("conv1a", "conv1b", "conv2a", "conv2b", "local3", "fc5", "fc6")
TWO = ("conv2a", "local3", "fc5")


def params(eps: dict[str, str] | str, comments: str = "", bias: dict[str, str] | str = "0.02", sched: str = "") -> str:
    """Rates of all layers, or of each."""
    text = COLUMNS_PARAMS[COLUMNS_PARAMS.index("[rnorm1a]") :]
    for name in LAYERS:
        own, b = (value if isinstance(value, str) else value[name] for value in (eps, bias))
        own, mom = (
            (f"{own},{own}", "0.9,0.9")
            if name in TWO and "," not in own
            else (own, "0.9,0.9" if name in TWO else "0.9")
        )
        text += f"\n[{name}]\nepsW={own}\nepsB={b}\nmomW={mom}\nmomB=0.9\n{sched}\n"
    return text + "\n" + comments


@pytest.fixture
def reading(tmp_path):
    return lambda layers, text: read(*write(tmp_path, layers, text))


def rates(definition):
    return {
        node.name: ([rate.eps for rate in node.weights], node.bias.eps)
        for node in definition.nodes
        if isinstance(node, Weighted)
    }


STEPPED = "# epoch 20: set epsw to 0.001 from 0.03\n# epoch 40: set epsw to 0.0001 from 0.001\n"


def test_a_run_that_has_ended(reading):
    ended = {**dict.fromkeys(LAYERS, "0.00003"), "conv1a": "0", "conv1b": "0.000"}
    definition = reading(FRESH, params(ended, STEPPED, {**dict.fromkeys(LAYERS, "0.02"), "conv1a": "0", "fc6": "0.1"}))
    state = final_state(definition)
    assert state.sentence.endswith(
        "params.cfg stands where a run stepped by hand had got to: 8 of 10 rates of weights are a tenth or less of "
        "what they began with and conv1a, conv1b are frozen (epsW=0); that run began with epsW=0.03, as its comments "
        "say"
    )
    begun = from_start(definition)
    assert rates(begun) == {
        **{name: ([0.03] * (2 if name in TWO else 1), 0.06) for name in LAYERS}, "fc6": ([0.03], 0.1),
    }  # fmt: skip
    assert final_state(begun) is None
    assert begun.nodes[0] is definition.nodes[0]
    assert begun.nodes[4].weights[0].decay == definition.nodes[4].weights[0].decay


@pytest.mark.parametrize(
    ("layers", "eps", "begun"),
    [
        (FRESH, "0.001", 0.01),  # large pictures: the first convolution takes strides
        (FRESH, "0.0011", None),
        (COLUMNS, "0.001", None),  # weights of another network are trained with less
        (COLUMNS, "0.0001", 0.001),
    ],
)
def test_without_comments_rates_are_the_usual_ones(reading, layers, eps, begun):
    definition = reading(layers, params(eps))
    state = final_state(definition)
    if begun is None:
        assert state is None
        assert from_start(definition) is definition
    else:
        assert f"epsW={begun:g}, as is usual, where its comments say nothing" in state.sentence
        assert {eps for own, _ in rates(from_start(definition)).values() for eps in own} == {begun}


@pytest.mark.parametrize(("eps", "ended"), [("0.001", False), ("0.0001", True), ("0.00001", True)])
def test_small_pictures(reading, eps, ended):
    definition = reading(OLD, OLD_PARAMS.replace("epsW=0.001", f"epsW={eps}"))
    assert (final_state(definition) is not None) == ended
    assert rates(from_start(definition)) == {"conv1": ([0.001], 0.002), "fc10": ([0.001], 0.002)}


def test_a_rate_or_two_may_be_low(reading):
    low = {**dict.fromkeys(LAYERS, "0.01"), "fc6": "0.00001", "fc5": "0.00001,0.01"}
    assert final_state(reading(FRESH, params(low))) is None
    assert "2 of 10 rates" in final_state(reading(FRESH, params(low, STEPPED))).sentence  # they were stepped, it says


def test_scheduled_runs_froze_their_first_layer(reading):
    falls = "schedW=dexp[tgtFactor=250,noiseStdev=0,numSteps=4]"
    eps = {**dict.fromkeys(LAYERS, "0.02"), "conv1a": "0"}
    bias = {**dict.fromkeys(LAYERS, "0.04"), "conv1a": "0"}
    for comments, begun in (("", 0.02), ("# epoch 73: set conv1 epsw to 0 from 0.03\n", 0.03)):
        definition = reading(FRESH, params(eps, comments, bias, falls))
        assert ": conv1a is frozen (epsW=0); that run began" in final_state(definition).sentence
        assert rates(from_start(definition))["conv1a"] == ([begun], max(0.04, 2 * begun))
        assert rates(from_start(definition))["fc6"] == ([0.02], 0.04)
    assert final_state(reading(FRESH, params("0.001", "", "0.02", falls))) is None  # a schedule begins where it is told
    noisy = "schedW=linear[1,1]"
    assert final_state(reading(FRESH, params("0.001", "", "0.02", noisy))) is not None  # it never falls


@pytest.mark.parametrize(
    ("comments", "conv1", "conv2", "fc"),
    [
        ("# init epsw 0.02", 0.02, 0.02, 0.02),
        ("# init epsw 0.002, 0.0005 on conv1", 0.0005, 0.002, 0.002),
        ("# init epsw 0.0005 on conv1, 0.002 elsewhere", 0.0005, 0.002, 0.002),
        ("# init epw 0.002 on conv layers, 0.02 on fc", 0.002, 0.002, 0.02),
        ("# init epsw 0.003 on conv1-2, 0.02 on fc, local3", 0.003, 0.003, 0.02),
        ("# INIT EpsW .02", 0.02, 0.02, 0.02),
        ("# epoch 3: set epstw ot 0.001 from 0.02", 0.02, 0.02, 0.02),
        ("# set epsw to 0.0001 from 0.003 on conv1,conv2\n# set epsw to 0.0001 from 0.02", 0.003, 0.003, 0.02),
        ("# set epsw to 0 on conv1\n# set epsw to 0.0001 from 0.02", 0.02, 0.02, 0.02),
        ("# set epsw conv1 to 0 from 0.02", 0.02, 0.01, 0.01),
        ("# set epsw to 0.1 from 0.02, set noise to 0 on conv1", 0.02, 0.02, 0.02),
        ("# init epsw 0.02\n# set epsw to 0.1 from 0.5", 0.02, 0.02, 0.02),
        # blocks are of runs: this one's is the first that says something
        ("# moved\n\n# set epsw to 0.001 from 0.02\n\n# set epsw to 0.01 from 0.5", 0.02, 0.02, 0.02),
        ("# set epsw to 0.0001 from 0.003 on conv10\n# set epsw to 0.0001 from 0.02", 0.02, 0.02, 0.02),
        ("# init epsw much", 0.01, 0.01, 0.01),
        ("# init epsw " + "9" * 400, 0.01, 0.01, 0.01),
        ("# set epsw to 1 from " + "9" * 400, 0.01, 0.01, 0.01),
    ],
)
def test_what_comments_say(reading, comments, conv1, conv2, fc):
    begun = rates(from_start(reading(FRESH, params("0.00001", comments))))
    assert (begun["conv1a"][0], begun["conv2b"][0], begun["fc6"][0]) == ([conv1], [conv2], [fc])


def test_nothing_to_tell(reading):
    assert final_state(reading(FRESH, params("0.01"))) is None
    assert final_state(reading(CHAIN, CHAIN_PARAMS)) is None
    definition = read(write_only(reading))
    assert final_state(definition) is None
    assert from_start(definition) is definition


def write_only(reading):
    """A definition without its parameters."""
    return reading(COLUMNS, COLUMNS_PARAMS).file
