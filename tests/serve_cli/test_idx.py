"""IDX files are read within bounds; what is wrong with one is said in a line."""

import gzip
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from serve_cli.idx import IMAGE, LABEL, Damaged, find_idx, read_idx

SEVEN_IMAGES = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
SEVEN_LABELS = np.array([0, 9, 1, 8, 2, 7, 3], np.uint8)


def stored(values: np.ndarray) -> bytes:
    """The bytes of an IDX file that holds `values`, uint8."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.mark.parametrize("samples", [7, None])
@pytest.mark.parametrize(("values", "item"), [(SEVEN_IMAGES, IMAGE), (SEVEN_LABELS, LABEL)])
def test_plain_and_gz_hold_the_same(
    tmp_path: Path, values: np.ndarray, item: tuple[int, ...], samples: int | None
) -> None:
    (tmp_path / "plain").write_bytes(stored(values))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(stored(values)))
    for path in (tmp_path / "plain", tmp_path / "packed.gz"):
        idx = read_idx(path, item, samples)
        assert idx.values.dtype == np.uint8
        np.testing.assert_array_equal(idx.values, values)
        assert len(idx) == 7
        assert idx.size == len(stored(values))
        assert idx.digest("sha256") == hashlib.sha256(stored(values)).hexdigest()


def test_the_plain_file_is_taken_before_the_gz(tmp_path: Path) -> None:
    assert find_idx(tmp_path, "labels") is None
    (tmp_path / "labels.gz").touch()
    assert find_idx(tmp_path, "labels") == tmp_path / "labels.gz"
    (tmp_path / "labels").touch()
    assert find_idx(tmp_path, "labels") == tmp_path / "labels"


GOOD = stored(SEVEN_IMAGES)
BAD_IMAGES = {
    "nothing": (b"", "starts with nothing"),
    "short magic": (GOOD[:3], "starts with 000008, not with 00000803"),
    "text": (b"<!DOCTYPE html>" + GOOD, "starts with 3c21444f"),
    "int32": (b"\x00\x00\x0c\x03" + GOOD[4:], "starts with 00000c03"),
    "dimensions": (stored(SEVEN_LABELS), "starts with 00000801, not with 00000803"),
    "short header": (GOOD[:15], "within its header, after 15 bytes"),
    "size": (stored(np.zeros((7, 32, 20), np.uint8)), "images are 32x20, not 28x28"),
    "no samples": (stored(np.zeros((0, 28, 28), np.uint8)), "is empty"),
    "too many": (GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:], "promises 4,294,967,295 samples, more than"),
    "missing byte": (GOOD[:-1], "ends after 5,503 of the 5,504 bytes"),
    "trailing byte": (GOOD + b"\x00", "has more than the 5,504 bytes"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("content", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_what_is_no_idx_file_of_images(tmp_path: Path, content: bytes, reason: str, suffix: str) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(Damaged, match=reason):
        read_idx(path, IMAGE, None)


def test_the_known_number_of_samples(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(GOOD)
    with pytest.raises(Damaged, match="promises 7 samples, not 8"):
        read_idx(tmp_path / "images", IMAGE, 8)


@pytest.mark.parametrize("label", [10, 255])
def test_a_label_above_nine(tmp_path: Path, label: int) -> None:
    (tmp_path / "labels").write_bytes(stored(np.array([9, 0, label], np.uint8)))
    with pytest.raises(Damaged, match=f"label {label} at 2, labels are 0 to 9"):
        read_idx(tmp_path / "labels", LABEL, None)


PACKED = gzip.compress(GOOD)
BAD_GZ = {
    "not packed": (GOOD, "Not a gzipped file"),
    "check sum": (PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:], "CRC check failed"),
    "length": (PACKED[:-1] + b"\x01", "Incorrect length"),
    "truncated": (PACKED[:-20], "Compressed file ended"),
    "no deflate": (PACKED[:10] + b"\xff" + PACKED[11:], "invalid block type"),
    "text behind it": (PACKED + b"trailing", "Not a gzipped file"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_GZ.values(), ids=BAD_GZ)
def test_a_damaged_gz(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(Damaged, match=f"as a .gz it cannot be read: .*{reason}"):
        read_idx(tmp_path / "images.gz", IMAGE, None)


def test_a_bomb_is_refused_at_the_expected_size(tmp_path: Path) -> None:
    """64 MB of zeros lie behind seven images; no more than one byte of them is unpacked."""
    (tmp_path / "images.gz").write_bytes(gzip.compress(GOOD + bytes(64_000_000), compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match="has more than the 5,504 bytes"):
            read_idx(tmp_path / "images.gz", IMAGE, 7)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
