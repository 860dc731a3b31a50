"""Runs of definition files: what a run keeps of them, their rates and schedules, and the check of gradients."""

from __future__ import annotations

import re

import numpy as np
import pytest
from checkpoint_2012 import of_definition
from data_files import python2_pickle
from runs import here, records, shared_images

from convnet.cli.eval import main as evaluate
from convnet.cli.export import main as export
from convnet.cli.predict import main as predict
from convnet.cli.show import main as show
from convnet.cli.train import main
from convnet.definitions.files import read
from convnet.interop import read_checkpoint
from convnet.network.model import Network
from convnet.training import checkpoint
from convnet.training.schedule import progress, tensor_schedule
from convnet.training.trained import load_trained

LAYERS = """\
[data]
type=data
dataIdx=0

[labels]
type=data
dataIdx=1

[conv1]
type=conv
inputs=data
channels=3
filters=16
filterSize=5
padding=2
stride=1
initW=0.01
partialSum=1
sharedBiases=1
neuron=relu
gpu=0

[pool1]
type=pool
pool=avg
inputs=conv1
channels=16
sizeX=4
stride=4

[hs1]
type=hs
inputs=pool1
keep=0.5

[fc10]
type=fc
inputs=hs1,pool1
outputs=10
initW=0.01,0.02

[probs]
type=softmax
inputs=fc10

[logprob]
type=cost.logreg
inputs=labels,probs
"""
PARAMS = """\
[conv1]
epsW=0.001
epsB=0.002
momW=0.9
momB=0.9
wc=0.004
schedW=dexp[tgtFactor=250,noiseStdev=0,numSteps=4]

[hs1]
enable=true

[fc10]
epsW=0.002,0
epsB=0.002
momW=0.9,0.5
momB=0.9
wc=1,0
schedB=linear[1,1]

[logprob]
coeff=1
"""
SIZE = ["--size", "32", "--crop", "24", "--device", "cpu", "-b", "12"]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "small.cfg").write_text(LAYERS)
    (tmp_path / "small-params.cfg").write_text(PARAMS)
    return ["--layer-def", str(tmp_path / "small.cfg"), "--layer-params", str(tmp_path / "small-params.cfg")]


def weights(folder):
    return checkpoint.load(folder / "last").part("weights")


def test_a_run_keeps_what_the_files_say(files, tmp_path):
    """Also where they are gone; a resumed run is that which nothing interrupted."""
    straight, folder = tmp_path / "straight", tmp_path / "run"
    assert here(shared_images(), *files, *SIZE, "--epochs", "3", "-o", str(straight)) == 0
    assert here(shared_images(), *files, *SIZE, "--epochs", "3", "--steps", "5", "-o", str(folder)) == 0
    (tmp_path / "small.cfg").unlink()
    (tmp_path / "small-params.cfg").unlink()
    assert here("--resume", "auto", "-o", str(folder)) == 0
    for name, values in weights(straight).items():
        np.testing.assert_array_equal(weights(folder)[name], values, err_msg=name)
    trained = load_trained(folder, print)
    assert (trained.config.model, trained.spec.name, trained.spec.crop) == ("small", "small", 24)
    assert trained.spec.classes == 3  # of ten in the file
    assert set(trained.weights) == {"conv1.weight", "conv1.bias", "fc10.weight0", "fc10.weight1", "fc10.bias"}


def test_tensors_learn_at_their_own_pace(files, tmp_path):
    folder = tmp_path / "run"
    assert here(shared_images(), *files, *SIZE, "--epochs", "1", "--steps", "1", "-o", str(folder)) == 0
    began = Network(load_trained(folder, print).spec, "cpu", 1, seed=0).weights()
    for name, values in weights(folder).items():
        assert (values == began[name]).all() == (name == "fc10.weight1"), name


def test_commands_know_such_runs(files, tmp_path, capsys):
    folder, figure = tmp_path / "run", tmp_path / "x.png"
    assert here(shared_images(), *files, *SIZE, "--epochs", "2", "-o", str(folder)) == 0
    for views in ("1", "9", "10"):
        assert call(evaluate, str(folder), "--views", views, "--device", "cpu", "-q") == 0
    for what in ("curves", "filters", "predictions"):
        assert call(show, str(folder), what, "-o", str(figure), "-q") == 0
        assert figure.stat().st_size > 5000
    picture = next(path for path in sorted((tmp_path / shared_images()).rglob("*.png")))
    assert call(predict, str(folder), str(picture), "--device", "cpu", "-q") == 0
    file = tmp_path / "x.safetensors"
    assert call(export, str(folder), "-o", str(file), "-q") == 0
    assert load_trained(file, print).spec == load_trained(folder, print).spec
    capsys.readouterr()


def call(command, *arguments: str) -> int:
    try:
        return command(list(arguments))
    except SystemExit as ended:
        return int(ended.code)


def test_a_resumed_run_takes_other_parameters(files, tmp_path):
    folder, others = tmp_path / "run", tmp_path / "others.cfg"
    assert here(shared_images(), *files, *SIZE, "--epochs", "1", "-o", str(folder)) == 0
    before = weights(folder)
    others.write_text(PARAMS.replace("epsW=0.001", "epsW=0").replace("epsB=0.002\nmomW=0.9\n", "epsB=0\nmomW=0.9\n"))
    assert here("--resume", "auto", "-o", str(folder), "--epochs", "2", "--layer-params", str(others)) == 0
    for name, values in weights(folder).items():
        assert (values == before[name]).all() == (name in ("conv1.weight", "conv1.bias", "fc10.weight1")), name
    code = here("--resume", "auto", "-o", str(folder), "--epochs", "3", files[0], files[1])
    assert code == 4  # the network is that of the run


def test_what_is_told_of_the_files(files, tmp_path, capsys):
    params = tmp_path / "small-params.cfg"
    params.write_text(PARAMS.replace("epsW=0.001", "epsW=0") + "wball=0.5,0\n".join(["\n[nobody]\nepsW=1\n", ""]))
    main([shared_images(), *files, *SIZE, "--steps", "1", "-o", str(tmp_path / "run")])
    told = " ".join(capsys.readouterr().out.split())
    assert "[nobody]: no layer is called so; ignored" in told
    assert "conv1 is frozen (epsW=0)" in told
    assert "to begin so, say --from-start" in told
    assert "small.cfg has 10 outputs and the data 3 classes: it gets 3" in told
    main([shared_images(), *files, *SIZE, "--steps", "1", "--from-start", "-o", str(tmp_path / "other")])
    assert "it begins so (--from-start)" in " ".join(capsys.readouterr().out.split())
    began, other = (load_trained(tmp_path / name, print).spec.layers[0] for name in ("run", "other"))
    assert began.pace.lr == 0 < other.pace.lr


def test_a_run_begins_as_a_checkpoint_of_2012(files, tmp_path, capsys):
    """Its last layer is new, for other classes."""
    begun, folder = tmp_path / "1.2", tmp_path / "run"
    begun.write_bytes(python2_pickle(of_definition(read(tmp_path / "small.cfg"), 24)))
    still = PARAMS.replace("epsW=0.001", "epsW=0").replace("epsB=0.002", "epsB=0", 1)
    (tmp_path / "small-params.cfg").write_text(still)
    options = [*SIZE, "--steps", "1", "--init-from", str(begun)]
    assert main([shared_images(), *files, *options, "-o", str(folder)]) == 0
    assert f"from {begun}: conv1; new: fc10; frozen: none" in " ".join(capsys.readouterr().out.split())
    layers = read_checkpoint(begun).layers
    np.testing.assert_array_equal(weights(folder)["conv1.weight"], layers["conv1"]["weights"][0])
    np.testing.assert_array_equal(weights(folder)["conv1.bias"], layers["conv1"]["biases"])
    assert here(shared_images(), *options, "-o", str(tmp_path / "other")) == 4
    assert "a checkpoint of the 2012 program is for a network of its files: say --layer-def" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--layer-params", "x.cfg"], "--layer-params needs --layer-def, a definition file"),
        (["--from-start"], "--from-start needs --layer-def, a definition file"),
        (["--layer-def", "small.cfg", "--model", "alexnet"], "--model does not go with --layer-def"),
        (["--layer-def", "small.cfg", "--no-lrn"], "--no-lrn does not go with --layer-def"),
        (["--layer-def", "nowhere.cfg"], "cannot read 'nowhere.cfg': No such file or directory"),
        (["--layer-def", "small.cfg", "--layer-params", "small.cfg"], "small's parameters"),
    ],
)
def test_mistakes_are_told_in_one_sentence(files, options, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert here(shared_images(), *options, "-o", "run") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---- schedules of single tensors


def test_rates_follow_their_schedules_by_data_batch(files, tmp_path, monkeypatch):
    seen: list[dict[str, float]] = []
    step = Network.train_step

    def watched(self, *arguments):
        seen.append(dict(arguments[7]))
        return step(self, *arguments)

    monkeypatch.setattr(Network, "train_step", watched)
    epochs = 8
    assert here(shared_images(), *files, *SIZE, "--epochs", str(epochs), "-o", str(tmp_path / "run")) == 0
    steps = len(seen) // epochs
    falling = tensor_schedule("dexp[tgtFactor=250,noiseStdev=0,numSteps=4]")
    for epoch in range(epochs):  # shuffled, an epoch is one data batch
        found = [rates["conv1.weight"] for rates in seen[epoch * steps : (epoch + 1) * steps]]
        assert found == [pytest.approx(falling.factor(progress(epoch, epochs)))] * steps
    assert [falling.factor(p) for p in (0, 0.3, 1)] == [1, pytest.approx(250 ** (-1 / 3)), pytest.approx(1 / 250)]
    noisy = [rates["fc10.bias"] for rates in seen]  # linear[1,1]: a constant, times 1 + |N(0, 1)|
    assert len(set(noisy)) == len(noisy)
    assert min(noisy) >= 1
    assert 1.3 < np.mean(noisy) < 2.3  # 1 + sqrt(2 / pi) is 1.8
    assert {rates["fc10.weight0"] for rates in seen} == {1.0}


def test_progress_is_that_of_the_2012_program():
    assert [progress(done, 10) for done in (0, 1, 2, 6, 11, 15)] == [0, 0, 0.1, 0.5, 1, 1]


@pytest.mark.parametrize(
    "text",
    ["", "step[tgtFactor=2]", "exp[2]", "exp[tgtFactor=0]", "exp[tgtFactor=2,numSteps=3]", "dexp[tgtFactor=2]",
     "dexp[tgtFactor=2,numSteps=1]", "linear[tgtFactor=2,noiseStdev=-1]", "linear[tgtFactor=2,other=1]"],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is no schedule")):
        tensor_schedule(text)


# ---- gradients


def test_gradients_are_compared_with_differences(files, tmp_path, capsys, monkeypatch):
    assert main([shared_images(), *files, *SIZE, "--check-grads", "-o", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    found = dict(re.findall(r"(\S+) +\d+ values moved by \S+: relative error (\S+)", told))
    assert set(found) >= {"fc10.weight0", "fc10.weight1", "fc10.bias"}
    assert all(float(error) < 0.02 for error in found.values())
    own = Network.gradients

    def wrong(self):
        return {name: g * np.float32(1.05 if name == "fc10.weight1" else 1) for name, g in own(self).items()}

    monkeypatch.setattr(Network, "gradients", wrong)
    assert main([shared_images(), *files, *SIZE, "--check-grads"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"fc10.weight1 .* not below 0.02", told)
    assert "1 do not agree" in told


def test_records_are_those_of_any_run(files, tmp_path):
    folder = tmp_path / "run"
    assert here(shared_images(), *files, *SIZE, "--epochs", "2", "--order", "file", "-o", str(folder)) == 0
    losses = [r["loss"] for r in records(folder) if r["event"] == "train"]
    assert losses
    assert np.isfinite(losses).all()
