"""From the bytes of a saved state_dict to its tensors. Nothing in a file is run, and no unpickler sees it.

torch.save writes a zip archive whose records are stored as they are:

    net/data.pkl     the program of a pickle, which says what the dict is made of
    net/data/0       the numbers of the first tensor, and so on
    net/byteorder    little or big

The program is read as data, an instruction at a time. Two dozen instructions and a dozen names are all that
torch.save needs for a dict of tensors; they become strings, numbers, tuples, dicts, and views of the records.
A safetensors file holds no program at all; its header is checked before the library gets it.
"""

import io
import json
import math
import pickletools
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from serve_cli.model_file import MAX_BYTES, ZIP_MAGIC
from serve_cli.process import printable

ADVICE = "save it with torch.save(model.state_dict(), PATH)"
AGAIN = "save it again with a current PyTorch: torch.save(model.state_dict(), PATH)"

MAX_PROGRAM = 256 * 1024
"""Bytes of the longest program and safetensors header that are read; the tutorial's net has 628 and 440."""

MAX_RECORDS = 1000
MAX_DIMENSIONS = 8

CENTRAL_HEADER = b"PK\x01\x02"
"""How each record's line in the directory of a zip archive begins."""

RECORD = re.compile(r"[^/]+/(data\.pkl|data/\d+|byteorder|version|\.[\w/]+)")
"""Names of records; those that begin with a dot are PyTorch's own notes, which nobody reads."""

ORDERED_DICT = "collections.OrderedDict"
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
NAMES = frozenset({ORDERED_DICT, TENSOR, PARAMETER, *DTYPES})
"""All that the program may name."""

DAMAGE = (
    AttributeError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,  # zipfile about encryption and versions, torch about sizes
    SafetensorError,
    TypeError,
    ValueError,
)
"""What reading damaged bytes raises, in zipfile, pickletools, safetensors, torch and here."""


class Refused(Exception):
    """Bytes that are no saved state_dict; the message goes on after "is refused, "."""

    def __init__(self, reason: str, advice: str = ADVICE) -> None:
        super().__init__(f"{reason}: {advice}")


def read_state(data: bytes) -> dict[str, Any]:
    """Read what torch.save or safetensors wrote: tensors by key; of other values only the fact remains.

    Tensors of a torch.save file may share memory and have any strides; none reaches beyond its record.

    Raises:
        Refused: it is something else, damaged, or would need more memory than the file has bytes.
    """
    try:
        if data.startswith(ZIP_MAGIC):
            return _read_zip(data)
        if data[8:9] == b"{":
            return _read_safetensors(data)
    except DAMAGE as error:
        raise Refused("it is damaged or not a state_dict") from error
    raise Refused("it is no zip archive of torch.save, and code in a file is never run", AGAIN)


def shown(name: str) -> str:
    """A name from a file as a short text for people, on one line."""
    return printable(name[:40]) + ("…" if len(name) > 40 else "")


def _read_safetensors(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if size > min(MAX_PROGRAM, len(data) - 8):
        raise Refused("its safetensors header is longer than it can be")
    try:
        json.loads(data[8 : 8 + size].decode(), object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("a header of many levels") from error
    state: dict[str, Any] = safetensors.torch.load(data)
    return state


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refused("its safetensors header has a key twice")
    return members


def _read_zip(data: bytes) -> dict[str, Any]:
    records = _records(data)
    if records.get("byteorder", b"little") != sys.byteorder.encode():
        raise Refused(f"its numbers are not {sys.byteorder}-endian")
    program = bytes(records["data.pkl"])
    if len(program) > MAX_PROGRAM:
        raise Refused("it is not a state_dict, its data.pkl is too long")
    for name in _globals(program):
        if name not in NAMES:
            raise Refused(f"it holds more than tensors ({shown(name)}) and code in a file is never run")
    state = _Program(records).follow(program)
    if not isinstance(state, dict):
        raise Refused("it is not a state_dict, it holds no dict")
    return state


def _records(data: bytes) -> dict[str, bytearray]:
    """The records of a zip archive by name, without the folder that all are in; each CRC is checked."""
    if data.count(CENTRAL_HEADER) > MAX_RECORDS:  # before a directory of a million lines is made
        raise Refused("it is not a state_dict, it has too many records")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        _check_kind([entry.filename for entry in entries])
        _check_entries(entries, len(data))
        return {entry.filename.partition("/")[2]: bytearray(archive.read(entry)) for entry in entries}


def _check_kind(names: list[str]) -> None:
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise Refused("it is a TorchScript archive, not a state_dict")
    if any(name.endswith("/archive_format") or "/models/" in name for name in names):
        raise Refused("it is a torch.export archive, not a state_dict")


def _check_entries(entries: list[zipfile.ZipInfo], available: int) -> None:
    names = [entry.filename for entry in entries]
    for name in names:
        if not RECORD.fullmatch(name):
            raise Refused(f"it has a record ({shown(name)}) that torch.save never writes")
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise Refused("it has two records of one name, or two folders", AGAIN)
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise Refused("a record in it is compressed or encrypted, which torch.save never does", AGAIN)
    if any(entry.file_size != entry.compress_size for entry in entries):
        raise ValueError("a stored record with two sizes")
    if sum(entry.file_size for entry in entries) > available:
        raise Refused("its records overlap or claim more bytes than it has", AGAIN)


def _globals(program: bytes) -> Iterator[str]:
    """What `program` names in modules, in any instruction that can.

    STACK_GLOBAL takes its name from the stack, most often two strings just before; whatever it
    names, `_Program` knows no such instruction.
    """
    strings = ["", ""]
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif opcode.name.startswith("EXT"):
            yield f"extension {argument}"
        elif isinstance(argument, str):
            strings.append(argument)


@dataclass(frozen=True, eq=False)
class _Global:
    """A name in the program; never what it stands for."""

    name: str


class _Program:
    """Follows a program of torch.save: a stack, marks on it, a memo. It makes and calls nothing foreign.

    Keys of dicts are strings: the hash of a tuple of tuples of tuples may take for ever.
    """

    def __init__(self, records: Mapping[str, bytearray]) -> None:
        self.records = records
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def follow(self, program: bytes) -> Any:
        """What is on the stack at the end."""
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name not in INSTRUCTIONS:
                raise Refused("it is not a state_dict, it holds more than tensors and their keys")
            INSTRUCTIONS[opcode.name](self, argument)
        (result,) = self.stack
        return result

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        return self.pop_from(len(self.stack) - count)

    def pop_from(self, start: int) -> list[Any]:
        if start < 0:
            raise IndexError("nothing on the stack")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop_to_mark(self) -> list[Any]:
        return self.pop_from(self.marks.pop())

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise Refused("it is not a state_dict but more, perhaps a checkpoint with one in it")
            self.top_dict()[key] = value

    def build(self) -> None:
        """Leave out what is attached to a dict: the versions of modules."""
        self.pop(1)
        self.top_dict()

    def top_dict(self) -> dict[str, Any]:
        if not isinstance(self.stack[-1], dict):
            raise TypeError("no dict on the stack")
        return self.stack[-1]

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if function.name == ORDERED_DICT and arguments == ():
            self.push({})
        elif function.name == TENSOR:
            self.push(_view(*arguments))
        elif function.name == PARAMETER:
            tensor, _requires_grad, _hooks = arguments
            self.push(tensor)
        else:
            raise TypeError("nothing that can be called so")

    def storage(self) -> None:
        """A record as a one-dimensional tensor."""
        ((kind, storage, record, _device, count),) = self.pop(1)
        if kind != "storage" or not isinstance(record, str) or type(count) is not int:
            raise TypeError("not how torch.save names a storage")
        dtype, numbers = DTYPES[storage.name], self.records[f"data/{record}"]
        if len(numbers) != count * dtype.itemsize:
            raise Refused("a tensor in it has not as many numbers as it claims", AGAIN)
        self.push(torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype))


def _view(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    """A tensor over `storage`, all of whose elements are there; `rest` says what else it is."""
    if any(rest[2:]):
        raise Refused("a tensor in it is a negated or conjugated view", "save tensor.resolve_neg().clone()")
    if not (isinstance(storage, Tensor) and isinstance(size, tuple) and len(size) <= MAX_DIMENSIONS):
        raise TypeError("not how torch.save names a tensor")
    if any(type(number) is not int or not 0 <= number <= MAX_BYTES for number in (offset, *size, *stride)):
        raise Refused("a tensor in it has an absurd size", AGAIN)
    if 0 in size:
        return torch.empty(size, dtype=storage.dtype)
    last = offset + sum((number - 1) * step for number, step in zip(size, stride, strict=True))
    if last >= len(storage) or math.prod(size) > len(storage):
        raise Refused("a tensor in it is larger than its numbers", AGAIN)
    return storage.as_strided(size, stride, offset)


INSTRUCTIONS: Mapping[str, Callable[[_Program, Any], None]] = {
    "PROTO": lambda program, _: None,
    "STOP": lambda program, _: None,
    "NONE": lambda program, _: program.push(None),
    "NEWTRUE": lambda program, _: program.push(True),
    "NEWFALSE": lambda program, _: program.push(False),
    "BININT": _Program.push,
    "BININT1": _Program.push,
    "BININT2": _Program.push,
    "BINUNICODE": _Program.push,
    "EMPTY_TUPLE": lambda program, _: program.push(()),
    "TUPLE": lambda program, _: program.push(tuple(program.pop_to_mark())),
    "TUPLE1": lambda program, _: program.push(tuple(program.pop(1))),
    "TUPLE2": lambda program, _: program.push(tuple(program.pop(2))),
    "TUPLE3": lambda program, _: program.push(tuple(program.pop(3))),
    "EMPTY_DICT": lambda program, _: program.push({}),
    "SETITEM": lambda program, _: program.set_items(program.pop(2)),
    "SETITEMS": lambda program, _: program.set_items(program.pop_to_mark()),
    "MARK": lambda program, _: program.mark(),
    "BINPUT": _Program.put,
    "LONG_BINPUT": _Program.put,
    "BINGET": lambda program, index: program.push(program.memo[index]),
    "LONG_BINGET": lambda program, index: program.push(program.memo[index]),
    "GLOBAL": lambda program, name: program.push(_Global(name.replace(" ", ".", 1))),
    "BINPERSID": lambda program, _: program.storage(),
    "REDUCE": lambda program, _: program.reduce(),
    "BUILD": lambda program, _: program.build(),
}
