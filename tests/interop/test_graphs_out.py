"""Networks that are no chains of layers as other programs have them: refused, with the layer's name, but as arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest
from definition_files import CHAIN, OLD, TWISTED, write

from convnet.definitions.files import read
from convnet.interop.arrays import npz_file, safetensors_file
from convnet.interop.onnx_out import onnx_file
from convnet.interop.torch_names import torch_code, torch_weights
from convnet.interop.weights import recognised
from convnet.network.defined import defined
from convnet.network.networks import network
from convnet.network.spec import Conv, parameter_shapes

# a definition, the side of its images, and the first layer that is unlike others': two inputs, drawn maps, and a layer
# further back than the one in front
ODD = {
    "several": (CHAIN.replace("sum=1\n", ""), 24, "fcb"),
    "drawn": (TWISTED.replace("sharedBiases=0\n", ""), 8, "conv3"),
    "untied": (OLD.replace("linear[3,2.2]", "relu").replace("type=rnorm", "type=cmrnorm"), 32, "conv1"),
}


@pytest.mark.parametrize("kind", list(ODD))
def test_no_file_says_more_than_its_format(tmp_path, kind):
    text, side, odd = ODD[kind]
    spec = defined(read(write(tmp_path, text)[0]), side).spec
    weights = {name: np.ones(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    sentence = f"--names torch: {odd} does not read the layer in front of it alone, or .*; take --names convnet$"
    for say in (lambda: torch_code(spec), lambda: torch_weights(spec, weights)):
        with pytest.raises(ValueError, match=sentence):
            say()
    assert safetensors_file(weights, ["a"])
    assert npz_file(weights, ["a"])
    pytest.importorskip("onnx", reason="onnx is not installed")
    with pytest.raises(
        ValueError, match=f"^{odd}: networks with layers of its kind, .* export to .safetensors or .npz$"
    ):
        onnx_file(spec, weights)


def test_weights_of_several_inputs_come_back(tmp_path):
    spec = defined(read(write(tmp_path, CHAIN.replace("sum=1\n", ""))[0]), 24).spec
    shapes = parameter_shapes(spec)
    assert {"fc.weight0", "fc.weight1"} <= shapes.keys()
    weights = {name: np.full(shape, k, np.float32) for k, (name, shape) in enumerate(shapes.items())}
    (tmp_path / "x.safetensors").write_bytes(safetensors_file(weights, ["a"]))
    found = recognised(tmp_path / "x.safetensors").weights
    assert {name: (values.shape, values.flat[0]) for name, values in found.items()} == {
        name: (shape, k) for k, (name, shape) in enumerate(shapes.items())
    }


def test_the_first_filters_are_those_of_the_images(tmp_path):
    def of(text: str, side: int):
        return defined(read(write(tmp_path, text)[0]), side).spec

    assert network("alexnet").first_filters == "conv1.weight"
    assert of(TWISTED, 8).first_filters == "conv1.weight"
    blurred = re.sub(r"inputs=data\nchannels=3\nfilters", "inputs=soft\nchannels=3\nfilters", TWISTED)
    soft = "[soft]\ntype=blur\ninputs=data\nfilterSize=3\nstdev=1\nchannels=3\n\n"
    assert of(blurred.replace("[conv1a]", soft + "[conv1a]"), 8).first_filters is None
    # the images are a second input, of the same layer that reads them blurred
    two = OLD.replace("linear[3,2.2]", "relu").replace("[conv1]", soft + "[conv1]", 1)
    alone = "inputs=data\nchannels=3\nfilters=16\npadding=1\nstride=1\nfilterSize=3\ninitW=0.0001\n"
    both = "inputs=soft,data\nchannels=3,3\nfilters=16,16\npadding=1,1\nstride=1,1\nfilterSize=3,3\ninitW=0.1,0.1\n"
    two = two.replace(alone, both)
    spec = of(two, 32)
    assert spec.first_filters == "conv1.weight1"
    assert isinstance(next(layer for layer in spec.layers if layer.name == "conv1"), Conv)


def test_the_layer_that_tells_likeness():
    names = {"alexnet": "fc7", "alexnet-torchvision": "fc7", "cifar-19pct": "pool3", "cifar-13pct": "local4"}
    assert {name: network(name).features_layer for name in names} == names
    assert network("alexnet", dropout=0).features_layer == "fc7"
