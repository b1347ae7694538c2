"""What can be said of Dockerfile, .dockerignore and compose.yaml without a container engine."""

import http.server
import json
import re
import subprocess
import sys
import threading
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.command import Mnist

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The name and the rest of each instruction."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].values()
    return service


def the(instructions: list[tuple[str, str]], wanted: str) -> str:
    """The rest of the only instruction of this name."""
    (rest,) = [rest for name, rest in instructions if name == wanted]
    return rest


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file through: the last pattern for it or a folder above decides."""
    sent = True
    parts = PurePosixPath(path).parts
    places = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if pattern and not pattern.startswith("#"):
            anywhere = pattern.removeprefix("**/")
            tried = [place.rpartition("/")[2] for place in places] if anywhere != pattern else places
            if any(fnmatchcase(place, anywhere) for place in tried):
                sent = line.startswith("!")
    return sent


def copied(instructions: list[tuple[str, str]]) -> set[str]:
    """What is copied from the checkout."""
    words = [rest.split() for name, rest in instructions if name == "COPY" and not rest.startswith("--from=")]
    return {source for *sources, _ in words for source in sources}


def test_all_that_is_copied_is_there_and_is_sent(instructions: list[tuple[str, str]]) -> None:
    for source in copied(instructions):
        assert (ROOT / source).exists(), source
        files = [path for path in (ROOT / source).rglob("*") if path.is_file()] or [ROOT / source]
        for path in files:
            name = path.relative_to(ROOT).as_posix()
            assert is_sent(name) == ("__pycache__" not in name), name


def test_all_that_the_build_of_the_package_reads_is_copied(instructions: list[tuple[str, str]]) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    assert copied(instructions) == {
        "pyproject.toml",
        project["readme"],
        *project["license-files"],
        *settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }
    (extra,) = re.findall(r"pip install .*'\.\[(.*)\]'", " ".join(rest for _, rest in instructions))
    assert extra in project["optional-dependencies"]


@pytest.mark.parametrize(
    "name",
    [".git/config", ".env", "runs/best/report.json", ".venv/bin/python", "tests/conftest.py", "Dockerfile"],
)
def test_nothing_else_is_sent(name: str) -> None:
    assert not is_sent(name)


def test_it_runs_as_a_numbered_user_who_is_not_root(instructions: list[tuple[str, str]]) -> None:
    user = the(instructions, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert [name for name, _ in instructions].index("USER") < len(instructions) - 1
    assert the(instructions, "STOPSIGNAL") == "SIGTERM"


def test_the_command_is_one_of_ours(
    instructions: list[tuple[str, str]], service: dict[str, Any], mnist: Mnist
) -> None:
    program, *words = json.loads(the(instructions, "ENTRYPOINT"))
    assert program == "mnist"
    assert mnist(*words, "--help").code == 0
    (more,) = re.findall(r"# command: (\[.*\])", (ROOT / "compose.yaml").read_text())
    assert mnist(*words, *json.loads(more), "--help").code == 0
    assert mnist(*words, "--no-such-option", "--help").code == 2, "--help does not hide what is wrong"
    assert "command" not in service


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check(instructions: list[tuple[str, str]], status: int, code: int) -> None:
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    exposed = the(instructions, "EXPOSE")
    with http.server.HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert ask(instructions, exposed, server.server_port) == code


def test_the_health_check_without_a_server(instructions: list[tuple[str, str]]) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        free = server.server_port
    assert ask(instructions, the(instructions, "EXPOSE"), free) == 1


def ask(instructions: list[tuple[str, str]], exposed: str, port: int) -> int:
    """The exit code of the health check, of this port in place of the exposed one."""
    python, *words = json.loads(the(instructions, "HEALTHCHECK").partition("CMD ")[2])
    assert python == "python"
    command = [word.replace(exposed, str(port)) for word in words]
    return subprocess.run([sys.executable, *command], capture_output=True, timeout=30).returncode


def test_compose(instructions: list[tuple[str, str]], service: dict[str, Any]) -> None:
    exposed = the(instructions, "EXPOSE")
    assert service["ports"] == [f"127.0.0.1:{exposed}:{exposed}"]
    assert service["read_only"] is True
    assert [place.partition(":")[0] for place in service["tmpfs"]] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit", "stop_grace_period"} <= service.keys()
    assert not {"privileged", "cap_add", "network_mode", "volumes"} & service.keys()
