"""README cannot rot: its tree is the repository's, its tables are complete. Its blocks: test_docs."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from serve_cli.spec import MODEL_FILES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("trainer", "export", "serve_cli")


def tree() -> dict[str, set[str]]:
    """Folder by folder, the files that README's tree names."""
    block = README.split("The tree</summary>")[1].split("```")[1]
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
    assert "\n".join(rows) in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = README.split("| Dependency |")[1].split("\n\n")[0]
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in requirements:
            name = re.split(r"[><=\[]", requirement)[0]
            assert re.search(rf"\b{name}\b", table), name


def test_no_local_path_is_committed() -> None:
    scripts = (path for path in (ROOT / "scripts").rglob("*") if path.is_file() and path.suffix != ".pyc")
    pages = (ROOT / "docs").rglob("*.md")
    for path in [*ROOT.glob("*.md"), *pages, *ROOT.glob("docs/*.json"), *scripts, *ROOT.glob("*/*.py")]:
        assert not re.search(r"(?<![\w.])/(?:work|root|home)/", path.read_text(encoding="utf-8")), path
