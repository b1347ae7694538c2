"""`mnist infer` and `mnist info` as people call them: answers, exit codes, bad input."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_cli import commands, process
from serve_cli.answer import Answer
from serve_cli.errors import InputError
from serve_cli.infer import read_chunk
from serve_cli.preprocess import Preprocessed
from serve_cli.spec import MODEL_FILES
from tests.command import Mnist
from tests.conftest import CALIBRATION
from trainer.data import Dataset

KEYS = {"file", "label", "best_guess", "confidence", "probabilities", "preprocessing"}


@pytest.fixture
def blank_png(tmp_path: Path) -> Path:
    path = tmp_path / "blank.png"
    Image.new("L", (40, 40), 255).save(path)
    return path


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_label_and_confidence(mnist: Mnist, digit_png: Path, artifact: Path) -> None:
    result = mnist("infer", digit_png, "--model", artifact)
    assert result.code == 0
    assert result.out.startswith(f"{digit_png}: 7 (")
    assert result.err == ""


def test_json_is_one_object_a_line(mnist: Mnist, digit_png: Path, artifact: Path) -> None:
    result = mnist("infer", digit_png, digit_png, "--model", artifact, "--json")
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert len(answers) == 2
    for answer in answers:
        assert set(answer) == KEYS
        assert answer["file"] == str(digit_png)
        assert answer["label"] == answer["best_guess"] == 7
        assert len(answer["probabilities"]) == 10
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert answer["confidence"] == max(answer["probabilities"])
        assert {"polarity", "box", "stroke_width", "warnings"} <= set(answer["preprocessing"])


def test_top_k_ranks(mnist: Mnist, digit_png: Path, artifact: Path) -> None:
    text = mnist("infer", digit_png, "--model", artifact, "--top-k", 3).out
    assert text.count("%") == 3
    answer = json.loads(mnist("infer", digit_png, "--model", artifact, "--top-k", 3, "--json").out)
    ranking = [entry["probability"] for entry in answer["top"]]
    assert ranking == sorted(answer["probabilities"], reverse=True)[:3]
    assert answer["top"][0]["label"] == 7


@pytest.mark.parametrize("where", ["artifact", "file", "run"])
def test_model_is_a_file_an_artifact_or_a_run(
    mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path, where: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "artifact").symlink_to(artifact)
    model = {"artifact": artifact, "file": artifact / "model.onnx", "run": run}[where]
    assert mnist("infer", digit_png, "--model", model).code == 0


def test_folders_are_read_in_order(mnist: Mnist, digit: np.ndarray, artifact: Path, tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "deeper/c.png"):
        path = tmp_path / "digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digit).save(path)
    result = mnist("infer", tmp_path / "digits", "--model", artifact, "--json")
    files = [Path(json.loads(line)["file"]).name for line in result.out.splitlines()]
    assert files == ["a.png", "b.png", "c.png"]


def test_dash_is_standard_input(
    mnist: Mnist, digit_png: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, digit_png.read_bytes())
    assert mnist("infer", "-", "--model", artifact).out.startswith("-: 7 (")


def test_more_pictures_than_a_batch(mnist: Mnist, digit_png: Path, artifact: Path) -> None:
    result = mnist("infer", *[digit_png] * 600, "--model", artifact)
    assert result.out.count(": 7 (") == 600


def test_a_blank_picture_is_not_sure(mnist: Mnist, blank_png: Path, artifact: Path) -> None:
    result = mnist("infer", blank_png, "--model", artifact)
    assert result.code == 3
    assert result.out == f"{blank_png}: not sure, the picture is blank\n"
    answer = json.loads(mnist("infer", blank_png, "--model", artifact, "--json").out)
    assert answer["label"] is None
    assert answer["reason"] == "the picture is blank"
    assert len(answer["probabilities"]) == 10


def test_below_the_floor_is_not_sure(mnist: Mnist, digit_png: Path, artifact: Path) -> None:
    confidence = json.loads(mnist("infer", digit_png, "--model", artifact, "--json").out)["confidence"]
    sure = mnist("infer", digit_png, "--model", artifact, "--min-confidence", confidence - 1e-6)
    assert sure.code == 0
    unsure = mnist("infer", digit_png, "--model", artifact, "--json", "--min-confidence", 1)
    assert unsure.code == 3
    assert json.loads(unsure.out)["label"] is None
    answer = json.loads(unsure.out)
    assert answer["best_guess"] == 7
    assert answer["reason"] == "confidence is below 100.0%"
    text = mnist("infer", digit_png, "--model", artifact, "--min-confidence", 1).out
    assert text == f"{digit_png}: not sure, {answer['reason']}; best guess 7 ({confidence:.1%})\n"


def test_raw_takes_28x28_as_it_is(mnist: Mnist, digit: np.ndarray, artifact: Path, tmp_path: Path) -> None:
    shifted = tmp_path / "shifted.png"
    Image.fromarray(np.roll(digit, 4, axis=1)).save(shifted)
    auto = json.loads(mnist("infer", shifted, "--model", artifact, "--json").out)
    raw = json.loads(mnist("infer", shifted, "--model", artifact, "--json", "--preprocess", "raw").out)
    assert auto["probabilities"] != raw["probabilities"]
    large = tmp_path / "large.png"
    Image.new("L", (30, 40)).save(large)
    mnist("infer", large, "--model", artifact, "--preprocess", "raw").assert_refused("large.png", "28x28")


def test_the_floor_is_the_models_own(
    mnist: Mnist, digit_png: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_cli.infer_main.floor_of", lambda calibration: 1.0)
    assert mnist("infer", digit_png, "--model", artifact).code == 3
    assert mnist("infer", digit_png, "--model", artifact, "--min-confidence", 0).code == 0


def test_a_calibrated_model_stores_its_floor(
    mnist: Mnist, digit: np.ndarray, calibrated: Path, tmp_path: Path
) -> None:
    """Grey noise over a digit is doubtful to any net."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(np.where(digit > 0, pixels, 0).astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    command = ("infer", tmp_path, "--model", calibrated, "--json", "--preprocess", "raw")
    answers = [json.loads(line) for line in mnist(*command).out.splitlines()]
    floor = CALIBRATION["min_confidence"]
    assert [answer["label"] is None for answer in answers] == [
        answer["confidence"] < floor for answer in answers
    ]


def test_csv_is_a_table(mnist: Mnist, digit_png: Path, blank_png: Path, artifact: Path) -> None:
    result = mnist("infer", digit_png, blank_png, "missing.png", "--model", artifact, "--csv")
    assert result.code == 2
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert list(rows[0]) == [
        "file",
        "label",
        "best_guess",
        "confidence",
        "reason",
        *(f"p{n}" for n in range(10)),
    ]
    assert [row["file"] for row in rows] == [str(digit_png), str(blank_png)]
    assert [row["label"] for row in rows] == ["7", ""]
    assert [row["reason"] for row in rows] == ["", "the picture is blank"]
    answer = json.loads(mnist("infer", digit_png, "--model", artifact, "--json").out)
    assert [float(rows[0][f"p{n}"]) for n in range(10)] == answer["probabilities"]
    assert float(rows[0]["confidence"]) == answer["confidence"]


def test_a_csv_row_is_a_line(mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path) -> None:
    digit_png.rename(tmp_path / "a\nb\x1b[31m, c.png")
    result = mnist("infer", tmp_path, "--model", artifact, "--csv")
    assert len(result.out.splitlines()) == 2
    (row,) = csv.DictReader(io.StringIO(result.out))
    assert row["file"] == f"{tmp_path}/a\\nb\\x1b[31m, c.png"


def test_csv_has_no_ranking(mnist: Mnist, digit_png: Path, artifact: Path) -> None:
    command = ("infer", digit_png, "--model", artifact, "--csv", "--top-k")
    mnist(*command, 3).assert_refused("leave --top-k out")
    assert mnist(*command, 1).code == 0


def test_what_a_folder_holds_besides_pictures_is_counted(
    mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path
) -> None:
    assert mnist("infer", tmp_path, "--model", artifact).err == ""
    (tmp_path / "deeper").mkdir()
    for name in ("notes.txt", "deeper/photo.heic", "deeper/.hidden"):
        (tmp_path / name).write_text("x")
    result = mnist("infer", tmp_path, digit_png, tmp_path / "deeper" / "photo.heic", "--model", artifact)
    assert result.out.count(": 7 (") == 2
    said, counted = result.err.splitlines()
    assert "photo.heic" in said
    assert counted.startswith(f"mnist infer: {tmp_path}: left out 2 files not called .bmp, ")
    assert counted.endswith(": name them one by one if they matter")
    (tmp_path / "notes.txt").unlink()
    result = mnist("infer", tmp_path, "--model", artifact)
    assert (result.code, result.err.count("left out 1 file not")) == (0, 1)


def test_hidden_pictures_are_skipped_and_counted(
    mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path
) -> None:
    for name in ("._digit.png", "@eaDir/digit.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(digit_png.read_bytes())
    result = mnist("infer", tmp_path, "--model", artifact)
    assert (result.code, result.out.count("\n")) == (0, 1)
    assert result.err == f"mnist infer: {tmp_path}: skipped 2 hidden pictures (._digit.png, @eaDir)\n"
    assert mnist("infer", tmp_path / "._digit.png", "--model", artifact).code == 0


# Tables of pictures.


@pytest.fixture
def table(mnist5k: Dataset, tmp_path: Path) -> np.ndarray:
    """Genuine digits, uint8 [200, 28, 28], also in test.csv, a.npz, a.npy and an IDX file of tmp_path."""
    images = mnist5k.test.images[:200].numpy()
    np.savetxt(tmp_path / "test.csv", images.reshape(200, 784), "%d", delimiter=",")
    np.savez(tmp_path / "a.npz", x_test=images)
    np.save(tmp_path / "a.npy", images)
    (tmp_path / "idx").write_bytes(b"\0\0\x08\3" + np.array(images.shape, ">u4").tobytes() + images.tobytes())
    return images


@pytest.mark.parametrize("name", ["test.csv", "a.npz", "a.npy", "idx"])
def test_a_table_gives_an_answer_a_row(
    mnist: Mnist, table: np.ndarray, artifact: Path, tmp_path: Path, name: str
) -> None:
    result = mnist("infer", tmp_path / name, "--model", artifact, "--json")
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["file"] for answer in answers] == [f"{tmp_path / name}:{row}" for row in range(1, 201)]
    Image.fromarray(table[7]).save(tmp_path / "eighth.png")
    flags = ("--model", artifact, "--json", "--preprocess", "raw")  # as train and evaluate take rows
    (alone,) = mnist("infer", tmp_path / "eighth.png", *flags).out.splitlines()
    assert {**json.loads(alone), "file": ""} == {**answers[7], "file": ""}


def test_a_table_becomes_a_submission(
    mnist: Mnist, table: np.ndarray, artifact: Path, tmp_path: Path
) -> None:
    guesses = [
        json.loads(line)["best_guess"]
        for line in mnist("infer", tmp_path / "test.csv", "--model", artifact, "--json").out.splitlines()
    ]
    result = mnist("infer", tmp_path / "test.csv", "--model", artifact, "--csv", "--min-confidence", 1)
    assert result.code == 0
    assert list(csv.reader(io.StringIO(result.out))) == [
        ["ImageId", "Label"],
        *([str(row), str(guess)] for row, guess in enumerate(guesses, 1)),
    ]
    assert result.err.startswith(f"mnist infer: {tmp_path / 'test.csv'}: not sure of 200 of 200 rows (")
    for others in ([tmp_path / "test.csv"] * 2, [tmp_path / "a.npz"]):
        assert mnist("infer", *others, "--model", artifact, "--csv").out.startswith("file,label,best_guess,")


def test_what_the_net_saw_of_a_table(mnist: Mnist, table: np.ndarray, artifact: Path, tmp_path: Path) -> None:
    command = ("infer", tmp_path / "test.csv", "--model", artifact, "--save-input")
    mnist(*command, tmp_path / "one.png").assert_refused("takes one picture: name a folder")
    for _ in range(2):
        assert mnist(*command, f"{tmp_path}/seen/").code in (0, 3)
    assert len([*(tmp_path / "seen").iterdir()]) == 200
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "seen" / "test-8.png")), table[7])


def test_a_damaged_table_does_not_stop_the_others(
    mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    result = mnist("infer", tmp_path / "bad.csv", digit_png, "--model", artifact)
    assert result.code == 2
    assert "bad.csv is a CSV file with 2 columns" in result.err
    assert ": 7 (" in result.out


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_is_no_file(mnist: Mnist, artifact: Path, scheme: str) -> None:
    url = f"{scheme}://example.org/digit.png"
    mnist("infer", url, "--model", artifact).assert_refused(f"{url} is an address", f"curl -LO {url}")


def test_warnings_stand_in_brackets() -> None:
    probabilities = np.eye(10, dtype=np.float32)[7]
    picture = Preprocessed(np.ones((28, 28), np.uint8), None, {"warnings": ["faint", "cut off"]})
    answer = Answer.of("a.png", picture, probabilities, range(10), floor=0)
    assert answer.to_text(1) == "a.png: 7 (100.0%) [faint; cut off]"


def test_options_may_stand_between_pictures(mnist: Mnist, digit_png: Path, artifact: Path) -> None:
    result = mnist("infer", digit_png, "--model", artifact, digit_png, "--top-k", 2, digit_png)
    assert result.out.count(": 7 (") == 3


def test_typer_reaches_the_same_code(
    digit_png: Path, artifact: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["infer", str(digit_png), "--top-k", "2", "-m", str(artifact)]
    assert process.run(commands.app, "mnist", arguments) == 0
    assert capfd.readouterr().out.startswith(f"{digit_png}: 7 (")
    assert process.run(commands.app, "mnist", ["infer", "--help"]) == 0
    assert capfd.readouterr().out.startswith("Usage: mnist infer ")


# Many pictures: read in workers, answered in order.


@pytest.fixture
def crowd(mnist5k: Dataset, tmp_path: Path) -> Path:
    """1,500 genuine digits, one that is damaged, one that is blank."""
    folder = tmp_path / "crowd"
    folder.mkdir()
    for number, image in enumerate(mnist5k.train.images[:1500].numpy()):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    (folder / "0700.png").write_bytes(b"I am not a picture")
    Image.new("L", (28, 28)).save(folder / "0900.png")
    return folder


def test_workers_change_no_bit(
    mnist: Mnist, crowd: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("infer", crowd, "--model", artifact, "--json")
    monkeypatch.setattr("serve_cli.infer.ALONE_S", 1000)
    alone = mnist(*command)
    started: list[int] = []
    monkeypatch.setattr("serve_cli.infer.ALONE_S", 0)
    monkeypatch.setattr("serve_cli.workers.cores", lambda: started.append(3) or 3)
    together = mnist(*command)
    assert started == [3]
    assert alone == together
    assert alone.code == 2
    assert "0700.png is not a picture but text" in alone.err
    answers = [json.loads(line) for line in alone.out.splitlines()]
    assert [Path(answer["file"]).name for answer in answers] == [
        f"{n:04}.png" for n in range(1500) if n != 700
    ]
    assert [Path(answer["file"]).name for answer in answers if answer["label"] is None] == ["0900.png"]
    single = mnist("infer", crowd / "1234.png", "--model", artifact, "--json").out
    assert single == alone.out.splitlines(keepends=True)[1233]


def test_standard_input_among_many(
    mnist: Mnist, crowd: Path, digit_png: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_cli.infer.ALONE_S", 0)
    stdin(monkeypatch, digit_png.read_bytes())
    lines = mnist("infer", crowd, "-", "--model", artifact).out.splitlines()
    assert len(lines) == 1500
    assert lines[-1].startswith("-: 7 (")


# Bad input: one line on stderr, exit code 2, and the other pictures still answered.


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.png", None, "No such file"),
        ("empty.png", b"", "empty"),
        ("text.png", b"I am not a picture", "not a picture"),
        ("line\nbreak\x1b[31m.png", b"I am not a picture", "not a picture"),
    ],
)
def test_a_bad_file(
    mnist: Mnist, artifact: Path, tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    result = mnist("infer", path, "--model", artifact)
    result.assert_refused(message)
    assert "\x1b" not in result.err


def test_a_truncated_picture(mnist: Mnist, digit_png: Path, artifact: Path) -> None:
    data = digit_png.read_bytes()
    digit_png.write_bytes(data[: len(data) - 40])
    mnist("infer", digit_png, "--model", artifact).assert_refused("digit.png", "damaged")


def test_a_folder_without_pictures(mnist: Mnist, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    mnist("infer", tmp_path, "--model", artifact).assert_refused(str(tmp_path), "holds no pictures")


def test_empty_standard_input(mnist: Mnist, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"")
    mnist("infer", "-", "--model", artifact).assert_refused("standard input is empty")


def test_a_bad_file_does_not_stop_the_others(
    mnist: Mnist, digit_png: Path, blank_png: Path, artifact: Path
) -> None:
    result = mnist("infer", "missing.png", digit_png, blank_png, digit_png, "--model", artifact)
    assert result.code == 2  # worse than not sure
    assert result.out.count(": 7 (") == 2
    assert len(result.err.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_a_picture_without_permission(digit_png: Path, artifact: Path) -> None:
    """In a child that has given up root, for root may read everything."""
    digit_png.chmod(0)
    code = f"""
import os, sys
from pathlib import Path
from serve_cli.picture import read_file
from serve_cli.errors import InputError
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    read_file(Path({str(digit_png)!r}))
except InputError as error:
    sys.exit(0 if "cannot read" in str(error) else str(error))
sys.exit("it was read")
"""
    for folder in digit_png.parents:
        if str(folder).startswith(str(digit_png.parents[2])):
            folder.chmod(0o755)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("data", "what"), [(b"", "is no model"), (b"not onnx", "that onnxruntime")])
def test_a_model_that_is_not_onnx(
    mnist: Mnist, digit_png: Path, tmp_path: Path, data: bytes, what: str
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(data)
    mnist("infer", digit_png, "--model", model).assert_refused("model.onnx", what)


def test_a_model_that_is_not_there(mnist: Mnist, digit_png: Path, tmp_path: Path) -> None:
    mnist("infer", digit_png, "--model", tmp_path / "nope").assert_refused("no such model")
    mnist("infer", digit_png, "--model", tmp_path).assert_refused("holds no model.onnx")


def test_the_bundled_model_is_the_default(
    mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_cli.infer_main.BUNDLED_MODEL", tmp_path / "bundled")
    mnist("infer", digit_png).assert_refused("no such model", "bundled")
    (tmp_path / "bundled").symlink_to(artifact)
    assert ": 7 (" in mnist("infer", digit_png).out


@pytest.mark.parametrize(
    "arguments",
    [
        ("infer",),
        ("infer", "x.png", "--colour"),
        ("infer", "x.png", "--top-k", "11"),
        ("infer", "x.png", "--top-k", "0"),
        ("infer", "x.png", "--top-k", "many"),
        ("infer", "x.png", "--top", "3"),
        ("infer", "x.png", "--min-confidence", "nan"),
        ("infer", "x.png", "--json", "--csv"),
        ("infer", "x.png", "--json", "--show"),
        ("infer", "x.png", "--csv", "--show"),
        ("infer", "x.png", "--min-confidence", "2"),
        ("infer", "x.png", "--preprocess", "magic"),
        ("inferr",),
        (),
    ],
)
def test_bad_usage(mnist: Mnist, arguments: tuple[str, ...]) -> None:
    mnist(*arguments).assert_refused("--help")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
@pytest.mark.parametrize("picture", ["file", "-"])
def test_closed_streams_are_no_traceback(digit_png: Path, artifact: Path, closed: str, picture: str) -> None:
    name = "-" if picture == "-" else digit_png
    command = f"{sys.executable} -m serve_cli.app infer {name} --model {artifact} < {digit_png} {closed}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert result.returncode == (2 if picture == "-" and "0<&-" in closed else 0)


def test_odd_names_are_one_line(mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path) -> None:
    odd = tmp_path / "new\nline\x1b[31m.png"
    odd.write_bytes(digit_png.read_bytes())
    result = mnist("infer", odd, "--model", artifact)
    assert result.out.startswith(f"{tmp_path}/new\\nline\\x1b[31m.png: 7 (")
    answer = json.loads(mnist("infer", odd, "--model", artifact, "--json").out)
    assert answer["file"] == str(odd)


def test_a_name_that_is_too_long_does_not_stop_the_others(
    mnist: Mnist, digit_png: Path, artifact: Path
) -> None:
    result = mnist("infer", "a" * 300 + ".png", digit_png, "--model", artifact)
    assert result.code == 2
    assert ": 7 (" in result.out
    assert "too long" in result.err
    mnist("infer", digit_png, "--model", "a" * 300).assert_refused("too long")


def test_an_empty_name_is_not_the_current_folder(mnist: Mnist, artifact: Path) -> None:
    mnist("infer", "", "--model", artifact).assert_refused("empty name")


def test_closed_pipe_is_not_a_traceback(digit_png: Path, artifact: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "serve_cli.app",
        "infer",
        *[str(digit_png)] * 300,
        "--model",
        str(artifact),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()
    assert child.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_not_a_traceback(digit_png: Path, artifact: Path) -> None:
    command = [sys.executable, "-m", "serve_cli.app", "infer", str(digit_png), "--model", str(artifact)]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "No space left" in result.stderr


# What a model says about itself.


@pytest.mark.parametrize("name", [file.name for file in MODEL_FILES.values()])
def test_info_prints_the_contract(mnist: Mnist, artifact: Path, name: str) -> None:
    contract = json.loads(mnist("info", artifact / name, "--json").out)
    assert contract["labels"] == list(range(10))
    assert contract["normalization"] == {"mean": 0.5, "std": 0.5}
    assert contract["parity"]["argmax_flips"] <= 2
    assert contract["training"]["recipe"] == "notebook"
    text = mnist("info", artifact / name).out
    assert text.startswith(f"file: {artifact / name} (")
    assert "  layers: 784-128-64-10" in text
    assert "  confusion: 10 entries, see --json" in text
    assert max(map(len, text.splitlines())) <= 220


def test_info_of_a_folder_with_torchscript_alone(
    mnist: Mnist, artifact: Path, digit_png: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.torchscript.pt").symlink_to(artifact / "model.torchscript.pt")
    assert mnist("info", tmp_path).code == 0
    mnist("infer", digit_png, "--model", tmp_path).assert_refused("holds no model.onnx", "mnist export")
    model = tmp_path / "model.torchscript.pt"
    mnist("infer", digit_png, "--model", model).assert_refused("is a PyTorch file", "--format onnx")


def test_info_of_a_file_without_a_contract(mnist: Mnist, digit_png: Path, run_directory: Path) -> None:
    mnist("info", digit_png).assert_refused("digit.png", "is no model that onnxruntime")
    mnist("info", run_directory / "mnist_model.pth").assert_refused("mnist_model.pth", "contract")
    mnist("info", "nope.onnx").assert_refused("no such model")


def test_info_of_a_damaged_archive(mnist: Mnist, artifact: Path, tmp_path: Path) -> None:
    data = bytearray((artifact / "model.torchscript.pt").read_bytes())
    position = data.find(b'"format_version"')
    data[position + 3] ^= 1
    path = tmp_path / "model.torchscript.pt"
    path.write_bytes(data)
    mnist("info", path).assert_refused("model.torchscript.pt", "damaged")


def test_names_after_two_dashes_may_begin_with_one(
    mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digit_png.rename("-x.png")
    for arguments in (("--json", "--", "-x.png"), ("--json", "./-x.png"), ("-x.png", "--json")):
        result = mnist("infer", "--model", artifact, *arguments)
        if arguments[0] == "-x.png":
            result.assert_refused("-x.png")
        else:
            assert json.loads(result.out)["label"] == 7


def test_a_file_that_is_called_dash_is_no_standard_input(
    mnist: Mnist, digit_png: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digit_png.rename("-")
    stdin(monkeypatch, b"")
    assert json.loads(mnist("infer", "./-", "--model", artifact, "--json").out)["label"] == 7


def test_errors_do_not_keep_the_bytes_that_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "zeros.png"
    path.write_bytes(bytes(1000))
    (error,) = read_chunk([(str(path), None)], raw=False).about
    assert isinstance(error, InputError)
    assert error.__traceback__ is error.__cause__ is error.__context__ is None
