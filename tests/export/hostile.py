"""Hostile files, made when they are needed: name and bytes of each; the name begins with its kind.

Whatever would run code creates the canary, so that nobody has to guess whether it ran.
"""

import bdb
import ctypes
import functools
import importlib
import io
import json
import marshal
import operator
import os
import pickle
import pydoc
import random
import runpy
import shutil
import struct
import subprocess
import tarfile
import time
import timeit
import warnings
import webbrowser
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
import torch.fx.graph_module
import torch.utils.collect_env
from numpy.testing._private import utils as numpy_utils
from PIL import Image

from trainer.model import MLP

File = tuple[str, bytes]

EXTENSION = 240
"""A code of copyreg for private use."""


def corpus(canary: Path, script: Path) -> Iterator[File]:
    """All hostile files; `script` is a Python file that creates the canary."""
    makers = (
        code_files(canary, script),
        legacy_files(),
        archives_of_other_kinds(),
        odd_zips(),
        odd_programs(),
        odd_tensors(),
        odd_states(),
        odd_safetensors(),
        damaged_files(),
        other_files(),
        large_files(),
    )
    for files in makers:
        yield from files


def small_state() -> dict[str, torch.Tensor]:
    """The state_dict of a net with two hidden units, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(MLP((2,)).state_dict())


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save writes for `value`."""
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


# --- zip archives, byte by byte


@dataclass(frozen=True)
class Entry:
    """A record of a zip archive, and what its headers claim where that is not the truth."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None

    def headers(self, offset: int) -> tuple[bytes, bytes]:
        """The header before the record, and its line in the directory."""
        name = self.name.encode()
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        size = len(self.data) if self.size is None else self.size
        common = (20, self.flags, self.method, 0, 33, crc, len(self.data), size, len(name), 0)
        local = struct.pack("<4s5H3I2H", b"PK\x03\x04", *common)
        central = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, *common, 0, 0, 0, 0, offset)
        return local + name, central + name


def zipped(entries: Sequence[Entry]) -> bytes:
    """A zip archive of `entries`, in their order, without a question."""
    body, directory = bytearray(), bytearray()
    for entry in entries:
        local, central = entry.headers(len(body))
        body += local + entry.data
        directory += central
    count = min(len(entries), 0xFFFF)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + end)


def bomb(mebibytes: int) -> bytes:
    """A deflated stream of so many MiB of zeros, made of one MiB and its copies."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1024**2)
    first = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)
    again = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)
    return first + again * (mebibytes - 1) + deflate.flush()


# --- programs of pickles that torch.save would write, and others


@dataclass(frozen=True)
class Storage:
    """What a program says of a storage: a type, the name of its record, how many numbers it has."""

    kind: Any
    key: Any
    count: Any
    tag: str = "storage"


@dataclass(frozen=True)
class View:
    """What a program says of a tensor."""

    storage: Any
    offset: Any
    size: Any
    stride: Any

    def __reduce__(self) -> tuple[Any, ...]:
        rest = (self.offset, self.size, self.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, (self.storage, *rest)


class Writer(pickle.Pickler):
    """Writes storages as torch.save does."""

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Storage):
            return value.tag, value.kind, value.key, "cpu", value.count
        return None


def written(value: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    Writer(stream, protocol).dump(value)
    return stream.getvalue()


def views(state: Mapping[str, torch.Tensor]) -> dict[str, View]:
    """The tensors of `state`, each in a storage of its own, as a program describes them."""
    return {
        key: View(
            Storage(torch.FloatStorage, str(number), value.numel()), 0, tuple(value.shape), value.stride()
        )
        for number, (key, value) in enumerate(state.items())
    }


def records(program: bytes, state: Mapping[str, torch.Tensor]) -> list[Entry]:
    """The records that torch.save writes for `state`, with this program."""
    numbers = [value.numpy().tobytes() for value in state.values()]
    return [
        Entry("net/data.pkl", program),
        Entry("net/byteorder", b"little"),
        *(Entry(f"net/data/{number}", data) for number, data in enumerate(numbers)),
        Entry("net/version", b"3\n"),
    ]


def archive(program: bytes) -> bytes:
    """An archive with the records of the small state and any program."""
    return zipped(records(program, small_state()))


# --- code


class Call:
    """Is pickled as `function(*arguments)`; the function may be a call, too."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __call__(self) -> None:
        """Pickle wants a function that can be called."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def member(module: str, name: str) -> Call:
    return Call(getattr, Call(importlib.import_module, module), name)


def payloads(canary: Path, script: Path) -> dict[str, Any]:
    """Objects that create the canary when they are unpickled."""
    file, shell, words = str(canary), f"touch {canary}", ["touch", str(canary)]
    line = f"open({file!r}, 'w').close()"
    touch = str(shutil.which("touch"))
    return {
        "posix.system": Call(os.system, shell),
        "os.system": Call(member("os", "system"), shell),
        "os.popen": Call(Call(getattr, Call(os.popen, shell), "read")),
        "os.posix_spawn": Call(os.waitpid, Call(os.posix_spawn, touch, words, {}), 0),
        "os.mkdir": Call(os.mkdir, file),
        "subprocess.Popen": Call(Call(getattr, Call(subprocess.Popen, words), "wait")),
        "subprocess.run": Call(subprocess.run, words),
        "subprocess.check_output": Call(subprocess.check_output, words),
        "subprocess.getoutput": Call(subprocess.getoutput, shell),
        "eval": Call(eval, line),
        "exec": Call(exec, line),
        "compile": Call(exec, Call(compile, line, "net", "exec")),
        "open": Call(open, file, "w"),
        "__import__": Call(Call(getattr, Call(__import__, "os"), "system"), shell),
        "runpy.run_path": Call(runpy.run_path, str(script)),
        "Path.touch": Call(Path.touch, canary),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, shell))),
        "marshal.loads": Call(
            Call(
                member("types", "FunctionType"),
                Call(marshal.loads, marshal.dumps(compile(line, "net", "exec"))),
                {},
            )
        ),
        "torch._load_from_bytes": Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, shell))),
        "torch.collect_env.run": Call(torch.utils.collect_env.run, shell),
        "torch.fx": Call(torch.fx.graph_module._exec_with_source, line, {}),
        "functools.partial": Call(functools.partial(os.system, shell)),
        "functools.reduce": Call(
            Call(functools.reduce, getattr, ["system"], Call(importlib.import_module, "os")), shell
        ),
        "map": Call(list, Call(map, os.system, [shell])),
        "operator.attrgetter": Call(
            Call(operator.attrgetter("system"), Call(importlib.import_module, "os")), shell
        ),
        "operator.methodcaller": Call(
            operator.methodcaller("system", shell), Call(importlib.import_module, "os")
        ),
        "webbrowser.open": Call(webbrowser.GenericBrowser("touch").open, file),
        "shutil.copyfile": Call(shutil.copyfile, str(script), file),
        "shutil.rmtree": [Call(os.makedirs, f"{file}/gone"), Call(shutil.rmtree, f"{file}/gone")],
        "timeit.timeit": Call(timeit.timeit, line, "pass", time.perf_counter, 1),
        "bdb.Bdb.run": Call(Call(getattr, Call(bdb.Bdb), "run"), line),
        "pydoc.pipepager": Call(pydoc.pipepager, "", shell),
        "ctypes.CDLL": Call(Call(getattr, Call(ctypes.CDLL, None), "system"), shell.encode()),
        "numpy of objects": np.array([Call(os.system, shell)], dtype=object),
        "numpy.runstring": Call(numpy_utils.runstring, line, {}),
        "as a key": {Call(os.system, shell): 1},
    }


def hand_written(canary: Path) -> dict[str, bytes]:
    """Pickles with instructions that Python's own pickler no longer writes."""
    shell = f"touch {canary}".encode()
    text = b"S'" + shell + b"'\n"
    string = b"X" + struct.pack("<I", len(shell)) + shell
    register = b"ccopyreg\nadd_extension\n(S'posix'\nS'system'\nI%d\ntR0" % EXTENSION
    return {
        "INST": b"(" + text + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "EXT1": register + b"\x82" + bytes([EXTENSION]) + b"(" + text + b"tR.",
        "EXT4": register + b"\x84" + struct.pack("<I", EXTENSION) + b"(" + text + b"tR.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940\x30h\x00h\x01\x93" + string + b"\x85R.",
        "after STOP": b"\x80\x02}q\x00.cos\nsystem\n" + string + b"\x85R.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n)\x81" + b"cos\nsystem\n" + string + b"\x85R.",
    }


def code_pickles(canary: Path, script: Path) -> Iterator[File]:
    """Plain pickles that create the canary, in every protocol; NAME PROTOCOL as names."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for name, payload in payloads(canary, script).items():
            yield f"{name} {protocol}", pickle.dumps(payload, protocol)
    yield from hand_written(canary).items()


def code_files(canary: Path, script: Path) -> Iterator[File]:
    """Each payload alone, as the program of a genuine archive, in it beside tensors, and as a record more."""
    genuine = records(written(views(small_state())), small_state())
    for name, program in code_pickles(canary, script):
        yield f"code/plain {name}", program
        yield f"code/program {name}", archive(program)
        yield f"code/record {name}", zipped([*genuine, Entry("net/extra.pkl", program)])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for name, payload in payloads(canary, script).items():
            value = {**views(small_state()), "extra": payload}
            yield f"code/beside tensors {name} {protocol}", archive(written(value, protocol))


# --- what is a file of PyTorch, and no state_dict of today


def legacy_files() -> Iterator[File]:
    """Files of PyTorch before 1.6, which are pickles after pickles, or a tar of them."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = saved(small_state(), _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        yield f"legacy/pickles {protocol}", data
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member_info = tarfile.TarInfo(name)
            data = pickle.dumps({"protocol_version": 1000, "little_endian": True})
            member_info.size = len(data)
            tar.addfile(member_info, io.BytesIO(data))
    yield "legacy/tar", stream.getvalue()
    yield "legacy/plain dict", pickle.dumps({key: value.numpy() for key, value in small_state().items()})


def archives_of_other_kinds() -> Iterator[File]:
    """Archives of TorchScript and torch.export, as they are and as their directories alone tell."""
    net, pixels = MLP((2,)).eval(), torch.zeros(1, 28, 28)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in (
            ("script", torch.jit.script(Doubler())),
            ("trace", torch.jit.trace(net, pixels)),
        ):
            stream = io.BytesIO()
            torch.jit.save(module, stream)
            yield f"other archive/torchscript {name}", stream.getvalue()
        stream = io.BytesIO()
        torch.export.save(torch.export.export(net, (pixels,)), stream)
        yield "other archive/pt2", stream.getvalue()
    genuine = records(written(views(small_state())), small_state())
    for name in ("constants.pkl", "code/net.py", "archive_format", "models/model.json"):
        yield f"other archive/with {name}", zipped([*genuine, Entry(f"net/{name}", b"x")])
    yield "other archive/docx", zipped([Entry("[Content_Types].xml", b"<x/>"), Entry("word/a.xml", b"<x/>")])


class Doubler(torch.nn.Module):
    """A module with a weight, for TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * 2


def odd_zips() -> Iterator[File]:
    """Genuine records in archives that torch.save would not write."""
    genuine = records(written(views(small_state())), small_state())
    program, byteorder, first, *rest = genuine
    huge = Entry("net/data.pkl", bomb(2048), method=8, crc=0, size=2048 * 1024**2)
    yield "zip/bomb as program", zipped([huge, *genuine[1:]])
    yield "zip/bomb as tensor", zipped([program, byteorder, replace(huge, name="net/data/0"), *rest])
    yield "zip/bomb as record", zipped([*genuine, replace(huge, name="net/.note")])
    yield "zip/bomb of one size", zipped([replace(huge, size=len(huge.data)), *genuine[1:]])
    for entry in genuine:
        raw = zlib.compress(entry.data, wbits=-15)
        deflated = replace(entry, data=raw, method=8, crc=zlib.crc32(entry.data), size=len(entry.data))
        others = [other for other in genuine if other is not entry]
        yield f"zip/deflated {entry.name}", zipped([deflated, *others])
        yield f"zip/bad CRC {entry.name}", zipped([replace(entry, crc=zlib.crc32(b"other")), *others])
        yield f"zip/encrypted {entry.name}", zipped([replace(entry, flags=1), *others])
        yield f"zip/twice {entry.name}", zipped([*genuine, entry])
        yield f"zip/longer {entry.name}", zipped([replace(entry, size=len(entry.data) + 1), *others])
        yield f"zip/4 GB {entry.name}", zipped([replace(entry, size=0xFFFFFFFE), *others])
        if "data" in entry.name:
            yield f"zip/without {entry.name}", zipped(others)
    places = ("../net/data/0", "/net/data/0", "net/../../evil", "/etc/passwd", "net//data/9", "", "data.pkl")
    more = ("other/data.pkl", "net/data/0/", "net\\data\\0", "C:/evil", "net/data/../data.pkl")
    for name in places + more:
        yield f"zip/name {name!r}", zipped([*genuine, Entry(name, first.data)])
    yield (
        "zip/100,000 records",
        zipped([*genuine, *(Entry(f"net/data/{i}", b"") for i in range(10, 100_010))]),
    )
    yield "zip/no records", zipped([])
    yield "zip/program alone", zipped([program])
    yield "zip/big-endian", zipped([program, replace(byteorder, data=b"big"), first, *rest])
    for method in (1, 9, 12, 14, 93, 99):
        yield f"zip/method {method}", zipped([program, byteorder, replace(first, method=method), *rest])
    whole = zipped(genuine)
    yield "zip/junk before", b"junk" + whole
    yield "zip/directory elsewhere", whole[:-10] + struct.pack("<I", 0xFFFFFF00) + whole[-6:]
    yield "zip/end alone", whole[-22:]
    yield "zip/no end", whole[:-22]


# --- programs


def odd_programs() -> Iterator[File]:
    """Programs that want the memory, the time or the stack of who follows them, or are none."""
    text, one = b"X\x01\x00\x00\x00a", b"K\x01"
    order, rebuild = b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"
    parameter, storage = b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nFloatStorage\n"
    twins = b")" + b"q\x00h\x00\x86" * 60  # a tuple of two of a tuple of two of ...
    bodies = {
        "nothing": b"",
        "no STOP": b"}",
        "STOP alone": b".",
        "two results": b"}}.",
        "a list": b"]" + b"K\x01a" * 50_000 + b".",
        "a string": text + b".",
        "a number": one + b".",
        "no dict but a tuple": text + one + b"\x86.",
        "empty stack": b"s.",
        "no mark": b"u.",
        "marks without end": b"(" * 200_000 + b".",
        "odd items": b"}(" + text + b"u.",
        "items of a tuple": b")" + text + one + b"s.",
        "dict in itself": b"}q\x00" + text + b"h\x00s.",
        "deep tuple as a key": b"})" + b"\x85" * 200_000 + one + b"s.",
        "deep tuple as a value": b"}" + text + b")" + b"\x85" * 200_000 + b"s.",
        "deep dicts": b"}" + (text + b"}") * 30_000 + b"s" * 30_000 + b".",
        "twins as a key": b"}" + twins + one + b"s.",
        "twins as a value": b"}" + text + twins + b"s.",
        "twins as an argument": order + twins + b"R.",
        "twins as a storage": b"}" + text + twins + b"Qs.",
        "twins as a record": b"}" + text + b"(X\x07\0\0\0storage" + storage + twins + text + one + b"tQs.",
        "memo of 2 GB": b"}r\xff\xff\xff\x7f.",
        "memo that is empty": b"h\x07.",
        "string of 4 GB": b"}X\xff\xff\xff\xffa.",
        "string of 8 EB": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.",
        "bytes of 4 GB": b"B\xff\xff\xff\xffa.",
        "bytearray of 8 EB": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7fa.",
        "number of 2 GB": b"\x8b\xff\xff\xff\x7f\x01.",
        "number of 100,000 digits": b"I" + b"9" * 100_000 + b"\n.",
        "frame of 8 EB": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        "buffer": b"\x97.",
        "unknown instruction": b"}\xff.",
        "key of 100 kB": b"}X" + struct.pack("<I", 100_000) + b"k" * 100_000 + one + b"s.",
        "key with a line break": b"}X\x09\x00\x00\x00a\nb\x1b[31mc" + one + b"s.",
        "key that is no UTF-8": b"}X\x02\x00\x00\x00\xff\xfe" + one + b"s.",
        "key that is half a character": b"}X\x03\x00\x00\x00\xed\xa0\x80" + one + b"s.",
        "key that is None": b"}N" + one + b"s.",
        "key that is a dict": b"}}" + one + b"s.",
        "ten thousand keys": b"}(" + b"".join(b"X\x05\0\0\0%05dK\x01" % i for i in range(10_000)) + b"u.",
        "call of a string": text + b")R.",
        "call of a dtype": storage + b")R.",
        "call with arguments": order + text + b"\x85R.",
        "call with a dict": order + b"}R.",
        "tensor of nothing": rebuild + b")R.",
        "tensor of strings": b"}" + text + rebuild + b"(" + text * 6 + b"tRs.",
        "parameter of a string": b"}" + text + parameter + text + b"\x88}\x87Rs.",
        "parameter of nothing": parameter + b")R.",
        "build of a global": order + b"}b.",
        "build of a string": text + b"}b.",
        "storage of a string": text + b"Q.",
        "storage of a number": one + b"Q.",
        "set": b"\x8f.",
        "name with a line break": b"cos\x1b[2J\x07" + b"x" * 1000 + b"\nsystem\n.",
        "half a name": b"ctorch",
        "of 10 MB": b"}" + b"N0" * 5_000_000 + b".",
    }
    for name, body in bodies.items():
        yield f"program/{name}", archive(b"\x80\x02" + body)
    yield "program/protocol 255", archive(b"\x80\xff}.")


def odd_tensors() -> Iterator[File]:
    """A state_dict with one tensor that is not what its record holds."""
    good = views(small_state())
    weight, whole = good["fc1.weight"], good["fc1.weight"].storage
    huge, large = 2**31 - 1, 10**9
    odd: dict[str, Any] = {
        **{f"count {count!r}": replace(weight, storage=replace(whole, count=count))
           for count in (0, 1, 1567, 1569, 2 * 1568, large, huge, -1, True, 1568.0, "1568", None, 2**62)},
        **{f"record {key!r}": replace(weight, storage=replace(whole, key=key))
           for key in ("9", "", "../data.pkl", "0/", "1", 0, None, ("0",), "/etc/passwd", "0\n")},
        **{f"offset {offset!r}": replace(weight, offset=offset)
           for offset in (1, -1, huge, 2**62, "0", None, 1568, True)},
        **{f"size {size!r}": replace(weight, size=size)
           for size in ((large, 784), (huge, huge), (2**62, 2**62), (3, 784), (2, 785), (-2, 784), (-2, -784),
                        (0, 784), (2**24, 0), (), (2,), (2, 784, 1), (1,) * 20, "ab", None, (2.0, 784))},
        **{f"stride {stride!r}": replace(weight, stride=stride)
           for stride in ((huge, 1), (785, 1), (-784, 1), (784, -1), (1,), (), (784, 1, 1), None)},
        "a size of zeros": replace(weight, size=(large, 784), stride=(0, 0)),
        "a plane of one number": View(whole, 0, (2, 7840), (0, 0)),
        **{f"type {kind.__name__}": replace(weight, storage=replace(whole, kind=kind))
           for kind in (torch.DoubleStorage, torch.LongStorage, torch.ByteStorage, torch.BoolStorage,
                        torch.ComplexFloatStorage, torch.QInt8Storage, OrderedDict)},
        "a tag": replace(weight, storage=replace(whole, tag="module")),
        "no storage": replace(weight, storage="0"),
        "a tensor as storage": replace(weight, storage=weight),
        "a storage alone": whole,
    }  # fmt: skip
    for name, view in odd.items():
        yield f"tensor/{name}", archive(written({**good, "fc1.weight": view}))


# --- states


def odd_states() -> Iterator[File]:
    """Whole files that hold other tensors than the net has, in both formats."""
    state = small_state()
    wrong: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        others = {name: other for name, other in state.items() if name != key}
        wrong[f"without {key}"] = others
        wrong[f"renamed {key}"] = {**others, key.replace("fc", "linear"): value}
        wrong[f"transposed {key}"] = {**state, key: value.unsqueeze(0).transpose(0, -1).contiguous()}
        wrong[f"NaN in {key}"] = {**state, key: torch.full_like(value, float("nan"))}
        wrong[f"infinity in {key}"] = {**state, key: torch.full_like(value, -float("inf"))}
        wrong[f"one more in {key}"] = {**state, key: torch.cat([value, value[:1]])}
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):
            wrong[f"{dtype} in {key}"] = {**state, key: value.to(dtype)}
        for prefix in ("module.", "_orig_mod.", "net."):
            wrong[f"{prefix}{key}"] = {**others, prefix + key: value}
    last = max(key for key in state if key.endswith("bias"))
    wrong["11 classes"] = {
        **state,
        last: torch.zeros(11),
        last.replace("bias", "weight"): torch.zeros(11, 2),
    }
    wrong["one key more"] = {**state, "fc1.weight_g": torch.zeros(1)}
    wrong["fc100"] = {**state, "fc100.weight": torch.zeros(1)}
    wrong["fc99"] = {**state, "fc99.weight": torch.zeros(1)}
    wrong["fc0"] = {**state, "fc0.weight": torch.zeros(1)}
    wrong["no keys"] = {}
    wrong["scalars"] = {key: torch.tensor(1.0) for key in state}
    wrong["empty"] = {key: torch.zeros(0) for key in state}
    wrong["all module."] = {f"module.{key}": value for key, value in state.items()}
    wrong["long keys"] = {f"{key}{'x' * 500}\n{number}": value for number, (key, value) in
                          enumerate(state.items())}  # fmt: skip
    wrong["99 layers"] = {f"fc{layer}.bias": torch.zeros(layer) for layer in range(1, 100)}
    for name, tensors in wrong.items():
        yield f"state/{name}", saved(tensors)
        yield f"state/{name} in safetensors", safetensors.torch.save(tensors)
    more: dict[str, Any] = {
        "whole net": MLP((2,)),
        "checkpoint": {"model": state, "epoch": 3, "optimizer": {"param_groups": [{"lr": 0.1}]}},
        "in a dict": {"model": state},
        "list": list(state.items()),
        "tensor": state["fc1.weight"],
        "number": 3,
        "None": None,
        "numbers as keys": dict(enumerate(state.values())),
        "tuples as keys": {(key,): value for key, value in state.items()},
        "sparse": {**state, "fc1.weight": state["fc1.weight"].to_sparse()},
        "meta": {**state, "fc1.weight": torch.zeros(2, 784, device="meta")},
        "expanded": {**state, "fc1.weight": torch.zeros(1).expand(10**9, 784)},
        "complex": {**state, "fc1.bias": torch.zeros(2, dtype=torch.complex64)},
        "bool": {**state, "fc1.bias": torch.zeros(2, dtype=torch.bool)},
        "numpy": {key: value.numpy() for key, value in state.items()},
        "protocol 4": state,
    }
    for name, value in more.items():
        yield f"state/{name}", saved(value, pickle_protocol=4 if name == "protocol 4" else 2)


# --- safetensors


def safe(header: bytes | Mapping[str, Any], numbers: bytes, size: int | None = None) -> bytes:
    """A safetensors file with any header, and any claim of its size."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + numbers


def odd_safetensors() -> Iterator[File]:
    """Headers that claim what is not there."""
    good = safetensors.torch.save(small_state())
    size = int.from_bytes(good[:8], "little")
    text, numbers = good[8 : 8 + size], good[8 + size :]
    header = json.loads(text)

    def changed(**changes: Any) -> bytes:
        return safe({**header, "fc1.weight": {**header["fc1.weight"], **changes}}, numbers)

    start, end = header["fc1.weight"]["data_offsets"]
    for claim in (0, 1, size - 1, size + 1, len(good), 10**8, 2**31, 2**63, 2**64 - 1):
        yield f"safetensors/header of {claim}", safe(text, numbers, claim)
    yield "safetensors/header of 100 MB, sparse", safe(b"{" + b" " * 2**20, numbers, 10**8)
    yield "safetensors/header of 2 MB", safe(text + b" " * 2**21, numbers)
    for dtype in ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "F33", "", None, 32):
        yield f"safetensors/type {dtype}", changed(dtype=dtype)
    for shape in ([784, 2], [2, 785], [1568], [], [2**62, 4], [2**63, 2**63], [-2, -784], [0, 784],
                  [2**60, 0], [2.0, 784], None, "2", [2, [784]], {"2": 784}):  # fmt: skip
        yield f"safetensors/shape {shape}", changed(shape=shape)
    for offsets in ([0, 0], [end, start], [start, 2**62], [start + 4, end + 4], [start - 4, end - 4], [start],
                    [start, end, end], [-1, end], [0.5, end], None, [start, end + 4]):  # fmt: skip
        yield f"safetensors/offsets {offsets}", changed(data_offsets=offsets)
    yield "safetensors/overlap", changed(data_offsets=header["fc1.bias"]["data_offsets"], shape=[2])
    yield "safetensors/empty and huge", safe({"fc1.weight": {"dtype": "F32", "shape": [2**60, 0],
                                                             "data_offsets": [0, 0]}}, b"")  # fmt: skip
    yield "safetensors/trailing bytes", good + b"\0"
    yield "safetensors/trailing pickle", good + pickle.dumps(1)
    yield "safetensors/missing byte", good[:-1]
    yield "safetensors/header alone", good[: 8 + size]
    twice = text.rstrip()[:-1] + b"," + text.strip()[1:]
    yield "safetensors/keys twice", safe(twice, numbers)
    yield "safetensors/inner keys twice", safe(text.replace(b'"dtype"', b'"dtype":"F32","dtype"', 1), numbers)
    for name, body in {
        "no UTF-8": text.replace(b"fc1", b"fc\xff", 1),
        "UTF-16": text.decode().encode("utf-16-le"),
        "no JSON": b"{" + b"x" * 100,
        "a list": b"{]",
        "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep dicts": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        "long number": b'{"a":' + b"9" * 100_000 + b"}",
        "NaN": b'{"a":NaN}',
        "empty": b"{}",
        "half a character": b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        "a line break in a key": b'{"a\\nb":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        "metadata of numbers": b'{"__metadata__":{"a":1}}',
        "not closed": text.rstrip()[:-1],
    }.items():
        yield f"safetensors/header {name}", safe(body, numbers)


# --- damage, other files, large files


def damaged_files() -> Iterator[File]:
    """Genuine files cut short, and with one bit the other way round.

    A flip in the numbers of a safetensors file cannot be noticed, as they have no checksum: only headers.
    """
    draw = random.Random(1917)
    for name, data in (("zip", saved(small_state())), ("safetensors", safetensors.torch.save(small_state()))):
        for length in sorted(
            {*range(16), *draw.sample(range(len(data)), 30), *range(len(data) - 9, len(data))}
        ):
            yield f"cut/{name} to {length}", data[:length]
        in_reach = range(len(data)) if name == "zip" else range(8 + int.from_bytes(data[:8], "little"))
        for position in draw.sample(in_reach, 250):
            bit = draw.randrange(8)
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            yield f"flip/{name} byte {position} bit {bit}", bytes(flipped)


def other_files() -> Iterator[File]:
    """What people name by mistake."""
    draw = random.Random(1917)
    yield "other/empty", b""
    for length in (1, 7, 8, 9, 100, 10_000, 1_000_000):
        yield f"other/random {length}", draw.randbytes(length)
        yield f"other/random {length} as zip", b"PK\x03\x04" + draw.randbytes(length)
        yield f"other/zeros {length}", bytes(length)
    node = onnx.helper.make_node("Identity", ["image"], ["logits"])
    value = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("image", "logits")
    ]
    graph = onnx.helper.make_graph([node], "net", value[:1], value[1:])
    yield "other/onnx", onnx.helper.make_model(graph).SerializeToString()
    stream = io.BytesIO()
    Image.new("L", (28, 28)).save(stream, "PNG")
    yield "other/png", stream.getvalue()
    yield "other/html", b"<!DOCTYPE html><title>404</title>"
    yield "other/json", b'{"model": [1, 2, 3]}'
    yield "other/git lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "other/gzip", zlib.compress(saved(small_state()), wbits=31)
    yield "other/elf", b"\x7fELF" + bytes(100)


def large_files() -> Iterator[File]:
    """Files near the limit of 64 MiB, and small ones that stand for more."""
    hidden = 20_000
    sizes = {
        "fc1.weight": (hidden, 784),
        "fc1.bias": (hidden,),
        "fc2.weight": (10, hidden),
        "fc2.bias": (10,),
    }
    state = {key: torch.zeros(size) for key, size in sizes.items()}
    state["fc2.bias"][9] = float("nan")
    yield "large/zip with one NaN", saved(state)
    yield "large/safetensors with one NaN", safetensors.torch.save(state)
    yield "large/over 64 MiB", saved({"fc1.weight": torch.zeros(17 * 1024**2)})
    wide = {f"fc{layer}.bias": torch.zeros(10**6) for layer in (1, 2)}
    yield "large/weights of 4 TB", saved({**wide, "fc3.weight": torch.zeros(10, 2)})
    yield "large/weights of 4 TB in safetensors", safetensors.torch.save(wide)
    shared = torch.zeros(1000, 1000)
    layers = {f"fc{layer}.weight": shared.detach() for layer in range(2, 99)}
    biases = {f"fc{layer}.bias": shared[0] for layer in range(1, 99)}
    ends = {"fc1.weight": shared.flatten()[: 784 * 1000].view(1000, 784), "fc99.weight": shared[:10]}
    yield "large/99 layers that share 4 MB", saved({**layers, **biases, **ends, "fc99.bias": shared[0, :10]})


def special_files(folder: Path) -> Iterator[Path]:
    """Makes what is no regular file, or none that can be read, in `folder`."""
    made = {
        name: folder / name
        for name in ("a folder", "a pipe", "a loop", "missing", "endless", "dangling", "holes")
    }
    made["a folder"].mkdir()
    os.mkfifo(made["a pipe"])
    made["a loop"].symlink_to("a loop")
    made["endless"].symlink_to("/dev/zero")
    made["dangling"].symlink_to("nowhere")
    with made["holes"].open("wb") as stream:
        stream.truncate(10**12)
    yield from made.values()
    yield folder / ("long " * 100)
    yield folder / "holes" / "below a file"
