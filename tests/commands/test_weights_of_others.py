"""Files of weights that others have trained, named where a run is: ``convnet-predict``, ``-eval``, ``-train``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from runs import here, make_images, shared_images, straight_run

from convnet.cli.eval import main as evaluate
from convnet.cli.predict import main as predict
from convnet.network.networks import network
from convnet.network.spec import parameter_shapes
from convnet.training import checkpoint
from convnet.training.config import read_toml

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from published import AlexNet, peer  # noqa: E402

CLASSES = 3
CPU = ["--device", "cpu"]


def drawn(shape, random):
    std = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
    return torch.tensor((std * random.standard_normal(shape)).astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """alexnet.pth, caffe.npz, and pictures of the size that crops are taken from, which nothing scales."""
    folder, random = tmp_path_factory.mktemp("others"), np.random.default_rng(0)
    model = AlexNet(CLASSES)
    torch.save(
        {name: drawn(values.shape, random) for name, values in model.state_dict().items()}, folder / "alexnet.pth"
    )
    shapes = parameter_shapes(network("caffenet", num_classes=CLASSES))
    arrays = {
        name.replace(".weight", "_w").replace(".bias", "_b"): drawn(s, random).numpy() for name, s in shapes.items()
    }
    arrays["conv1_w"] /= 64  # of pixels up to 255 no class shall be certain
    np.savez(folder / "caffe.npz", **arrays)
    (folder / "pictures").mkdir()
    for k in range(3):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
        Image.fromarray(pixels).save(folder / "pictures" / f"{k}.png")
    (folder / "classes.txt").write_text("crane\nhen\ncrane\n\n")  # ImageNet has two kinds of crane
    return folder


def crops(folder, crop):
    before = (256 - crop) // 2
    inside = slice(before, before + crop)
    pictures = [np.asarray(Image.open(folder / "pictures" / f"{k}.png"), np.float64) for k in range(3)]
    return torch.tensor(np.stack([picture[inside, inside] for picture in pictures]).transpose(0, 3, 1, 2).copy())


def shown(capsys, *arguments):
    assert predict([*map(str, arguments), *CPU, "--json", "-q"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    return [{line["label"]: line["probability"] for line in image["labels"]} for image in images]


def expected(logits):
    return torch.softmax(logits, 1).numpy()


@pytest.mark.slow
def test_a_file_of_torchvision_predicts_what_pytorch_does(folder, capsys):
    """Pixels from 0 to 1, less the means and over the deviations that torchvision's weights are trained with."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    model = AlexNet(CLASSES).eval()
    model.load_state_dict(torch.load(folder / "alexnet.pth", weights_only=True))
    with torch.no_grad():
        right = expected(model.double()((crops(folder, 224) / 255 - mean) / std))
    found = shown(capsys, folder / "alexnet.pth", folder / "pictures")
    for line, probabilities in zip(found, right, strict=True):
        assert line == pytest.approx({str(k): p for k, p in enumerate(probabilities)}, abs=1e-5)
    assert np.ptp(right, axis=0).max() > 0.01  # the pictures do differ
    assert (
        predict([str(folder / "alexnet.pth"), str(folder / "pictures"), "--classes", str(folder / "classes.txt"), *CPU])
        == 0
    )
    text = capsys.readouterr().out
    assert (text.count("crane"), text.count("hen")) == (6, 3)


@pytest.mark.slow
def test_a_file_of_caffe_predicts_what_caffe_does(folder, capsys):
    """Blue, green and red, from 0 to 255, less their means over ImageNet."""
    x = crops(folder, 227).flip(1) - torch.tensor([104.007, 116.669, 122.679], dtype=torch.float64).view(3, 1, 1)
    arrays = np.load(folder / "caffe.npz")
    with torch.no_grad():
        for layer, module in peer("caffenet", CLASSES):
            for kind, value in module.named_parameters():
                value.copy_(torch.tensor(arrays[f"{layer}_{kind[0]}"]))
            x = module.eval().double()(x)
    assert expected(x).max() < 0.999
    found = shown(capsys, folder / "caffe.npz", folder / "pictures", "--model", "caffenet")
    for line, probabilities in zip(found, expected(x), strict=True):
        assert line == pytest.approx({str(k): p for k, p in enumerate(probabilities)}, abs=1e-5)


def test_what_a_file_of_weights_does_not_say(folder, tmp_path, capsys):
    pictures = str(folder / "pictures")

    def said(code, *arguments):
        assert predict([*map(str, arguments), *CPU]) == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "fit bvlc_alexnet and caffenet; say with --model which" in said(2, folder / "caffe.npz", pictures)
    three = said(2, folder / "alexnet.pth", pictures, "--classes", folder / "alexnet.pth")
    assert "alexnet.pth: not text in UTF-8" in three
    (tmp_path / "two.txt").write_text("a\nb\n")
    two = said(2, folder / "alexnet.pth", pictures, "--classes", tmp_path / "two.txt")
    assert "two.txt: 2 names, and" in two
    assert "tells 3 classes apart; a line for each is needed" in two
    known = said(2, straight_run(), pictures, "--classes", tmp_path / "two.txt")
    assert "knows its network and its classes; --model and --classes are for files of weights" in known
    nothing = said(3, folder / "alexnet.pth", pictures, "--neighbours", "2")
    assert "holds weights, and says nothing of data; name some with --data" in nothing
    ours = checkpoint.load((straight_run() / "best").resolve()).part("weights")
    np.savez(tmp_path / "ours.npz", **ours)
    assert "which do not say what it subtracts from pixels; name the run" in said(4, tmp_path / "ours.npz", pictures)
    torch.save(AlexNet(2), tmp_path / "module.pth")
    assert "it names published.AlexNet" in said(4, tmp_path / "module.pth", pictures)
    assert "cannot read" in said(4, tmp_path / "missing.pth", pictures)


@pytest.mark.slow
def test_a_file_of_weights_is_evaluated_where_its_classes_have_names(folder, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("red\nblue\ngreen\n")
    arguments = [str(folder / "alexnet.pth"), "--data", shared_images(), *CPU]
    assert evaluate([*arguments, "--classes", str(tmp_path / "classes.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 12
    assert evaluate([*arguments, "--classes", str(folder / "classes.txt")]) == 3
    assert "two classes of" in capsys.readouterr().err


# ---- training


@pytest.mark.slow
def test_training_starts_from_a_file_of_torchvision(folder, tmp_path, capsys):
    from convnet.cli.train import main

    run, other = tmp_path / "run", make_images(tmp_path / "other", classes=("one", "two"))
    source, options = str(folder / "alexnet.pth"), [*CPU, "-b", "4", "--steps", "1"]
    assert main([str(other), "--init-from", source, "--freeze", "conv1,fc6", *options, "-o", str(run)]) == 0
    output = capsys.readouterr().out
    assert f"from {source}: conv1, conv2, conv3, conv4, conv5, fc6, fc7; new: fc8; frozen: conv1,fc6" in output
    assert "network: alexnet-torchvision, " in output
    options_written = read_toml(str(run / "config.toml"))
    assert [options_written[name] for name in ("model", "normalisation", "crop")] == [
        "alexnet-torchvision",
        "mean-std",
        224,
    ]
    saved, theirs = checkpoint.load(run / "last"), torch.load(source, weights_only=True)
    assert saved.state["new_layers"] == ["fc8"]
    for ours, name in {"conv1": "features.0", "fc6": "classifier.1", "conv2": "features.3"}.items():
        same = (saved.part("weights")[f"{ours}.weight"] == theirs[f"{name}.weight"].numpy()).all()
        assert same == (ours != "conv2"), ours
    # as many classes: the last layer is theirs
    assert main([shared_images(), "--init-from", source, *options, "-o", str(tmp_path / "same")]) == 0
    assert "fc7, fc8; new: none; frozen: none" in capsys.readouterr().out
    # it goes on without the file
    assert main(["--resume", "auto", "-o", str(run), "--steps", "2", "-q"]) == 0


def test_training_starts_from_arrays_with_our_names(tmp_path, capsys):
    from convnet.cli.train import main

    ours = checkpoint.load((straight_run() / "best").resolve()).part("weights")
    np.savez(tmp_path / "ours.npz", **ours)
    options = [*CPU, "-b", "8", "--steps", "1", "--width", "0.25", "--crop", "32"]
    start = [shared_images(), "--init-from", str(tmp_path / "ours.npz"), *options, "-o"]
    assert here(*start, str(tmp_path / "run")) == 2
    assert "the shapes of none of our networks at full width; say with --model" in capsys.readouterr().err
    assert main([*start, str(tmp_path / "run"), "--model", "alexnet-tiny"]) == 0
    assert f"from {tmp_path}/ours.npz: conv1, conv2" in (output := capsys.readouterr().out)
    assert "fc7, fc8; new: none; frozen: none" in output
    wide = [shared_images(), "--init-from", str(tmp_path / "ours.npz"), *CPU, "--model", "alexnet-tiny"]
    assert here(*wide, "-o", str(tmp_path / "wide")) == 2
    assert 'ours.npz: no layer of its network, "alexnet-tiny", fits into "alexnet-tiny"' in capsys.readouterr().err


def test_files_that_are_no_weights_end_training_before_it_begins(folder, tmp_path, capsys):
    torch.save(AlexNet(2), tmp_path / "module.pth")
    torch.save({"features.0.weight": torch.ones(2)}, tmp_path / "part.pth")
    for name, code, message in (
        ("module.pth", 4, "save the weights alone: torch.save(model.state_dict(), FILE)"),
        ("part.pth", 4, "features.0.bias of torchvision's AlexNet is missing (and 14 more)"),
        ("missing.npz", 4, "No such file or directory"),
    ):
        assert here(shared_images(), "--init-from", str(tmp_path / name), "-o", str(tmp_path / "run")) == code, name
        assert message in capsys.readouterr().err
    assert here(shared_images(), "--init-from", str(folder / "caffe.npz"), "-o", str(tmp_path / "run")) == 2
    assert "fit bvlc_alexnet and caffenet" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert here(str(tmp_path / "part.pth"), "-o", str(tmp_path / "run")) == 3
    assert "a PyTorch pickle: weights to start from are named with --init-from" in capsys.readouterr().err
