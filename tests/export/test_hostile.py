"""No hostile file runs code, takes memory, hangs or speaks: a child opens all of them and is watched."""

import codecs
import json
import operator
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from export.weights import load_net
from serve_cli.errors import InputError
from serve_cli.model_file import read_contract
from serve_cli.runtime import Predictor
from tests.export import hostile
from tests.export.hostile_onnx import onnx_files
from trainer.model import MLP

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")

ROOT = Path(__file__).parents[2]
SEVEN = np.zeros((7, 28, 28), np.uint8)
MAX_GROWTH = 256 * 1024**2
MAX_LINE = 400
"""Characters of an error, the path aside."""

TIMEOUT_S = 120
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED, EQUAL, OTHER = "refused", "equal", "other"


class Loader(NamedTuple):
    """Something that opens files, and the bytes that tell whether it opened what was meant."""

    load: Callable[[Path], Any]
    content: Callable[[Any], bytes]


def content_of_net(net: MLP) -> bytes:
    return b"".join(value.numpy().tobytes() for value in net.state_dict().values())


def unpickle(path: Path) -> Any:
    """The loader that nobody should write: it shows that the watch sees what it must."""
    return pickle.loads(path.read_bytes())


LOADERS = {
    "load_net": Loader(load_net, content_of_net),
    "Predictor": Loader(Predictor, lambda predictor: predictor.predict(SEVEN).logits.tobytes()),
    "read_contract": Loader(read_contract, lambda contract: contract.to_json().encode()),
    "unpickle": Loader(unpickle, lambda result: b""),
}


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one loader did with one file; `growth` is of the peak of the process's memory, in bytes."""

    name: str
    loader: str
    outcome: str
    message: str
    events: list[str]
    canary: bool
    spoke: bool
    growth: int
    seconds: float


# --- in the child


class Watch:
    """Calls loaders and notes what they do. Its audit hook stays for the rest of the process."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary
        self.path: Path | None = None
        self.events: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note every event while a file is open, but that this file is read."""
        if self.path is None:
            return
        if event == "open" and arguments[0] == str(self.path) and not arguments[2] & WRITING:
            return
        self.events.append(f"{event} {arguments!r:.100}")

    def observe(self, name: str, path: Path, loader: str, genuine: bytes) -> Observation:
        self.events = []
        said, before = said_so_far(), reset_memory()
        start = time.perf_counter()
        self.path = path
        try:
            result = LOADERS[loader].load(path)
        except InputError as error:
            outcome, message = REFUSED, str(error)
        except BaseException as error:
            outcome, message = OTHER, f"{type(error).__name__}: {error}"
        else:
            self.path = None
            outcome, message = (EQUAL if LOADERS[loader].content(result) == genuine else OTHER), "loaded"
        self.path = None
        return Observation(
            name=name,
            loader=loader,
            outcome=outcome,
            message=message.replace(str(path), "PATH"),
            events=self.events,
            canary=self.take_canary(),
            spoke=said_so_far() != said,
            growth=memory("VmHWM") - before,
            seconds=time.perf_counter() - start,
        )

    def take_canary(self) -> bool:
        """Whether there is one; then there is none any more."""
        if self.canary.is_dir():
            self.canary.rmdir()
            return True
        found = self.canary.exists()
        self.canary.unlink(missing_ok=True)
        return found


def memory(field: str) -> int:
    """A size that the kernel states of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def reset_memory() -> int:
    """Let the peak begin anew; return what is used now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def said_so_far() -> int:
    """Bytes on standard output and error, both of which are files here."""
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fstat(1).st_size + os.fstat(2).st_size


def child(folder: Path, loaders: Sequence[str]) -> None:
    """Open every file that names.json lists; note each, so that the last one tells of a death."""
    names: dict[str, str] = json.loads((folder / "names.json").read_text())
    genuine = {loader: LOADERS[loader].content(LOADERS[loader].load(folder / loader)) for loader in loaders}
    codecs.lookup("cp437")  # zipfile's for old names; Python imports a codec when it is first needed
    watch = Watch(folder / "canary")
    with (folder / "observations").open("w") as stream:
        for path, name in names.items():
            for loader in loaders:
                observation = watch.observe(name, Path(path), loader, genuine[loader])
                print(json.dumps(asdict(observation)), file=stream, flush=True)


# --- in the parent


def observe(
    folder: Path, files: Iterable[hostile.File], paths: Iterable[Path], loaders: Sequence[str]
) -> Any:
    """Write `files`, let a child open them and `paths` with `loaders`, and return what it saw."""
    names = {str(path): f"special/{path.name[:20]}" for path in paths}
    for number, (name, data) in enumerate(files):
        path = folder / f"{number}.pth"
        path.write_bytes(data)
        names[str(path)] = name
    (folder / "names.json").write_text(json.dumps(names))
    with (folder / "said").open("w") as said:
        command = [sys.executable, "-m", "tests.export.test_hostile", str(folder), *loaders]
        done = subprocess.run(command, cwd=ROOT, stdout=said, stderr=said, timeout=TIMEOUT_S, check=False)
    observations = [
        Observation(**json.loads(line)) for line in (folder / "observations").read_text().splitlines()
    ]
    assert done.returncode == 0, (done.returncode, observations[-1:], (folder / "said").read_text()[-2000:])
    assert len(observations) == len(names) * len(loaders)
    return observations


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory, calibrated: Path) -> list[Observation]:
    folder = tmp_path_factory.mktemp("hostile")
    model = (calibrated / "model.onnx").read_bytes()
    (folder / "load_net").write_bytes(hostile.saved(hostile.small_state()))
    for loader in ("Predictor", "read_contract"):
        (folder / loader).write_bytes(model)
    (folder / "specials").mkdir()
    files = [*hostile.corpus(folder / "canary", write_script(folder)), *onnx_files(model)]
    loaders = ("load_net", "Predictor", "read_contract")
    return observe(folder, files, hostile.special_files(folder / "specials"), loaders)


def write_script(folder: Path) -> Path:
    script = folder / "script.py"
    script.write_text(f"open({str(folder / 'canary')!r}, 'w').close()\n")
    return script


def test_the_corpus_is_large(observations: list[Observation]) -> None:
    kinds = Counter(seen.name.partition("/")[0] for seen in observations)
    assert len(observations) >= 230
    assert len(kinds) >= 12
    assert len({(seen.name, seen.loader) for seen in observations}) == len(observations)
    assert Counter(seen.loader for seen in observations).keys() == LOADERS.keys() - {"unpickle"}


def test_every_file_is_refused_in_one_line(observations: list[Observation]) -> None:
    """A bit that nobody reads may be any; the net is then the genuine one, bit for bit.

    Who asks for the contract alone may get the genuine one: that runs nothing.
    """
    for seen in observations:
        if seen.outcome == EQUAL and (seen.name.startswith("flip/") or seen.loader == "read_contract"):
            continue
        assert seen.outcome == REFUSED, seen
        assert "PATH" in seen.message, seen
        assert len(seen.message) <= MAX_LINE, seen
        assert seen.message.isprintable(), seen
    assert any(seen.outcome == EQUAL for seen in observations)


def test_no_file_runs_code(observations: list[Observation]) -> None:
    assert [seen for seen in observations if seen.canary or seen.events] == []


def test_no_file_makes_a_loader_speak(observations: list[Observation]) -> None:
    assert [seen for seen in observations if seen.spoke] == []


def test_no_file_takes_much_memory(observations: list[Observation]) -> None:
    assert [seen for seen in observations if seen.growth > MAX_GROWTH] == []


def test_the_watch_sees_what_it_must(tmp_path: Path) -> None:
    """Every payload works, and is seen, where a careless loader opens it."""
    (tmp_path / "unpickle").write_bytes(pickle.dumps({}))
    harmless = {"after STOP"}
    pickles = [
        (name, data)
        for name, data in hostile.code_pickles(tmp_path / "canary", write_script(tmp_path))
        if name not in harmless and not name.endswith((" 0", " 1", " 3", " 5"))
    ]
    speaking = ("print", pickle.dumps(hostile.Call(print, "hello")))
    hungry = ("memory", pickle.dumps(hostile.Call(operator.mul, b"x", MAX_GROWTH + 2**20)))
    *ran, spoke, grew = observe(tmp_path, [*pickles, speaking, hungry], [], ["unpickle"])
    assert len(ran) >= 70
    for seen in ran:
        assert seen.canary, seen
        assert any(not event.startswith("pickle.find_class") for event in seen.events), seen
    assert spoke.spoke
    assert grew.growth > MAX_GROWTH


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2:])
