"""`mnist` as a process: Ctrl-C at any moment of its start, poor surroundings, what it loads."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_cli.spec import MODEL_FILES
from tests.command import Mnist
from tests.test_boundaries import COMMANDS

ROOT = Path(__file__).parents[2]

INTERRUPTED = """
import signal, sys
seen = 0
def hook(event, arguments):
    global seen
    seen += event in ("import", "open", "exec")
    if seen == {moment} and event in ("import", "open", "exec"):
        signal.raise_signal(signal.SIGINT)
sys.path.insert(0, {root!r})
import serve_cli.app
sys.argv[1:] = {arguments!r}
sys.addaudithook(hook)
serve_cli.app.main()
"""
"""Sends SIGINT when the start has come to its n-th import, opened file, or executed code."""


def start(moment: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = INTERRUPTED.format(moment=moment, root=str(ROOT), arguments=[*map(str, arguments)])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("command", ["infer", "info"])
def test_ctrl_c_during_the_start(digit_png: Path, artifact: Path, command: str) -> None:
    """A few dozen of its many moments, evenly spread from the first to the last."""
    arguments = {"infer": ["infer", digit_png, "--model", artifact], "info": ["info", artifact]}[command]
    moments = 0
    while (done := start(1 + 23 * moments, *arguments)).returncode != 0:
        assert done.returncode == 130
        assert done.stdout == ""
        assert done.stderr in ("", f"mnist{' infer' * (command == 'infer')}: interrupted\n")
        moments += 1
    assert done.stderr == ""
    assert moments > 10


def test_a_command_in_the_background_of_a_shell_ignores_ctrl_c(digit_png: Path, artifact: Path) -> None:
    code = INTERRUPTED.format(
        moment=50, root=str(ROOT), arguments=["infer", str(digit_png), "-m", str(artifact)]
    )
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{digit_png}: 7 (")


@pytest.mark.parametrize(
    "surroundings",
    [
        {},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
        {"TERM": "dumb", "NO_COLOR": "1", "HOME": "/nonexistent"},
    ],
)
@pytest.mark.parametrize("form", ["--json", "--csv", "--show", "--top-k=2"])
def test_poor_surroundings(
    digit_png: Path, artifact: Path, tmp_path: Path, surroundings: dict[str, str], form: str
) -> None:
    """No PATH, no HOME, an encoding without the letters of a name."""
    odd = digit_png.rename(tmp_path / "zi\u0119\u0107 \u6570.png")
    command = [sys.executable, "-m", "serve_cli.app", "infer", odd, "--model", artifact, form]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"7" in done.stdout


def test_names_that_are_no_text(digit_png: Path, artifact: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    digit_png.rename(os.fsdecode(odd))
    for form in ("--json", "--csv", "--top-k=1"):
        command = [sys.executable, "-m", "serve_cli.app", "infer", odd, "--model", artifact, form]
        done = subprocess.run(command, cwd=ROOT, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\udcff\\udcfe.png" in done.stdout


def test_a_model_that_fails_leaves_stdout_to_json(digit_png: Path, artifact: Path, tmp_path: Path) -> None:
    """onnxruntime would print about it there."""
    model = tmp_path / MODEL_FILES["onnx"].name
    data = (artifact / model.name).read_bytes()
    for damaged in (data[:-1], data[:1000], data.replace(b"Gemm", b"Gemn"), b"\0" + data):
        model.write_bytes(damaged)
        command = [sys.executable, "-m", "serve_cli.app", "infer", digit_png, "--model", model, "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["{digit}", "--csv"], ["{digit}", "--show"]])
def test_a_full_disk(digit_png: Path, artifact: Path, arguments: list[str]) -> None:
    words = [word.format(digit=digit_png) for word in arguments]
    command = [sys.executable, "-m", "serve_cli.app", "infer", "-m", artifact, *words]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "mnist infer: standard output: No space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_is_for_terminals(digit_png: Path, artifact: Path, tmp_path: Path) -> None:
    """On stderr, while the answers go elsewhere; the last thing it does is to wipe its line."""
    import pty

    for number in range(300):
        (tmp_path / f"{number}.png").symlink_to(digit_png)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "serve_cli.app", "infer", tmp_path, "--model", artifact, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 301
    assert " of 301, " in said
    assert " s left" in said
    assert said.endswith("\r\x1b[K")


def test_a_terminal_shows_half_blocks(digit_png: Path, artifact: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "serve_cli.app", "infer", digit_png, "--model", artifact, "--show"]
    environment = {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "\x1b[38;5;" in said
    assert said.count("\x1b[0m") >= 1


def test_several_ctrl_c_end_it_once() -> None:
    """The first while the command works, the next while Python takes itself apart."""
    code = f"""
import atexit, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from serve_cli import app, commands
commands.outline = lambda contract: signal.raise_signal(signal.SIGINT)
atexit.register(signal.raise_signal, signal.SIGINT)
sys.argv[1:] = ["info"]
app.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "mnist: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["infer", "missing.png"], ["info", "missing.onnx"], ["--colour"]])
def test_the_exit_code_outlives_standard_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "serve_cli.app", *arguments]
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run(command, cwd=ROOT, stderr=full).returncode == 2


# What a command says of itself.


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids="-".join)
def test_help_is_a_page_of_a_manual(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = mnist(*command, "-h")
    assert (result.code, result.err) == (0, "")
    assert result == mnist(*command, "--help")
    assert result.out.startswith(f"Usage: {' '.join(('mnist', *command))} ")
    assert max(map(len, result.out.splitlines())) <= 80
    assert "-h, --help" in result.out
    assert not command or f"  mnist {command[0]}" in result.out.partition("Examples:\n")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_parse(mnist: Mnist, command: str) -> None:
    for line in mnist(command, "--help").out.partition("Examples:\n")[2].splitlines():
        words = line.partition(" > ")[0].split()
        if words[:2] == ["mnist", command]:
            assert mnist(*words[1:], "--help").out.startswith("Usage: ")


def test_an_option_without_its_value_names_its_command(mnist: Mnist) -> None:
    mnist("export", "run", "--output").assert_refused("mnist export: ", "'--output'", "mnist export --help")


# Completion: what a shell asks for when somebody presses the tabulator.


def completed(*words: str, shell: str = "bash") -> list[str]:
    """What may stand in place of the last of `words`, which follow `mnist`."""
    line = " ".join(("mnist", *words))
    environment = {
        **os.environ,
        "_MNIST_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    command = [sys.executable, "-m", "serve_cli.app"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("",), [*COMMANDS]),
        (("ex",), ["export"]),
        (("train", "--re"), ["--recipe", "--resume"]),
        (("train", "--recipe", ""), ["notebook", "fast", "best"]),
        (("train", "--dataset", "mnist"), ["mnist", "mnist5k"]),
        (("export", "run", "--format", "onnx"), ["onnx", "onnx-int8"]),
        (("export", "run", "--layout", "t"), ["triton"]),
        (("evaluate", "--preprocess", ""), ["auto", "raw"]),
        (("infer", "--s"), ["--show", "--save-input"]),
        (("infer", "x.png", "--json", "--m"), ["--model", "--min-confidence"]),
        (("infer", "x.png", "--preprocess", "r"), ["raw"]),
        (("infer", ""), [""]),  # nothing: the shell offers files
        (("infer", "--model", ""), [""]),
        (("verify", ""), [""]),
    ],
)
def test_completion(words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(*words) == expected


def test_completion_in_other_shells() -> None:
    """A candidate a line in fish, for zsh one quoted string; its files are asked for by a name."""
    lines = completed("infer", "--", shell="fish")
    assert len(lines) == 9
    assert all(line.startswith("--") and "\t" in line for line in lines)
    assert completed("export", "--format", "pt", shell="fish") == ["pt2"]
    assert completed("infer", "", shell="zsh") == ["_files"]
    (first, *_) = completed("infer", "--sh", shell="zsh")
    assert first.startswith('_arguments \'*: :(("--show":"Draw, below each answer, what the net saw."')


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash_itself(tmp_path: Path) -> None:
    """With the script that --show-completion prints, as people source it."""
    program = tmp_path / "mnist"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m serve_cli.app "$@"\n')
    program.chmod(0o755)
    script = """
source <(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 mnist --show-completion bash)
complete -p mnist
press() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _mnist_completion mnist
    echo "${COMPREPLY[@]}"
}
press mnist ve
press mnist infer --pre
press mnist infer --preprocess ""
press mnist train --recipe ""
press mnist infer ""
"""
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    registered, *answers = done.stdout.splitlines()
    assert registered == "complete -o default -F _mnist_completion mnist"
    assert answers == ["verify", "--preprocess", "auto raw", "notebook fast best", ""]
    assert done.stderr == ""
