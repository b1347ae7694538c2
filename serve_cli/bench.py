"""`mnist bench`: how fast, how large and how quick to start a model is on this machine.

Each round starts a fresh process for each model, so nothing that one has loaded counts for another.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_cli.errors import CheckFailed, MissingExtra
from serve_cli.evaluate import ModelArgument, table
from serve_cli.model_file import find_model
from serve_cli.process import printable, warn
from serve_cli.spec import ARTIFACT_FOLDER, BUNDLED_MODEL, IMAGE_SIZE, MODEL_FILES, STATE_DICT

if TYPE_CHECKING:
    from serve_cli.engine import Engine

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

MEASURED_S = {1: 0.1, 8: 0.05, 64: 0.05, 256: 0.05, 1024: 0.05}
"""Seconds of calls for each batch size in a round; longer where a 99th percentile is wanted."""

WARM_UP = 10
"""Calls before the measured ones: TorchScript compiles in its first few."""

MIN_CALLS = 20
"""Measured calls, however slow the model."""

HEADINGS = ("model", "bytes", "p50 us", "p99 us", "images/s", "in batches of", "cold start s", "peak MB")

PROGRAM = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
import numpy as np
from serve_cli.engine import open_engine
engine = open_engine(Path({model!r}))
engine.predict(np.zeros((1, 28, 28), np.uint8))
print(flush=True)
try:
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
except OSError:
    try:
        from resource import RUSAGE_SELF, getrusage
        peak = getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except ImportError:
        peak = None
from serve_cli.bench import speed
import json
print(json.dumps({{"peak_rss_bytes": peak, **speed(engine)}}))
"""
"""What a fresh process does: answer a picture, say so with an empty line, then measure and print its figures.

The peak is read before this module, which needs more than the model does, is imported. On Linux it is not
ru_maxrss: that starts at the size of the process that started this one.
"""


@app.command()
def bench(
    model: ModelArgument = BUNDLED_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON document.")] = False,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Fresh processes a model; medians are printed.")
    ] = 5,
) -> None:
    """Measure a model on this machine: speed, start, memory, size.

    To choose a format, or a machine. Of a directory, every format that is there, in turn; PyTorch's need
    PyTorch. p50 and p99 are the time of a call with one picture, images/s that of the best batch size
    (--json has all), cold start the time from nothing to the first answer, peak MB the memory that takes. A
    model computes on one thread; one with more than 1 MiB of values an image on all cores.

    \b
    Examples:
      mnist bench
      mnist bench runs/notebook/artifact --rounds 9 --json
    """
    report = measure(model_files(model), rounds)
    for line in [json.dumps(report)] if as_json else as_text(report):
        typer.echo(printable(line))


def model_files(path: Path) -> list[Path]:
    """The models that `path` stands for: a file, or all formats in an artifact or run directory.

    Raises:
        InputError: there is none.
    """
    names = (*(file.name for file in MODEL_FILES.values()), STATE_DICT)
    first = find_model(path, names)
    if first == path:
        return [path]
    places = (folder / name for folder in (path, path / ARTIFACT_FOLDER) for name in names)
    return [place for place in places if place.is_file()]


def measure(files: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Measure the models that can be opened here, in turn in each round, and return the report.

    Raises:
        InputError: a file is not a model, or no model can be opened here.
        CheckFailed: a process that measured ended early.
    """
    usable, left_out = _sift(files)
    figures: dict[Path, list[dict[str, Any]]] = {file: [] for file in usable}
    try:
        for number in range(rounds):
            for file in usable:
                _show(f"round {number + 1} of {rounds}: {file}")
                figures[file].append(_fresh_process(file))
    finally:
        _show("")
    return {
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
        "versions": _versions(usable),
        "rounds": rounds,
        "models": [
            {"model": str(file), "bytes": file.stat().st_size, **_medians(of_file)}
            for file, of_file in figures.items()
        ],
        "left_out": [{"model": str(file), "reason": str(reason)} for file, reason in left_out.items()],
    }


def _sift(files: Sequence[Path]) -> tuple[list[Path], dict[Path, MissingExtra]]:
    """Ask each model one picture; return those that answer, and why others cannot be opened here."""
    import numpy as np

    from serve_cli.engine import open_engine

    usable: list[Path] = []
    left_out: dict[Path, MissingExtra] = {}
    for file in files:
        _show(f"opening {file}")
        try:
            open_engine(file).predict(np.zeros((1, IMAGE_SIZE, IMAGE_SIZE), np.uint8))
            usable.append(file)
        except MissingExtra as error:
            left_out[file] = error
        finally:
            _show("")
    if not usable:
        raise next(iter(left_out.values()))
    for file, reason in left_out.items():
        warn("mnist bench", f"{file} is left out: {reason}")
    return usable, left_out


def _fresh_process(file: Path) -> dict[str, Any]:
    """The figures of one round: those of the process, and how long it took to its first answer."""
    program = PROGRAM.format(path=sys.path, model=str(file))
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        bufsize=0,  # so that readline leaves the rest to communicate
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
        },  # PyTorch gets no more than most models in onnxruntime have
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        cold_start_s = time.perf_counter() - start
        out, err = child.communicate()
    if child.returncode:
        last = (err.decode(errors="replace").splitlines() or [f"exit code {child.returncode}"])[-1]
        raise CheckFailed(f"the process that measured {file} ended early: {last}")
    return {**json.loads(out), "cold_start_s": cold_start_s}


def speed(engine: "Engine") -> dict[str, Any]:
    """One round of calls: `p50_us` and `p99_us` for a picture, `images_per_second` for each batch size.

    The pictures are noise: a net of this kind takes as long for it as for digits, and every model can be
    measured with it, whether it has test vectors or not.
    """
    import numpy as np

    shape = (max(MEASURED_S), IMAGE_SIZE, IMAGE_SIZE)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    times = {size: _call_times(engine, images[:size], seconds) for size, seconds in MEASURED_S.items()}
    p50_us, p99_us = np.percentile(times[1], (50, 99)) / 1e3
    return {
        "p50_us": p50_us,
        "p99_us": p99_us,
        "images_per_second": {str(size): size * len(ns) / sum(ns) * 1e9 for size, ns in times.items()},
    }


def _call_times(engine: "Engine", images: Any, seconds: float) -> list[int]:
    """Nanoseconds of each call with all `images` as one batch, for about `seconds`."""
    for _ in range(WARM_UP):
        engine.predict(images, batch_size=len(images))
    times: list[int] = []
    now = time.perf_counter_ns()
    end = now + seconds * 1e9
    while now < end or len(times) < MIN_CALLS:
        start = time.perf_counter_ns()
        engine.predict(images, batch_size=len(images))
        now = time.perf_counter_ns()
        times.append(now - start)
    return times


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds; None where a system does not tell."""
    medians: dict[str, Any] = {}
    for name, first in rounds[0].items():
        found = [figures[name] for figures in rounds]
        if isinstance(first, Mapping):
            medians[name] = _medians(found)
        else:
            medians[name] = None if first is None else statistics.median(found)
    return medians


def cpu_model() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _versions(files: Sequence[Path]) -> dict[str, str]:
    """Of what the figures depend on; PyTorch's only where a model ran in it."""
    from importlib.metadata import version

    import onnxruntime

    from serve_cli.engine import TORCH_SUFFIXES

    versions = {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
    if TORCH_SUFFIXES & {file.suffix for file in files}:
        versions["torch"] = version("torch")
    return versions


def as_text(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the report for people."""
    machine, rounds = report["machine"], report["rounds"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    plural = "s" * (rounds > 1)
    yield f"{machine['cpu']}, {machine['cores']} cores, {versions}; medians of {rounds} round{plural}"
    yield from table([HEADINGS, *map(_row, report["models"])])


def _row(figures: Mapping[str, Any]) -> tuple[str, ...]:
    speeds, peak = figures["images_per_second"], figures["peak_rss_bytes"]
    best = max(speeds, key=speeds.__getitem__)
    return (
        Path(figures["model"]).name,
        f"{figures['bytes']:,}",
        f"{figures['p50_us']:.1f}",
        f"{figures['p99_us']:.1f}",
        f"{speeds[best]:,.0f}",
        best,
        f"{figures['cold_start_s']:.2f}",
        "unknown" if peak is None else f"{peak / 1e6:.0f}",
    )


def _show(line: str) -> None:
    """What is measured now, where somebody watches."""
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{printable(line)}", nl=False, err=True)
