"""What an export format is: three or four short functions."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from serve_cli.runtime import Prediction
from serve_cli.spec import IMAGE_SIZE, Contract
from trainer.model import DeployedModel

EXAMPLE = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
"""What the exporters trace with: two pictures, for they take a batch of one for a constant."""

Runner = Callable[[np.ndarray, int], Prediction]
"""Classifies uint8 [N, 28, 28] in batches of the given size."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a conversion may ask for: the ONNX operator set, and training images uint8 [N, 28, 28]."""

    opset: int
    calibration: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Format:
    """`convert` writes the file and `stamp` puts a contract into it.

    `engines` open it, by name, each as somebody's users do; the proof asks all of them. A `quantized` format
    is allowed to differ a little from PyTorch, see parity. `first_opset` is the oldest operator set that it
    can have, None where there are none.
    """

    convert: Callable[[DeployedModel, Path, Order], None]
    stamp: Callable[[Path, Contract], None]
    engines: Mapping[str, Callable[[Path], Runner]]
    quantized: bool = False
    first_opset: int | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' warnings and logs from users, who can do nothing about them."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(logging.NOTSET)
