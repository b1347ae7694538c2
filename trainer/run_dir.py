"""A run directory: its files, its single writer, and the run that it replaces."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import Timeout

from serve_cli.errors import InputError
from serve_cli.model_file import foreign_file
from serve_cli.regular_file import read_regular
from serve_cli.spec import ARTIFACT_FILES, ARTIFACT_FOLDER, STATE_DICT
from trainer import checkpoint
from trainer.atomic import TEMPORARY, fsync, lock, write_file

CONFIG = "config.json"
LOCAL = "local.json"
"""What holds on this machine alone, such as where the data lies; it is never exported."""
METRICS = "metrics.jsonl"
REPORT = "report.json"
"""Written after the weights: a run that has both is finished."""
SAMPLES = "samples.png"
LOSSES = "losses.png"
CONFUSION = "confusion.png"
MISTAKES = "mistakes.png"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
LOCK = ".lock"

FILES = (CONFIG, LOCAL, METRICS, STATE_DICT, REPORT, SAMPLES, LOSSES, CONFUSION, MISTAKES)
PARTIAL = re.escape(TEMPORARY)
OURS = re.compile(
    "|".join(
        [
            *(re.escape(name) for name in (*FILES, LOCK)),
            *(rf"\.{re.escape(name)}{PARTIAL}" for name in FILES),
            *(re.escape(f"{ARTIFACT_FOLDER}/{name}") for name in ARTIFACT_FILES),
            rf"\.{ARTIFACT_FOLDER}-[^/]*{PARTIAL}/.*",  # a killed export
            rf"{CHECKPOINTS}/({re.escape(checkpoint.DAMAGED)})?{checkpoint.NAME.pattern}",
            rf"{CHECKPOINTS}/\.{checkpoint.NAME.pattern}{PARTIAL}",
            rf"{TENSORBOARD}/(.*/)?(events\.out\.tfevents\.[^/]*|hparams\.yml)",
        ]
    )
)
"""All files of a run directory, relative to it, its export included."""

MAX_JSON_BYTES = 16 * 1024**2


class RunStatus(Enum):
    """What a run directory contains."""

    EMPTY = "nothing"
    UNFINISHED = "an unfinished run"
    FINISHED = "a finished run"
    OTHER = "files of this program but no run"


@contextmanager
def open_run(output: Path, *, overwrite: bool, resume: bool) -> Iterator[RunStatus]:  # noqa: C901
    """Hold the run directory `output` for this process, and yield what it contains.

    With `overwrite` the run in it is renamed, and removed when the new one has its report. A new run that
    ends before its first checkpoint is removed, and the replaced one gets its name back.

    Raises:
        InputError: it contains a run and neither flag was given, it contains other files, another process
            trains into it, or it cannot be written.
    """
    output = output.absolute()
    if not output.name:
        raise InputError(f"{output} cannot be a run directory: name a folder in it with --output")
    replaced = output.with_name(f".{output.name}.replaced")
    with ExitStack() as stack:
        try:
            if replaced.exists() and not output.exists():
                replaced.rename(output)  # a process was killed between the two renames of an overwrite
            if not (resume and (output / CONFIG).exists()):
                _require_ours(output)
            is_new = not output.exists()
            output.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(_locked(output))
            _remove_partial_files(output)
            status = read_status(output)
            if status is RunStatus.FINISHED:
                _remove_tree(replaced)
            elif replaced.exists() and not (resume or _has_progress(output)):
                held.close()
                _restore(output, replaced)  # the new run was killed before its first checkpoint
                held = stack.enter_context(_locked(output))
                status = read_status(output)
            _require_free(output, status, overwrite=overwrite, resume=resume)
            if overwrite and status is not RunStatus.EMPTY:
                held.close()
                _put_aside(output, replaced)
                output.mkdir()
                held = stack.enter_context(_locked(output))
                is_new, status = True, RunStatus.EMPTY
        except OSError as error:
            raise InputError(f"cannot write to {output} ({error.strerror}): name another --output") from error
        try:
            yield status
        finally:
            if status is RunStatus.EMPTY and not _has_progress(output):
                held.close()  # some file systems cannot remove an open file
                if replaced.exists():
                    _restore(output, replaced)
                else:
                    _remove_run(output, is_new=is_new)
            elif read_status(output) is RunStatus.FINISHED:
                _remove_tree(replaced)


@contextmanager
def _locked(output: Path) -> Iterator[ExitStack]:
    """Hold the lock of a run directory; closing what is yielded gives it back earlier.

    Raises:
        InputError: another process holds it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(lock(output / LOCK))
        except Timeout as error:
            raise InputError(
                f"{_owner(output)} trains into {output}: wait for it, or name another --output"
            ) from error
        (output / LOCK).write_text(f"{os.getpid()}\n", encoding="ascii")
        yield held


def begin(output: Path, config: dict[str, Any], data_dir: Path | None) -> None:
    """Write what a new run is known by: its settings, and where its data lies.

    Raises:
        OSError: the system refused.
    """
    write_data_dir(output, data_dir)
    write_file(output / CONFIG, json_bytes(config))
    fsync(output.parent)


def write_data_dir(run: Path, data_dir: Path | None) -> None:
    """Remember where the data of a run lies on this machine.

    Raises:
        OSError: the system refused.
    """
    write_file(run / LOCAL, json_bytes({"data_dir": None if data_dir is None else str(data_dir.absolute())}))


def json_bytes(document: dict[str, Any]) -> bytes:
    """A JSON document that people can read, too."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def read_status(output: Path) -> RunStatus:
    """What `output` contains."""
    if not output.is_dir() or all(path.name in (LOCK, LOCAL) for path in output.iterdir()):
        return RunStatus.EMPTY
    if not (output / CONFIG).exists():
        return RunStatus.OTHER
    is_finished = (output / REPORT).exists() and (output / STATE_DICT).exists()
    return RunStatus.FINISHED if is_finished else RunStatus.UNFINISHED


def read_data_dir(run: Path) -> Path | None:
    """The --data or --data-dir of the run; None where none was given, or it is not on this machine."""
    try:
        data_dir = json.loads(read_regular(run / LOCAL, MAX_JSON_BYTES, ""))["data_dir"]
    except (InputError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Path(data_dir) if isinstance(data_dir, str) and Path(data_dir).exists() else None


def read_report(path: Path) -> dict[str, Any]:
    """Read a run's report.json.

    Raises:
        InputError: missing or not a report.
    """
    try:
        report = json.loads(read_regular(path, MAX_JSON_BYTES, "a report is a file"))
        dict(report["test"]), list(report["dataset"]["labels"])
        report["dataset"]["train_sha256"], report["weights_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not the report of a run ({error}): train again") from error
    return dict(report)


def _require_ours(output: Path) -> None:
    if not os.path.lexists(output):
        return
    if output.is_symlink():
        raise InputError(f"{output} is a link: name the folder that it leads to with --output")
    if not output.is_dir():
        raise InputError(f"{output} is not a folder: name another --output")

    def is_ours(name: str) -> bool:
        return OURS.fullmatch(name) is not None and not (output / name).is_symlink()

    if (name := foreign_file(output, is_ours)) is not None:
        raise InputError(
            f"{output} contains {name}, which this program did not create: name another --output"
        )


def _require_free(output: Path, status: RunStatus, *, overwrite: bool, resume: bool) -> None:
    if status is RunStatus.EMPTY or overwrite or (resume and status is not RunStatus.OTHER):
        return
    ways = "replace it with --overwrite, or name another --output"
    if status is RunStatus.UNFINISHED:
        ways = f"go on with --resume, {ways}"
    raise InputError(f"{output} contains {status.value}: {ways}")


def _owner(output: Path) -> str:
    with suppress(OSError, ValueError):
        return f"process {int((output / LOCK).read_text(encoding='ascii'))}"
    return "another process"


def _has_progress(output: Path) -> bool:
    return (output / REPORT).exists() or bool(checkpoint.find(output / CHECKPOINTS))


def _remove_partial_files(output: Path) -> None:
    """Remove what a killed process has left half-written."""
    for partial in [*output.glob(f".*{TEMPORARY}"), *(output / CHECKPOINTS).glob(f".*{TEMPORARY}")]:
        if partial.is_file():
            partial.unlink()


def _restore(output: Path, replaced: Path) -> None:
    """Give the replaced run its name back; the run in `output` has not got anywhere."""
    _remove_partial_files(output)
    _remove_run(output, is_new=True)
    replaced.rename(output)


def _put_aside(output: Path, replaced: Path) -> None:
    """Rename the run in `output`; of two replaced runs, a finished one is the one to keep."""
    if (replaced / REPORT).exists():
        _remove_tree(output)
        return
    _remove_tree(replaced)
    output.rename(replaced)
    fsync(output.parent)


def _remove_run(output: Path, *, is_new: bool) -> None:
    """Remove the files of a run that has just begun; the folder, too, if this run made it."""
    for name in (*FILES, CHECKPOINTS, TENSORBOARD, LOCK):
        path = output / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif name != LOCK or is_new:
            path.unlink(missing_ok=True)
    if is_new:
        with suppress(OSError):  # it is gone, or contains files of somebody else
            output.rmdir()


def _remove_tree(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
