"""What the benchmarks share: turns, medians with their range, comparisons, tables, the machine."""

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serve_cli.bench import cpu_model
from serve_cli.workers import cores

Figure = dict[str, Any]
Contestant = tuple[Figure, Callable[..., Figure]]
"""What names a measurement in the table, and what takes it."""

ALIKE = 1.05
"""Medians whose ratio is below it, both ways, count as equal."""

AS_PEOPLE_RUN_IT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPATH")
}
ENVIRONMENT = {
    **AS_PEOPLE_RUN_IT,
    "CUDA_VISIBLE_DEVICES": "",  # some would use a GPU, ours would not
    "HF_HUB_OFFLINE": "1",
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
}
MNIST = Path(sys.executable).with_name("mnist")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The values of all rounds, ours and those of what people would take else; None: it did not get there."""

    what: str
    form: str
    """How a value is written, as for format()."""

    ours: str
    theirs: str
    our_values: Sequence[float | None]
    their_values: Sequence[float | None]
    more_is_better: bool = False

    def ratio(self) -> float:
        """How many times as good as theirs our median is; 1 where both are the same, or neither got there."""
        ours, theirs = map(middle, (self.our_values, self.their_values))
        good, bad = (ours, theirs) if self.more_is_better else (theirs, ours)
        if good == bad:
            return 1.0
        return good / bad if bad and good < math.inf else math.inf

    def verdict(self) -> str:
        """'better', 'equal' or 'worse', and whether the rounds' ranges overlap all the same."""
        ratio = self.ratio()
        if 1 / ALIKE < ratio < ALIKE:
            return "equal"
        ours, theirs = map(numbers, (self.our_values, self.their_values))
        overlap = min(ours) <= max(theirs) and min(theirs) <= max(ours)
        return f"{'better' if ratio > 1 else 'worse'}{', ranges overlap' * overlap}"

    def row(self) -> list[str]:
        """The row of a table under COLUMNS."""
        cells = [self.cell(self.our_values), self.theirs, self.cell(self.their_values)]
        ratio = self.ratio()
        return [
            self.what,
            self.ours,
            *cells,
            f"{ratio:.2f}" if 0 < ratio < math.inf else "-",
            self.verdict(),
        ]

    def cell(self, values: Sequence[float | None]) -> str:
        """The spread of the rounds that got there, and how many those were."""
        reached = [value for value in values if value is not None]
        if not reached:
            return "not reached"
        some = "" if len(reached) == len(values) else f" in {len(reached)} of {len(values)} rounds"
        return spread(reached, self.form) + some


COLUMNS = ("", "ours", "measured", "beside", "measured", "ratio", "")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a benchmark: who takes part, the table of what was measured, and what is compared."""

    contestants: Callable[[argparse.Namespace, Path], list[Contestant]]
    tell: Callable[[Sequence[Figure]], None]
    compare: Callable[[Sequence[Figure]], list[Comparison]] = lambda figures: []
    rounds: int | None = None
    """Where it is not the number that was asked for."""

    is_seeded: bool = False
    """A measurement is given the number of its round."""


def measure_parts(arguments: argparse.Namespace, parts: Mapping[str, Part], report: Figure) -> None:
    """Measure the parts in `arguments.part`, print their tables, write all to `arguments.json`."""
    report["comparisons"] = []
    with tempfile.TemporaryDirectory(prefix="mnist-bench-") as folder:
        for name in arguments.part:
            part = parts[name]
            contestants = part.contestants(arguments, Path(folder))
            report[name] = take_turns(name, contestants, part.rounds or arguments.rounds, part.is_seeded)
            part.tell(report[name])
            report["comparisons"] += map(dataclasses.asdict, part.compare(report[name]))
            if arguments.json:  # after each part, so that an interrupted benchmark leaves something
                arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def take_turns(part: str, contestants: Sequence[Contestant], rounds: int, is_seeded: bool) -> list[Figure]:
    """Measure all contestants once, then all of them again, and so on."""
    figures = []
    for number in range(1, rounds + 1):
        for names, measure in contestants:
            show(f"{part}: round {number} of {rounds}, {' '.join(map(str, names.values()))}")
            call = partial(measure, number) if is_seeded else measure
            figures.append({**names, "round": number, **call()})
    show("")
    return figures


def add_part_options(parser: argparse.ArgumentParser, parts: Mapping[str, Part], rounds: int) -> None:
    """The options that measure_parts reads."""
    parser.add_argument("--part", choices=list(parts), nargs="+", default=list(parts))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures of all rounds")


def finish(
    command: Sequence[object],
    environment: Mapping[str, str] = ENVIRONMENT,
    accepted: Sequence[int] = (0,),
) -> str:
    """Run a command to its end; its standard output. Another exit code than those `accepted` is the end."""
    words = [str(word) for word in command]
    result = subprocess.run(words, env=environment, capture_output=True, text=True)
    if result.returncode not in accepted:
        name = Path(sys.argv[0]).name
        sys.exit(f"{result.stderr}{name}: exit code {result.returncode} of {' '.join(words)}")
    return result.stdout


# Tables


def print_table(heading: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table below its heading."""
    print(f"### {heading}\n")
    print(table(header, rows))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """A Markdown table; what is not in a column on the `left` is a number, and stands right."""
    alignment = ["---" if place in left else "---:" for place in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, alignment, *rows))


def grouped(figures: Iterable[Figure], names: Sequence[str], key: str) -> dict[tuple[Any, ...], list[Any]]:
    """The `key` of all rounds of each measurement."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for figure in figures:
        found.setdefault(tuple(figure[name] for name in names), []).append(figure[key])
    return found


def spread(values: Sequence[float], form: str) -> str:
    """The median, the lowest and the highest of some values; one number where all look the same."""
    median, low, high = (
        format(value, form) for value in (statistics.median(values), min(values), max(values))
    )
    return median if low == high else f"{median} ({low} to {high})"


def numbers(values: Iterable[float | None]) -> list[float]:
    """The values, infinite where it did not get there."""
    return [math.inf if value is None else value for value in values]


def middle(values: Iterable[float | None]) -> float:
    """The median."""
    return statistics.median(numbers(values))


# The machine


def title(report: Figure, *more: str) -> str:
    """What the tables hold for."""
    machine = report["machine"]
    known = [f"{name} {version}" for name, version in report["versions"].items()]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f} at the start; "
        f"{', '.join(known)}; {', '.join(more)}\n"
    )


def rounds_text(rounds: int) -> str:
    """How many rounds."""
    return f"{rounds} round{'s' * (rounds > 1)}"


def machine() -> Figure:
    """What is measured on; a load at the start means that others were working, too."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.exists() else None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg()[0],
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of what the speed depends on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def commit() -> str | None:
    """The commit that was measured, marked if files differ from it; None outside of git."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def show(line: str) -> None:
    """What is measured now, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
