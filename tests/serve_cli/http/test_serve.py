"""`mnist serve` as a command: what it says, what it refuses, several processes."""

import contextlib
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serve_cli.spec import BUNDLED_MODEL
from tests.command import Mnist
from tests.serve_cli.http.serving import PATIENCE_S, Served, serving


def test_it_says_where_it_serves() -> None:
    command = [sys.executable, "-m", "serve_cli.app", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE_S)
    assert line.startswith("Serving the model in the package on http://127.0.0.1:")
    assert line.endswith(" (Ctrl-C stops)\n")
    assert (out, err, process.returncode) == ("", "", 0)


def test_a_model_can_be_named(tmp_path: Path, picture: bytes) -> None:
    artifact = shutil.copytree(BUNDLED_MODEL, tmp_path / "artifact")
    with serving("--model", artifact) as served:
        assert served.ask("/predict", picture).json["label"] == 7


def test_a_port_that_is_taken_is_refused(mnist: Mnist) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mnist("serve", "--port", port).assert_refused(f"127.0.0.1 port {port}", "in use", "--port")


def test_an_address_of_another_machine_is_refused(mnist: Mnist) -> None:
    mnist("serve", "--host", "192.0.2.1", "--port", 0).assert_refused("cannot listen on 192.0.2.1 port 0")


def test_a_host_that_is_no_name_is_refused(mnist: Mnist) -> None:
    mnist("serve", "--host", "a..b", "--port", 0).assert_refused("cannot listen on a..b port 0")


def test_a_model_that_is_missing_or_damaged_is_refused(mnist: Mnist, tmp_path: Path) -> None:
    mnist("serve", "--model", tmp_path / "none.onnx").assert_refused("none.onnx")
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes((BUNDLED_MODEL / "model.onnx").read_bytes()[:-1000])
    mnist("serve", "--model", damaged).assert_refused(str(damaged))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--port", 70000), "--port"),
        (("--workers", 0), "--workers"),
        (("--min-confidence", 2), "--min-confidence"),
        (("--max-body", 0), "--max-body"),
        (("--receive-timeout", 0), "--receive-timeout"),
        (("--receive-timeout", "nan"), "--receive-timeout"),
        (("--api-key", ""), "MNIST_API_KEY"),
        (("--receive-timeout", "inf"), "--receive-timeout"),
        (("--api-key", "a b"), "--api-key"),
        (("--allowed-host", "https://example.org"), "--allowed-host"),
        (("--allowed-host", "example.org:80"), "--allowed-host"),
        (("--cors", "*"), "--cors"),
        (("--cors", "https://example.org/page"), "--cors"),
    ],
)
def test_wrong_options_are_refused(mnist: Mnist, options: tuple[object, ...], part: str) -> None:
    mnist("serve", *options).assert_refused(part)


def test_an_empty_variable_is_no_key(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_API_KEY", "")
    mnist("serve").assert_refused("MNIST_API_KEY", "empty")


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, picture: bytes) -> None:
    monkeypatch.setenv("MNIST_API_KEY", "secret")
    with serving() as served:
        assert served.ask("/predict", picture).status == 401
        assert served.ask("/predict", picture, x_api_key="secret").status == 200


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_without_the_extra_the_pip_command_is_named(missing: str) -> None:
    blocked = f"import sys; sys.modules[{missing!r}] = None; from serve_cli.app import main; main()"
    command = [sys.executable, "-c", blocked, "serve"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (result.returncode, result.stdout) == (2, "")
    assert "pip install 'mnist-toolkit[serve]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def workers(parent: psutil.Process) -> list[psutil.Process]:
    """The processes that serve; multiprocessing has a helper of its own, which does not."""
    found = []
    for child in parent.children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_workers_that_cannot_go_on_end_the_server(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(BUNDLED_MODEL / "model.onnx", model)
    with serving("--workers", 2, "--model", model) as served:
        served.ask("/v2")
        model.unlink()
        workers(psutil.Process(served.process.pid))[0].kill()
        assert served.process.wait(PATIENCE_S) == 1
        assert "a worker ended with exit code 2" in served.log.read_text()


def test_a_log_that_nobody_reads_stops_nothing(picture: bytes) -> None:
    """A pipe holds 64 KiB; what comes after that is lost."""
    command = [sys.executable, "-m", "serve_cli.app", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        served = Served(re.search(r"http://\S+:\d+", process.stdout.readline())[0], process, Path())
        path = "/nothing/" + "x" * 190
        assert {served.ask(path).status for _ in range(400)} == {404}
        assert served.ask("/predict", picture).json["label"] == 7
        assert served.stop() == 0


def test_the_event_loop_is_the_one_whose_transports_are_known() -> None:
    """uvicorn takes uvloop where it is installed."""
    blocked = "import sys, types; sys.modules['uvloop'] = types.ModuleType('uvloop'); "
    command = [
        sys.executable,
        "-c",
        blocked + "from serve_cli.app import main; main()",
        "serve",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("Serving")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
