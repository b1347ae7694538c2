"""docs/troubleshooting.md cannot rot: its messages are provoked here, or at least stand in the source."""

import ast
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export.torch_formats import quiet
from serve_cli.spec import BUNDLED_MODEL
from tests.command import Mnist
from tests.serve_cli.http.serving import Served, png, serving
from trainer.model import MLP
from trainer.train import Options, train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTES = [
    " ".join(quote.split())
    for _, quote in re.findall(r"^- (?:\d{3}: )?(`+)(.+?)\1(?!`)", PAGE, flags=re.DOTALL | re.MULTILINE)
]
HTTP = {
    " ".join(quote.split()): int(status)
    for status, quote in re.findall(r"^- (\d{3}): `(.+?)`", PAGE, flags=re.DOTALL | re.MULTILINE)
}
"""The answers of the server, with their status."""

PREFIX = r"(?:mnist|mnist \w+): "
LEAST_LETTERS = 10
"""Letters that a message in the source must have besides what it fills in, to count as the one quoted."""

PATIENCE_S = 300.0
"""Far more than anything here takes, so that a test that waits in vain ends."""


def pattern(quote: str) -> str:
    """A quote as a regular expression: what stands in angle brackets varies."""
    return ".+".join(re.escape(part) for part in re.split(r"<[^<>]+>", quote))


@dataclass(frozen=True)
class Shop:
    """A folder, and what goes wrong in it."""

    folder: Path

    def write(self, name: str, data: bytes | str = b"") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    def large(self, name: str, mebibytes: int) -> Path:
        """A file of so many MiB that takes no room on the disk."""
        path = self.write(name)
        os.truncate(path, mebibytes * 1024**2 + 1)
        return path

    def picture(self, name: str = "digit.png", size: int = 28, columns: Sequence[int] = (13, 14)) -> Path:
        """White bars at `columns`, on black."""
        pixels = np.zeros((size, size), np.uint8)
        pixels[size // 5 : -size // 5, columns] = 255
        return self.write(name, png(pixels))

    def pictures(self, *names: str) -> Path:
        """A folder with these pictures."""
        for name in names:
            self.picture(f"pictures/{name}")
        return self.folder / "pictures"

    def full(self) -> Path:
        """A folder with a file that is not ours."""
        return self.write("full/thesis.txt").parent

    def artifact(self, **changes: bytes | None) -> Path:
        """The one in the package, with files changed, added, or with None removed; __ stands for a dot."""
        copy = Path(shutil.copytree(BUNDLED_MODEL, self.folder / "artifact"))
        for name, data in changes.items():
            path = copy / name.replace("__", ".")
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)
        return copy

    def onnx(self, old: bytes = b"", new: bytes = b"") -> Path:
        """The ONNX file in the package, alone, with `new` in place of `old`."""
        data = (BUNDLED_MODEL / "model.onnx").read_bytes()
        assert old in data
        return self.write("model.onnx", data.replace(old, new))

    def state(self, change: Callable[[dict[str, torch.Tensor]], object] = dict) -> Path:
        """A saved state_dict of the tutorial's net, changed."""
        torch.save(change(MLP((128, 64)).state_dict()), self.folder / "saved.pth")
        return self.folder / "saved.pth"

    def images(self, **sets: int) -> Path:
        """A folder of IDX files without their labels: each promises two images and holds so many."""
        for name, count in sets.items():
            header = b"\0\0\x08\x03" + struct.pack(">3I", 2, 28, 28)
            self.write(f"idx/{name}-images-idx3-ubyte", header + bytes(784 * count))
        return self.folder / "idx"

    def arrays(self, **arrays: object) -> Path:
        """A NumPy archive."""
        np.savez(self.folder / "mnist.npz", allow_pickle=False, **arrays)
        return self.folder / "mnist.npz"

    def idx(self, count: int, names: str = "") -> Path:
        """A data set of two images, of which `count` are there to train on, and a labels.txt of `names`."""
        folder = self.images(train=count, t10k=2)
        self.write("idx/labels.txt", names)
        for name in ("train", "t10k"):
            self.write(f"idx/{name}-labels-idx1-ubyte", b"\0\0\x08\x01" + struct.pack(">I", 2) + bytes(2))
        return folder


Case = Callable[[Shop], Sequence[object]]
PROVE = ("--dataset", "mnist5k", "--output")

EVERY: dict[str, Case] = {
    "no such command '<name>'; did you mean <name>? (see mnist --help)": lambda shop: ["trian"],
    "No such option: <option> <hint> (see mnist export --help)": lambda shop: ["export", "--oppset", 20],
    "unrecognized arguments: <option> (see mnist infer --help)": lambda shop: ["infer", "a.png", "--nope"],
    "Missing argument '<name>'. (see mnist export --help)": lambda shop: ["export"],
    "Missing option '<name>'. (see mnist evaluate --help)": lambda shop: ["evaluate", BUNDLED_MODEL],
    "Invalid value for '<option>': <reason> (see mnist train --help)": lambda shop: [
        *("train", "--epochs", "many")
    ],
}

INFER: dict[str, Case] = {
    "no picture is named (see mnist infer --help)": lambda shop: ["infer"],
    "an empty name is no picture: is a variable unset?": lambda shop: ["infer", ""],
    "cannot read <file>: No such file or directory": lambda shop: ["infer", shop.folder / "none.png"],
    "<file> is empty: expected a picture (PNG, JPEG, ...)": lambda shop: ["infer", shop.write("a.png")],
    "<file> is not a picture but text: save the picture itself as JPEG or PNG": lambda shop: [
        *("infer", shop.write("a.png", "seven"))
    ],
    "<file> is a PDF: convert it to JPEG or PNG": lambda shop: ["infer", shop.write("a.png", "%PDF-1.7")],
    "<file> is not a picture that can be read: save it as PNG or JPEG": lambda shop: [
        *("infer", shop.write("a.png", b"\1\2" * 99))
    ],
    "<file> is a damaged picture (<reason>): save it again as PNG or JPEG": lambda shop: [
        *("infer", shop.write("a.png", shop.picture().read_bytes()[:60]))
    ],
    "<file> has <width>x<height> pixels, more than <number> million: save a smaller picture": lambda shop: [
        *("infer", shop.write("a.ppm", "P5 100000 100000 255\n"))
    ],
    "<file> has more than <number> MiB: save a smaller picture": lambda shop: [
        *("infer", shop.large("a.png", 64))
    ],
    "<folder> holds no pictures: name a folder with <endings> files": lambda shop: ["infer", shop.folder],
    "<address> is an address, not a file: download it first (curl -LO <address>)": lambda shop: [
        *("infer", "https://example.org/digit.png")
    ],
    "<file> is a CSV file with <number> columns: expected a label and 784 pixels, or 784 pixels": (
        lambda shop: ["infer", shop.write("a.csv", "1,2\n")]
    ),
    "<file> is not 28x28 pixels, as --preprocess raw takes them: leave the option out": lambda shop: [
        *("infer", shop.picture(size=56), "--preprocess", "raw")
    ],
    "argument <option>: <value> is not a number from <lowest> to <highest> (see mnist infer --help)": (
        lambda shop: ["infer", "a.png", "--min-confidence", "90"]
    ),
    "--save-input writes PNG: call it <name>.png, or name a folder that is there": lambda shop: [
        *("infer", shop.picture(), "--save-input", "seen.jpg")
    ],
    "--save-input <name> takes one picture: name a folder, as in --save-input seen/": lambda shop: [
        *("infer", shop.picture(), shop.picture("b.png"), "--save-input", "seen.png")
    ],
    "<file> is another picture, --save-input does not replace it: name a new file": lambda shop: [
        *("infer", shop.picture(), "--save-input", shop.picture())
    ],
}

MODELS: dict[str, Case] = {
    "no such model: <path>; make one with mnist train and mnist export": lambda shop: ["info", "nowhere"],
    "<folder> holds no <files>: make one with mnist export": lambda shop: ["bench", shop.folder],
    "<file> is a PyTorch file, not ONNX: name an .onnx file (mnist export --format onnx)": lambda shop: [
        *("infer", shop.picture(), "--model", shop.write("model.pt2", b"PK\3\4"))
    ],
    "<file> carries no mnist_toolkit contract: make an artifact of it with mnist export <file> --output DIR, "
    "then name DIR": lambda shop: ["info", shop.onnx(b"mnist_toolkit", b"other_toolkit")],
    "<file> is no model that onnxruntime <version> can run (<reason>): make one with mnist export": (
        lambda shop: ["infer", shop.picture(), "--model", shop.write("model.onnx", "junk")]
    ),
    "<file> is not the file that artifact.json speaks of: export the model again": lambda shop: [
        *("infer", shop.picture(), "--model", shop.artifact(model__onnx=b"another"))
    ],
    "<file> is damaged (<reason>): export the model again": lambda shop: [
        *("info", shop.artifact(artifact__json=b"{}"))
    ],
    "<file> is not a regular file: name a model file, an artifact or a run": lambda shop: [
        *("info", "/dev/null")
    ],
    "<file> has more than <number> MiB, the limit for a model": lambda shop: [
        *("info", shop.large("model.onnx", 256))
    ],
    "<file> is a program that PyTorch would run, and no artifact.json beside it vouches for it: name it "
    "inside the artifact that it came with": lambda shop: [
        *("evaluate", shop.write("model.pt2", b"PK\3\4"), "--data", shop.pictures("1/a.png"))
    ],
}

VERIFY: dict[str, Case] = {
    "<path> is no folder: name a directory that mnist export made": lambda shop: ["verify", "nowhere"],
    "<folder> holds no artifact.json: name a directory that mnist export made": lambda shop: [
        *("verify", shop.folder)
    ],
    "<file> is missing, artifact.json lists it: export the model again": lambda shop: [
        *("verify", shop.artifact(MODEL_CARD__md=None))
    ],
    "<file> is not the file that was exported, its SHA-256 is another: export the model again": lambda shop: [
        *("verify", shop.artifact(MODEL_CARD__md=b"another"))
    ],
    "<file> is not listed in artifact.json: keep other files elsewhere": lambda shop: [
        *("verify", shop.artifact(notes__txt=b""))
    ],
}

EVALUATE: dict[str, Case] = {
    "no such data: <path>; <remedy>": lambda shop: ["evaluate", BUNDLED_MODEL, "--data", "nowhere"],
    "<folder> holds no labelled images: <remedy>": lambda shop: [
        *("evaluate", BUNDLED_MODEL, "--data", shop.folder)
    ],
    "<folder>: '<name>' is no label of the model, use one of <labels>": lambda shop: [
        *("evaluate", BUNDLED_MODEL, "--data", shop.pictures("seven/a.png"))
    ],
    "<file> is a NumPy archive with the arrays <names>: expected <names>": lambda shop: [
        *("evaluate", "--data", shop.arrays(a=[1], b=[2]))
    ],
    "<array> has the shape [<numbers>], expected [N, 28, 28] or [N, 784]": lambda shop: [
        *("evaluate", "--data", shop.arrays(x=np.zeros((1, 32, 32)), y=[2]))
    ],
    "<array> holds values from <lowest> to <highest>, expected 0 to 255 or 0 to 1": lambda shop: [
        *("evaluate", "--data", shop.arrays(x=np.full((1, 784), -0.5), y=[2]))
    ],
    "<file> has 784 columns, so no labels: expected a label and 784 pixels": lambda shop: [
        *("evaluate", "--data", shop.write("test.csv", "0" + ",0" * 783))
    ],
    "<file> is a ZIP archive: unpack it and name the folder": lambda shop: [
        *("evaluate", "--data", shop.write("a.zip", b"PK\5\6" + bytes(18)))
    ],
    "<file> has no label: move it into the folder of its label": lambda shop: [
        *("evaluate", BUNDLED_MODEL, "--data", shop.pictures("1/a.png", "b.png"))
    ],
    "<folder> holds several sets: name one of the files <files>": lambda shop: [
        *("evaluate", BUNDLED_MODEL, "--data", shop.images(a=2, b=2))
    ],
    "<folder> lacks <file>, plain or as .gz: put it beside its other half": lambda shop: [
        *("evaluate", BUNDLED_MODEL, "--data", shop.images(t10k=2))
    ],
    "<file> has no column '<name>': its first line must name file and label, with a tab between columns": (
        lambda shop: ["evaluate", BUNDLED_MODEL, "--data", shop.write("manifest.tsv", "file,label\n").parent]
    ),
    "<file> lists no picture: give each a line with file and label": lambda shop: [
        *("evaluate", BUNDLED_MODEL, "--data", shop.write("manifest.tsv", "file\tlabel\n").parent)
    ],
    "<file> is damaged (<reason>): put a whole one in its place": lambda shop: [
        *("evaluate", BUNDLED_MODEL, "--data", shop.images(t10k=1))
    ],
    "accuracy <share> on <number> images is below --min-accuracy <floor>": lambda shop: [
        *("evaluate", BUNDLED_MODEL, "--data", shop.pictures("8/a.png")),
        *("--min-accuracy", 0.9),
    ],
}

SERVE: dict[str, Case] = {
    "cannot listen on <address>: <reason>; name an address of this machine with --host": lambda shop: [
        *("serve", "--host", "192.0.2.1", "--port", 0)  # of a network for documentation, RFC 5737
    ],
    "--api-key, or MNIST_API_KEY, is empty: set a key, or take it away": lambda shop: [
        *("serve", "--api-key", "")
    ],
    "--api-key may hold ASCII letters, digits and signs, no spaces: choose another": lambda shop: [
        *("serve", "--api-key", "open sesame")
    ],
    "--allowed-host <name> is not a name: leave out https:// and the port": lambda shop: [
        *("serve", "--allowed-host", "https://example.org")
    ],
    "--cors <site> is no origin: name one as https://example.org, in lower case": lambda shop: [
        *("serve", "--cors", "example.org")
    ],
}

EXPORT: dict[str, Case] = {
    "no such file: <path>; name a run directory, a saved state_dict or an ONNX file": lambda shop: [
        "export",
        "nowhere",
    ],
    "<folder> has no report.json, so it is not a finished run: name its mnist_model.pth": lambda shop: [
        *("export", shop.write("mnist_model.pth").parent)
    ],
    "<folder> is an unfinished run, it has no report.json: finish it with mnist train --resume --output "
    "<folder>, then export it": lambda shop: ["export", shop.write("run/config.json", "{}").parent],
    "<file> is refused, it is damaged or not a state_dict: save it with "
    "torch.save(model.state_dict(), PATH)": lambda shop: ["export", shop.write("saved.pth", b"PK\3\4")],
    "<file> is refused, <reason>, and code in a file is never run: save it again with a current PyTorch: "
    "torch.save(model.state_dict(), PATH)": lambda shop: ["export", shop.write("saved.pth", "junk")],
    "<file> is refused, it holds a whole pickled object (<class>), and code in a file is never run: save it "
    "with torch.save(model.state_dict(), PATH)": lambda shop: [
        "export",
        shop.state(lambda _: MLP((128, 64))),
    ],
    "<file> is not a state_dict, key <key> holds no tensor: save it with "
    "torch.save(model.state_dict(), PATH)": lambda shop: [
        *("export", shop.state(lambda state: {"first": state, "second": state}))
    ],
    "<file> holds the state of an optimizer, not of a net: save it with "
    "torch.save(model.state_dict(), PATH)": (
        lambda shop: ["export", shop.state(lambda _: torch.optim.SGD(MLP().parameters()).state_dict())]
    ),
    "<file> lacks key <key>: save it with torch.save(model.state_dict(), PATH)": lambda shop: [
        *("export", shop.state(lambda state: {k: v for k, v in state.items() if k != "fc2.weight"}))
    ],
    "<file> lacks key <key>, its layer was made with bias=False: train it with biases, or <advice>": (
        lambda shop: [
            *("export", shop.state(lambda state: {k: v for k, v in state.items() if k != "fc2.bias"}))
        ]
    ),
    "<file> holds a convolution (<key>): export another architecture to ONNX (torch.onnx.export), then run "
    "mnist export on the ONNX file": lambda shop: [
        *("export", shop.state(lambda state: {**state, "conv1.weight": torch.zeros(1, 1, 3, 3)}))
    ],
    "<file> has the unexpected key <key>, a Linear layer has none: <advice>": lambda shop: [
        *("export", shop.state(lambda state: {**state, "bn1.running_mean": state["fc1.bias"]}))
    ],
    "<file>: key <key> has the shape <shape>, expected <shape> of a Linear layer: <advice>": lambda shop: [
        *("export", shop.state(lambda state: {**state, "fc2.weight": state["fc1.weight"]}))
    ],
    "<file>: key <key> holds NaN or infinite values: train again": lambda shop: [
        *("export", shop.state(lambda state: {**state, "fc3.bias": torch.full((10,), torch.nan)}))
    ],
    "--format is <name>, expected one of onnx, onnx-int8, torchscript, pt2, all": lambda shop: [
        *("export", "a.pth", "--format", "tflite")
    ],
    "--opset is <number>, onnx takes <first> to <last>": lambda shop: [
        *("export", shop.state(), "--opset", 5, *PROVE, shop.folder / "new")
    ],
    "--opset is for ONNX, not for --format <name>: leave it out": lambda shop: [
        *("export", "a.pth", "--format", "pt2", "--opset", 20)
    ],
    "--layout is <name>, expected plain or triton": lambda shop: ["export", "a.pth", "--layout", "zip"],
    "--layout triton needs --output: name the folder that becomes the repository": lambda shop: [
        *("export", "a.pth", "--layout", "triton")
    ],
    "--layout triton takes --format onnx or onnx-int8, not <names>": lambda shop: [
        *("export", "a.pth", "--layout", "triton", "--format", "pt2")
    ],
    "--license is '<text>', expected an SPDX expression: MIT, CC-BY-4.0, ...": lambda shop: [
        *("export", "a.pth", "--license", "?")
    ],
    "<folder> exists already: name another --output, or replace it with --overwrite": lambda shop: [
        *("export", shop.state(), *PROVE, shop.full())
    ],
    "cannot write to <folder> (<reason>): name another --output": lambda shop: [
        *("export", shop.state(), *PROVE, "/proc/artifact")
    ],
}

TRAIN: dict[str, Case] = {
    "--recipe is <name>, expected one of notebook, fast, best": lambda shop: ["train", "--recipe", "slow"],
    "--hidden is '<text>', expected layer sizes such as 128,64": lambda shop: ["train", "--hidden", "big"],
    "--validation-fraction is <share>, expected above 0 where --patience is given: the test set chooses "
    "nothing": lambda shop: ["train", "--validation-fraction", 0, "--patience", 3],
    "--validation-fraction <share> leaves none of <number> images to validate on: raise it, or --limit": (
        lambda shop: ["train", "--validation-fraction", 0.01, "--limit", 20, *PROVE, shop.folder / "run"]
    ),
    "--resume goes on with a run, --overwrite starts anew: give one of them": lambda shop: [
        *("train", "--resume", "--overwrite")
    ],
    "<data> is not in <folder>: put <files> (or each as .gz) into <folder>, name another folder with "
    "--data-dir or MNIST_DATA_DIR, or take --dataset mnist5k where there is a choice": lambda shop: [
        *("train", "--dataset", "idx", "--data-dir", shop.folder, "--output", shop.folder / "run")
    ],
    "<file> is damaged (<reason>): <remedy>": lambda shop: [
        *("train", "--dataset", "idx", "--data-dir", shop.idx(1), "--output", shop.folder / "run")
    ],
    "<file> must hold 10 lines, a different label in each, and nothing else": lambda shop: [
        *(
            "train",
            "--dataset",
            "idx",
            "--data-dir",
            shop.idx(2, "zero\none\n"),
            "--output",
            shop.folder / "run",
        )
    ],
    "<data> has <number> labels (<labels>), and the net has 10 outputs: bring 10 labels, or digits": (
        lambda shop: ["train", "--data", shop.pictures("a/1.png", "b/1.png"), "--output", shop.folder / "run"]
    ),
    "<data> has too few images (<number>) to keep some for the test: bring more, or a training and a "
    "test set": (lambda shop: ["train", "--data", shop.pictures("1/a.png"), "--output", shop.folder / "run"]),
    "--data names data of your own: leave --data-dir and --dataset out": lambda shop: [
        *("train", "--data", "own.npz", "--data-dir", "data")
    ],
    "the dataset is your own, and nothing says where it is: name it with --data": lambda shop: [
        *("train", "--dataset", "own", "--output", shop.folder / "run")
    ],
    "<folder> contains <file>, which this program did not create: name another --output": lambda shop: [
        *("train", *PROVE, shop.full())
    ],
    "<path> is not a folder: name another --output": lambda shop: [*("train", *PROVE, shop.picture())],
    "training diverged: the loss of step <step> (epoch <epoch>) is nan, at learning rate <rate>; lower --lr; "
    "<kept>": lambda shop: [
        *("train", "--recipe", "notebook", "--lr", 1e30, "--limit", 256, *PROVE, shop.folder / "run")
    ],
}

CASES = {**EVERY, **INFER, **MODELS, **VERIFY, **EVALUATE, **SERVE, **EXPORT, **TRAIN}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def assert_printed(quote: str, line: str) -> None:
    assert re.fullmatch(PREFIX + pattern(quote), line), f"{line}\nis not\n{quote}"


@pytest.mark.parametrize("quote", CASES)
def test_the_message_is_what_is_printed(quote: str, shop: Shop, mnist: Mnist) -> None:
    result = mnist(*CASES[quote](shop))
    assert result.code in (1, 2)
    assert_printed(quote, result.err.splitlines()[-1])


NOT_SURE: dict[str, Case] = {
    "not sure, the picture is blank": lambda shop: [shop.picture(size=60, columns=())],
    "not sure, confidence is below <share>": lambda shop: [shop.picture(), "--min-confidence", 1],
    "not sure, the picture holds more than one digit": lambda shop: [
        shop.picture(size=100, columns=[*range(15, 20), *range(80, 85)])
    ],
    "not sure, what the picture holds is too wide for one digit": lambda shop: [
        shop.write("line.png", png(np.pad(np.full((6, 80), 255, np.uint8), 40)))
    ],
    "not sure, the picture holds a blot, not the strokes of a pen": lambda shop: [
        shop.write("blot.png", png(np.pad(np.full((60, 60), 255, np.uint8), 40)))
    ],
}


@pytest.mark.parametrize("quote", NOT_SURE)
def test_a_picture_without_a_label_says_why(quote: str, shop: Shop, mnist: Mnist) -> None:
    result = mnist("infer", *NOT_SURE[quote](shop))
    assert result.code == 3
    assert re.fullmatch(rf".+: {pattern(quote)}(; best guess .+)?\n", result.out), result.out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run."""
    output = tmp_path_factory.mktemp("runs") / "short"
    train({"recipe": "fast", "dataset": "mnist5k", "limit": 200, "epochs": 1}, Options(output=output))
    return output


RUNS: dict[str, Callable[[Path], Sequence[object]]] = {
    "<folder> contains <what>: replace it with --overwrite, or name another --output": lambda run: [
        *("train", *PROVE, run)
    ],
    "<folder> was started with other settings: <settings>; leave them out to go on, or name another "
    "--output": lambda run: ["train", "--resume", "--epochs", 2, *PROVE, run],
    "<run> is a run and says its own dataset, mean and std: leave those flags out": lambda run: [
        *("export", run, "--mean", 0.1)
    ],
    "<file> is not the file that report.json speaks of: train again, or export it alone": lambda run: [
        *("export", damage(run, "weights_sha256"))
    ],
    "<file> is not the report of a run (<reason>): train again": lambda run: [
        "export",
        damage(run, "dataset"),
    ],
}


def damage(run: Path, key: str) -> Path:
    """Spoil a value in the report of `run`."""
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, key: "another"}))
    return run


@pytest.mark.parametrize("quote", RUNS)
def test_the_message_about_a_run_is_what_is_printed(
    quote: str, finished: Path, tmp_path: Path, mnist: Mnist
) -> None:
    result = mnist(*RUNS[quote](Path(shutil.copytree(finished, tmp_path / "run"))))
    assert result.code == 2
    assert_printed(quote, result.err.splitlines()[-1])


PORT = (
    "cannot listen on <address>: Address already in use; choose another with --port, 0 for any that is free"
)
ALONE = (
    "<variable> is <number>, but this process would train alone: "
    "start them with mnist train --num-processes N, <ways>"
)
ONE = "accelerate was asked for several processes and started one: <ways>"
TWICE = "--num-processes is <number>, but a launcher has started <number>: leave it out"


def test_a_port_in_use_is_said(mnist: Mnist) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = mnist("serve", "--port", other.getsockname()[1])
    assert_printed(PORT, result.err.strip())


@pytest.mark.parametrize(
    ("quote", "variables", "flags"),
    [
        (ALONE, {"SLURM_STEP_NUM_TASKS": "2"}, []),
        (ONE, {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}, []),
        (TWICE, {"WORLD_SIZE": "2"}, ["--num-processes", 3]),
    ],
)
def test_what_a_launcher_has_left_is_said(
    quote: str,
    variables: dict[str, str],
    flags: list[object],
    tmp_path: Path,
    mnist: Mnist,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = mnist("train", *PROVE, tmp_path / "run", *flags)
    assert_printed(quote, result.err.strip())


KEY = {"x-api-key": "sesame"}
INFER_PATH = "/v2/models/mnist/infer"
REQUESTS: dict[str, tuple[str, bytes | None, dict[str, str]]] = {
    "needs the API key: send it as Authorization: Bearer KEY, or as X-API-Key": ("/predict", b"7", {}),
    "the page is from '<site>', this server is '<host>': name the site with --cors, or let the proxy pass on "
    "Host": ("/predict", b"7", {**KEY, "origin": "https://example.org"}),
    "'<host>' is no name of this server: start it with --allowed-host <host>": (
        *("/predict", b"7", {**KEY, "host": "example.org"}),
    ),
    "the file is not a picture but text: save the picture itself as JPEG or PNG": ("/predict", b"seven", KEY),
    "'<name>': no such parameter, there are top_k, min_confidence, preprocess, pixels": (
        *("/predict?topk=3", b"7", KEY),
    ),
    "the datatype of 'image' is UINT8": (
        INFER_PATH,
        b'{"inputs": [{"name": "image", "shape": [1, 28, 28], "datatype": "FP32", "data": [0.5]}]}',
        KEY,
    ),
    "the shape of 'image' is [N, 28, 28], with N from 1 to <number>": (
        INFER_PATH,
        b'{"inputs": [{"name": "image", "shape": [1, 784], "datatype": "UINT8", "data": [0]}]}',
        KEY,
    ),
    "the request is not JSON (<reason>)": (INFER_PATH, b"{", KEY),
    "no such path or model, /docs has all there are": ("/v2/models/digits/infer", b"{}", KEY),
    "this path has another method, see /docs": ("/predict", None, KEY),
    "the body has more than <number> MiB: send a smaller picture": ("/predict", bytes(2 * 1024**2), KEY),
    "compressed bodies are not read: send it as it is": (
        "/predict",
        b"7",
        {**KEY, "content-encoding": "gzip"},
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving("--api-key", KEY["x-api-key"], "--max-body", 1) as running:
        yield running


@pytest.mark.parametrize("quote", REQUESTS)
def test_the_server_answers_so(quote: str, server: Served) -> None:
    path, body, headers = REQUESTS[quote]
    reply = server.ask(path, body, **headers)
    assert reply.status == HTTP[quote]
    assert re.fullmatch(pattern(quote), reply.json["error"]), reply.json


DTYPE = "INVALID_ARGUMENT : Unexpected input data type. Actual: (tensor(float)) , expected: (tensor(uint8))"
RANK = "INVALID_ARGUMENT : Invalid rank for input: image Got: 4 Expected: 3"
NAME = "Required inputs (['image']) are missing from input feed (['<name>'])."


@pytest.mark.parametrize(
    ("quote", "name", "image"),
    [
        (DTYPE, "image", np.zeros((1, 28, 28), np.float32)),
        (RANK, "image", np.zeros((1, 1, 28, 28), np.uint8)),
        (NAME, "input", np.zeros((1, 28, 28), np.uint8)),
    ],
)
def test_onnxruntime_says_so(quote: str, name: str, image: np.ndarray) -> None:
    session = onnxruntime.InferenceSession(BUNDLED_MODEL / "model.onnx")
    with pytest.raises(Exception, match=pattern(quote)):
        session.run(None, {name: image})


JIT = "FutureWarning: `torch.jit.load` is deprecated. Please switch to `torch.export`."


def test_torch_says_so(tmp_path: Path) -> None:
    with quiet():
        torch.jit.save(torch.jit.trace(torch.nn.Identity(), (torch.zeros(1),)), tmp_path / "net.pt")
    with pytest.warns(FutureWarning) as warned:
        torch.jit.load(tmp_path / "net.pt")
    assert [f"FutureWarning: {warning.message}" for warning in warned] == [JIT]


NOTE = "The following values were not passed to `accelerate launch` and had defaults used instead:"
FAILED = "subprocess.CalledProcessError: Command '<command>' returned non-zero exit status 2."


TORCHRUN = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"


@pytest.mark.parametrize(
    ("options", "quotes"),
    [
        (["--num_processes", "2"], [NOTE, FAILED]),
        (["--config_file", "scripts/accelerate/cpu_two_processes.yaml"], [TORCHRUN]),
    ],
)
def test_accelerate_says_so(options: list[str], quotes: list[str]) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options]
    ran = subprocess.run(
        [*launch, "-m", "trainer.main", "--recipe", "slow"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 1
    for quote in quotes:
        assert re.search(rf"^{pattern(quote)}\s*$", ran.stderr, flags=re.MULTILINE), ran.stderr
    assert "mnist train: --recipe is slow, expected one of" in ran.stderr
    assert (NOTE in ran.stderr) == (NOTE in quotes)


PROVOKED = {
    *CASES,
    *NOT_SURE,
    *RUNS,
    PORT,
    ALONE,
    ONE,
    TWICE,
    *REQUESTS,
    DTYPE,
    RANK,
    NAME,
    JIT,
    NOTE,
    FAILED,
    TORCHRUN,
}


def messages() -> Iterator[str]:
    """The texts in the source as regular expressions: what is filled in may be anything."""
    for package in ("serve_cli", "export", "trainer"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts = [str(part.value) if isinstance(part, ast.Constant) else None for part in parts]
                if len(re.findall(r"\w", "".join(filter(None, texts)))) >= LEAST_LETTERS:
                    yield "".join(".+" if text is None else re.escape(text) for text in texts)


def test_what_is_not_provoked_stands_in_the_source() -> None:
    known = re.compile("|".join(messages()), flags=re.DOTALL)
    lost = [quote for quote in {*QUOTES} - PROVOKED if not known.fullmatch(quote.removeprefix("not sure, "))]
    assert lost == []


def test_every_entry_of_the_page_begins_with_its_message() -> None:
    assert len(QUOTES) == len(re.findall(r"^- ", PAGE, flags=re.MULTILINE))
    assert set(QUOTES) >= PROVOKED
