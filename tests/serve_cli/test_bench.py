"""`mnist bench`: every figure of every format, what the figures mean, and what happens without torch."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_cli import bench, process
from serve_cli.spec import MODEL_FILES
from tests.command import Mnist, Result
from tests.test_boundaries import PIP, TRAINING_ONLY

SIZES = ("1", "8", "64", "256", "1024")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Mnist:
    """`mnist bench`, called in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = process.run(bench.app, "mnist bench", [str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


def figures(number: float, peak: int | None = 10**8) -> dict[str, Any]:
    """What a process could have measured: `number`, and what follows from it."""
    return {
        "p50_us": number,
        "p99_us": 2 * number,
        "images_per_second": dict.fromkeys(SIZES, 1e6 / number),
        "cold_start_s": number / 100,
        "peak_rss_bytes": peak,
    }


def check_figures(found: dict[str, Any], path: Path) -> None:
    assert found.keys() == {"model", "bytes", *figures(1)}
    assert found["model"] == str(path)
    assert found["bytes"] == path.stat().st_size
    assert 0 < found["p50_us"] <= found["p99_us"] < math.inf
    assert tuple(found["images_per_second"]) == SIZES
    assert all(0 < speed < math.inf for speed in found["images_per_second"].values())
    assert 0 < found["cold_start_s"] < math.inf
    assert found["peak_rss_bytes"] > 8 * 1024**2  # a Python that does nothing takes more


def test_json_has_every_figure_of_every_format(command: Mnist, artifact: Path) -> None:
    result = command(artifact, "--rounds", 1, "--json")
    assert (result.code, result.err) == (0, "")
    assert len(result.out.splitlines()) == 1
    report = json.loads(result.out)
    assert report.keys() == {"machine", "versions", "rounds", "models", "left_out"}
    assert report["machine"].keys() == {"cpu", "cores"}
    assert report["versions"].keys() == {"python", "onnxruntime", "torch"}
    assert (report["rounds"], report["left_out"]) == (1, [])
    files = [artifact / file.name for file in MODEL_FILES.values()]
    for found, path in zip(report["models"], files, strict=True):
        check_figures(found, path)


def test_one_file_for_people(command: Mnist, artifact: Path) -> None:
    result = command(artifact / "model.onnx", "--rounds", 1)
    assert (result.code, result.err) == (0, "")
    machine, headings, row = result.out.splitlines()
    assert f"python {sys.version.split()[0]}, onnxruntime " in machine
    assert machine.endswith("; medians of 1 round")
    assert "torch" not in machine
    assert headings.split()[0] == "model"
    assert row.split()[0] == "model.onnx"


def test_the_state_dict_of_a_run(command: Mnist, run_directory: Path) -> None:
    result = command(run_directory / "mnist_model.pth", "--rounds", 1, "--json")
    assert (result.code, result.err) == (0, "")
    (found,) = json.loads(result.out)["models"]
    check_figures(found, run_directory / "mnist_model.pth")


def test_the_peak_is_that_of_the_model_alone(artifact: Path) -> None:
    large = np.ones(300 * 1024**2, np.uint8)  # this process is larger than any that answers without torch
    (found,) = bench.measure([artifact / "model.onnx"], rounds=1)["models"]
    assert found["peak_rss_bytes"] < large.nbytes


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[dict[str, Any]]]], list[str]]:
    """Let processes measure what a test says for each file name; gives the names in the order measured."""

    def script(figures_of: dict[str, list[dict[str, Any]]]) -> list[str]:
        asked: list[str] = []

        def fresh_process(file: Path) -> dict[str, Any]:
            asked.append(file.name)
            return figures_of[file.name][asked.count(file.name) - 1]

        monkeypatch.setattr(bench, "_fresh_process", fresh_process)
        return asked

    return script


def test_medians_of_rounds_that_take_the_models_in_turn(artifact: Path, rounds: Any) -> None:
    one, two = (artifact / name for name in ("model.onnx", "model.int8.onnx"))
    asked = rounds(
        {
            one.name: [figures(10, 900), figures(80, 100), figures(20, 500)],
            two.name: [figures(4, None), figures(1, None), figures(2, None)],
        }
    )
    first, second = bench.measure([one, two], rounds=3)["models"]
    assert asked == 3 * [one.name, two.name]
    assert first == {"model": str(one), "bytes": one.stat().st_size, **figures(20, 500)}
    assert second == {"model": str(two), "bytes": two.stat().st_size, **figures(2, None)}


def test_progress_where_somebody_watches(
    command: Mnist, artifact: Path, rounds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds({"model.onnx": [figures(10)]})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result = command(artifact / "model.onnx", "--rounds", 1)
    assert f"\r\x1b[Kround 1 of 1: {artifact / 'model.onnx'}\r\x1b[K" in result.err
    assert result.err.endswith("\r\x1b[K")  # nothing is left of it
    assert "\x1b" not in result.out


def test_the_table() -> None:
    fast = {**figures(20), "images_per_second": {"1": 50000.4, "256": 1234567.8, "1024": 99999.0}}
    report = {
        "machine": {"cpu": "Abacus 9", "cores": 4},
        "versions": {"python": "3.11.7", "onnxruntime": "1.24.0", "torch": "2.14.0"},
        "rounds": 5,
        "models": [
            {"model": "runs/a/artifact/model.onnx", "bytes": 443369, **fast},
            {"model": "m.pt2", "bytes": 99, **figures(1234.56, None)},
        ],
        "left_out": [],
    }
    assert (
        "\n".join(bench.as_text(report))
        == """\
Abacus 9, 4 cores, python 3.11.7, onnxruntime 1.24.0, torch 2.14.0; medians of 5 rounds
model         bytes  p50 us  p99 us   images/s  in batches of  cold start s  peak MB
model.onnx  443,369    20.0    40.0  1,234,568            256          0.20      100
m.pt2            99  1234.6  2469.1        810              1         12.35  unknown"""
    )


def test_what_a_round_of_calls_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that calls alone move: (100 + N) us for N pictures, 1 s in warm-up, one single in ten late."""
    clock = SimpleNamespace(ns=0, perf_counter_ns=lambda: clock.ns)
    calls = dict.fromkeys(map(int, SIZES), 0)

    def predict(images: np.ndarray, *, batch_size: int) -> None:
        assert (images.dtype, images.shape[1:], batch_size) == (np.uint8, (28, 28), len(images))
        calls[batch_size] += 1
        late = batch_size == 1 and calls[1] % 10 == 0
        warm = calls[batch_size] > bench.WARM_UP
        clock.ns += (100 + batch_size) * (5 if late else 1) * 1000 if warm else 10**9

    monkeypatch.setattr(bench, "time", clock)
    found = bench.speed(SimpleNamespace(predict=predict))  # type: ignore[arg-type]
    assert (found["p50_us"], found["p99_us"]) == (101, 505)
    speeds = found["images_per_second"]
    assert 1e6 / 505 < speeds.pop("1") < 1e6 / 101
    assert speeds == pytest.approx({size: 1e6 * int(size) / (100 + int(size)) for size in speeds})
    assert tuple(speeds) == SIZES[1:]


def test_a_slow_model_still_gets_enough_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(ns=0, perf_counter_ns=lambda: clock.ns)
    sizes: list[int] = []

    def predict(images: np.ndarray, *, batch_size: int) -> None:
        sizes.append(batch_size)
        clock.ns += 10**10

    monkeypatch.setattr(bench, "time", clock)
    bench.speed(SimpleNamespace(predict=predict))  # type: ignore[arg-type]
    assert sizes.count(1) == sizes.count(1024) == bench.WARM_UP + bench.MIN_CALLS


def test_the_clock_of_a_cold_start_stops_at_the_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = tmp_path / "stopped"
    program = f"""
import time
from pathlib import Path
print(flush=True)
for _ in range(1000):
    if Path({str(stopped)!r}).exists():
        break
    time.sleep(0.01)
else:
    raise SystemExit("nobody has stopped the clock")
print('{{"peak_rss_bytes": 7}}')
"""
    readings = iter([lambda: 5.0, lambda: stopped.touch() or 5.5])
    monkeypatch.setattr(bench, "PROGRAM", program.replace("{", "{{").replace("}", "}}"))
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(readings)()))
    assert bench._fresh_process(tmp_path) == {"peak_rss_bytes": 7, "cold_start_s": 0.5}


def test_a_process_that_ends_early_fails_the_command(
    command: Mnist, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    program = "import os\nraise SystemExit('two\\nlines, threads: ' + os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(bench, "PROGRAM", program)
    result = command(artifact / "model.onnx")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"mnist bench: the process that measured {artifact / 'model.onnx'} ended early: lines, threads: 1\n"
    )


def without_torch(*arguments: object) -> Result:
    code = f"""
import sys
for name in {TRAINING_ONLY!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from serve_cli import bench, process
sys.exit(process.run(bench.app, "mnist bench"))
"""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return Result(done.returncode, done.stdout, done.stderr)


def test_without_torch_its_formats_are_left_out(artifact: Path) -> None:
    result = without_torch(artifact, "--rounds", 1, "--json")
    assert result.code == 0, result
    report = json.loads(result.out)
    for found, name in zip(report["models"], ("model.onnx", "model.int8.onnx"), strict=True):
        check_figures(found, artifact / name)
    assert "torch" not in report["versions"]
    assert len(result.err.splitlines()) == len(report["left_out"]) == 2
    for line, left_out, name in zip(
        result.err.splitlines(), report["left_out"], ("model.torchscript.pt", "model.pt2"), strict=True
    ):
        assert line == f"mnist bench: {artifact / name} is left out: {left_out['reason']}"
        assert left_out["model"] == str(artifact / name)
        assert PIP in left_out["reason"]


def test_without_torch_nothing_is_left_of_a_folder_with_its_formats_alone(tmp_path: Path) -> None:
    for name in ("model.torchscript.pt", "model.pt2"):
        (tmp_path / name).touch()
    without_torch(tmp_path).assert_refused("torch is missing", PIP)


def test_which_models_a_path_stands_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    files = [run / "artifact" / "model.onnx", run / "artifact" / "model.pt2"]
    for file in (run / "mnist_model.pth", *files, run / "artifact" / "artifact.json", run / "report.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert bench.model_files(run / "artifact") == files
    assert bench.model_files(run) == [run / "mnist_model.pth", *files]
    assert bench.model_files(files[1]) == [files[1]]


def test_bad_input_is_refused_in_one_line(command: Mnist, tmp_path: Path) -> None:
    command(tmp_path / "nothing.onnx").assert_refused("no such model", "nothing.onnx")
    command(tmp_path).assert_refused(str(tmp_path), "holds no model.onnx")
    (tmp_path / "letter.txt").write_text("Dear reader")
    command(tmp_path / "letter.txt").assert_refused("letter.txt", "mnist export")
    command(tmp_path / "letter.txt", "--rounds", 0).assert_refused("--rounds", "1")
