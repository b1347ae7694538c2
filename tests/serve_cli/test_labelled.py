"""Labelled images from IDX files, a manifest and folders; what is wrong with any is said in a line."""

import errno
import gzip
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_cli.errors import InputError
from serve_cli.labelled import Labelled, read_labelled
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
    folder: Path, prefix: str, images: np.ndarray = NOISE, labels: np.ndarray = CLASSES, suffix: str = ""
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
        content = gzip.compress(stored(values)) if suffix else stored(values)
        (folder / f"{prefix}{kind}-ubyte{suffix}").write_bytes(content)


def write_picture(path: Path, levels: np.ndarray = INK) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def write_manifest(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.tsv"
    path.write_bytes(text.encode())
    return path


def assert_holds(found: Labelled, images: np.ndarray, labels: list[int], source: Path) -> None:
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)
    assert found.images.flags.c_contiguous
    assert found.images.flags.writeable
    np.testing.assert_array_equal(found.images, images)
    assert found.labels.tolist() == labels
    assert found.source == source


def refusal(folder: Path, names: tuple[int | str, ...] = DIGITS, *, raw: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        read_labelled(folder, names, raw=raw)
    return str(caught.value)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "MNIST/raw", "raw"])
def test_a_pair_of_idx_files_passes_as_it_is(tmp_path: Path, below: str, suffix: str, raw: bool) -> None:
    write_pair(tmp_path / below, "my-", suffix=suffix)
    source = tmp_path / below / f"my-images-idx3-ubyte{suffix}"
    for named in (tmp_path, source):
        assert_holds(read_labelled(named, DIGITS, raw=raw), NOISE, CLASSES.tolist(), source)


@pytest.mark.parametrize(
    ("train", "test"),
    [("train-", "t10k-"), ("emnist-digits-train-", "emnist-digits-test-"), ("zebra-", "test-")],
)
def test_the_test_pair_counts(tmp_path: Path, train: str, test: str) -> None:
    write_pair(tmp_path, train, np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8))
    write_pair(tmp_path, test)
    found = read_labelled(tmp_path, DIGITS, raw=False)
    assert found.labels.tolist() == CLASSES.tolist()
    assert found.source.name == f"{test}images-idx3-ubyte"


def test_a_training_pair_alone_counts_too(tmp_path: Path) -> None:
    write_pair(tmp_path, "train-")
    assert read_labelled(tmp_path, DIGITS, raw=False).source.name == "train-images-idx3-ubyte"


def test_the_file_with_the_images_names_its_pair(tmp_path: Path) -> None:
    write_pair(tmp_path, "t10k-")
    write_pair(tmp_path, "train-", NOISE[:2], CLASSES[:2])
    write_pair(tmp_path, "", NOISE[:1], CLASSES[:1])
    for name, labels in (("train-images-idx3-ubyte", [3, 1]), ("images-idx3-ubyte", [3])):
        assert read_labelled(tmp_path / name, DIGITS, raw=False).labels.tolist() == labels


def test_emnist_is_turned_upright(tmp_path: Path) -> None:
    write_pair(tmp_path, "emnist-digits-test-", NOISE.transpose(0, 2, 1))
    found = read_labelled(tmp_path, DIGITS, raw=False)
    np.testing.assert_array_equal(found.images, NOISE)
    assert found.images.flags.c_contiguous


def test_several_sets_to_test_on(tmp_path: Path) -> None:
    write_pair(tmp_path, "emnist-digits-test-")
    write_pair(tmp_path, "emnist-mnist-test-")
    said = refusal(tmp_path)
    assert "more than one set" in said
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


@pytest.mark.parametrize("kind", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_a_damaged_idx_file(tmp_path: Path, kind: str) -> None:
    write_pair(tmp_path, "t10k-")
    path = tmp_path / f"t10k-{kind}"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is damaged (it ends after" in refusal(tmp_path)


def test_an_empty_idx_file(tmp_path: Path) -> None:
    write_pair(tmp_path, "t10k-", NOISE[:0], CLASSES[:0])
    assert "is empty: no sample in it" in refusal(tmp_path)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_manifest(tmp_path: Path, named: str, newline: str) -> None:
    write_picture(tmp_path / "one.png")
    write_picture(tmp_path / "deeper" / "two, and more.png", NOISE[0])
    lines = ["file\tkind\tlabel", "one.png\tphoto\t1", "", "deeper/two, and more.png\tscan\t0", ""]
    path = write_manifest(tmp_path, "\ufeff" + newline.join(lines))
    found = read_labelled(path if named == "file" else tmp_path, DIGITS, raw=False)
    assert_holds(found, np.stack([UPRIGHT, to_mnist(NOISE[0]).pixels]), [1, 0], path)


def test_a_manifest_has_any_name_when_it_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "pictures" / "one.png")
    path = write_manifest(tmp_path, "file\tlabel\npictures/one.png\tAnkle boot\n").rename(tmp_path / "mine")
    assert_holds(read_labelled(path, FASHION, raw=False), UPRIGHT[None], [9], path)


BAD_MANIFESTS = {
    "nothing": ("", "no column 'file'"),
    "no file": ("name\tlabel\none.png\t1\n", "no column 'file'"),
    "no label": ("file\tclass\none.png\t1\n", "no column 'label': its first line must name file and label"),
    "commas": ("file,label\none.png,1\n", "no column 'file'"),
    "no line": ("file\tlabel\n\n", "lists no picture"),
    "label": ("file\tlabel\none.png\t1\n\none.png\tten\n", "line 4: 'ten' is no label of the model"),
    "short line": ("file\tlabel\none.png\n", "line 2: '' is no label of the model, use one of 0, 1,"),
    "no name": ("file\tlabel\n\t1\n", "line 2: it names no file"),
    "zero byte": ("file\tlabel\none\0.png\t1\n", "line 2: it names no file"),
    "quote": ('file\tlabel\n"one.png\t1\none.png\t1\n', "is no tab-separated UTF-8 text"),
    "no such picture": ("file\tlabel\ntwo.png\t1\n", "two.png: No such file"),
    "text": ("file\tlabel\nmanifest.tsv\t1\n", "manifest.tsv is not a picture"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_what_is_wrong_with_a_manifest(tmp_path: Path, text: str, reason: str) -> None:
    write_picture(tmp_path / "one.png")
    path = write_manifest(tmp_path, text)
    said = refusal(tmp_path)
    assert reason in said
    assert str(path.parent) in said


def test_a_manifest_in_other_letters(tmp_path: Path) -> None:
    path = tmp_path / "manifest.tsv"
    path.write_text("file\tlabel\none.png\t1\n", encoding="utf-16")
    assert f"{path} is no tab-separated UTF-8 text" in refusal(tmp_path)


def test_labels_are_checked_before_pictures_are_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, "file\tlabel\nmissing.png\t1\nmissing.png\t11\n")
    assert "line 3: '11'" in refusal(tmp_path)


def test_a_folder_for_each_label(tmp_path: Path) -> None:
    write_picture(tmp_path / "Ankle boot" / "b.png")
    write_picture(tmp_path / "Ankle boot" / "old" / "c.png", NOISE[0])
    write_picture(tmp_path / "T-shirt_top" / "a.PNG")
    (tmp_path / "notes.txt").touch()
    other = to_mnist(NOISE[0]).pixels
    found = read_labelled(tmp_path, FASHION, raw=False)
    assert_holds(found, np.stack([UPRIGHT, other, UPRIGHT]), [9, 9, 0], tmp_path)


def test_folders_of_digits(tmp_path: Path) -> None:
    for digit in (7, 2):
        write_picture(tmp_path / str(digit) / "picture.png")
    assert read_labelled(tmp_path, DIGITS, raw=False).labels.tolist() == [2, 7]


def test_a_folder_that_is_no_label(tmp_path: Path) -> None:
    for name in ("1", "ten"):
        write_picture(tmp_path / name / "picture.png")
    assert f"{tmp_path / 'ten'}: 'ten' is no label of the model, use one of 0, 1," in refusal(tmp_path)


def test_a_folder_of_a_label_without_pictures(tmp_path: Path) -> None:
    write_picture(tmp_path / "1" / "picture.png")
    (tmp_path / "2").mkdir()
    assert f"{tmp_path / '2'} holds no pictures" in refusal(tmp_path)


def test_a_picture_beside_the_folders(tmp_path: Path) -> None:
    write_picture(tmp_path / "1" / "picture.png")
    write_picture(tmp_path / "stray.jpg")
    assert f"{tmp_path / 'stray.jpg'} has no label" in refusal(tmp_path)


def test_a_damaged_picture_in_a_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "1" / "picture.png")
    whole = (tmp_path / "1" / "picture.png").read_bytes()
    (tmp_path / "1" / "worse.png").write_bytes(whole[: len(whole) // 2])
    assert f"{tmp_path / '1' / 'worse.png'} is a damaged picture" in refusal(tmp_path)


def test_raw_takes_pictures_as_they_are(tmp_path: Path) -> None:
    write_picture(tmp_path / "1" / "picture.png", NOISE[0])
    np.testing.assert_array_equal(read_labelled(tmp_path, DIGITS, raw=True).images, NOISE[:1])
    assert not np.array_equal(read_labelled(tmp_path, DIGITS, raw=False).images, NOISE[:1])
    write_picture(tmp_path / "1" / "wide.png")
    assert f"{tmp_path / '1' / 'wide.png'} is not 28x28 pixels" in refusal(tmp_path, raw=True)


@pytest.mark.parametrize("raw", [False, True])
def test_a_blank_picture_is_black(tmp_path: Path, raw: bool) -> None:
    write_picture(tmp_path / "1" / "blank.png", np.zeros((28, 28), np.uint8))
    found = read_labelled(tmp_path, DIGITS, raw=raw)
    assert found.labels.tolist() == [1]
    assert not found.images.any()


def test_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path, reason in ((tmp_path, "holds no labelled images"), (tmp_path / "none", "no such data")):
        said = refusal(path)
        assert reason in said
        assert "a pair of IDX files (...images-idx3-ubyte and ...labels-idx1-ubyte" in said


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(folder: Path) -> list[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Permission denied"


def test_names_that_the_system_refuses(tmp_path: Path) -> None:
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "no such data" in refusal(Path(os.devnull))


def test_on_a_terminal_a_bar_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for number in range(4):
        write_picture(tmp_path / str(number) / "picture.png")
    for stream, shows in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        read_labelled(tmp_path, DIGITS, raw=False)
        assert ("100%" in stream.getvalue()) is shows
        assert bool(stream.getvalue()) is shows
