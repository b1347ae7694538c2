"""The process edge: results and errors where nobody takes them, and exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from serve_cli import process
from serve_cli.errors import InputError

FULL = Path("/dev/full")

needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def in_child(code: str, **streams: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", f"import sys; from serve_cli import process; {code}"]
    return subprocess.run(command, text=True, **streams)


@needs_full
def test_work_goes_on_without_its_standard_output() -> None:
    with FULL.open("w") as full:
        done = in_child(
            "process.print_result('one'); process.print_result('two'); sys.exit(7)",
            stdout=full,
            stderr=subprocess.PIPE,
        )
    lost = "mnist: standard output is lost (No space left on device), the work goes on\n"
    assert (done.returncode, done.stderr) == (7, lost)


@needs_full
def test_an_error_that_cannot_be_printed_is_still_an_exit_code() -> None:
    code = "process.warn('mnist', 'x' * 10_000); print('on'); sys.exit(7)"
    with FULL.open("w") as full:
        done = in_child(code, stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (7, "on\n")


def test_typer_abort_ends_as_ctrl_c_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "signal.signal", lambda *_: None
    )  # an ignored SIGINT would stay, for other tests, too
    app = typer.Typer()

    @app.command()
    def ask() -> None:
        raise typer.Abort

    assert process.run(app, "mnist ask", []) == process.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "said"), [("0", "mnist train: no\n"), ("3", "")])
def test_only_the_main_process_of_a_group_prints_messages(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    process.warn("mnist train", "no")
    assert capsys.readouterr().err == said
    process.warn("mnist train", "lost", on_main_process_only=False)
    assert capsys.readouterr().err == "mnist train: lost\n"


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("3", [process.MAIN_PROCESS_FIRST_S])])
def test_the_main_process_of_a_group_says_first_why_all_fail(
    rank: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher ends all processes when one has failed."""
    waited: list[float] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("time.sleep", waited.append)

    def fail() -> int:
        raise InputError("no such recipe")

    assert process.guard("mnist train", fail) == 2
    assert waited == waits


def test_a_message_is_one_line() -> None:
    assert process.printable("a\nb\x1b[31m\u2028c\u0119") == "a\\nb\\x1b[31m\\u2028c\u0119"
