"""What people bring: their state_dict is read, anything else is refused by key, and no code ever runs."""

import hashlib
import io
import os
import pickle
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from export.source import NetSource, read_source
from export.state_dict import load_net
from serve_cli.errors import InputError
from serve_cli.model_file import MAX_BYTES
from tests.command import Mnist
from trainer.model import MLP

State = dict[str, Any]


@pytest.fixture
def state() -> State:
    return dict(MLP().state_dict())


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save writes for `value`."""
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def load(value: Any, **options: Any) -> tuple[MLP, list[str]]:
    """The net that is read from what torch.save writes for `value`, and the notes."""
    notes: list[str] = []
    return load_net(saved(value, **options), Path("net.pth"), notes.append), notes


def assert_refused(data: bytes, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_net(data, Path("net.pth"), lambda _: None)
    message = str(caught.value)
    assert len(message) < 500
    assert "\n" not in message
    for part in ("net.pth", *parts):
        assert part in message


@pytest.mark.parametrize("hidden", [(128, 64), (32,), (9, 8, 7)])
def test_a_state_dict_loads_with_its_hidden_sizes(hidden: tuple[int, ...]) -> None:
    wanted = MLP(hidden)
    net, notes = load(wanted.state_dict())
    assert (net.hidden, notes) == (hidden, [])
    assert not net.training
    assert all(torch.equal(net.state_dict()[key], value) for key, value in wanted.state_dict().items())


def ways_to_save(net: MLP) -> dict[str, Any]:
    """The same tensors in the forms in which people save them."""
    state = net.state_dict()
    flat = torch.cat([value.flatten() for value in state.values()])
    pieces = flat.split([value.numel() for value in state.values()])
    return {
        "OrderedDict": state,
        "plain dict": dict(state),
        "parameters": dict(net.named_parameters()),
        "columns first": {
            key: value.movedim(0, -1).contiguous().movedim(-1, 0) for key, value in state.items()
        },
        "pieces of one tensor": {
            key: piece.view(value.shape) for (key, value), piece in zip(state.items(), pieces, strict=True)
        },
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("way", ways_to_save(MLP((3,))))
def test_every_way_to_save_loads(way: str, protocol: int) -> None:
    value = ways_to_save(MLP((3,)))[way]
    found = load(value, pickle_protocol=protocol)[0].state_dict()
    assert found.keys() == value.keys()
    assert all(torch.equal(found[key], value[key]) for key in value)


def test_safetensors_load_under_any_name(state: State) -> None:
    data = safetensors.torch.save(state, metadata={"made": "by hand"})
    net = load_net(data, Path("net.pth"), lambda _: None)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def renamed(state: State, *names: str) -> State:
    """The same tensors with other names of the layers, the last layer first."""
    layers = dict(zip(("fc1", "fc2", "fc3"), names, strict=True))
    return {f"{layers[key[:3]]}{key[3:]}": value for key, value in reversed(state.items())}


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda state: {f"module.{key}": value for key, value in state.items()}, "prefix module."),
        (
            lambda state: {f"_orig_mod.module.model.{key}": value for key, value in state.items()},
            "prefix _orig_mod.module.model.",
        ),
        (lambda state: renamed(state, "0", "2", "4"), ""),
        (
            lambda state: renamed(
                state, "linear_relu_stack.2", "linear_relu_stack.5", "linear_relu_stack.10"
            ),
            "prefix",
        ),
        (lambda state: {"epoch": 3, "model_state_dict": state, "loss": 0.1}, "key 'model_state_dict'"),
        (lambda state: {"net": {f"net.{key}": value for key, value in state.items()}}, "key 'net'"),
        (lambda state: {"weights": state, "best": torch.zeros(())}, "key 'weights'"),
        (lambda state: dict(sorted(renamed(state, "into", "hidden", "out").items())), ""),
        (lambda state: {"n_averaged": torch.tensor(7), **state}, ""),
        (
            lambda state: {  # as Lightning saves it
                "state_dict": {f"model.{key}": value for key, value in state.items()},
                "hyper_parameters": Namespace(lr=0.1),
                "optimizer_states": [{"state": {}, "param_groups": []}],
            },
            "key 'state_dict'",
        ),
    ],
)
def test_the_same_net_in_a_checkpoint_or_under_other_names(
    state: State, change: Callable[[State], Any], note: str
) -> None:
    net, notes = load(change(state))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert note in " ".join(notes)
    assert bool(notes) == bool(note)


def test_a_net_without_hidden_layers(mnist: Mnist) -> None:
    layer = torch.nn.Linear(784, 10)
    net, _ = load(layer.state_dict())
    assert net.hidden == ()
    assert torch.equal(net.state_dict()["fc1.weight"], layer.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(state: State, dtype: torch.dtype) -> None:
    net, notes = load({key: value.to(dtype) for key, value in state.items()})
    assert notes == [f"the weights are {str(dtype)[6:]}: they are converted to float32"]
    assert all(torch.equal(net.state_dict()[key], value.to(dtype).float()) for key, value in state.items())


# What does not fit is named.


def wrong(**values: Any) -> Callable[[State], State]:
    """Put values into the state; __ stands for a dot, None removes."""

    def change(state: State) -> State:
        changed = {**state, **{key.replace("__", "."): value for key, value in values.items()}}
        return {key: value for key, value in changed.items() if value is not None}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong(fc1__weight=None), "lacks key fc1.weight"),
        (wrong(fc2__weight=None), "lacks key fc2.weight"),
        (wrong(fc3__bias=None), "lacks key fc3.bias, its layer was made with bias=False"),
        (wrong(bn__running_mean=torch.zeros(1)), "unexpected key bn.running_mean"),
        (wrong(fc1__weight_g=torch.zeros(1)), "unexpected key fc1.weight_g"),
        (wrong(conv1__weight=torch.zeros(8, 1, 3, 3)), "a convolution (conv1.weight): export another"),
        (wrong(epoch=3), "key epoch holds no tensor"),
        (wrong(fc1__weight=torch.zeros(128, 783)), "fc1.weight has the shape [128, 783], expected"),
        (wrong(fc2__weight=torch.zeros(128, 64)), "expected [outputs, 128]"),
        (wrong(fc3__bias=torch.zeros(11)), "fc3.bias has the shape [11], expected"),
        (wrong(fc3__weight=torch.zeros(11, 64), fc3__bias=torch.zeros(11)), "11 outputs, expected 10"),
        (wrong(fc1__weight=torch.zeros(())), "fc1.weight"),
        (wrong(fc1__weight=torch.zeros(0, 784)), "fc1.weight"),
        (wrong(fc2__bias=torch.zeros(64, dtype=torch.int64)), "fc2.bias holds no plain tensor of floats"),
        (wrong(fc3__weight=torch.full((10, 64), torch.nan)), "fc3.weight holds NaN"),
        (wrong(fc3__weight=torch.full((10, 64), torch.inf)), "fc3.weight holds NaN or infinite"),
        (wrong(fc3__weight=torch.full((10, 64), 1e300, dtype=torch.float64)), "NaN or infinite"),
        (wrong(fc1__weight=torch.ones(128, 784).to_sparse()), "fc1.weight"),
        (wrong(fc1__weight=torch.zeros(128, 784, device="meta")), "fc1.weight"),
        (
            wrong(
                fc1__weight=torch.zeros(1).expand(10**10, 784),
                fc1__bias=torch.zeros(1).expand(10**10),
                fc2__weight=torch.zeros(1).expand(64, 10**10),
            ),
            "cannot be exported: take layer sizes",
        ),
        (lambda state: {"model": MLP()}, "a whole pickled object (trainer.model.MLP)"),
        (lambda state: torch.optim.Adam(MLP().parameters()).state_dict(), "the state of an optimizer"),
        (lambda state: {0: torch.zeros(1)}, "key of type int holds no tensor"),
        (lambda state: OrderedDict(), "no keys at all"),
        (lambda state: [1, 2], "it holds no dict"),
        (lambda state: torch.zeros(3), "it holds no dict"),
        (lambda state: MLP(), "(trainer.model.MLP), and code in a file is never run"),
    ],
)
def test_what_does_not_fit_is_named(state: State, change: Callable[[State], Any], message: str) -> None:
    assert_refused(saved(change(state)), message)


# Hostile files, one of each kind.


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
    canary, path = tmp_path / "canary", tmp_path / "mnist_model.pth"
    value = {**state, "extra": Payload(canary)}
    if container == "bare":
        path.write_bytes(pickle.dumps(value, protocol=protocol))
    else:
        zipped = container == "zip"
        path.write_bytes(saved(value, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped))
    mnist("export", path, "--output", tmp_path / "out").assert_refused("is refused")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(value, protocol=protocol))
    assert canary.exists(), "the payload does nothing, so the test says nothing"


class Writer(torch.nn.Module):
    """A TorchScript program writes a file when it is loaded."""

    canary: str

    def __init__(self, canary: Path) -> None:
        super().__init__()
        self.canary = str(canary)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.canary, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.canary = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.canary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_under_other_names_is_never_run(tmp_path: Path) -> None:
    """torch cuts long names of records, and finds them in any case."""
    canary, saved_program, crooked = tmp_path / "canary", io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(Writer(canary)), saved_program)
    prefix = "A" * 497
    with zipfile.ZipFile(saved_program) as program, zipfile.ZipFile(crooked, "w") as archive:
        for name in program.namelist():
            record = (
                name.partition("/")[2].replace("code/", "CODE/").replace("constants.pkl", "CONSTANTS.PKL")
            )
            archive.writestr(f"{prefix}/{record}", program.read(name))
        archive.writestr(f"{prefix}/constants.pklXYZ", b"x")
    assert_refused(crooked.getvalue(), "is refused")
    assert not canary.exists()
    torch.jit.load(io.BytesIO(crooked.getvalue()))
    assert canary.exists(), "the program does nothing, so the test says nothing"


def packed(method: int, size: int = 10**8) -> bytes:
    """A small archive that expands to `size` zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr("net/data.pkl", bytes(size))
    return stream.getvalue()


def lying() -> bytes:
    """An archive whose directory claims a record of 1 GiB."""
    data = bytearray(saved(MLP((2,)).state_dict()))
    sizes = data.index(b"PK\x01\x02") + 20  # packed and unpacked
    data[sizes : sizes + 8] = struct.pack("<II", 2**30, 2**30)
    return bytes(data)


def torchscript() -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(MLP((2,)), torch.zeros(2, 28, 28)), stream)
    return stream.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is refused"),
    "text": (lambda: b"seven " * 100, "code in a file is never run"),
    "truncated": (lambda: saved(MLP((2,)).state_dict())[:-100], "is refused, it is damaged"),
    "half": (lambda: saved(MLP((2,)).state_dict())[:3000], "is refused, it is damaged"),
    "truncated safetensors": (
        lambda: safetensors.torch.save(MLP((2,)).state_dict())[:-100],
        "is refused, it is damaged",
    ),
    "bz2 bomb": (lambda: packed(zipfile.ZIP_BZIP2), "is refused, it is damaged"),
    "deflate bomb": (lambda: packed(zipfile.ZIP_DEFLATED), "is refused, it is damaged"),
    "false sizes": (lying, "is refused, it is damaged"),
    "TorchScript": (torchscript, "it is a TorchScript archive, not a state_dict"),
    "Keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "it is a Keras file: export it to ONNX"),
    "older torch.save": (
        lambda: saved(MLP((2,)).state_dict(), _use_new_zipfile_serialization=False),
        "save it again with a current PyTorch",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(kind: str) -> None:
    make, message = HOSTILE[kind]
    assert_refused(make(), message)


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path: Path, mnist: Mnist) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large.pth"
    os.mkfifo(fifo)
    large.touch()
    os.truncate(large, MAX_BYTES + 1)
    mnist("export", fifo, "--output", tmp_path / "out").assert_refused("is not a regular file")
    mnist("export", large, "--output", tmp_path / "out").assert_refused("more than 256 MiB")
    mnist("export", tmp_path / "none", "--output", tmp_path / "out").assert_refused("no such file")


def test_the_file_is_read_once(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file is replaced meanwhile, the artifact still states the hash of the net that it holds."""
    data, reads = saved(state), []
    monkeypatch.setattr("export.source.read_bytes", lambda path: reads.append(path) or data)
    (tmp_path / "net.pth").write_bytes(b"replaced")
    source = read_source(tmp_path / "net.pth", dataset=None, mean=None, std=None, note=print)
    assert isinstance(source, NetSource)
    assert source.state_dict_sha256 == hashlib.sha256(data).hexdigest()
    assert torch.equal(source.net.state_dict()["fc1.weight"], state["fc1.weight"])
    assert reads == [tmp_path / "net.pth"]
