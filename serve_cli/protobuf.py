"""Protobuf's wire format, as much of it as ONNX uses: https://protobuf.dev/programming-guides/encoding/.

onnxruntime shows neither the operators of a model nor its test vectors, the package onnx is not in the base
install, and a message is read here in fewer lines than it would take to describe it to google.protobuf.
"""

from collections.abc import Iterator

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
"""The wire types that are in use."""

LONGEST_VARINT = 10
TAGS = 2**32
"""Field number and wire type have 32 bits; a reader that takes more sees other fields than the next one."""

MOST_FIELDS = 100_000
"""Of one message; our models have a few dozen."""


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field, in order; a string or a message comes as bytes.

    Raises:
        ValueError: it is no protobuf message, or one of absurdly many fields.
    """
    at = 0
    for _ in range(MOST_FIELDS):
        if at == len(message):
            return
        key, at = _varint(message, at)
        if key >= TAGS:
            raise ValueError("a field number is too large")
        value: int | bytes
        if key & 7 == VARINT:
            value, at = _varint(message, at)
        else:
            size, at = _size(message, at, key & 7)
            if size > len(message) - at:
                raise ValueError("a field is longer than the rest")
            value, at = message[at : at + size], at + size
        yield key >> 3, value
    raise ValueError(f"more than {MOST_FIELDS:,} fields")


def _size(message: bytes, at: int, kind: int) -> tuple[int, int]:
    """Length of the value of a field of wire type `kind`, and where it begins."""
    if kind == LENGTH:
        return _varint(message, at)
    if kind in (EIGHT_BYTES, FOUR_BYTES):
        return (8 if kind == EIGHT_BYTES else 4), at
    raise ValueError(f"wire type {kind} is not in use")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and where the next thing begins."""
    value = 0
    for place, byte in enumerate(message[at : at + LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if byte == 0 and place:
                raise ValueError("a number has bytes too many")
            return value, at + place + 1
    raise ValueError("a number does not end")
