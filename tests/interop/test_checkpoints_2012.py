"""Checkpoints of the 2012 program and its relatives: what is in them, and what hostile ones must not achieve."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_2012 import checkpoint, full, windowed, written
from data_files import Instance, python2_pickle
from runs import call

from convnet.cli.export import main as export
from convnet.interop import WeightsError, read_checkpoint, read_weights
from convnet.interop.checkpoints_2012 import recognises


def file(tmp_path, raw, name="12.3"):
    (tmp_path / name).write_bytes(raw)
    return tmp_path / name


def zipped(raw, *names, packing=zipfile.ZIP_DEFLATED):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", packing) as archive:
        for name in names or ("data",):
            archive.writestr(name, raw)
    return target.getvalue()


def at(values, kind, K, P, C, side, **place):
    """One number by the formula of the format, for the comparison with what comes out."""
    k, c, r, s = (place[name] for name in "kcrs")
    row = (c * side + r) * side + s
    if kind == "local":
        row += (place["p"] * P + place["q"]) * C * side**2
    return values[row, k]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("form", ["plain", "zipped", "stored"])
def test_every_number_is_where_the_format_says(tmp_path, named, form):
    raw = written(named=named)
    raw = (
        raw
        if form == "plain"
        else zipped(raw, packing=zipfile.ZIP_DEFLATED if form == "zipped" else zipfile.ZIP_STORED)
    )
    path = file(tmp_path, raw)
    assert recognises(path)
    found = read_checkpoint(path)
    assert (found.epoch, found.batchnum) == (12, 3)
    assert list(found.layers) == ["conv1", "conv2", "conv3", "local1", "fc10"]
    theirs = checkpoint(named)["model_state"]["layers"]
    theirs = theirs if named else {layer["name"]: layer for layer in theirs}
    for name, layer in found.layers.items():
        kind = layer["type"]
        for what in ("weights", "weightsInc"):
            for k, (ours, there) in enumerate(zip(layer[what], theirs[name][what], strict=True)):
                assert ours.dtype == np.float32
                assert ours.flags.c_contiguous
                if kind == "fc":
                    np.testing.assert_array_equal(ours, there.T)
                    continue
                C, side = 3 + k, 3 - k
                assert ours.shape == ((5, 5) if kind == "local" else ()) + (8, C, side, side)
                for index in np.ndindex(ours.shape):
                    place = dict(zip("pqkcrs" if kind == "local" else "kcrs", index, strict=True))
                    assert ours[index] == at(there, kind, 8, 5, C, side, **place)
        for what in ("biases", "biasesInc"):
            shape = {"fc10": (3,), "local1": (8, 5, 5), "conv3": (8, 5, 5)}.get(name, (8,))
            np.testing.assert_array_equal(layer[what], theirs[name][what].reshape(shape))
    assert found.layers["conv2"]["filterConns"] == [[0, 2, 4, 1, 3, 5], None]
    assert found.layers["conv1"]["filterConns"] == [None]


def test_arrays_are_called_after_their_layers(tmp_path):
    arrays = read_checkpoint(file(tmp_path, written())).arrays()
    assert list(arrays) == [
        "conv1.weight", "conv1.bias", "conv2.weight0", "conv2.weight1", "conv2.bias", "conv3.weight", "conv3.bias",
        "local1.weight0", "local1.weight1", "local1.bias", "fc10.weight0", "fc10.weight1", "fc10.bias",
    ]  # fmt: skip


def test_convnet_export_writes_them(tmp_path, capsys):
    source = tmp_path / "ConvNet__2012-01-01"
    source.mkdir()
    for name in ("9.5", "12.3", "12.10"):
        state = checkpoint()
        state["model_state"]["batchnum"] = int(name.partition(".")[2])
        file(source, python2_pickle(state), name)
    (source / "99.1.tmp").write_bytes(b"")
    target = tmp_path / "out.safetensors"
    assert call(export, str(source), "-o", str(target)) == 0
    shown = capsys.readouterr().out
    assert "of epoch 12, data batch 10: 9,825 weights and biases" in shown
    assert "conv1, conv2, conv3, local1, fc10" in shown
    written_there, arrays = safetensors.numpy.load_file(target), read_checkpoint(source / "12.10").arrays()
    assert written_there.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(written_there[name], values)
        np.testing.assert_array_equal(read_weights(target)[name], values)
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, target.name]  # and no card
    assert call(export, str(source), "-o", str(tmp_path / "out.onnx")) == 2
    assert "go into a .safetensors file" in capsys.readouterr().err


def test_pickles_of_other_things_are_no_checkpoints(tmp_path):
    assert not recognises(file(tmp_path, python2_pickle({"data": [1], "labels": [2]})))
    assert not recognises(file(tmp_path, zipped(b"", "data", "more")))
    assert not recognises(file(tmp_path, b""))
    assert not recognises(tmp_path / "nothing")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert not recognises(folder)
    with pytest.raises(WeightsError, match=r"no checkpoint called EPOCH.BATCH"):
        read_checkpoint(folder)


# ---- what is refused ----


def changed(called, **keys):
    """A checkpoint in which keys of a layer are others, or gone where None."""
    state = checkpoint()
    layer = state["model_state"]["layers"][called]
    for key, value in keys.items():
        if value is None:
            del layer[key]
        else:
            layer[key] = value
    return python2_pickle(state)


def numbers(*shape, dtype=np.float32, value=0.0):
    return np.full(shape, value, dtype)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (changed("conv1", weights=[numbers(27, 7)]), r"layer conv1: weights\[0\] must be 27 x 8 numbers.*found 27 x 7"),
        (changed("conv1", weights=[numbers(8, 27)]), "must be 27 x 8 numbers"),
        (changed("conv1", weights=[numbers(216)]), r"found float32 \(216,\)"),
        (changed("conv1", weights=[numbers(27, 8, dtype=np.int32)]), "in float32, found int32"),
        (changed("conv1", weights=[numbers(27, 8, dtype=np.dtype(">f4"))]), "in float32, found >f4"),
        (changed("conv1", weights=[numbers(27, 8, value=np.nan)]), r"weights\[0\] has values that are not finite"),
        (changed("conv1", weightsInc=[numbers(27, 8, dtype=np.float64, value=1e39)]), r"weightsInc\[0\] has values"),
        (changed("conv1", weights=[[1.0, 2.0]]), "found list"),
        (changed("conv1", weights=[]), "0 matrices of weights and 1 of velocities"),
        (changed("conv1", weightsInc=None), "1 matrices of weights and 0 of velocities"),
        (changed("conv1", filters=0), "'filters' must be numbers from 1 on"),
        (changed("conv1", filters=7), "7 filters in 2 groups"),
        (changed("conv1", filterSize=[2**40]), "'filterSize' must be numbers from 1 on"),
        (changed("conv1", filterSize=[]), "'filterSize' must be numbers from 1 on"),
        (changed("conv1", biases=numbers(1, 8)), "biases must be 8 x 1 numbers"),
        (changed("conv3", biasesInc=numbers(8, 1)), "biasesInc must be 200 x 1 numbers"),
        (changed("conv3", modulesX=None), "'modulesX' must be a number from 1 on"),
        (changed("local1", modulesX=4), "must be 432 x 8 numbers"),
        (changed("fc10", outputs=4), "must be 6 x 4 numbers, .* found 6 x 3"),
        (changed("fc10", type="treefc"), "weights of a layer of the type 'treefc', which is not read"),
        (changed("conv2", randSparse=[1]), "randSparse and filterConns must be lists for 2 inputs"),
        (changed("conv2", filterConns=[[0, 2, 4, 1, 3, 6], None]), r"filterConns\[0\] must be 6 numbers of channels"),
        (changed("conv2", filterConns=[None, None]), r"filterConns\[0\] must be 6 numbers of channels"),
        (changed("conv1", name="../x"), "layer 1 has weights and no name"),
        (changed("conv1", name="conv2"), "has weights and the name 'conv2', which is another's"),
        (
            python2_pickle({"model_state": {"layers": {}, "epoch": 1, "batchnum": 1}}),
            "none of its 0 layers has weights",
        ),
        (python2_pickle({"model_state": {"layers": {}, "epoch": "1", "batchnum": 1}}), "without a 'model_state' of"),
        (python2_pickle({"op": 1}), "without a 'model_state' of"),
        (python2_pickle([1]), "without a 'model_state' of"),
        (written()[:-100], "not a checkpoint of the 2012 program"),
        (b"", "not a checkpoint of the 2012 program"),
        (zipped(written())[:-200], "damaged checkpoint"),
        (zipped(b"\0" * 2**24), "cannot become|not a checkpoint"),
        (zipped(b"", "data", "x"), "its members are not one, called 'data'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, raw, message):
    path = file(tmp_path, raw)
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Hostile:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile(marker):
    def inside(raw):
        """A checkpoint that has an object in front of the others."""
        head = b"\x80\x02}q\x01("
        return head + b"U\x01x" + raw + b"U\x0bmodel_stateK\x01u."

    return {
        "runs a command": pickle.dumps({"op": Hostile(os.system, f"touch {marker}")}, protocol=2),
        "a function of options": inside(f"coptions\nsystem\n(S'touch {marker}'\ntR".encode()),  # is only forgotten
        "a module below options": inside(b"coptions.os\nsystem\n"),
        "an instance of something else": inside(b"(cos\nsystem\no"),
        "an instance by name": inside(b"(ios\nsystem\n"),
        "another reconstructor": inside(b"ccopy_reg\n__newobj__\n"),
        "a new object": inside(b"c__builtin__\nobject\n)\x81"),
        "another builtin": inside(b"c__builtin__\neval\n(S'1'\ntR"),
        "an attribute of options": b"\x80\x04\x8c\x07options\x8c\x0fOption.__init__\x93.",
        "a codec": inside(b"c_codecs\nencode\n"),
        "objects in an array": pickle.dumps({"op": np.array([{}], object)}, protocol=2),
        "a state for an array's class": inside(b"cnumpy\nndarray\n}b"),
        "entries of an instance": inside(b"coptions\nOption\nK\x01K\x02s"),
        "parts of an instance": inside(b"coptions\nOption\nK\x01a"),
        "a place elsewhere": inside(b"Phere\n"),
    }


@pytest.mark.parametrize("name", list(hostile("")))
def test_nothing_runs(tmp_path, name):
    marker = tmp_path / "marker"
    path = file(tmp_path, hostile(marker)[name])
    forgotten = name in ("a function of options", "an attribute of options")
    with pytest.raises(
        WeightsError, match="without a 'model_state'" if forgotten else "a pickle of layers and their arr"
    ):
        read_checkpoint(path)
    assert not marker.exists()


def test_objects_of_options_are_forgotten_whatever_they_say(tmp_path):
    state = checkpoint()
    loop: dict = {}
    loop["self"] = Instance("options", "AnyOptionParser", loop)
    state["op"] = Instance("options", "OptionsParser", [loop, ("x", None)])
    raw = python2_pickle(state)
    new = b"U\x03newccopy_reg\n_reconstructor\n(coptions\nOption\nc__builtin__\nobject\nNtR}U\x01aK\x01sb"
    raw = raw[:-2] + new + b"u."
    assert next(iter(read_checkpoint(file(tmp_path, raw)).layers)) == "conv1"


def test_layers_that_refer_to_themselves_are_not_followed(tmp_path):
    state = checkpoint()
    layer = state["model_state"]["layers"]["conv1"]
    layer["inputLayers"] = [layer, state["model_state"]]
    assert len(read_checkpoint(file(tmp_path, python2_pickle(state))).layers) == 5


def test_an_array_named_many_times_is_refused_before_it_is_copied(tmp_path):
    layer = full("fc1", 0, (100,), 100)
    for key in ("weights", "weightsInc"):
        layer[key] = layer["weights"][:1] * 1000
    layer["numInputs"] = [100] * 1000
    with pytest.raises(WeightsError, match="layer fc1: more weights than the file has bytes for"):
        read_checkpoint(file(tmp_path, written(layers=[layer])))


def test_layers_may_share_their_weights(tmp_path):
    layer = windowed("conv9", "conv", 60, 1)
    state = checkpoint(layers=[layer])
    layer["weights"] = state["model_state"]["layers"]["conv1"]["weights"]
    found = read_checkpoint(file(tmp_path, python2_pickle(state)))
    np.testing.assert_array_equal(found.layers["conv9"]["weights"][0], found.layers["conv1"]["weights"][0])
