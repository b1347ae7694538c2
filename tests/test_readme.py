"""README cannot rot: its help is the program's, its tree is the repository's, its commands exist."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serve_cli.spec import MODEL_FILES
from tests.command import Mnist

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("trainer", "export", "serve_cli")


def test_the_help_block_is_the_programs_own(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    blocks = re.findall(r"<!-- help: (.+?) -->\n```text\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for command, block in blocks:
        assert block == mnist(*command.split()[1:]).out


def tree() -> dict[str, set[str]]:
    """Folder by folder, the files that README's tree names."""
    block = README.split("## The tree")[1].split("```")[1]
    found: dict[str, set[str]] = {}
    folder = ""
    for line in block.splitlines()[1:]:
        name = line.split()[0]
        if line.startswith(" "):
            found[folder].add(name)
        else:
            folder = name.rstrip("/")
            found[folder] = set()
    return found


def test_the_tree_is_the_repositorys() -> None:
    named = tree()
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode != 0:
        pytest.skip("needs a git checkout, to know which files are the project's")
    files = [Path(line) for line in tracked.stdout.splitlines() if (ROOT / line).is_file()]
    for folder in (*PACKAGES, "scripts", "docs"):
        here = {
            path.name if len(path.parts) == 2 else f"{path.parts[1]}/"
            for path in files
            if path.parts[0] == folder
        }
        assert named[folder] == here - {"__init__.py"}, folder
    assert set(named) == {path.parts[0] for path in files if len(path.parts) > 1} - {".ci"}


def test_every_format_is_in_the_table() -> None:
    rows = [f"| `{name}` | `{file.name}` | {file.about} |" for name, file in MODEL_FILES.items()]
    assert "\n".join(rows) in README


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = README.split("| Dependency |")[1].split("\n\n")[0]
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in requirements:
            name = re.split(r"[><=\[]", requirement)[0]
            assert re.search(rf"\b{name}\b", table), name


def test_the_commands_of_the_session_parse(mnist: Mnist) -> None:
    """Each is called with --help added: unknown commands and flags fail, nothing runs."""
    commands = [line[2:] for line in README.splitlines() if line.startswith("$ ")]
    assert len(commands) == 5
    for command in commands:
        words = shlex.split(command)
        if words[0] == "mnist":
            assert mnist(*words[1:], "--help").code == 0
        else:
            assert words[:4] == ["accelerate", "launch", "-m", "trainer.main"]
            run = [sys.executable, "-m", "trainer.main", *words[4:], "--help"]
            assert subprocess.run(run, capture_output=True).returncode == 0


def test_no_local_path_is_committed() -> None:
    scripts = (path for path in (ROOT / "scripts").rglob("*") if path.is_file())
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *scripts, *ROOT.glob("*/*.py")]:
        assert not re.search(r"(?<![\w.])/(?:work|root|home)/", path.read_text(encoding="utf-8")), path
