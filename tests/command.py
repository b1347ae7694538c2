"""The `mnist` command as tests see it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    def assert_refused(self, *parts: str) -> None:
        """Check for exit code 2 and a single line on stderr that holds all `parts`."""
        assert self.code == 2, self
        assert self.out == ""
        assert len(self.err.splitlines()) == 1, self.err
        for part in parts:
            assert part in self.err


Mnist = Callable[..., Result]
