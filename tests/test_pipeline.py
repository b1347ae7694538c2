"""The whole path: a state_dict from the tutorial's own script, a run under accelerate launch, the answers."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from serve_cli.preprocess import to_mnist
from serve_cli.runtime import Predictor
from serve_cli.spec import MODEL_FILES
from tests.command import Mnist
from tests.conftest import MNIST_DATA_DIR
from trainer.data import Dataset

TUTORIAL = textwrap.dedent(
    """
    # A plain script that knows nothing of this project: torch and files alone.
    import sys
    import numpy as np
    import torch
    import torch.nn as nn
    import torch.optim as optim

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(28 * 28, 128)
            self.fc2 = nn.Linear(128, 64)
            self.fc3 = nn.Linear(64, 10)

        def forward(self, x):
            x = x.view(-1, 28 * 28)
            x = torch.relu(self.fc1(x))
            x = torch.relu(self.fc2(x))
            return self.fc3(x)

    folder = sys.argv[1]
    data = np.load(f"{folder}/digits.npz")
    normalise = lambda images: (torch.tensor(images, dtype=torch.float32) / 255 - 0.5) / 0.5
    torch.manual_seed(0)
    model = Net()
    criterion, optimizer = nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=0.001)
    images, labels = normalise(data["train_images"]), torch.tensor(data["train_labels"])
    for epoch in range(3):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            criterion(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(model.state_dict(), f"{folder}/mnist_model.pth")
    model.eval()
    with torch.no_grad():
        np.save(f"{folder}/logits.npy", model(normalise(data["test_images"])).numpy())
    """
)


def check_tutorial_script(dataset: Dataset, tmp_path: Path, mnist: Mnist) -> None:
    """Train in the script, export its file, and compare the ONNX answers with the script's own."""
    images = dataset.test.images.numpy()
    train = dataset.train.take(torch.arange(4000))
    np.savez(
        tmp_path / "digits.npz",
        train_images=train.images.numpy(),
        train_labels=train.labels.numpy(),
        test_images=images,
    )
    (tmp_path / "tutorial.py").write_text(TUTORIAL)
    subprocess.run([sys.executable, "tutorial.py", "."], cwd=tmp_path, check=True)
    flags = ("--dataset", dataset.name, "--output", tmp_path / "artifact")
    assert mnist("export", tmp_path / "mnist_model.pth", *flags).code == 0

    theirs = np.load(tmp_path / "logits.npy")
    ours = Predictor(tmp_path / "artifact" / "model.onnx").predict(images).logits
    assert ours.shape == theirs.shape == (len(images), 10)
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert (ours.argmax(axis=1) == dataset.test.labels.numpy()).mean() > 0.85


def test_a_state_dict_of_the_tutorials_script(mnist5k: Dataset, tmp_path: Path, mnist: Mnist) -> None:
    check_tutorial_script(mnist5k, tmp_path, mnist)


def test_a_state_dict_of_the_tutorials_script_on_10000_digits(
    full_mnist: Dataset, tmp_path: Path, mnist: Mnist
) -> None:
    check_tutorial_script(full_mnist, tmp_path, mnist)


def test_all_formats_of_a_run_on_the_whole_of_mnist(
    full_mnist: Dataset, tmp_path: Path, mnist: Mnist
) -> None:
    flags = ("--recipe", "fast", "--data-dir", MNIST_DATA_DIR, "--output", tmp_path / "run")
    assert mnist("train", *flags).code == 0
    result = mnist("export", tmp_path / "run", "--format", "all", "--data-dir", MNIST_DATA_DIR)
    assert result.code == 0, result.err
    artifact = tmp_path / "run" / "artifact"
    parity = json.loads((artifact / "parity.json").read_text())
    assert set(parity) == set(MODEL_FILES)
    for name, proof in parity.items():
        assert proof["samples"] == 10_000
        if name == "onnx-int8":
            assert proof["agreement"] >= 0.998
            assert abs(proof["accuracy"] - proof["reference_accuracy"]) <= 0.001 + 1e-9
        else:
            assert proof["max_abs_logit_diff"] <= 1e-4
            assert (proof["argmax_flips"], proof["edge_flips"]) == (0, 0)
    assert (artifact / MODEL_FILES["onnx-int8"].name).stat().st_size <= 130_000
    assert mnist("verify", artifact).code == 0


def test_accelerate_launch_to_answers(mnist5k: Dataset, tmp_path: Path, mnist: Mnist) -> None:
    """What scripts/demo does, in small; the answers must be as right as the report says."""
    accelerate = Path(sys.executable).with_name("accelerate")
    launch = [accelerate, "launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "trainer.main"]
    flags = ["--recipe", "fast", "--dataset", "mnist5k", "--output", tmp_path / "run"]
    subprocess.run([*launch, *flags], check=True, capture_output=True)
    assert mnist("export", tmp_path / "run").code == 0

    digits = tmp_path / "digits"
    digits.mkdir()
    for number, (image, label) in enumerate(zip(mnist5k.test.images, mnist5k.test.labels, strict=True)):
        Image.fromarray(image.numpy()).save(digits / f"{number:04d}_{int(label)}.png")
    result = mnist("infer", digits, "--model", tmp_path / "run", "--json", "--min-confidence", 0)
    assert result.code == 0
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert len(answers) == 1000
    right = np.mean([Path(answer["file"]).stem.endswith(f"_{answer['label']}") for answer in answers])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert right == pytest.approx(report["test"]["accuracy"])
    assert 0.9 < right < 0.99


def test_people_s_changes_to_a_digit_do_not_matter(mnist5k: Dataset, artifact: Path) -> None:
    """Larger, inverted, off the centre, on a wide page: read as well as the genuine picture, or nearly."""
    predictor = Predictor(artifact / "model.onnx")
    digits = mnist5k.test.take(torch.arange(300))
    genuine = digits.images.numpy()
    pages = []
    for image in genuine:
        large = Image.fromarray(255 - image).resize((140, 140), Image.Resampling.BICUBIC)
        page = Image.new("L", (400, 300), 255)
        page.paste(large, (230, 20))
        pages.append(to_mnist(np.asarray(page)).pixels)
    labels = digits.labels.numpy()
    accuracy, changed = (
        (predictor.predict(images).logits.argmax(axis=1) == labels).mean()
        for images in (genuine, np.array(pages))
    )
    assert changed > accuracy - 0.05
