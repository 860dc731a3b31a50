"""The commands: help, options, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from runs import ELSEWHERE, ENVIRONMENT, call, command

import convnet
from convnet.analysis import info
from convnet.cli import info as info_command
from convnet.cli import train as train_command
from convnet.data import jpeg
from convnet.devices import host
from convnet.kernels.shapes import ConvShape, LinearShape
from convnet.training import config
from convnet.training.config import Config

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


MISTAKES = {
    "unknown option": (["--modle", "alexnet"], 2, "there is no option --modle; did you mean --model?"),
    "abbreviation": (["--epoch", "3"], 2, "there is no option --epoch; did you mean --epochs?"),
    "two data": (["shapes", "more"], 2, "unrecognized arguments: more"),
    "not a number": (["--epochs", "many"], 2, "--epochs: invalid int value: 'many'"),
    "model": (["--model", "alexnt"], 2, 'no network is called "alexnt".*did you mean "alexnet"'),
    "batch 0": (["-b", "0"], 2, "--batch-size must be at least 1, got 0"),
    "lr beyond float32": (["--lr", "1e39"], 2, r"--lr must be more than 0 and at most 1e\+30, got 1e\+39"),
    "epochs 0": (["--epochs", "0"], 2, "--epochs must be at least 1, got 0"),
    "steps": (["--steps", "-3"], 2, "--steps must be at least 1, got -3"),
    "lr 0": (["--lr", "0"], 2, "--lr must be more than 0, got 0.0"),
    "lr nan": (["--lr", "nan"], 2, "--lr must be more than 0, got nan"),
    "momentum": (["--momentum", "1"], 2, "--momentum must be at least 0 and less than 1, got 1.0"),
    "decay": (["--weight-decay", "inf"], 2, "--weight-decay must be at least 0"),
    "seed": (["--seed", str(2**64)], 2, "--seed must be at least 0"),
    "workers": (["-j", "-1"], 2, "--workers must be at least 0"),
    "schedule": (["--lr-schedule", "often"], 2, "--lr-schedule must be one of flat-cosine, .*, stages, got 'often'"),
    "no stages": (["--lr-schedule", "stages"], 2, r"--lr-schedule stages needs \[\[stages\]\] in a --config file"),
    "frozen": (["--freeze", "conv1,conv9"], 2, 'no layer with weights is called "conv9"; there are conv1, .*fc8'),
    "all frozen": (["--freeze", ",".join(LAYERS)], 2, "all layers are frozen; leave at least one"),
    "start": (["--init-from", "nowhere"], 4, "nowhere: there is no such checkpoint"),
    "precision": (["--precision", "fp8"], 2, "--precision must be one of fp32, tf32, bf16"),
    "precision of the device": (["--precision", "bf16"], 2, 'cpu computes in fp32 only.*use device "emu" or "cuda"'),
    "width": (["--width", "0"], 2, "--width must be more than 0"),
    "crop": (["--crop", "5"], 2, 'network "alexnet-tiny" with crop 5, layer conv1'),
    "device name": (["--device", "gpu"], 2, 'device must be "cpu", "emu.*got "gpu'),
    "two kinds": (["--device", "cpu,emu:0"], 2, "devices must be of one kind"),
    "same twice": (["--device", "cpu,cpu"], 2, "devices must differ"),
    "no such device": (["--device", "cuda:99"], 6, "cuda"),
    "no data": (["nowhere"], 3, "'.*nowhere'.*accepted are"),
    "no config": (["--config", "none.toml"], 2, "--config none.toml: No such file"),
    "resume without folder": (["--resume"], 2, "--resume auto needs -o DIR"),
    "resume from nothing": (["--resume", "none.safetensors"], 4, "none.safetensors: there is no such checkpoint"),
    "resume from a folder": (["--resume", "."], 2, "no run in this folder"),
    "folder impossible": (["-o", "/dev/null/run"], 2, "-o /dev/null/run: cannot be used as run folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_an_exit_code(mistake, tmp_path, monkeypatch, capsys):
    arguments, code, text = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    assert call(train_command.main, "--device", "cpu", *arguments) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(rf"^convnet-train: error: .*{text}", error), error
    assert not list(tmp_path.iterdir())  # a mistake leaves nothing behind


def test_unexpected_errors_are_exit_code_1_with_a_traceback_on_request_only(monkeypatch, capsys):
    monkeypatch.setattr("convnet.training.train.run", lambda *_, **__: 1 / 0)
    assert call(train_command.main) == 1
    assert capsys.readouterr().err == "convnet-train: error: ZeroDivisionError: division by zero (-v shows where)\n"
    assert call(train_command.main, "-v") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (MemoryError, 6)])
def test_interrupts_and_memory(error, code, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("convnet.training.train.run", fail)
    assert call(train_command.main) == code
    assert "Traceback" not in capsys.readouterr().err


def test_memory_of_this_machine_that_runs_out_is_not_blamed_on_the_batch(monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 2.98 GiB for an array with shape (20000, 20000) and data type int64")

    monkeypatch.setattr("convnet.training.train.run", fail)
    assert call(train_command.main) == 6
    error = capsys.readouterr().err
    assert re.match(
        r"convnet-train: error: this machine is out of memory \(Unable .*int64\); end other programs", error
    )
    assert "batch" not in error


def test_a_mistake_in_a_process_of_its_own():
    found = command("train", "--model", "alexnt")
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("name", ["train", "eval", "predict", "export", "prepare", "show", "explore", "info"])
def test_help_and_version(name, capsys):
    assert call(importlib.import_module(f"convnet.cli.{name}").main, "--help") == 0
    text = capsys.readouterr().out
    assert f"example:\n  convnet-{name}" in text
    assert call(importlib.import_module(f"convnet.cli.{name}").main, "--version") == 0
    assert capsys.readouterr().out == f"convnet-{name} {convnet.__version__}\n"


def test_help_shows_every_option_and_default(capsys):
    call(train_command.main, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for name, option in config.OPTIONS.items():
        if option.kind in (list, dict):
            continue  # in TOML files only
        assert config.spelled(name) in text
        assert option.kind is bool or text.split(option.help)[-1].startswith(" (default: "), name


def test_the_example_in_the_help_is_accepted(monkeypatch, capsys):
    call(train_command.main, "--help")
    example = capsys.readouterr().out.split("example:\n")[1].split()
    seen = []
    monkeypatch.setattr("convnet.training.train.run", lambda *arguments, **_: seen.append(arguments) or 0)
    assert call(train_command.main, *example[1:]) == 0
    assert seen


# ---- configuration files


def test_a_configuration_survives_toml(tmp_path):
    before = Config(
        data='/a "b"\\\x7f\t\N{GRINNING FACE}', augment=False, lr=1e-30, weight_decay=0.0, seed=2**64 - 1, steps=7
    )
    (tmp_path / "c.toml").write_text(config.to_toml(before), encoding="utf-8")
    assert Config(**config.read_toml(str(tmp_path / "c.toml"))) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", "no option is called batchsize; did you mean batch_size?"),
        ("lr = ", "not valid TOML"),
        ('lr = "0.1"', "--lr must be a number, got '0.1'"),
        ("epochs = 1.5", "--epochs must be a whole number, got 1.5"),
        ("epochs = true", "--epochs must be a whole number, got True"),
        ("augment = 1", "--no-augment must be true or false, got 1"),
        ("data = 3", "DATA must be text in quotes, got 3"),
        ("seed = -1", "--seed must be at least 0"),
    ],
)
def test_mistakes_in_a_file(text, message, tmp_path, capsys):
    (tmp_path / "c.toml").write_text(text)
    assert call(train_command.main, "--config", str(tmp_path / "c.toml")) == 2
    assert message in capsys.readouterr().err


def test_flags_beat_files_beat_checkpoints_beat_defaults():
    saved = {"lr": 1.0, "momentum": 0.1, "epochs": 4, "gone": 0}
    found = config.merged({"lr": 3.0}, {"lr": 2.0, "momentum": 0.2}, saved)
    assert (found.lr, found.momentum, found.epochs, found.seed) == (3.0, 0.2, 4, 0)


# ---- convnet-info


def test_info_reports_as_json_and_text(capsys):
    code = call(info_command.main, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["devices"]["cpu"] == "ok"
    assert code == (0 if all(result == "ok" for result in found["devices"].values()) else 6)
    assert found["versions"]["convnet"] == convnet.__version__
    assert {"emulator", "cuda", "cuda_kernels", "system"} <= set(found)
    assert found["jpeg_decoder"] == jpeg.decoder()
    assert call(info_command.main) == code
    text = capsys.readouterr().out
    for name in found["devices"]:
        assert name in text
    assert found["versions"]["numpy"] in text
    assert f"jpeg decoder  {jpeg.decoder()}\n" in text


def test_the_self_test_notices_a_wrong_device(monkeypatch, capsys):
    from convnet import functional

    right = functional.conv2d
    monkeypatch.setattr(functional, "conv2d", lambda *a, **k: right(*a, **k) * (1 + 1e-5))
    assert "values are wrong" in info.self_test("cpu")
    assert call(info_command.main) == 6
    monkeypatch.setattr(functional, "conv2d", lambda *a, **k: 1 / 0)
    assert info.self_test("cpu") == "failed: division by zero"


def test_the_self_test_covers_tensor_cores(monkeypatch):
    from convnet import functional

    right, precisions = functional.conv2d, []

    def conv2d(*arguments, precision="fp32", **options):
        precisions.append(precision)
        return right(*arguments, precision=precision, **options) + (precision == wrong)

    monkeypatch.setattr(functional, "conv2d", conv2d)
    wrong = ""
    assert info.self_test("emu") == "ok"
    assert precisions == ["fp32", "tf32", "bf16"]
    wrong = "bf16"
    assert re.fullmatch(r"failed: \d+ of \d+ values are wrong in bf16", info.self_test("emu"))


def kernels(capsys, *arguments) -> dict:
    assert call(info_command.main, "--kernels", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_kernels_of_a_network(capsys):
    """Every product of a step in every precision and on both architectures, as the kernels themselves choose."""
    from convnet.kernels import _emu as emu

    found = kernels(capsys)
    assert (found["model"], found["batch_size"]) == ("alexnet", 128)
    passes = {(c["layer"], c["op"]) for c in found["choices"]}
    assert len(passes) == 8 * 3 - 1  # nobody needs the gradient of the images
    assert len(found["choices"]) == len(passes) * 3 * 2
    names = {(row["op"], row["precision"], row["name"]) for row in found["kernels"]}
    assert all((c["op"], c["precision"], c["kernel"]) in names for c in found["choices"])
    conv1 = {c["precision"]: c["shape"] for c in found["choices"] if c["layer"] == "conv1"}
    assert (conv1["fp32"]["C"], conv1["fp32"]["stride"]) == (3, 4)
    assert (conv1["bf16"]["C"], conv1["bf16"]["stride"]) == (48, 1)  # folded
    for c in found["choices"]:
        if c["architecture"] == 90:
            shape = (ConvShape if c["op"].startswith("conv") else LinearShape)(**c["shape"])
            ask = emu.conv_variant if isinstance(shape, ConvShape) else emu.linear_variant
            assert ask(c["op"], shape, c["precision"]) == c["kernel"]


def test_kernels_as_text(capsys):
    assert call(info_command.main, "--kernels", "--model", "alexnet-tiny", "-b", "64") == 0
    text = capsys.readouterr().out
    assert text.startswith("kernels of alexnet-tiny, 64 images\n")
    header = next(line for line in text.splitlines() if line.startswith("layer and pass"))
    on_both = [word for name in ("tf32", "bf16") for arch in ("sm_80", "sm_90") for word in (name, "on", arch)]
    assert header.split()[3:] == ["fp32", *on_both]
    assert re.search(r"^fc6 linear_backward_data +fp32-\S+( +tf32-\S+){2} +bf16-\S+ +wgmma-\S+$", text, re.MULTILINE)
    assert re.search(r"^conv2 conv_forward( +\S+){2} +wgmma_tf32-\S+ +bf16-\S+ +wgmma-\S+$", text, re.MULTILINE)
    assert call(info_command.main, "--kernels", "--precision", "tf32") == 0
    assert "bf16" not in capsys.readouterr().out


def test_kernels_for_a_shape(capsys):
    found = kernels(capsys, "--shape", "N=100 C=96 H=27 W=27 K=256 R=5 padding=2 groups=2", "--precision", "bf16")
    assert {c["op"] for c in found["choices"]} == {"conv_forward", "conv_backward_data", "conv_backward_filter"}
    assert {row["op"] for row in found["kernels"]} == {c["op"] for c in found["choices"]}
    shape = found["choices"][0]["shape"]
    assert (shape["N"], shape["lanes"], shape["S"], shape["P"]) == (128, 64, 5, 27)
    found = kernels(capsys, "--shape", "N=8,C=30,K=7")
    assert {c["op"] for c in found["choices"]} == {"linear_forward", "linear_backward_data", "linear_backward_filter"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--shape", "N=8 C=3"], "missing K, unknown none"),
        (["--shape", "N=8 C=3 K=5 R=3"], "a convolution needs N, C, H, W, K, R .*missing H, W"),
        (["--shape", "N=8 C=3 K=5 Z=3"], "unknown Z"),
        (["--shape", "N=8 C=many K=5"], '"C=many" is not a letter and its size'),
        (["--shape", "N=8 C=3 H=4 W=4 K=5 R=7"], "a window of 7"),
        (["--shape", "N=0 C=3 K=5"], "every size must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--model", "alexnt"], "no network is called"),
        (["--precision", "fp8"], "--precision"),
    ],
)
def test_mistakes_about_kernels(arguments, text, capsys):
    assert call(info_command.main, "--kernels", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(rf"^convnet-info: error: .*{text}", error), error


def watched(capsys, *arguments) -> str:
    if importlib.util.find_spec("convnet.kernels._glass") is None:
        pytest.skip("convnet.kernels._glass is not built")
    assert call(info_command.main, "--emulate", *arguments) == 0
    return capsys.readouterr().out


def test_a_kernel_under_glass(capsys):
    text = watched(capsys, "pack", "N=64", "C=3", "H=8", "W=8")
    assert text.startswith(
        "pack in fp32 on sm_90, emulated: N=64 C=3 H=8 W=8 fold=1\n\nLaunch\n  kernel         pack_kernel"
    )
    for title in ("Shared memory:", "Global memory:", "Calls that order", "Who waits for whom"):
        assert f"\n\n{title}" in text
    assert "No bank conflicts." in text
    assert "without call" not in text.lower()
    assert watched(capsys, "pack", "64,3", "H=8 W=8") == text
    assert "\n\nThe ring of stages over time" in watched(capsys, "conv_forward")


def test_a_kernel_under_glass_without_a_barrier(capsys):
    text = watched(capsys, "pack", "--without-barrier", "1")
    said = text.partition("\n\nWithout call 1, __syncthreads in pack.cu:")[2]
    assert re.fullmatch(r"\d+, the emulator says:\n(  order \d:  [\d,]+ values of y became others, .*\n){3}", said), (
        text
    )


def test_a_kernel_under_glass_as_json(capsys):
    found = json.loads(watched(capsys, "conv_forward", "--precision", "bf16", "--json"))
    assert (found["op"], found["precision"], found["sizes"]["K"]) == ("conv_forward", "bf16", 32)
    assert found["variant"].startswith("wgmma")
    assert found["launches"][0]["fills"]
    assert found["launches"][0]["barriers"][0]["uses"][0]["threads"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--emulate", "pak"], 'there is no op "pak"; did you mean pack. There are conv_forward, .*unfold_gradient'),
        (["--emulate", "conv2d_backward"], "did you mean conv_backward_data or conv_backward_filter"),
        (["--emulate", "relu", "N=3"], '--emulate relu_forward: "N=3" is no size of it; .* count=1024'),
        (["--emulate", "relu", "1", "2"], '"2" is no size of it'),
        (["--emulate", "linear", "C=many"], '"C=many" is no size'),
        (["--emulate", "linear", "C=-1"], '"C=-1" is no size'),
        (["--emulate", "linear", "C=0"], "linear_forward: C must be at least 1, got 0"),
        (["--emulate", "conv2d", "R=9", "S=9"], "a window of 9"),
        (["--emulate", "conv2d", "groups=5"], "groups must divide"),
        (["--emulate", "local_response_norm", "size=99"], "size"),
        (["--emulate", "pack", "--without-barrier", "2"], "pack has no call 2 that orders; there are 1 to 1"),
        (["--emulate", "relu", "--without-barrier", "0"], "relu_forward has no call 0 that orders; it has none"),
        (["--without-barrier", "1"], "--without-barrier needs --emulate OP"),
        (["--emulate", "relu", "--kernels"], "not both|not allowed with"),
    ],
)
def test_mistakes_about_a_kernel_under_glass(arguments, text, capsys):
    if importlib.util.find_spec("convnet.kernels._glass") is None:
        pytest.skip("convnet.kernels._glass is not built")
    assert call(info_command.main, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(rf"^convnet-info: error: .*{text}", error), error


def test_info_without_the_emulator_that_can_be_watched(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "convnet.kernels._glass", None)
    host._kernels.cache_clear()
    assert call(info_command.main, "--emulate", "relu") == 6
    assert re.search("the emulator is not built .*pip install", capsys.readouterr().err)


def test_info_into_a_closed_pipe_is_quiet():
    code = ELSEWHERE + "from convnet.cli.info import main; sys.exit(main(['--json']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1
