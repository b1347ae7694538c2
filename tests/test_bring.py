"""docs/bring.md: each of its commands works, and a CNN of somebody else's answers as it did in PyTorch."""

import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from onnx import TensorProto
from torch import nn

from tests.command import Mnist
from tests.documents import ROOT
from tests.export.foreign import linear_classifier, write_model, write_scikit_learn
from tests.serve_cli.http.serving import png, serving
from trainer.data import MNIST_FILES, Dataset, Split

PAGE = (ROOT / "docs" / "bring.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| .* \| `(mnist .*)` \|$", PAGE, flags=re.MULTILINE)
NETS = ("artifact", "runs")


def normalized_otherwise(state: dict[str, torch.Tensor], mean: float, std: float) -> dict[str, torch.Tensor]:
    """The same net for pixels that were normalised with `mean` and `std` in place of 0.5 and 0.5."""
    weight = state["fc1.weight"].double()
    bias = state["fc1.bias"] + weight.sum(dim=1) * (mean - 0.5) / 0.5
    return {**state, "fc1.weight": (weight * std / 0.5).float(), "fc1.bias": bias.float()}


def write_weights(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """The state_dict of the tutorial's net in the forms that the page names."""
    names = {"fc1": "0", "fc2": "2", "fc3": "4"}
    forms = {
        "weights.pth": state,
        "normalised.pth": normalized_otherwise(state, 0.1307, 0.3081),
        "totensor.pth": normalized_otherwise(state, 0.0, 1.0),
        "inverted.pth": normalized_otherwise(state, 0.5, -0.5),
        "compiled.pth": {f"_orig_mod.module.{key}": value for key, value in state.items()},
        "sequential.pth": {names[key[:3]] + key[3:]: value for key, value in state.items()},
        "checkpoint.pth": {"epoch": 5, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        "lightning.ckpt": {"state_dict": {f"model.{key}": value for key, value in state.items()}},
        "half.pth": {key: value.half() for key, value in state.items()},
    }
    for name, value in forms.items():
        torch.save(value, folder / name)
    safetensors.torch.save_file(state, folder / "weights.safetensors")


def write_data(folder: Path, train: Split, test: Split) -> None:
    """The same digits in the forms that the page names."""
    arrays = {
        "x_train": train.images.numpy(),
        "y_train": train.labels.numpy().astype(np.uint8),
        "x_test": test.images.numpy(),
        "y_test": test.labels.numpy().astype(np.uint8),
    }
    np.savez_compressed(folder / "mnist.npz", **arrays)
    for below in ("idx", "arrays"):
        (folder / below).mkdir()
    for name, (key, values) in zip(MNIST_FILES, arrays.items(), strict=True):
        np.save(folder / "arrays" / f"{key}.npy", values)
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (folder / "idx" / name.replace("-idx", ".idx")).write_bytes(header + values.tobytes())
    pixels = ",".join(f"pixel{number}" for number in range(784))
    for name, split, heading in (("train.csv", train, f"label,{pixels}"), ("test.csv", test, pixels)):
        rows = split.images.numpy().reshape(-1, 784)
        if name == "train.csv":
            rows = np.insert(rows, 0, split.labels.numpy(), axis=1)
        np.savetxt(folder / name, rows, "%d", ",", header=heading, comments="")
    manifest = ["file\tlabel"]
    for number, (image, label) in enumerate(zip(train.images[:300], train.labels.tolist(), strict=False)):
        file = f"{label}/{number}.png"
        for place in ("pictures", f"splits/{'test' if number % 5 == 0 else 'train'}"):
            (folder / place / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / place / file).write_bytes(png(image.numpy()))
        manifest.append(f"{file}\t{label}")
    (folder / "pictures" / "manifest.tsv").write_text("\n".join(manifest) + "\n")
    (folder / "digit.png").write_bytes(png(test.images[0].numpy()))


@pytest.fixture(scope="session")
def shop(run_directory: Path, mnist5k: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the page names but cnn.onnx; read it, never change it."""
    folder = tmp_path_factory.mktemp("bring") / "shop"
    shutil.copytree(run_directory, folder / "runs" / "notebook")
    write_weights(folder, torch.load(run_directory / "mnist_model.pth"))
    weights = linear_classifier(mnist5k)
    write_model(folder / "keras.onnx", weights, shape=(None, 28, 28, 1), end="Softmax")
    write_model(folder / "pixels.onnx", weights, shape=("N", 28, 28), input_type=TensorProto.UINT8)
    write_scikit_learn(folder / "sklearn.onnx", weights)
    write_data(folder, mnist5k.train.take(torch.arange(1200)), mnist5k.test.take(torch.arange(100)))
    return folder


def test_the_page_has_its_rows() -> None:
    assert len(ROWS) == len(set(ROWS)) >= 25


@pytest.mark.parametrize("command", [row for row in ROWS if "cnn.onnx" not in row])
def test_each_command_works(
    shop: Path, tmp_path: Path, mnist: Mnist, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    shutil.copytree(shop, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    _, name, *words = shlex.split(command)
    if name == "export":
        words += [] if "runs/notebook" in words or "--data" in words else ["--dataset", "mnist5k"]
        words += [] if "--output" in words else ["--output", "artifact"]
    result = mnist(name, *words)
    assert result.code == 0, result.err
    if name == "export":
        assert not re.search("warning", result.err)
        assert mnist("verify", "artifact").code == 0
        accuracy = re.search(r"^test accuracy: (.*)%$", result.out, flags=re.MULTILINE)
        assert accuracy is not None
        assert float(accuracy[1]) > 80
    if name == "evaluate":
        report = json.loads(mnist(name, *words, "--json").out)
        assert report["accuracy"] > 0.97
    if name == "train":
        report = json.loads(Path(words[-1], "report.json").read_text())
        assert report["test"]["accuracy"] > 0.5
        assert 40 <= report["test"]["samples"] <= 300


def test_kaggles_table_becomes_a_submission(
    shop: Path, tmp_path: Path, mnist: Mnist, mnist5k: Dataset
) -> None:
    run = tmp_path / "runs" / "kaggle"
    assert mnist("train", "--data", shop / "train.csv", "--output", run).code == 0
    assert mnist("export", run).code == 0
    result = mnist("infer", shop / "test.csv", "--model", run, "--csv")
    assert result.code == 0
    header, *rows = csv.reader(io.StringIO(result.out))
    assert header == ["ImageId", "Label"]
    assert [int(number) for number, _ in rows] == list(range(1, 101))
    right = np.array([int(label) for _, label in rows]) == mnist5k.test.labels[:100].numpy()
    assert right.mean() > 0.75


def test_own_pictures_become_a_served_model(shop: Path, tmp_path: Path, mnist: Mnist) -> None:
    run = tmp_path / "runs" / "own"
    assert mnist("train", "--data", shop / "pictures", "--output", run).code == 0
    assert mnist("export", run).code == 0
    with serving("--model", str(run)) as server:
        reply = server.ask("/predict", (shop / "digit.png").read_bytes())
    assert reply.status == 200
    assert reply.json["best_guess"] in range(10)


# A CNN that a plain script trains and exports


class Cnn(nn.Sequential):
    """A small convolutional net, 99 % after three epochs."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 10),
        )


def prepared(images: torch.Tensor) -> torch.Tensor:
    """What ToTensor and Normalize((0.1307,), (0.3081,)) make of uint8 [N, 28, 28]: float32 [N, 1, 28, 28]."""
    return ((images / 255 - 0.1307) / 0.3081).unsqueeze(1)


@pytest.fixture(scope="session")
def cnn(full_mnist: Dataset) -> Cnn:
    """The net, trained as tutorials do."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, epochs, batch_size = Cnn(), 3, 256
    images, labels = prepared(full_mnist.train.images), full_mnist.train.labels
    steps = epochs * -(-len(labels) // batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=8e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@pytest.mark.parametrize("batch", ["fixed", "free"])
def test_a_cnn_of_another_program_is_proven_and_answers_as_in_pytorch(
    cnn: Cnn, full_mnist: Dataset, tmp_path: Path, mnist: Mnist, monkeypatch: pytest.MonkeyPatch, batch: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if batch == "fixed":
        torch.onnx.export(cnn, (torch.zeros(1, 1, 28, 28),), "cnn.onnx")
    else:
        torch.onnx.export(
            cnn, (torch.zeros(2, 1, 28, 28),), "cnn.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    (command,) = [row for row in ROWS if "cnn.onnx" in row]
    result = mnist(*shlex.split(command)[1:])
    assert result.code == 0, result.err
    assert "warning" not in result.err
    contract = json.loads(mnist("info", "artifact", "--json").out)
    assert contract["evaluation"]["accuracy"] >= 0.985
    assert contract["parity"]["engines"] == ["onnxruntime", "onnx.reference"]
    assert mnist("verify", "artifact").code == 0

    images = full_mnist.test.images[:200]
    with torch.inference_mode():
        expected = cnn(prepared(images)).argmax(dim=1).tolist()
    Path("pictures").mkdir()
    for number, image in enumerate(images.numpy()):
        Path("pictures", f"{number:03}.png").write_bytes(png(image))
    answers = mnist("infer", "pictures", "--model", "artifact", "--json").out.splitlines()
    assert [json.loads(answer)["best_guess"] for answer in answers] == expected
    if batch == "free":
        with serving("--model", "artifact") as server:
            found = [server.ask("/predict", png(image)).json["best_guess"] for image in images.numpy()]
        assert found == expected
        report = json.loads(mnist("bench", "artifact", "--rounds", 1, "--json").out)
        assert report["models"][0]["p50_us"] > 0
