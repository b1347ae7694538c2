"""What `mnist serve` was told."""

from dataclasses import dataclass
from pathlib import Path

MIB = 1024**2

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that makes prometheus_client keep its numbers in files, which all workers add to."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to serve; the command line describes each, see serve_cli.serve.

    `floor` is the confidence, 0 to 1, below which an answer is "not sure"; None for the model's own.
    `max_body` is in bytes, `receive_s` in seconds.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    floor: float | None = None
    api_key: str | None = None
    cors: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    access_log: bool = True
    max_body: int = 16 * MIB
    receive_s: float = 10.0
