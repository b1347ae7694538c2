"""`mnist export`: what it leaves is proven and explains itself; what fails leaves no trace."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.artifact import FORMATS
from export.main import chosen_formats
from serve_cli import app
from serve_cli.datasets import UBYTE
from serve_cli.runtime import Predictor
from serve_cli.spec import ARTIFACT_FILES, MODEL_FILES, VECTOR_OUTPUTS, Contract
from tests.command import Mnist
from tests.conftest import CALIBRATION
from trainer.data import MNIST_FILES, Dataset
from trainer.model import MLP


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file below `folder`, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def bare(folder: Path, hidden: tuple[int, ...] = (16,)) -> Path:
    """A state_dict without anything beside it."""
    torch.manual_seed(0)
    path = folder / "mnist_model.pth"
    torch.save(MLP(hidden).state_dict(), path)
    return path


def test_the_artifact_is_whole(artifact: Path, run_directory: Path) -> None:
    assert set(contents(artifact)) == set(ARTIFACT_FILES)
    assert not [path for path in artifact.parent.iterdir() if path.name.startswith(".")]
    inventory = json.loads((artifact / "artifact.json").read_text())
    assert set(inventory["files"]) == set(ARTIFACT_FILES) - {"artifact.json"}
    for name, file in inventory["files"].items():
        data = (artifact / name).read_bytes()
        assert file["bytes"] == len(data)
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
    report = json.loads((run_directory / "report.json").read_text())
    evaluation = inventory["contract"]["evaluation"]
    for figure in ("accuracy", "samples", "confusion"):
        assert evaluation[figure] == report["test"][figure]
    assert evaluation["loss"] == pytest.approx(report["test"]["loss"], abs=1e-6)
    assert inventory["contract"]["training"]["recipe"] == "notebook"
    assert inventory["contract"]["training"]["dataset_sha256"] == report["dataset"]["train_sha256"]
    weights = (run_directory / "mnist_model.pth").read_bytes()
    assert inventory["contract"]["model"]["state_dict_sha256"] == hashlib.sha256(weights).hexdigest()


def test_parity_is_reported_for_each_format(artifact: Path, mnist5k: Dataset) -> None:
    parity = json.loads((artifact / "parity.json").read_text())
    assert set(parity) == set(FORMATS)
    for name, proof in parity.items():
        assert proof["max_abs_logit_diff"] > 0  # exactly 0 would mean that nothing was compared
        assert set(proof["engines"]) == set(FORMATS[name].backends)
        assert proof["samples"] == len(mnist5k.test)
        assert proof["batch_sizes"] == [0, 1, 7, 256]
        if name != "onnx-int8":
            assert proof["tolerance_share"] <= 1
            assert (proof["edge_flips"], proof["edge_pictures"]) == (0, 8)
            assert proof["argmax_flips"] == proof["ties"]
    int8 = parity["onnx-int8"]
    assert int8["argmax_flips"] - int8["ties"] <= 10
    assert int8["reference_accuracy"] - int8["accuracy"] <= 0.003 + 1e-9
    assert (artifact / "model.int8.onnx").stat().st_size <= 130_000


def test_each_file_carries_its_own_proof(artifact: Path, mnist: Mnist) -> None:
    parity = json.loads((artifact / "artifact.json").read_text())["contract"]["parity"]
    for name, file in MODEL_FILES.items():
        contract = json.loads(mnist("info", artifact / file.name, "--json").out)
        assert contract["parity"] == parity[name]
        assert parity[name]["engines"] == list(FORMATS[name].backends)


def test_no_file_holds_a_local_path(artifact: Path, run_directory: Path) -> None:
    root = Path(__file__).parents[2]
    for path in artifact.rglob("*"):
        for word in (str(root), "site-packages", "stack_trace", str(run_directory.parent), sys.prefix):
            assert path.is_dir() or word.encode() not in path.read_bytes(), (path, word)


def test_the_same_run_exports_to_the_same_bytes(run_directory: Path, artifact: Path, tmp_path: Path) -> None:
    """In another process, from another folder, out of another copy of the program."""
    root = Path(__file__).parents[2]
    for package in ("export", "trainer", "serve_cli"):
        shutil.copytree(root / package, tmp_path / "program" / package)
    shutil.copytree(run_directory, tmp_path / "elsewhere" / "my run")
    command = [sys.executable, "-m", "serve_cli.app", "export", "../elsewhere/my run", "--format", "all"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "program"), "PYTHONHASHSEED": "7"}
    subprocess.run(
        [*command, "--output", "../again"],
        cwd=tmp_path / "program",
        env=environment,
        check=True,
        capture_output=True,
    )
    again, before = contents(tmp_path / "again"), contents(artifact)
    # The class names in a TorchScript file depend on what the process has traced before; parity.json has
    # measured differences, and artifact.json the hashes of both.
    different = {name for name in before if before[name] != again[name]}
    assert different <= {"model.torchscript.pt", "parity.json", "artifact.json"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_what_the_card_says_works(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (artifact / "MODEL_CARD.md").read_text()
    assert "Exported with mnist-toolkit 0.1.0, onnx " in card
    assert "(x / 255, minus 0.5, divided by 0.5)" in card
    calls = card.split("```python\n")[1].split("```")[0].strip().split("\n\n")
    assert len(calls) == len(MODEL_FILES)
    monkeypatch.chdir(artifact)
    zeros = np.zeros((3, 28, 28), np.uint8)
    for call in calls:
        image = zeros if "numpy" in call else torch.from_numpy(zeros)
        names: dict[str, Any] = {"image": image, "torch": torch, "onnxruntime": onnxruntime}
        exec(call, names)
        assert tuple(names["logits"].shape) == tuple(names["probabilities"].shape) == (3, 10)


def test_every_format_has_calibrated_probabilities_and_the_nets_own_logits(
    calibrated: Path, artifact: Path, run_directory: Path, mnist5k: Dataset
) -> None:
    images = mnist5k.test.images[:100]
    net = MLP()
    net.load_state_dict(torch.load(run_directory / "mnist_model.pth"))
    with torch.inference_mode():
        logits = net((images / 255 - 0.5) / 0.5)
    expected = torch.softmax(logits / CALIBRATION["temperature"], dim=1)
    for name, file in MODEL_FILES.items():
        for load in FORMATS[name].backends.values():
            found = load(calibrated / file.name)(images.numpy(), 64)
            own = torch.softmax(torch.tensor(found.logits) / CALIBRATION["temperature"], dim=1)
            np.testing.assert_allclose(found.probabilities, own, atol=1e-6)
            if name != "onnx-int8":
                np.testing.assert_allclose(found.logits, logits, atol=1e-4)
                np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    vectors = [onnx.numpy_helper.to_array(onnx.load_tensor(calibrated / path)) for path in VECTOR_OUTPUTS]
    scaled = torch.softmax(torch.tensor(vectors[0]) / CALIBRATION["temperature"], dim=1)
    np.testing.assert_allclose(vectors[1], scaled, atol=1e-6)


def test_the_contract_and_the_card_say_how_it_was_calibrated(
    calibrated: Path, artifact: Path, mnist: Mnist
) -> None:
    for file in MODEL_FILES.values():
        assert json.loads(mnist("info", calibrated / file.name, "--json").out)["calibration"] == CALIBRATION
        assert json.loads(mnist("info", artifact / file.name, "--json").out)["calibration"] == {}
    card = (calibrated / "MODEL_CARD.md").read_text()
    for part in ("softmax(`logits` / 1.5)", "400 held-out", "confidence of 0.8 the", "at most 1.0% errors"):
        assert part in card
    assert "not calibrated" in (artifact / "MODEL_CARD.md").read_text()
    assert mnist("verify", calibrated).code == 0
    before, after = (
        json.loads((folder / "artifact.json").read_text())["contract"] for folder in (artifact, calibrated)
    )
    assert before["evaluation"].pop("calibration_error") != after["evaluation"].pop("calibration_error")
    assert before["evaluation"] == after["evaluation"]


def test_a_run_from_before_calibration_is_exported(run_directory: Path, tmp_path: Path, mnist: Mnist) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_directory, run)
    report = json.loads((run / "report.json").read_text())
    del report["calibration"]
    (run / "report.json").write_text(json.dumps(report))
    assert mnist("export", run, "--output", tmp_path / "out").code == 0
    assert Predictor(tmp_path / "out" / "model.onnx").calibration == {}


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"validation": None}, {"min_confidence": "high"}])
def test_a_damaged_calibration(
    calibrated_run: Path, tmp_path: Path, mnist: Mnist, wrong: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(calibrated_run, run)
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "calibration": {**CALIBRATION, **wrong}}))
    mnist("export", run, "--output", tmp_path / "out").assert_refused("report.json", "calibration")


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ([], ["onnx"]),
        (["onnx-int8", "onnx"], ["onnx", "onnx-int8"]),
        (["pt2", "onnx", "pt2"], ["onnx", "pt2"]),
        (["all"], list(MODEL_FILES)),
        (["pt2", "all"], list(MODEL_FILES)),
    ],
)
def test_formats_in_any_order(asked: list[str], made: list[str]) -> None:
    assert chosen_formats(asked or None, layout="plain", opset=None) == made
    assert chosen_formats(asked or None, layout="plain", opset=20) == made


def test_two_formats(calibrated_run: Path, calibrated: Path, tmp_path: Path, mnist: Mnist) -> None:
    flags = ("--format", "onnx-int8", "--format", "onnx", "--format", "onnx")
    result = mnist("export", calibrated_run, *flags, "--output", tmp_path / "out")
    assert result.code == 0
    names = ("model.onnx", "model.int8.onnx")
    assert [Path(line.split()[0]).name for line in result.out.splitlines()[:2]] == list(names)
    assert {path.name for path in (tmp_path / "out").glob("model*")} == set(names)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (calibrated / name).read_bytes()
    assert list(json.loads((tmp_path / "out" / "parity.json").read_text())) == ["onnx", "onnx-int8"]


def test_any_batch_size_runs(artifact: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for name, file in MODEL_FILES.items():
        for load in FORMATS[name].backends.values():
            for count in (0, 1, 2, 5):
                assert load(artifact / file.name)(images[:count], 5).logits.shape == (count, 10)


def test_the_default_output_lies_in_the_run(run_directory: Path, tmp_path: Path, mnist: Mnist) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_directory, run)
    result = mnist("export", run)
    assert result.code == 0
    assert "largest logit difference" in result.out
    assert set(contents(run / "artifact")) == set(ARTIFACT_FILES) - {
        MODEL_FILES[name].name for name in FORMATS if name != "onnx"
    }


def test_a_state_dict_inside_a_run_keeps_the_runs_settings(
    run_directory: Path, tmp_path: Path, mnist: Mnist
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_directory, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "mean": 0.25}))
    assert mnist("export", run / "mnist_model.pth", "--output", tmp_path / "out").code == 0
    assert Predictor(tmp_path / "out" / "model.onnx").contract.normalization["mean"] == 0.25
    mnist("export", run, "--output", tmp_path / "other", "--mean", "0.5").assert_refused("says its own")


def test_a_bare_state_dict_gets_the_notebooks_normalisation(tmp_path: Path, mnist: Mnist) -> None:
    flags = ("--dataset", "mnist5k", "--min-accuracy", 0, "--output", tmp_path / "out")
    result = mnist("export", bare(tmp_path), *flags)
    assert result.code == 0
    contract = Predictor(tmp_path / "out" / "model.onnx").contract
    assert contract.normalization == {"mean": 0.5, "std": 0.5}
    assert contract.model["layers"] == "784-16-10"
    assert contract.training == {}
    assert contract.evaluation["dataset"] == "mnist5k"
    assert f"test accuracy: {contract.evaluation['accuracy']:.2%}" in result.out
    warning = result.err.splitlines()[-1]  # it was never trained
    assert warning.startswith("warning: it reads ")
    assert "far less than a trained net" in warning


def test_a_net_that_reads_badly_is_not_published(tmp_path: Path, mnist: Mnist) -> None:
    result = mnist("export", bare(tmp_path), "--dataset", "mnist5k", "--output", tmp_path / "out")
    assert result.code == 1
    assert "of the test images, --min-accuracy is 0.5: nothing was published" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["mnist_model.pth"]


@pytest.fixture(scope="module")
def trained(mnist5k: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A state_dict of a net that was trained for a second in the way that is asked for."""

    def train(mean: float, std: float, activation: Callable[[torch.Tensor], torch.Tensor]) -> Path:
        torch.manual_seed(0)
        net = MLP((48,))
        net.activation = activation
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        pixels, labels = (mnist5k.train.images / 255 - mean) / std, mnist5k.train.labels
        for epoch in range(10):
            for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(pixels[rows]), labels[rows]).backward()
                optimizer.step()
        path = tmp_path_factory.mktemp("trained") / "net.pth"
        torch.save(net.state_dict(), path)
        return path

    return train


@pytest.mark.parametrize(
    ("mean", "std", "activation", "given", "code", "message"),
    [
        (0.5, 0.5, torch.relu, "", 0, "--mean 0.5 --std 0.5 fits, 9"),
        (0.0, 1.0, torch.relu, "", 1, "nothing was published; with --mean 0.0 --std 1.0 it reads 9"),
        (0.1307, 0.3081, torch.relu, "", 0, "warning: with --mean 0.1307 --std 0.3081 it reads 9"),
        (0.5, -0.5, torch.relu, "", 1, "(it was trained on inverted pixels) it reads 9"),
        (0.5, -0.5, torch.relu, "--std -0.5", 0, "--std -0.5 fits, 9"),
        (0.5, 0.5, torch.tanh, "", 0, "warning: with tanh in place of ReLU it reads 9"),
    ],
)
def test_what_a_net_was_trained_with_is_found(
    trained: Callable[..., Path],
    tmp_path: Path,
    mnist: Mnist,
    mean: float,
    std: float,
    activation: Callable[[torch.Tensor], torch.Tensor],
    given: str,
    code: int,
    message: str,
) -> None:
    flags = ("--dataset", "mnist5k", "--output", tmp_path / "out", *given.split())
    result = mnist("export", trained(mean, std, activation), *flags)
    assert (result.code, message in result.err) == (code, True), result.err
    assert ("warning" in result.err) == message.startswith("warning")
    assert (tmp_path / "out").exists() == (code == 0)


@pytest.mark.parametrize("way", ["zeros", "equal"])
def test_biases_that_an_optimizer_would_drop_or_merge_are_kept(
    tmp_path: Path, mnist: Mnist, way: str
) -> None:
    net = MLP((10,))
    with torch.no_grad():
        net.fc1.bias.zero_() if way == "zeros" else net.fc2.bias.copy_(net.fc1.bias)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    flags = ("--dataset", "mnist5k", "--min-accuracy", 0, "--output", tmp_path / "out")
    assert mnist("export", tmp_path / "net.pth", *flags).code == 0


def test_a_net_that_is_too_large_is_refused_without_advice_about_options(
    tmp_path: Path, mnist: Mnist
) -> None:
    torch.save(MLP((16_385,)).state_dict(), tmp_path / "net.pth")
    mnist("export", tmp_path / "net.pth", "--output", tmp_path / "out").assert_refused(
        "has hidden layers", "cannot be exported", "16384"
    )


@pytest.mark.parametrize("opset", [18, 22])
def test_the_opset_asked_for_is_in_the_file(tmp_path: Path, mnist: Mnist, opset: int) -> None:
    flags = ("--dataset", "mnist5k", "--min-accuracy", 0, "--opset", opset, "--output", tmp_path / "out")
    assert mnist("export", bare(tmp_path), *flags).code == 0
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert [item.version for item in model.opset_import if item.domain == ""] == [opset]


# What fails the proof is not published, and what stood there stays.


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[bytes], bytes]) -> None:
    """Let `damage` change the file of a format between conversion and proof."""
    genuine = FORMATS[name]

    def convert(*arguments: Any) -> bytes:
        return damage(genuine.convert(*arguments))

    monkeypatch.setitem(FORMATS, name, dataclasses.replace(genuine, convert=convert))


def change_onnx(constant: str, change: Callable[[np.ndarray], None]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        item = next(item for item in model.graph.initializer if item.name == constant)
        values = np.array(onnx.numpy_helper.to_array(item))
        change(values)
        item.CopyFrom(onnx.numpy_helper.from_array(values, item.name))
        return model.SerializeToString()

    return damage


def add_to_first(values: np.ndarray) -> None:
    values[0, 0] += 1e-3


def scale(values: np.ndarray) -> None:
    values[:3] *= 1.5


def change_pt2_weight(data: bytes) -> bytes:
    program, changed = torch.export.load(io.BytesIO(data)), io.BytesIO()
    with torch.no_grad():
        program.state_dict["net.fc3.weight"][0, 0] += 1e-3
    torch.export.save(program, changed)
    return changed.getvalue()


def change_torchscript_weight(data: bytes) -> bytes:
    module, changed = torch.jit.load(io.BytesIO(data)), io.BytesIO()
    with torch.no_grad():
        dict(module.named_parameters())["net.fc3.weight"][0, 0] += 1e-3
    torch.jit.save(module, changed)
    return changed.getvalue()


DAMAGE = [
    ("onnx", change_onnx("net.fc1.weight", add_to_first)),  # changes no logit by 1e-4
    ("onnx", change_onnx("normalize.mean", lambda values: values.__iadd__(1e-3))),  # is no weight
    ("onnx-int8", change_onnx("net.fc3.weight_scale", scale)),
    ("torchscript", change_torchscript_weight),
    ("pt2", change_pt2_weight),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize(("name", "damage"), DAMAGE)
@pytest.mark.parametrize("over", [False, True], ids=["new", "over another"])
def test_a_wrong_file_is_not_published_and_what_was_there_stays(
    name: str,
    damage: Callable[[bytes], bytes],
    over: bool,
    calibrated_run: Path,
    artifact: Path,
    tmp_path: Path,
    mnist: Mnist,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    if over:
        shutil.copytree(artifact, output)
    before = contents(tmp_path)
    spoil(monkeypatch, name, damage)
    flags = ("--format", name, "--output", output, "--overwrite")
    result = mnist("export", calibrated_run, *flags)
    assert (result.code, result.out) == (1, "")
    last = result.err.splitlines()[-1]
    assert MODEL_FILES[name].name in last
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if over else [])


def test_a_change_while_the_contract_is_embedded_is_noticed(
    run_directory: Path, tmp_path: Path, mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the proof: the test vectors are replayed on the final file."""
    genuine = FORMATS["onnx"]
    spoilt = change_onnx("net.fc3.weight", lambda values: values.__iadd__(1e-2))

    def embed(data: bytes, contract: Contract) -> bytes:
        return genuine.embed(spoilt(data) if contract.parity else data, contract)

    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(genuine, embed=embed))
    result = mnist("export", run_directory, "--output", tmp_path / "out")
    assert result.code == 1
    assert "on the test vectors" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stop", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "mnist: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_ctrl_c_and_a_full_disk_leave_nothing(
    run_directory: Path,
    tmp_path: Path,
    mnist: Mnist,
    monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
    code: int,
    message: str,
) -> None:
    def interrupt(data: bytes) -> bytes:
        raise stop

    monkeypatch.setattr(signal, "signal", lambda number, handler: signal.getsignal(number))  # pytest's stay
    spoil(monkeypatch, "torchscript", interrupt)
    result = mnist("export", run_directory, "--format", "torchscript", "--output", tmp_path / "out")
    assert result.code == code
    assert message in result.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_sigterm_leaves_no_half_file(run_directory: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_cli.app", "export", str(run_directory), "--format", "all"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    ) as exporting:
        assert exporting.stderr is not None
        assert exporting.stderr.readline().startswith("onnx: converting")
        assert len(list(tmp_path.iterdir())) == 1
        exporting.terminate()
        assert exporting.wait() == 143
    assert list(tmp_path.iterdir()) == []


# Bad input.


def test_an_output_that_exists(run_directory: Path, artifact: Path, tmp_path: Path, mnist: Mnist) -> None:
    before = contents(artifact)
    mnist("export", run_directory, "--output", artifact).assert_refused(
        str(artifact), "exists already", "--overwrite"
    )
    assert contents(artifact) == before
    (tmp_path / "thesis.txt").write_text("precious")
    mnist("export", run_directory, "--output", tmp_path, "--overwrite").assert_refused("thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_output_that_cannot_be_written(run_directory: Path, tmp_path: Path, mnist: Mnist) -> None:
    (tmp_path / "file").write_text("")
    mnist("export", run_directory, "--output", tmp_path / "file" / "out").assert_refused("cannot write to")


BAD_USAGE: list[tuple[list[object], str]] = [
    (["--format", "tflite"], "--format is tflite, expected one of onnx"),
    (["--format", "onnx", "--format", "tflite"], "--format is tflite"),
    (["--opset", "x"], "--opset"),
    (["--colour"], "--colour"),
    (["--format", "pt2", "--opset", 20], "--opset is for ONNX"),
    (["--license", "my: own"], "--license is 'my: own'"),
    (["--layout", "zoo"], "--layout is zoo"),
    (["--layout", "triton", "--format", "all"], "--layout triton takes --format onnx or onnx-int8"),
    (["--layout", "triton", "--format", "onnx", "--format", "onnx-int8"], "not onnx, onnx-int8"),
    (["--mean", "0.5"], "says its own dataset, mean and std"),
    (["--opset", 17], "--opset is 17, onnx takes 18 to"),
    (["--opset", 99], "--opset is 99, onnx takes 18 to"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_USAGE)
def test_bad_usage(
    run_directory: Path, tmp_path: Path, mnist: Mnist, flags: list[object], message: str
) -> None:
    mnist("export", run_directory, *flags, "--output", tmp_path / "out").assert_refused(message)
    assert list(tmp_path.iterdir()) == []


def test_bad_usage_of_a_state_dict(tmp_path: Path, mnist: Mnist) -> None:
    mnist("export", tmp_path).assert_refused("no such file", "mnist_model.pth")
    mnist("export", bare(tmp_path), "--dataset", "cifar").assert_refused("--dataset is cifar")
    mnist("export", bare(tmp_path), "--layout", "triton").assert_refused("needs --output")
    mnist("export", bare(tmp_path), "--std", 0).assert_refused("--std other than 0")
    mnist("export", bare(tmp_path), "--mean", "nan").assert_refused("--mean is nan")


def test_an_unfinished_run_says_how_to_go_on(run_directory: Path, tmp_path: Path, mnist: Mnist) -> None:
    shutil.copy(run_directory / "config.json", tmp_path)
    mnist("export", tmp_path).assert_refused("unfinished run", f"mnist train --resume --output {tmp_path}")
    (tmp_path / "config.json").unlink()
    bare(tmp_path)
    mnist("export", tmp_path, "--output", tmp_path / "out").assert_refused("not a finished run")


def write_idx(folder: Path, dataset: Dataset, count: int, labels: str = "") -> Path:
    """The first digits of each split as MNIST's four files, with a labels.txt."""
    folder.mkdir()
    splits = (dataset.train.take(torch.arange(count)), dataset.test.take(torch.arange(count)))
    values = [array.numpy().astype(np.uint8) for split in splits for array in (split.images, split.labels)]
    for name, array in zip(MNIST_FILES, values, strict=True):
        header = UBYTE + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / name).write_bytes(header + array.tobytes())
    if labels:
        (folder / "labels.txt").write_text("\n".join(labels.split()) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lettered(mnist5k: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on data that is labelled A to J, and the data."""
    folder = tmp_path_factory.mktemp("lettered")
    data = write_idx(folder / "data", mnist5k, 600, "A B C D E F G H I J")
    flags = ["--dataset", "idx", "--data-dir", str(data), "--hidden", "40,30,20"]
    assert app.find(["train", "--epochs", "12", *flags, "--output", str(folder / "run")])() == 0
    return folder / "run", data


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [(600, "z y x w v u t s r q", "other labels (A, B, C"), (599, "A B C D E F G H I J", "other images")],
)
def test_other_data_than_the_runs_is_refused(
    lettered: tuple[Path, Path],
    mnist5k: Dataset,
    tmp_path: Path,
    mnist: Mnist,
    count: int,
    labels: str,
    message: str,
) -> None:
    other = write_idx(tmp_path / "other", mnist5k, count, labels)
    flags = ("--data-dir", other, "--output", tmp_path / "out")
    mnist("export", lettered[0], *flags).assert_refused(message, "--data-dir")
    assert not (tmp_path / "out").exists()


def test_a_run_remembers_where_its_data_is(lettered: tuple[Path, Path], tmp_path: Path, mnist: Mnist) -> None:
    """Local paths are in local.json, and in no file of an artifact."""
    run, data = Path(shutil.copytree(lettered[0], tmp_path / "run")), lettered[1]
    (run / "local.json").write_text(json.dumps({"data_dir": str(data)}))
    assert mnist("export", run, "--output", tmp_path / "out").code == 0
    contract = Predictor(tmp_path / "out" / "model.onnx").contract
    assert contract.labels == tuple("ABCDEFGHIJ")
    assert contract.model["layers"] == "784-40-30-20-10"
    assert ", ".join("ABCDEFGHIJ") in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert not [path for path in (tmp_path / "out").glob("*.*") if str(data).encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["config.json", "report.json"])
@pytest.mark.parametrize(
    "content", [None, "", "{}", '{"test": {}, "dataset": {}}', '{"test": 1, "dataset": "x"}']
)
def test_a_damaged_run(
    run_directory: Path, tmp_path: Path, mnist: Mnist, name: str, content: str | None
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_directory, run)
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    mnist("export", run, "--output", tmp_path / "out").assert_refused(name)


def test_weights_of_other_sizes_than_the_config_says(
    run_directory: Path, tmp_path: Path, mnist: Mnist
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_directory, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "hidden": [128, 32]}))
    mnist("export", run, "--output", tmp_path / "out").assert_refused("hidden layers (128, 64)", "(128, 32)")


def test_weights_that_do_not_fit_the_report(run_directory: Path, tmp_path: Path, mnist: Mnist) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_directory, run)
    bare(run)
    mnist("export", run, "--output", tmp_path / "out").assert_refused("mnist_model.pth", "report.json")
