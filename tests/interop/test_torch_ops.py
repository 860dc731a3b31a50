"""``convnet.torch``: the operators against PyTorch's checks and its own layers, and what the README tells to type."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import convnet.torch as ours  # noqa: E402  (which imports torch)
from convnet import functional  # noqa: E402

README = Path(__file__).parents[2] / "README.md"
F = torch.nn.functional
OPS = torch.ops.convnet


def whole(*shape, seed=0):
    """Small whole numbers, of which float32 adds up any few thousand products exactly."""
    values = np.random.default_rng(seed).integers(-3, 4, shape)
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def normal(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return torch.tensor(values, requires_grad=True)


def distinct(*shape):
    """The numbers from 0 on, in any order."""
    values = np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape)
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


X, W, B = whole(2, 4, 7, 6), whole(6, 2, 3, 2, seed=1), whole(6, seed=2)
EVERYWHERE = {
    "conv2d": (OPS.conv2d, (X, W, B, 2, [1, 0, 2, 1], 2, False)),
    "conv2d rounded up": (OPS.conv2d, (X, W, B, 2, [0, 0, 0, 0], 2, True)),
    "conv2d without bias": (OPS.conv2d, (X, whole(3, 4, 2, 2), None, 1, [0, 0, 0, 0], 1, False)),
    "max_pool2d": (OPS.max_pool2d, (distinct(2, 3, 7, 7), 3, 2, [0, 0, 0, 0], False)),
    "max_pool2d rounded up": (OPS.max_pool2d, (distinct(2, 3, 6, 8), 3, 2, [1, 0, 0, 1], True)),
    "linear": (OPS.linear, (whole(3, 5), whole(4, 5, seed=1), whole(4, seed=2))),
    "linear without bias": (OPS.linear, (whole(1, 5), whole(4, 5, seed=1), None)),
    "local_response_norm": (OPS.local_response_norm, (normal(2, 7, 3, 2), 5, 0.1, 0.75, 2.0)),
    "local_response_norm, even": (OPS.local_response_norm, (normal(2, 6, 2, 2), 4, 0.2, 0.5, 1.0)),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_opcheck(name):
    """Schema, fake version, registration of the gradient, and AOT dispatch with sizes left open."""
    operator, arguments = EVERYWHERE[name]
    found = torch.library.opcheck(operator, arguments)
    assert set(found.values()) == {"SUCCESS"}
    assert len(found) == 4


@pytest.mark.parametrize("name", ["conv2d_backward", "max_pool2d_backward", "linear_backward", "lrn_backward"])
def test_opcheck_of_gradients(name):
    """They are operators too: what is compiled holds them."""
    leaf = [t.detach() for t in (X, W, whole(3, 5), whole(4, 5))]
    operator, arguments = {
        "conv2d_backward": (OPS.conv2d_backward, (torch.ones(2, 6, 3, 3), leaf[0], leaf[1], 2, [0] * 4, 2, False)),
        "max_pool2d_backward": (OPS.max_pool2d_backward, (torch.ones(2, 4, 3, 3), leaf[0], 2, 2, [0] * 4, False)),
        "linear_backward": (OPS.linear_backward, (torch.ones(3, 4), leaf[2], leaf[3])),
        "lrn_backward": (OPS.local_response_norm_backward, (torch.ones(X.shape), leaf[0], 5, 0.1, 0.75, 2.0)),
    }[name]
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


def differences_agree(function, *arguments, eps, atol):
    """gradcheck. It warns of float32, whose differences are rough: here the numbers are chosen so that they are not."""
    with pytest.warns(UserWarning, match="not a double precision"):
        return torch.autograd.gradcheck(function, arguments, eps=eps, atol=atol, rtol=0.0, raise_exception=False)


@pytest.mark.parametrize("name", [name for name in EVERYWHERE if "norm" not in name])
def test_gradients_of_what_is_piecewise_linear(name):
    """Steps of 1/4 between whole numbers: differences are exact, and no maximum changes its place."""
    operator, arguments = EVERYWHERE[name]
    assert differences_agree(operator, *arguments, eps=0.25, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in EVERYWHERE if "norm" in name])
def test_gradients_of_normalisation(name):
    """Steps of 0.01: the third derivative, below 6, times 0.01^2 / 6 is 1e-4; rounding adds 2^-24 / 0.01 = 6e-6."""
    operator, arguments = EVERYWHERE[name]
    assert differences_agree(operator, *arguments, eps=1e-2, atol=2e-4)


class Wrong(torch.autograd.Function):
    """Normalisation with a gradient that divides alpha by the size, as torch does."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return OPS.local_response_norm(x, 5, 0.1, 0.75, 2.0)

    @staticmethod
    def backward(ctx, dy):
        return OPS.local_response_norm_backward(dy, *ctx.saved_tensors, 5, 0.1 / 5, 0.75, 2.0)


def test_a_wrong_gradient_of_normalisation_is_seen():
    assert not differences_agree(Wrong.apply, normal(2, 7, 3, 2), eps=1e-2, atol=2e-4)


# ---- beside torch's own


PAIRS = {
    "conv": (lambda nn: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), groups=2), (5, 4, 9, 8)),
    "conv without bias": (lambda nn: nn.Conv2d(4, 6, (3, 1), bias=False), (5, 4, 9, 8)),
    "pool": (lambda nn: nn.MaxPool2d(3, 2, ceil_mode=True), (2, 3, 8, 9)),
    "pool of its own stride": (lambda nn: nn.MaxPool2d((2, 2), padding=1), (2, 3, 8, 9)),
    "lrn": (lambda nn: nn.LocalResponseNorm(5, alpha=0.5, k=2.0), (2, 8, 3, 3)),
    "linear": (lambda nn: nn.Linear(7, 4), (5, 7)),
    "linear of more axes": (lambda nn: nn.Linear(7, 4), (2, 3, 7)),
    "linear of one": (lambda nn: nn.Linear(7, 4, bias=False), (7,)),
}


def outcome(module, x):
    x = x.detach().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("name", PAIRS)
def test_modules_are_as_torchs(name):
    """The same first weights from the same seed, the same state dict, outputs and gradients."""
    make, shape = PAIRS[name]
    torch.manual_seed(0)
    theirs = make(torch.nn)
    torch.manual_seed(0)
    module = make(ours)
    assert isinstance(module, type(theirs))
    for key, value in theirs.state_dict().items():
        assert torch.equal(module.state_dict()[key], value)
    module.load_state_dict(theirs.state_dict())
    x = normal(*shape)
    for actual, expected in zip(outcome(module, x), outcome(theirs, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_alpha_of_the_function_is_not_divided():
    x = normal(2, 8, 3, 3)
    y = ours.local_response_norm(x, 5, 0.1, 0.75, 2.0)
    torch.testing.assert_close(y, F.local_response_norm(x, 5, 0.1 * 5, 0.75, 2.0))
    assert (y - F.local_response_norm(x, 5, 0.1, 0.75, 2.0)).abs().max() > 0.01


def test_convolution_rounds_up():
    """What overhangs reads zeros: as torch with one more row and column of them."""
    x, weight = normal(1, 2, 8, 8), normal(3, 2, 3, 3)
    y = ours.conv2d(x, weight, stride=2, ceil_mode=True)
    torch.testing.assert_close(y, F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2), rtol=1e-5, atol=1e-5)
    module = ours.Conv2d(2, 3, 3, stride=2, bias=False, ceil_mode=True)
    module.load_state_dict({"weight": weight})
    assert torch.equal(module(x), y)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        ours.Conv2d(4, 6, 3, groups=2, padding=1, ceil_mode=True),
        ours.LocalResponseNorm(5),
        ours.MaxPool2d(3, 2, ceil_mode=True),
        torch.nn.Flatten(),
        ours.Linear(6 * 3 * 3, 5),
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_models_compile_as_one_graph(backend):
    torch._dynamo.reset()
    plain, x = model(), normal(2, 4, 7, 7)
    compiled = torch.compile(model(), fullgraph=True, backend=backend)
    for actual, expected in zip(outcome(compiled, x), outcome(plain, x), strict=True):
        assert torch.equal(actual, expected)


# ---- memory


@pytest.mark.parametrize("form", ["contiguous", "channels last"])
def test_memory_is_shared(monkeypatch, form):
    """What comes in is the tensor's memory, and what goes out that of the result."""
    seen = {}

    def watched(x, weight, bias, **options):
        seen["x"], seen["weight"] = x, weight
        seen["y"] = plain(x, weight, bias, **options)
        return seen["y"]

    plain = functional.conv2d
    monkeypatch.setattr(functional, "conv2d", watched)
    x = X.detach().to(memory_format=torch.channels_last if form == "channels last" else torch.contiguous_format)
    y = ours.conv2d(x, W, B, groups=2)
    assert seen["x"].ctypes.data == x.data_ptr()
    assert seen["x"].strides == tuple(4 * step for step in x.stride())
    assert seen["weight"].ctypes.data == W.data_ptr()
    assert seen["y"].ctypes.data == y.data_ptr()


def test_importing_convnet_imports_no_torch():
    command = "import sys, convnet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], timeout=120).returncode == 0


# ---- what is refused


REFUSED = {
    "float64": (lambda: ours.conv2d(X.double(), W), "conv2d: x must be a float32 tensor on the CPU, got torch.float64"),
    "bfloat16": (lambda: ours.linear(whole(2, 3), whole(4, 3).bfloat16()), "linear: weight must be .* torch.bfloat16"),
    "other device": (lambda: ours.max_pool2d(X.to("meta"), 2, 2), "max_pool2d: x must be .* on meta; give x.to"),
    "geometry": (lambda: ours.conv2d(X, W, groups=3), "conv2d: weight must have C/groups channels"),
    "window": (lambda: ours.max_pool2d(X, 9, 1), "max_pool2d: a window of 9"),
    "dilation": (lambda: ours.Conv2d(1, 1, 3, dilation=2), r"dilation must be 1 .* got \(2, 2\); use torch.nn.Conv2d"),
    "strides": (lambda: ours.Conv2d(1, 1, 3, stride=(1, 2)), r"stride must be 2 along both axes, got \(1, 2\)"),
    "padding": (
        lambda: ours.Conv2d(1, 1, 3, padding="same"),
        "padding must be zeros, and their number, got padding='same'",
    ),
    "reflection": (lambda: ours.Conv2d(1, 1, 3, padding_mode="reflect"), 'padding_mode="reflect"'),
    "pool dilation": (lambda: ours.MaxPool2d(3, dilation=2), "MaxPool2d: dilation must be 1"),
    "indices": (lambda: ours.MaxPool2d(3, return_indices=True), "there are no indices; use torch.nn.MaxPool2d"),
    "oblong window": (lambda: ours.MaxPool2d((3, 2)), "kernel_size must be 2 along both axes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_second_derivative_is_refused():
    (dx,) = torch.autograd.grad(ours.linear(whole(3, 5), W.reshape(-1, 6)[:, :5]).sum(), W, create_graph=True)
    with pytest.raises(RuntimeError, match="linear_backward"):
        dx.sum().backward()


# ---- the walk


def test_one_layer_of_a_model_is_replaced(capsys):
    found = re.search(
        r"<!-- a walk, run by tests/interop/test_torch_ops\.py -->\n```python\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert found is not None
    typed: dict = {}
    exec(compile(found[1], str(README), "exec"), typed)
    assert capsys.readouterr().out == "torch.Size([16, 3, 5, 5])\n"
    assert type(typed["model"][0]) is ours.Conv2d
