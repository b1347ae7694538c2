"""A run directory: its files, who may write into it, and what becomes of a run that stood there before."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from serve_cli.errors import InputError
from serve_cli.model_file import foreign_file
from serve_cli.spec import ARTIFACT_FILES, ARTIFACT_FOLDER, STATE_DICT
from trainer import checkpoint
from trainer.atomic import fsync, write_file

CONFIG = "config.json"
METRICS = "metrics.jsonl"
REPORT = "report.json"
"""Written last: a run that has one is finished."""
SAMPLES = "samples.png"
LOSSES = "losses.png"
CONFUSION = "confusion.png"
MISTAKES = "mistakes.png"
LOCAL = "local.json"
"""What holds on this machine alone, such as where the data lies; it is never exported."""
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
LOCK = ".lock"
REPLACED = ".replaced"
"""Where a run that is overwritten stays until the new one has a report."""

FILES = (CONFIG, LOCAL, METRICS, STATE_DICT, REPORT, SAMPLES, LOSSES, CONFUSION, MISTAKES, LOCK)
CHECKPOINT_FILES = "|".join(re.escape(name) for name in sorted(checkpoint.FILES))
OURS = re.compile(
    rf"({re.escape(REPLACED)}/)?("
    + "|".join(
        [
            *(re.escape(name) + r"(\.tmp)?" for name in FILES),
            *(re.escape(f"{ARTIFACT_FOLDER}/{name}") for name in ARTIFACT_FILES),
            rf"{CHECKPOINTS}/{checkpoint.ANY_NAME}(/(new|old))?/({CHECKPOINT_FILES})",
            rf"{TENSORBOARD}/(.*/)?(events\.out\.tfevents\.[^/]*|hparams\.yml)",
        ]
    )
    + ")"
)
"""All files of a run directory, relative to it, its export included."""


class Standing(Enum):
    """What stands in a run directory."""

    NOTHING = "nothing"
    UNFINISHED = "an unfinished run"
    FINISHED = "a finished run"
    OTHER = "files of ours but no run"


@contextmanager
def open_run(output: Path, *, overwrite: bool, resume: bool) -> Iterator[Standing]:
    """Hold the run directory `output` for this process, and yield what stands in it.

    It is made if need be. A new run that ends before its first checkpoint leaves nothing, and what it was to
    replace comes back; of two runs, one finished and one not, an overwrite keeps the finished one.

    Raises:
        InputError: it holds a run and neither flag was given, it holds other people's files, another process
            trains into it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            if not (resume and (output / CONFIG).exists()):
                _refuse_foreign(output)
            is_new = _make(output)
            stack.enter_context(FileLock(output / LOCK, timeout=0, thread_local=False))
            (output / LOCK).write_text(f"{os.getpid()}\n", encoding="ascii")
            _recover(output, resume=resume)
            checkpoint.clean(output / CHECKPOINTS)
            standing = _standing(output)
        except Timeout as error:
            raise InputError(
                f"{_owner(output)} trains into {output}: wait for it, or name another --output"
            ) from error
        except OSError as error:
            raise InputError(f"cannot write to {output} ({error.strerror}): name another --output") from error
        _refuse_existing(output, standing, overwrite=overwrite, resume=resume)
        try:
            yield standing
        finally:
            if standing is Standing.NOTHING or overwrite:
                _undo_without_checkpoint(output)
            if (output / REPORT).exists():
                _remove(output / REPLACED)
            if is_new and not _content(output):
                shutil.rmtree(output)


def _make(output: Path) -> bool:
    """Make the folder; return whether it was not there."""
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    return is_new


def begin(output: Path, config: dict[str, Any], *, overwrite: bool) -> None:
    """Start a new run in `output`; one that stands there is put aside until this one has its report.

    Raises:
        OSError: the system refused.
    """
    if overwrite:
        _put_aside(output)
    write_file(output / CONFIG, json_bytes(config))
    (output / CHECKPOINTS).mkdir(exist_ok=True)
    fsync(output)
    fsync(output.parent)


def json_bytes(document: dict[str, Any]) -> bytes:
    """A JSON document that people can read, too."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def read_data_dir(run: Path) -> Path | None:
    """The --data-dir that the run was trained with; None where none was given, or the file is not there."""
    try:
        data_dir = json.loads((run / LOCAL).read_text(encoding="utf-8"))["data_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(data_dir) if isinstance(data_dir, str) else None


def read_report(path: Path) -> dict[str, Any]:
    """Read a run's report.json.

    Raises:
        InputError: missing or not a report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        dict(report["test"]), list(report["dataset"]["labels"])
        report["dataset"]["train_sha256"], report["weights_sha256"]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the report of a run ({error}): train again") from error
    return dict(report)


def _standing(output: Path) -> Standing:
    if not _content(output):
        return Standing.NOTHING
    if not (output / CONFIG).exists():
        return Standing.OTHER
    return Standing.FINISHED if (output / REPORT).exists() else Standing.UNFINISHED


def _refuse_foreign(output: Path) -> None:
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise InputError(f"{output} is no folder, so it is not ours to write into: name another --output")
    if (name := foreign_file(output, OURS.fullmatch)) is not None:
        raise InputError(f"{output} holds {name}, so it is not ours to write into: name another --output")


def _refuse_existing(output: Path, standing: Standing, *, overwrite: bool, resume: bool) -> None:
    if standing is Standing.NOTHING or overwrite or (resume and standing is not Standing.OTHER):
        return
    ways = "replace it with --overwrite, or name another --output"
    if standing is Standing.UNFINISHED:
        ways = f"go on with --resume, {ways}"
    raise InputError(f"{output} holds {standing.value}: {ways}")


def _owner(output: Path) -> str:
    pid = (output / LOCK).read_text(encoding="ascii").strip()
    return f"process {pid}" if pid else "another process"


def _put_aside(output: Path) -> None:
    """Move the run that stands in `output`, its config first: without one at the top, nothing has begun.

    A finished run that an unfinished one was to replace is the one to keep.
    """
    aside = output / REPLACED
    if (aside / REPORT).exists():
        _remove_ours(output)
        return
    _remove(aside)
    aside.mkdir()
    for path in _content(output):
        path.rename(aside / path.name)
    fsync(output)


def _recover(output: Path, *, resume: bool) -> None:
    """Clear up after a process that was killed as it put a run aside, began, or removed the replaced one."""
    for half_written in output.glob("*.tmp"):
        if OURS.fullmatch(half_written.name):
            half_written.unlink()
    aside = output / REPLACED
    if not aside.exists():
        return
    if not (output / CONFIG).exists():
        _bring_back(output)
    elif (output / REPORT).exists():
        _remove(aside)
    elif not resume:
        _undo_without_checkpoint(output)


def _undo_without_checkpoint(output: Path) -> None:
    """Remove a run that has neither checkpoint nor report, and bring back what it was to replace."""
    if (output / REPORT).exists() or checkpoint.folders(output / CHECKPOINTS):
        return
    if (output / CONFIG).exists():
        _remove_ours(output)
    if (output / REPLACED).exists():
        _bring_back(output)


def _bring_back(output: Path) -> None:
    """Move back what was put aside, its config last: until then, nothing has begun."""
    aside = output / REPLACED
    for path in reversed(_content(aside)):
        _remove(output / path.name)
        path.rename(output / path.name)
    aside.rmdir()


def _content(folder: Path) -> list[Path]:
    """What a run has in `folder`, its config first."""
    paths = [path for path in folder.iterdir() if path.name not in (LOCK, REPLACED)]
    return sorted(paths, key=lambda path: (path.name != CONFIG, path.name))


def _remove_ours(output: Path) -> None:
    """Remove the files of the run in `output`, its config last, and the folders that are empty then."""
    for path in sorted(output.rglob("*"), reverse=True):
        name = path.relative_to(output).as_posix()
        if name.startswith(REPLACED) or name in (LOCK, CONFIG):
            continue
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # somebody else's files are in it
                path.rmdir()
        elif OURS.fullmatch(name):
            path.unlink()
    (output / CONFIG).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
