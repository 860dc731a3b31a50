"""Files of weights: every kind and number format, PyTorch's views and wrappings, and what damaged and hostile ones must
not achieve."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from convnet.interop import WeightsError, files, read_weights
from convnet.training import checkpoint

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def state(dtype=torch.float32):
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3, 2).to(dtype), "a.bias": torch.randn(4).to(dtype), "scale": torch.tensor(1.5)}


def same(found, expected):
    assert list(found) == list(expected)
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected[name].detach().float().numpy(), err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_pytorch_saves_is_read(tmp_path, dtype, protocol):
    path = tmp_path / "model.pth"
    torch.save(state(dtype), path, pickle_protocol=protocol)
    same(read_weights(path), state(dtype))


def test_a_state_dict_of_a_module_and_its_parameters(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5))
    for found in (module.state_dict(), dict(module.named_parameters())):
        torch.save(found, tmp_path / "model.pt")
        same(read_weights(tmp_path / "model.pt"), module.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "weights"])
def test_a_state_dict_among_what_a_training_program_keeps(tmp_path, key):
    module = torch.nn.Linear(3, 4)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    kept = {"epoch": 3, "arch": "alexnet", key: state(), "best_acc1": torch.tensor(5), "optimizer": None}
    torch.save({**kept, "optimizer": optimizer.state_dict()}, tmp_path / "model.pth")
    same(read_weights(tmp_path / "model.pth"), state())


def test_views_and_common_storages_are_what_they_are(tmp_path):
    numbers = torch.arange(24.0)
    views = {
        "part": numbers[3:9].view(2, 3), "every second": numbers[::2], "turned": numbers.view(4, 6).T,
        "row": numbers.view(4, 6)[2], "again": numbers[3:9].view(2, 3),
    }  # fmt: skip
    torch.save(views, tmp_path / "model.pth")
    found = read_weights(tmp_path / "model.pth")
    same(found, views)
    assert len({values.__array_interface__["data"][0] // 96 for values in found.values()}) <= 2  # one piece of memory
    with pytest.raises(ValueError, match="read-only"):
        found["part"][0] = 1


def test_files_of_machines_with_the_other_order_of_bytes(tmp_path):
    """A file as such a machine writes it: the same archive with every number turned round."""
    path = tmp_path / "model.pth"
    torch.save({"a": torch.arange(6.0).view(2, 3)}, path)
    members = unzipped(path)
    root = next(name for name in members if name.endswith("data.pkl")).removesuffix("data.pkl")
    members[f"{root}byteorder"] = b"big"
    members[f"{root}data/0"] = np.frombuffer(members[f"{root}data/0"], "<f4").astype(">f4").tobytes()
    zipped(path, members)
    np.testing.assert_array_equal(read_weights(path)["a"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("packed", [False, True])
def test_archives_of_numpy(tmp_path, packed):
    arrays = {
        "a.weight": np.arange(6, dtype=np.float64).reshape(2, 3), "b": np.asfortranarray(np.ones((2, 3), np.float16)),
        "c": np.arange(3, dtype=">f4"),
    }  # fmt: skip
    (np.savez_compressed if packed else np.savez)(tmp_path / "model.npz", **arrays)
    found = read_weights(tmp_path / "model.npz")
    for name, values in arrays.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_safetensors(tmp_path, dtype):
    from safetensors.torch import save_file

    save_file(state(dtype), tmp_path / "model.safetensors")
    expected = state(dtype)
    found = read_weights(tmp_path / "model.safetensors")
    same({name: found[name] for name in expected}, expected)


def test_what_a_file_is_its_bytes_say_and_not_its_name(tmp_path):
    torch.save(state(), tmp_path / "model.npz")
    np.savez(tmp_path / "model.pth.npz", a=np.ones(2))
    os.rename(tmp_path / "model.pth.npz", tmp_path / "model.pth")
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.pt")
    assert list(read_weights(tmp_path / "model.npz")) == list(state())
    assert list(read_weights(tmp_path / "model.pth")) == ["a"]
    assert list(read_weights(tmp_path / "model.pt")) == ["a"]


def test_which_files_hold_weights(tmp_path):
    torch.save(state(), tmp_path / "anything")
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "others")
    torch.save(state(), tmp_path / "old", _use_new_zipfile_serialization=False)
    for name in ("anything", "arrays.npz", "others", "old", "missing.pth"):
        assert files.holds_weights(tmp_path / name), name
    ones = np.ones(2, np.float32)
    checkpoint.save(tmp_path / "ours", {"weights/a": ones, "velocity/a": ones}, {})
    (tmp_path / "text").write_text("text")
    for name in ("ours", "text", "missing", "."):
        assert not files.holds_weights(tmp_path / name), name


# ---- what is refused


def unzipped(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path, members, compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)


class Storage:
    def __init__(self, kind=torch.FloatStorage, key="0", count=6):
        self.pid = ("storage", kind, key, "cpu", count)


class Made:
    """A tensor of which every number is chosen."""

    def __init__(self, storage, offset=0, size=(2, 3), stride=(3, 1)):
        self.arguments = (storage, offset, size, stride, False, collections.OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None

    def reducer_override(self, value):
        if isinstance(value, Made):
            return torch._utils._rebuild_tensor_v2, value.arguments
        return NotImplemented


def write(path, value, data=bytes(24), compression=zipfile.ZIP_STORED, **more):
    """A file of torch.save, with anything in it."""
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    zipped(path, {"x/data.pkl": file.getvalue(), "x/version": b"3\n", "x/data/0": data, **more}, compression)


def test_what_these_tests_write_is_read_where_nothing_is_wrong_with_it(tmp_path):
    write(tmp_path / "x.pth", {"a": Made(Storage())}, np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(read_weights(tmp_path / "x.pth")["a"], [[0, 1, 2], [3, 4, 5]])


OUTSIDE = "empty, or not inside its storage of 6 numbers"
IMPOSSIBLE = "shape, strides or offset are impossible"
TENSORS = {
    "one row too many": (Made(Storage(), size=(3, 3)), OUTSIDE),
    "one too far": (Made(Storage(), offset=1), OUTSIDE),
    "strides that leave it": (Made(Storage(), stride=(4, 1)), OUTSIDE),
    "larger than its storage": (Made(Storage(), size=(2**20, 2**20), stride=(0, 0)), OUTSIDE),
    "empty": (Made(Storage(), size=(0, 3)), OUTSIDE),
    "negative offset": (Made(Storage(), offset=-1), IMPOSSIBLE),
    "negative stride": (Made(Storage(), offset=5, stride=(-3, -1)), IMPOSSIBLE),
    "negative size": (Made(Storage(), size=(-2, -3)), IMPOSSIBLE),
    "size and stride of other lengths": (Made(Storage(), stride=(1,)), IMPOSSIBLE),
    "many dimensions": (Made(Storage(), size=(1,) * 9, stride=(0,) * 9), IMPOSSIBLE),
    "true as a size": (Made(Storage(), size=(True, 3)), IMPOSSIBLE),
    "huge numbers": (Made(Storage(), size=(10**5000,) * 8, stride=(10**5000,) * 8), IMPOSSIBLE),
    "no storage": (Made("0"), "something else than numbers"),
    "a list as its size": (Made(Storage(), size=[2, 3]), "something else than numbers"),
    "more numbers than there are": (Made(Storage(count=7)), "storage 0 has not 7 numbers of float32"),
    "other numbers than there are": (Made(Storage(torch.HalfStorage)), "storage 0 has not 6 numbers of float16"),
    "no such member": (Made(Storage(key="1")), "x/data/1"),
    "a member elsewhere": (Made(Storage(key="../data.pkl")), "x/data/../data.pkl"),
    "a storage of what is none": (Made(Storage(kind=collections.OrderedDict)), "a storage of something else"),
    "more than there can be": (Made(Storage(count=2**60)), "a storage of something else"),
    "whole numbers": (Made(Storage(torch.IntStorage)), "'a' is int32; weights are tensors of floating-point numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_cannot_be_are_refused(tmp_path, name):
    tensor, message = TENSORS[name]
    write(tmp_path / "x.pth", {"a": tensor})
    with pytest.raises(WeightsError, match=re.escape(message)):
        read_weights(tmp_path / "x.pth")


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Own(torch.nn.Linear):
    pass


def objects(marker):
    return {
        "a module": (torch.nn.Linear(2, 3), "it names torch.nn.modules.linear.Linear"),
        "a module of one's own": (Own(2, 3), "it names test_weight_files.Own"),
        "a command": ({"a": Runs(os.system, f"touch {marker}")}, "it names posix.system"),
        "a file": (Runs(open, str(marker), "w"), "it names io.open"),
        "what loads more": (Runs(torch.load, str(marker)), "it names torch.serialization.load"),
        "a namespace beside it": ({"state_dict": state(), "args": argparse.Namespace(a=1)}, "argparse.Namespace"),
        "arrays of NumPy": ({"a": np.ones(3)}, "it names numpy"),
        "a list": ([1, 2], "expected a state dict, found list"),
        "a tensor": (torch.ones(2), "expected a state dict, found Tensor"),
        "nothing": ({}, "expected a state dict, found nothing"),
        "numbers": ({"lr": 0.1}, "expected a dict of tensors, found float as 'lr'"),
        "names that are none": ({3: torch.ones(1)}, "expected a dict of tensors, found Tensor as 'int'"),
        "whole numbers": ({"a": torch.ones(2, dtype=torch.int64)}, "'a' is int64; weights are tensors of"),
        "no plain tensor": ({"a": torch.ones(2).to_sparse()}, "it names torch._utils._rebuild_sparse_tensor"),
        "complex numbers": ({"a": torch.ones(2, dtype=torch.complex64)}, "it names torch.ComplexFloatStorage"),
    }  # fmt: skip


@pytest.mark.parametrize("name", objects(""))
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_else_is_made_of_a_pickle(tmp_path, name, protocol):
    value, message = objects(tmp_path / "marker")[name]
    torch.save(value, tmp_path / "x.pth", pickle_protocol=protocol)
    with pytest.raises(WeightsError, match=re.escape(message)) as found:
        read_weights(tmp_path / "x.pth")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "marker").exists()
    if "it names" in message:
        assert "save the weights alone: torch.save(model.state_dict(), FILE)" in str(found.value)


def test_files_that_are_none_are_told_apart(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"as they were before version 1\.6, which is not read; save it again"):
        read_weights(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions say that it will go
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    with pytest.raises(
        WeightsError, match=r"holds a whole module \(TorchScript\), which is a program; save its weights"
    ):
        read_weights(path)
    path.write_bytes(b"<html>")
    with pytest.raises(
        WeightsError, match=r"neither a complete safetensors file, nor an \.npz archive, nor torch\.save's"
    ):
        read_weights(path)
    zipped(path, {"a.txt": b"text"})
    assert read_weights(path) == {}  # an archive of NumPy's without arrays: whoever looks for names finds none
    np.savez(path.with_suffix(".npz"), a=np.array([1, "x"], dtype=object))
    with pytest.raises(WeightsError, match="holds objects of Python, which are not read"):
        read_weights(path.with_suffix(".npz"))
    np.savez(path.with_suffix(".npz"), a=np.arange(3))
    with pytest.raises(WeightsError, match="'a' is int64; weights are tensors of floating-point numbers"):
        read_weights(path.with_suffix(".npz"))
    with pytest.raises(WeightsError, match=r"cannot read '.*missing\.pth': No such file"):
        read_weights(tmp_path / "missing.pth")


def test_archives_that_unfold_are_refused(tmp_path):
    """Nothing is larger than the file: neither by packing, nor by naming the same bytes again and again."""
    path = tmp_path / "x.pth"
    write(path, {"a": Made(Storage(count=2**24))}, bytes(2**26), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**18
    with pytest.raises(WeightsError, match="a packed member, which PyTorch does not write"):
        read_weights(path)
    write(path, {"a": Made(Storage())}, **{"x/y": bytes(100_000)})
    raw = path.read_bytes()
    entry = raw[raw.rindex(b"PK\x01\x02") : raw.rindex(b"PK\x05\x06")]
    end = bytearray(raw[raw.rindex(b"PK\x05\x06") :])
    many = b"".join(entry.replace(b"x/y", b"x/%c" % (65 + k)) for k in range(20))
    directory = raw[raw.index(b"PK\x01\x02") : raw.rindex(b"PK\x05\x06")] + many
    end[8:12] = 2 * (directory.count(b"PK\x01\x02")).to_bytes(2, "little")
    end[12:16] = len(directory).to_bytes(4, "little")
    path.write_bytes(raw[: raw.index(b"PK\x01\x02")] + directory + end)
    with pytest.raises(WeightsError, match="members that are larger than the file"):
        read_weights(path)
    write(path, ["x" * 2**21])
    with pytest.raises(WeightsError, match=r"members that are larger than the file, or than PyTorch's"):
        read_weights(path)


def test_damage_is_found(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.randn(100, 100)}, path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1  # a number
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match="a damaged PyTorch file"):
        read_weights(path)
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(WeightsError, match="a damaged zip archive"):
        read_weights(path)


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """States for what stands for an OrderedDict and for tensors have no effect on those that come after."""
    state_of = b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00xK\x01sb."
    zipped(tmp_path / "x.pth", {"x/data.pkl": state_of})
    with pytest.raises(WeightsError, match="a state for OrderedDict"):
        read_weights(tmp_path / "x.pth")
    token = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00_nameX\x01\x00\x00\x00xsb."
    zipped(tmp_path / "x.pth", {"x/data.pkl": token})
    with pytest.raises(WeightsError, match="a state for _rebuild_tensor_v2"):
        read_weights(tmp_path / "x.pth")
    torch.save(state(), tmp_path / "x.pth")
    same(read_weights(tmp_path / "x.pth"), state())
