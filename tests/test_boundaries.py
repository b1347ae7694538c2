"""The half that answers never needs torch: proven with torch blocked, and in a real base install."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_cli.spec import MODEL_FILES

TRAINING_ONLY = (
    "torch",
    "torchvision",
    "accelerate",
    "onnx",
    "onnxscript",
    "matplotlib",
    "mlxtend",
    "safetensors",
)
PIP = "pip install 'mnist-toolkit[train]'"
COMMANDS = ("train", "export", "verify", "evaluate", "bench", "serve", "infer", "info")

Without = Callable[..., subprocess.CompletedProcess[str]]

BLOCKED = f"""
import sys
for name in {TRAINING_ONLY!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from serve_cli.app import main
main()
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def base_install(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in the environment that scripts/test makes with `pip install .` alone."""
    folder = os.environ.get("MNIST_RUNTIME_VENV")
    if not folder:
        pytest.skip("needs a base install: scripts/test makes one and names it in MNIST_RUNTIME_VENV")
    return subprocess.run(
        [f"{folder}/bin/mnist", *map(str, arguments)], capture_output=True, text=True, cwd="/"
    )


@pytest.fixture(params=[without_torch, base_install], ids=["torch-blocked", "base-install"])
def mnist(request: pytest.FixtureRequest) -> Without:
    return request.param


def test_help_lists_every_command(mnist: Without) -> None:
    result = mnist("--help")
    assert result.returncode == 0
    listed = result.stdout.split("Commands:")[1].split()
    assert [word for word in listed if word in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(mnist: Without, command: str) -> None:
    result = mnist(command, "--help")
    assert result.returncode == 0
    assert f"Usage: mnist {command} " in result.stdout
    assert "Examples:" in result.stdout


def test_the_first_command_answers(mnist: Without, digit_png: Path) -> None:
    assert json.loads(mnist("infer", digit_png, "--json").stdout)["label"] == 7


def test_infer_and_info_answer(mnist: Without, digit_png: Path, artifact: Path) -> None:
    answer = json.loads(mnist("infer", digit_png, "--model", artifact, "--json").stdout)
    assert answer["label"] == 7
    for file in MODEL_FILES.values():
        result = mnist("info", artifact / file.name, "--json")
        assert json.loads(result.stdout)["labels"] == list(range(10))
        assert result.stderr == ""


def test_verify_evaluate_and_bench_answer(
    mnist: Without, artifact: Path, tmp_path: Path, digit_png: Path
) -> None:
    assert mnist("verify", artifact).returncode == 0
    damaged = Path(shutil.copytree(artifact, tmp_path / "damaged"))
    for name in ("model.onnx", "test_data_set_0/output_0.pb"):
        data = (artifact / name).read_bytes()
        (damaged / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert mnist("verify", damaged).returncode == 1
        (damaged / name).write_bytes(data)
    (tmp_path / "data" / "7").mkdir(parents=True)
    shutil.copy(digit_png, tmp_path / "data" / "7")
    report = mnist("evaluate", artifact, "--data", tmp_path / "data", "--json")
    assert json.loads(report.stdout)["accuracy"] == 1.0
    result = mnist("evaluate", artifact / "model.pt2", "--data", tmp_path / "data")
    assert (result.returncode, result.stdout) == (2, "")
    assert PIP in result.stderr
    figures = json.loads(mnist("bench", artifact, "--rounds", 1, "--json").stdout)
    assert [Path(model["model"]).name for model in figures["models"]] == ["model.onnx", "model.int8.onnx"]


@pytest.mark.parametrize("arguments", [("train",), ("export", "runs/notebook")])
def test_train_and_export_name_the_pip_command(mnist: Without, arguments: tuple[str, ...]) -> None:
    result = mnist(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert PIP in result.stderr


def test_the_base_install_has_no_torch() -> None:
    base_install("--version")
    python = Path(os.environ["MNIST_RUNTIME_VENV"], "bin", "python")
    for name in TRAINING_ONLY:
        assert (
            subprocess.run([python, "-c", f"import {name}"], capture_output=True, cwd="/").returncode == 1
        ), name


def test_inference_loads_nothing_of_the_training_half(digit_png: Path, artifact: Path) -> None:
    code = f"""
import sys
before = set(sys.modules)  # what measures coverage, for example
from serve_cli import app
app.find(["infer", {str(digit_png)!r}, "--model", {str(artifact)!r}])()
print(sorted(sys.modules.keys() - before))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = eval(result.stdout.splitlines()[-1])
    assert "onnxruntime" in modules
    assert not {"typer", "pydantic", "rich", "zipfile", "multiprocessing"} & {*modules}, (
        "the start is to be short"
    )
    assert not {name.partition(".")[0] for name in modules} & {*TRAINING_ONLY, "trainer", "export"}


def test_telemetry_is_off_before_onnxruntime_loads() -> None:
    code = "import os, serve_cli.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout == "1\n"
    kept = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment, "ORT_DISABLE_TELEMETRY": "0"},
        check=True,
    )
    assert kept.stdout == "0\n"


def test_the_wheel_holds_the_three_packages_alone() -> None:
    base_install("--version")
    code = """
from importlib.metadata import files
print(*sorted({str(path).split("/")[0] for path in files("mnist-toolkit") if ".." not in str(path)}))
"""
    python = Path(os.environ["MNIST_RUNTIME_VENV"], "bin", "python")
    found = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd="/", check=True
    ).stdout.split()
    assert [name for name in found if not name.endswith(".dist-info")] == ["export", "serve_cli", "trainer"]
