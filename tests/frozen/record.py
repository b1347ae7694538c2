"""What users and their programs rely on is written down in a file here; to change it is a conscious act.

A file holds the `surface`, and what was `announced`: for each state that the surface has had, oldest first,
the line of CHANGELOG.md that tells users of it, and a digest of the state.
"""

import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CHANGELOG = FOLDER.parents[1] / "CHANGELOG.md"

ADVICE = """{name}.json in tests/frozen says what users rely on, and this is another state of it:

{changes}

If that is an accident, mend the program. If it is meant, add a line to CHANGELOG.md and accept it with
    ANNOUNCE='that line' pytest {test}"""


def check(name: str, test: str, found: dict[str, Any]) -> None:
    """Compare what was found with what is frozen; with ANNOUNCE in the environment, freeze it."""
    path = FOLDER / f"{name}.json"
    frozen = json.loads(path.read_text(encoding="utf-8"))
    if line := os.environ.get("ANNOUNCE"):
        assert is_announced(line), f"CHANGELOG.md has no line {line!r}: add it first"
        frozen = {"announced": {**frozen["announced"], line: digest(found)}, "surface": found}
        path.write_text(dump(frozen) + "\n", encoding="utf-8")
    before, after = (dump(surface).splitlines() for surface in (frozen["surface"], found))
    changes = "\n".join(difflib.unified_diff(before, after, "frozen", "found", lineterm="", n=2))
    assert not changes, ADVICE.format(name=name, changes=changes, test=test)


def check_announced(name: str) -> None:
    """Check that CHANGELOG.md has told of every state of the surface, and of this one last."""
    frozen = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    announced = frozen["announced"]
    for line in announced:
        assert is_announced(line), f"{name}.json: CHANGELOG.md has no line {line!r}"
    assert list(announced.values())[-1] == digest(frozen["surface"]), (
        f"the surface in {name}.json was changed by hand: let ANNOUNCE='line of CHANGELOG.md' pytest do it"
    )


def is_announced(line: str) -> bool:
    """Whether CHANGELOG.md has the line, however it is folded."""
    return bool(line.split()) and " ".join(line.split()) in " ".join(CHANGELOG.read_text("utf-8").split())


def digest(surface: dict[str, Any]) -> str:
    """The state of a surface in a word."""
    return hashlib.sha256(json.dumps(surface).encode()).hexdigest()[:12]


def dump(value: dict[str, Any]) -> str:
    """JSON with a line for each name, so that a difference is a line, too."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def shape(value: Any) -> Any:
    """Keys and types of a JSON value; of a list, those of its first entry."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    names = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
    return names[type(value)]
