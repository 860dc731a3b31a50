"""``convnet-export``: what it writes is what the network computes, anywhere; cards, options and mistakes."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from PIL import Image, ImageOps
from runs import COLOURS, LAST_STEP, TINY, call, records, shared_images

from convnet.analysis import export as exporting
from convnet.cli import eval as evaluate
from convnet.cli import predict, train
from convnet.cli.export import main
from convnet.interop.weights import recognised
from convnet.training.trained import load_trained

CROP, SIZE = 32, 37  # of the run


def logits_of(run, pictures: np.ndarray) -> np.ndarray:
    """Of uint8 (n, CROP, CROP, 3), by the network itself."""
    with load_trained(run, print).open_network("cpu", len(pictures)) as network:
        return network.evaluate_batch(pictures, np.zeros((len(pictures), 3), np.int32))


def some_pictures(n: int = 3) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, CROP, CROP, 3), dtype=np.uint8)


def code_of(card) -> str:
    """The Python in a card."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    return code


def apart(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnx", reason="onnx is not installed")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def test_onnx_of_pictures_and_the_lines_in_its_card(straight, tmp_path, onnxruntime, monkeypatch, capsys):
    file = tmp_path / "x.onnx"
    assert call(main, str(straight), "-o", str(file), "--check", "--data-licence", "CC0") == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^checked with onnxruntime, on 8 random pictures and 8 of the run's: at most \d", said, re.MULTILINE
    )
    assert f"written: {file}\nwritten: {tmp_path / 'README.md'}\n" in said
    session = onnxruntime.InferenceSession(str(file))
    assert apart(session.run(None, {"pictures": some_pictures()})[0], logits_of(straight, some_pictures())) < 1e-5
    monkeypatch.chdir(tmp_path)
    Image.fromarray(some_pictures(1)[0]).resize((50, 40)).save("photo.jpg")
    exec(code_of(tmp_path / "README.md"), {})
    picture = ImageOps.fit(Image.open("photo.jpg"), (SIZE, SIZE), Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    assert capsys.readouterr().out == f"{COLOURS[logits_of(straight, np.asarray(picture)[None]).argmax()]}\n"


def test_onnx_of_prepared_images(straight, tmp_path, onnxruntime, capsys):
    file = tmp_path / "x.onnx"
    assert call(main, str(straight), "-o", str(file), "--check", "--input", "float32", "-q") == 0
    assert capsys.readouterr().out == ""
    with load_trained(straight, print).open_network("cpu", 3) as network:
        images = np.random.default_rng(0).standard_normal((3, 3, CROP, CROP), dtype=np.float32)
        session = onnxruntime.InferenceSession(str(file))
        assert apart(session.run(None, {"images": images})[0], network.forward(images)) < 1e-5
    scope: dict = {}
    exec(code_of(tmp_path / "README.md").replace("'x.onnx'", repr(str(file))), scope)
    assert scope["logits"].shape == (1, 3)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_have_the_documented_names_and_layouts(suffix, straight, tmp_path):
    """And what pixels go through first, so that NumPy alone can do the rest."""
    file = tmp_path / f"x{suffix}"
    assert call(main, str(straight), "-o", str(file), "-q") == 0
    trained = load_trained(straight, print)
    if suffix == ".npz":
        with np.load(file) as archive:
            found = dict(archive)
        assert found.pop("classes").tolist() == list(COLOURS)
        assert json.loads(str(found.pop("network")))["model"] == "alexnet-tiny"
    else:
        found = safetensors.numpy.load_file(file)
        with safetensors.safe_open(file, "np") as opened:
            assert json.loads(opened.metadata()["classes"]) == list(COLOURS)
    mean, scale = found.pop("input.mean"), found.pop("input.scale")
    with trained.open_network("cpu", 3) as network:
        assert found.keys() == network.weights().keys()
        assert all((found[name] == values).all() for name, values in network.weights().items())
        prepared = np.ascontiguousarray((some_pictures().transpose(0, 3, 1, 2) - mean) * scale)
        assert prepared.dtype == np.float32
        assert (network.forward(prepared) == logits_of(straight, some_pictures())).all()
    scope: dict = {}
    exec(code_of(tmp_path / "README.md").replace(repr(file.name), repr(str(file))), scope)
    assert scope["weights"]["conv1.weight"].shape == (16, 3, 7, 7)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_names_of_pytorch_and_the_code_in_the_card(suffix, straight, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    file = tmp_path / f"x{suffix}"
    assert call(main, str(straight), "-o", str(file), "--names", "torch", "-q") == 0
    code = code_of(tmp_path / "README.md").replace(repr(file.name), repr(str(file)))
    scope: dict = {}
    exec(code, scope)
    pictures = torch.tensor(some_pictures().transpose(0, 3, 1, 2))
    with torch.no_grad():
        theirs = scope["network"]((pictures - scope["mean"]) * scope["scale"]).numpy()
    assert apart(theirs, logits_of(straight, some_pictures())) < 1e-5


@pytest.mark.parametrize("suffix", [".onnx", ".npz", ".safetensors"])
def test_a_new_run_can_start_from_what_was_exported(suffix, straight, tmp_path, capsys):
    if suffix == ".onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
    file = tmp_path / f"x{suffix}"
    assert call(main, str(straight), "-o", str(file), "-q") == 0
    found = recognised(file)
    weights = load_trained(straight, print).weights
    assert found.weights.keys() == weights.keys()
    assert all((found.weights[name] == values).all() for name, values in weights.items())
    arguments = [shared_images(), *TINY, "--init-from", str(file), "--model", "alexnet-tiny", "--steps", "1"]
    assert train.main([*arguments, "-o", str(tmp_path / "run")]) == 0
    assert "conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8; new: none" in capsys.readouterr().out


@pytest.mark.parametrize("normalisation", ["mean-image", "mean-std"])
@pytest.mark.parametrize("suffix", [".onnx", ".npz", ".safetensors"])
def test_what_was_exported_is_a_run_to_those_who_ask(suffix, normalisation, straight, tmp_path, capsys, monkeypatch):
    """The same bits for the same pictures, and the same names of classes."""
    if suffix == ".onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
    run = load_trained(straight, print)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, normalisation=normalisation))
    monkeypatch.setattr(exporting, "load_trained", lambda *_: run)
    file = tmp_path / f"x{suffix}"
    assert call(main, str(straight), "-o", str(file), "-q") == 0
    found = load_trained(file, pytest.fail)
    assert found.classes == run.classes
    assert found.spec == run.spec
    logits = []
    for trained in (run, found):
        with trained.open_network("cpu", 3) as network:
            logits.append(network.evaluate_batch(some_pictures(), np.zeros((3, 3), np.int32)))
    np.testing.assert_array_equal(*logits)
    assert call(predict.main, str(file), shared_images(), "--device", "cpu", "--csv") == 0
    out = capsys.readouterr().out
    assert out.count("\n") > 12
    assert set(run.classes) <= set(re.split(r"[,\n]", out))
    assert call(evaluate.main, str(file), "--data", shared_images(), "--device", "cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n"] > 0
    assert call(predict.main, str(file), shared_images(), "--model", "alexnet") == 2
    assert "x" + suffix + " knows its network and its classes" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_of_torchvision_become_onnx_and_come_back_under_their_names(tmp_path, capsys, onnxruntime):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from published import AlexNet

    torch.manual_seed(0)
    model = AlexNet(3).eval()
    torch.save(model.state_dict(), tmp_path / "alexnet.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    arguments = [str(tmp_path / "alexnet.pth"), "--classes", str(tmp_path / "names.txt"), "-o"]
    assert call(main, *arguments, str(tmp_path / "x.onnx"), "--check") == 0
    said = capsys.readouterr().out
    assert "the run's own pictures are not there to check with (" in said
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["a", "b", "c"]
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        theirs = model((torch.tensor(pictures.transpose(0, 3, 1, 2)) - mean) / std).numpy()
    assert apart(session.run(None, {"pictures": pictures})[0], theirs) < 1e-5
    text = (tmp_path / "README.md").read_text()
    assert "Trained on: not known; the weights are those in alexnet.pth" in text
    assert "Validation: not known" in text
    assert call(main, *arguments, str(tmp_path / "y.safetensors"), "--names", "torch", "-q") == 0
    found = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert found.keys() - {"input.mean", "input.scale"} == model.state_dict().keys()
    assert all((found[name] == values.numpy()).all() for name, values in model.state_dict().items())
    again = load_trained(tmp_path / "y.safetensors", pytest.fail)
    assert (again.config.model, again.classes) == ("alexnet-torchvision", ["a", "b", "c"])
    with again.open_network("cpu", 2) as network:
        assert apart(network.evaluate_batch(pictures, np.zeros((2, 3), np.int32)), theirs) < 1e-5


# ---- cards


def test_a_card_says_what_is_known(straight, tmp_path):
    assert call(main, str(straight), "-o", str(tmp_path / "x.npz"), "--data-licence", "ours | <b>\n# alone", "-q") == 0
    text = (tmp_path / "README.md").read_text()
    best = load_trained(straight, print).step
    (record,) = (r for r in records(straight) if r["event"] == "valid" and r["step"] == best)
    assert f"at step {best}: top-1 error {100 * record['top1_error']:.2f} %, loss {record['loss']:.4f}" in text
    assert "- Licence of the data: ours / (b)\\n# alone\n" in text
    assert "- 3 classes: `blue`, `green`, `red`\n" in text
    assert "`alexnet-tiny`, " in text
    assert "normalisation over 5 maps, alpha 0.01, beta 0.75, k 1, in each of 2 towers" in text
    assert call(main, str(straight), "-o", str(tmp_path / "x.npz"), "-q") == 0
    assert "- Licence of the data: not said\n" in (tmp_path / "README.md").read_text()


def test_a_checkpoint_has_its_own_errors(straight, tmp_path):
    checkpoint = straight / "checkpoints" / f"step-{LAST_STEP:08d}.safetensors"
    assert call(main, str(checkpoint), "-o", str(tmp_path / "x.npz"), "-q") == 0
    assert f"Validation, one view, at step {LAST_STEP}: top-1" in (tmp_path / "README.md").read_text()
    shutil.copy(checkpoint, tmp_path / "alone")
    assert call(main, str(tmp_path / "alone"), "-o", str(tmp_path / "x.npz"), "-q") == 0
    assert f"no record of an evaluation at step {LAST_STEP}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("theirs", ["# Mine\n", "", "<!-- written by convnet-export, for ", None])
def test_files_of_others_are_never_overwritten(theirs, straight, tmp_path, capsys):
    readme, beside = tmp_path / "README.md", tmp_path / "x.npz.md"
    if theirs is None:
        readme.mkdir()
    else:
        readme.write_text(theirs)
    assert call(main, str(straight), "-o", str(tmp_path / "x.npz")) == 0
    assert "x.npz.md; the README.md there is not about this file, and stays\n" in capsys.readouterr().out
    assert theirs is None or readme.read_text() == theirs
    assert beside.read_text().startswith("<!-- written by convnet-export, for x.npz -->\n")
    beside.write_text("mine too")
    assert call(main, str(straight), "-o", str(tmp_path / "x.npz")) == 0
    captured = capsys.readouterr()
    assert beside.read_text() == "mine too"
    assert captured.err == f"warning: no model card: {readme} and x.npz.md are files of others\n"


def test_the_card_of_another_file_stays_while_that_is_there(straight, tmp_path):
    def export(name: str) -> None:
        assert call(main, str(straight), "-o", str(tmp_path / name), "-q") == 0

    export("x.npz")
    export("y.npz")
    assert "# x.npz" in (tmp_path / "README.md").read_text()
    assert "# y.npz" in (tmp_path / "y.npz.md").read_text()
    (tmp_path / "x.npz").unlink()
    export("z.npz")
    assert "# z.npz" in (tmp_path / "README.md").read_text()


# ---- mistakes

MISTAKES = {
    "another kind": (["-o", "x.pth"], 2, "-o x.pth: the name of this file must end in .onnx, .safetensors or .npz"),
    "no folder": (["-o", "no/x.npz"], 2, "-o no/x.npz: cannot be written: No such file"),
    "names of ONNX": (["-o", "x.onnx", "--names", "torch"], 2, "--names is for .safetensors and .npz"),
    "an input of arrays": (["-o", "x.npz", "--input", "uint8"], 2, "--input is for .onnx; .npz holds arrays"),
    "arrays checked": (["-o", "x.safetensors", "--check"], 2, "--check is for .onnx; .safetensors holds arrays"),
    "no output": ([], 2, "the following arguments are required: -o/--output"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, straight, tmp_path, monkeypatch, capsys):
    arguments, code, text = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    assert call(main, str(straight), *arguments) == code
    error = capsys.readouterr().err
    assert re.fullmatch(rf"convnet-export: error: .*{re.escape(text)}.*\n", error), error
    assert not list(tmp_path.iterdir())


def test_no_run_and_no_package(straight, tmp_path, monkeypatch, capsys):
    assert call(main, str(tmp_path / "none"), "-o", str(tmp_path / "x.onnx")) == 4
    assert "there is no such checkpoint" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert call(main, str(straight), "-o", str(tmp_path / "x.onnx")) == 2
    assert capsys.readouterr().err == (
        'convnet-export: error: to write ONNX files the package onnx is needed: pip install "convnet[onnx]"\n'
    )
    assert not list(tmp_path.iterdir())


def test_a_disagreement_is_told_and_writes_nothing(straight, tmp_path, monkeypatch, capsys, onnxruntime):
    right = exporting.onnx_file
    monkeypatch.setattr(
        exporting,
        "onnx_file",
        lambda spec, weights, *rest: right(spec, {n: 1.001 * w for n, w in weights.items()}, *rest),
    )
    assert call(main, str(straight), "-o", str(tmp_path / "x.onnx"), "--check") == 1
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"convnet-export: error: onnxruntime, on .*apart, and 1e-05 are allowed; nothing is written\n", error
    )
    assert not list(tmp_path.iterdir())


def test_without_the_data_of_the_run_random_pictures_do(straight, tmp_path, capsys, monkeypatch, onnxruntime):
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    monkeypatch.setattr("convnet.training.trained.open_dataset", gone)
    assert call(main, str(tmp_path / "run"), "-o", str(tmp_path / "x.onnx"), "--check") == 0
    said = capsys.readouterr().out
    assert "the run's own pictures are not there to check with (" in said
    assert "checked with onnxruntime, on 8 random pictures: at most " in said


def gone(*_, **__):
    from convnet.data import NotThere

    raise NotThere("'images': nothing there, any more")
