"""The fenced blocks of a Markdown document, and the marks in the HTML comments right before them."""

import os
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("docs/*.md"), *(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING", "ARCHITECTURE"))]
)

FENCE = "```"
MARK = re.compile(r"<!-- ([a-z ]+?)(?:: (.+?))? -->")
MARKS = frozenset(("help", "file", "checked by", "not run", "figures vary", "needs mnist"))
"""What a mark says:

help: mnist train --help           the block is what this command prints
file: docs/elsewhere/node.mjs      the block is this file
checked by: tests/a.py::test_b     that test runs or compares the block
not run: needs a cluster           the block is parsed and not run, for the reason given
figures vary                       of what a console block prints, the numbers may be others
needs mnist                        the block uses the whole MNIST, and is left out where it is not at hand
"""


PATIENCE_S = 600.0
"""Far more than anything here takes, so that a test that waits in vain ends."""

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "80",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of its fence, from 1; `text` ends with a line break."""

    path: Path
    line: int
    language: str
    text: str
    marks: dict[str, str]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def read_blocks(path: Path) -> list[Block]:
    """The blocks of a document, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    fences = [at for at, line in enumerate(lines) if line.startswith(FENCE)]
    return [
        Block(
            path=path,
            line=opening + 1,
            language=lines[opening].removeprefix(FENCE),
            text="".join(f"{line}\n" for line in lines[opening + 1 : closing]),
            marks=_marks_before(lines, opening),
        )
        for opening, closing in zip(fences[::2], fences[1::2], strict=True)
    ]


def _marks_before(lines: list[str], at: int) -> dict[str, str]:
    """The marks of the comments that end on the line before `at`."""
    found: dict[str, str] = {}
    while at and (mark := MARK.fullmatch(lines[at - 1])):
        found[mark[1]] = mark[2] or ""
        at -= 1
    return found


def turns(block: Block) -> list[tuple[str, str]]:
    """Of a console block, each command with what it prints."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert parts[0] == "", f"{block}: a console block begins with $"
    return [(command, answer) for command, _, answer in (part.partition("\n") for part in parts[1:])]


def script(block: Block) -> str:
    """What a shell would run of an sh or console block."""
    if block.language == "console":
        return "".join(f"{command}\n" for command, _ in turns(block))
    return block.text


def commands(block: Block) -> list[list[str]]:
    """The commands of an sh or console block in words, variables in front of a command left out."""
    lines = script(block).replace("\\\n", " ").splitlines()
    found = (_without_variables(shlex.split(line, comments=True)) for line in lines)
    return [words for words in found if words]


def _without_variables(words: list[str]) -> list[str]:
    while words and re.match(r"(export|\w+=.*)$", words[0]):
        words = words[1:]
    return words


def check_extras(arguments: list[str]) -> None:
    """Of pip install '.[train]', each extra is one of the project's."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for found in re.findall(r"(?:^|\s)\.\[([\w,]+)\]", " ".join(arguments)):
        assert set(found.split(",")) <= extras.keys()
