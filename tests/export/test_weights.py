"""A saved state_dict: the tutorial's loads, anything else is refused by key, and no code ever runs."""

import os
import pickle
import struct
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from export.weights import load_net
from serve_cli.errors import InputError
from tests.command import Mnist
from tests.export import hostile
from trainer import checkpoint
from trainer.model import MLP

State = dict[str, Any]


@pytest.fixture
def state() -> State:
    return dict(MLP().state_dict())


def refused(value: Any, tmp_path: Path) -> str:
    path = tmp_path / "mnist_model.pth"
    torch.save(value, path)
    with pytest.raises(InputError) as caught:
        load_net(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_state_dict_loads_with_its_hidden_sizes(tmp_path: Path) -> None:
    for hidden in ((128, 64), (32,), (9, 8, 7)):
        saved = MLP(hidden)
        torch.save(saved.state_dict(), tmp_path / "net.pth")
        net = load_net(tmp_path / "net.pth")
        assert net.hidden == hidden
        assert not net.training
        assert all(torch.equal(net.state_dict()[key], value) for key, value in saved.state_dict().items())


def saved_ways(net: MLP) -> dict[str, Any]:
    """The same tensors in all the forms in which people save them."""
    state = net.state_dict()
    flat = torch.cat([value.flatten() for value in state.values()])
    pieces = flat.split([value.numel() for value in state.values()])
    return {
        "plain dict": dict(state),
        "parameters": dict(net.named_parameters()),
        "columns first": {
            key: value.movedim(0, -1).contiguous().movedim(-1, 0) for key, value in state.items()
        },
        "pieces of one tensor": {
            key: piece.view(value.shape) for (key, value), piece in zip(state.items(), pieces, strict=True)
        },
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 3")
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("way", saved_ways(MLP((3,))))
def test_what_torch_saves_is_what_it_would_load(tmp_path: Path, way: str, protocol: int) -> None:
    path = tmp_path / "net.pth"
    torch.save(saved_ways(MLP((3,)))[way], path, pickle_protocol=protocol)
    expected = torch.load(path, weights_only=True)
    found = load_net(path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_state_dict_saved_on_another_device_loads(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    state = hostile.small_state()
    program = hostile.written(hostile.views(state))
    path.write_bytes(hostile.archive(program.replace(b"cpu", b"xla")))
    assert torch.equal(load_net(path).state_dict()["fc1.weight"], state["fc1.weight"])


def test_safetensors_load_under_any_name(state: State, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(safetensors.torch.save(state, metadata={"made": "by hand"}))
    net = load_net(path)
    assert not net.training
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_the_model_of_a_checkpoint_loads(run_directory: Path) -> None:
    root = run_directory / "checkpoints"
    saved, _ = checkpoint.newest(root)
    assert saved is not None
    net = load_net(root / checkpoint.folder_name(saved.step) / checkpoint.MODEL)
    assert all((value.numpy() == saved.model[key]).all() for key, value in net.state_dict().items())


def test_weights_of_another_kind_say_what_to_do(state: State, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"again with a current PyTorch: torch\.save"):
        load_net(path)
    for name, data in hostile.archives_of_other_kinds():
        if "pt2" in name:
            path.write_bytes(data)
            with pytest.raises(InputError, match=r"it is a torch\.export archive, not a state_dict"):
                load_net(path)


def test_the_file_is_read_once(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is what is loaded, even when the file is replaced in between."""
    path = tmp_path / "net.pth"
    torch.save(state, path)
    data, reads = path.read_bytes(), []
    monkeypatch.setattr("export.weights.read_bytes", lambda path: reads.append(path) or data)
    path.unlink()
    load_net(path)
    assert reads == [path]


@pytest.mark.parametrize(
    "key", ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"]
)
def test_a_missing_key_is_named(state: State, tmp_path: Path, key: str) -> None:
    del state[key]
    assert f"lacks key {key}" in refused(state, tmp_path)


@pytest.mark.parametrize("key", ["fc9x", "bn.weight", "FC1.weight", "fc1.weight_g"])
def test_an_extra_key_is_named(state: State, tmp_path: Path, key: str) -> None:
    state[key] = torch.zeros(1)
    assert f"unexpected key {key}" in refused(state, tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net."])
def test_a_prefix_is_shown(state: State, tmp_path: Path, prefix: str) -> None:
    message = refused({prefix + key: value for key, value in state.items()}, tmp_path)
    assert f"{prefix}fc1" in message
    assert (f"save model.{prefix}state_dict()" in message) == (prefix != "net.")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("fc1.weight", (128, 783)),
        ("fc1.weight", (784, 128)),
        ("fc2.weight", (128, 64)),
        ("fc2.bias", (65,)),
        ("fc3.weight", (11, 64)),
        ("fc3.bias", (11,)),
        ("fc1.bias", (128, 1)),
    ],
)
def test_a_wrong_shape_is_named(state: State, tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    state[key] = torch.zeros(shape)
    message = refused(state, tmp_path)
    assert key.split(".")[0] in message
    assert "expected" in message


@pytest.mark.parametrize("shape", [(), (0, 784)])
def test_an_empty_layer_is_named(state: State, tmp_path: Path, shape: tuple[int, ...]) -> None:
    state["fc1.weight"] = torch.zeros(shape)
    assert "fc1.weight" in refused(state, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_a_wrong_dtype_is_named(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    state["fc2.bias"] = state["fc2.bias"].to(dtype)
    message = refused(state, tmp_path)
    assert f"fc2.bias is {dtype}" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(state: State, tmp_path: Path, value: float) -> None:
    state["fc3.weight"][3, 4] = value
    assert "fc3.weight holds NaN" in refused(state, tmp_path)


@pytest.mark.parametrize(
    "value", [[1, 2], {"epoch": 3}, torch.zeros(3), {}, OrderedDict(), {"model": {"fc1.weight": 1}}]
)
def test_what_is_not_a_state_dict_is_refused(tmp_path: Path, value: Any) -> None:
    refused(value, tmp_path)


@pytest.mark.parametrize("kind", ["sparse", "meta", "expanded"])
def test_tensors_that_are_not_plain_are_refused(state: State, tmp_path: Path, kind: str) -> None:
    state["fc1.weight"] = {
        "sparse": torch.ones(128, 784).to_sparse(),
        "meta": torch.zeros(128, 784, device="meta"),
        "expanded": torch.zeros(1).expand(10**10, 784),
    }[kind]
    refused(state, tmp_path)


def test_keys_that_are_no_names_are_refused(tmp_path: Path) -> None:
    assert "not a state_dict" in refused({0: torch.zeros(1), ("a", 1): torch.zeros(1)}, tmp_path)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
def test_code_in_a_file_is_never_run(
    state: State, tmp_path: Path, mnist: Mnist, protocol: int, container: str
) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "mnist_model.pth"
    value = {**state, "extra": Payload(canary)}
    if container == "bare":
        path.write_bytes(pickle.dumps(value, protocol=protocol))
    else:
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    mnist("export", path, "--output", tmp_path / "out").assert_refused("is refused", "never run")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    assert "trainer.model.MLP" in refused(MLP(), tmp_path)


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mnist_model.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(MLP(), torch.zeros(2, 28, 28)), path)
    with pytest.raises(InputError, match="TorchScript"):
        load_net(path)


def test_damaged_files_are_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "mnist_model.pth"
    torch.save(state, path)
    data = path.read_bytes()
    for damaged in (b"", b"junk", data[:100], data[: len(data) // 2], data[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is refused"):
            load_net(path)
    with pytest.raises(InputError, match="cannot read"):
        load_net(tmp_path / "nope.pth")


def test_registered_extensions_are_refused_by_their_number(tmp_path: Path) -> None:
    """A pickle may name what this process has registered under a number, whatever that is."""
    path = tmp_path / "net.pth"
    path.write_bytes(hostile.archive(b"\x80\x02\x82" + bytes([hostile.EXTENSION]) + b")R."))
    with pytest.raises(InputError, match=rf"extension {hostile.EXTENSION}.*never run"):
        load_net(path)


def test_records_that_claim_more_bytes_than_the_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    data = bytearray(hostile.archive(hostile.written(hostile.views(hostile.small_state()))))
    sizes = data.index(b"PK\x01\x02") + 20  # packed and unpacked, in the archive's directory
    data[sizes : sizes + 8] = struct.pack("<II", 2**30, 2**30)
    path.write_bytes(data)
    with pytest.raises(InputError, match="claim more bytes than it has"):
        load_net(path)


def test_a_view_that_only_pytorch_can_read_is_refused(tmp_path: Path) -> None:
    """torch.save keeps the numbers of a negated view as they are, and notes that they are negated."""
    state = MLP((4,)).state_dict()
    weight = state["fc1.weight"].detach()
    state["fc1.weight"] = torch.complex(weight, -weight).conj().imag
    assert state["fc1.weight"].is_neg()
    assert "negated or conjugated" in refused(state, tmp_path)
