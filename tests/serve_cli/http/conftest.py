"""A server for all tests that leave it as it is."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.serve_cli.http.serving import Served, png, serving


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """`mnist serve` with the model in the package."""
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def picture(digit: np.ndarray) -> bytes:
    """A genuine 7 as a PNG file."""
    return png(digit)
