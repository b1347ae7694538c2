"""What the fault campaigns share: how far they are, and what they leave behind."""

import json
import sys
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
"""What a campaign counted; `lost` is how much was lost that may not be."""

NO_TOOL = 77
"""Exit code where the machine lacks what a campaign needs."""


def show(done: int, total: int, what: str) -> None:
    """How far a campaign is, where somebody watches."""
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        print(f"\r{done:,} of {total:,} {what}", end=end, file=sys.stderr, flush=True)


def leave(figures: Figures, path: Path | None, summary: str) -> int:
    """Print the summary, write the figures to `path` where there is one, and return the exit code."""
    print(summary)
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 1 if figures["lost"] else 0
