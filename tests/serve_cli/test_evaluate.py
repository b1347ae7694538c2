"""`mnist evaluate` as people call it: the report, the floor, bad input, and what it does not load."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from serve_cli import engine, evaluate, metrics, process
from tests.command import Mnist, Result
from tests.serve_cli.test_datasets import write_pair
from trainer.data import DIGITS, SOURCES, Dataset

SAMPLES = 300

FASHION = SOURCES["fashion-mnist"].labels


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Mnist:
    """`mnist evaluate`, called in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = process.run(evaluate.app, "mnist evaluate", [str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def idx(mnist5k: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits that the artifact has not seen; a training pair, all wrong, lies beside them."""
    folder = tmp_path_factory.mktemp("idx")
    images = mnist5k.test.images[:SAMPLES].numpy()
    labels = mnist5k.test.labels[:SAMPLES].numpy().astype(np.uint8)
    write_pair(folder, "t10k-", images, labels)
    write_pair(folder, "train-", images, (labels + 1) % 10)
    return folder


@pytest.fixture(scope="module")
def expected(mnist5k: Dataset, artifact: Path) -> dict[str, object]:
    logits = engine.open_engine(artifact).predict(mnist5k.test.images[:SAMPLES].numpy()).logits
    return report_of(logits, mnist5k.test.labels[:SAMPLES].numpy())


def report_of(
    logits: np.ndarray,
    labels: np.ndarray,
    names: tuple[int | str, ...] = DIGITS,
    temperature: float = 1.0,
    floor: float = 0.0,
) -> dict[str, object]:
    """What a report says of logits, float32 [N, 10]."""
    confidence, hits = metrics.confidences(logits / temperature), logits.argmax(axis=1) == labels
    return {
        **metrics.score(logits, labels, names, temperature),
        "selective": metrics.selective(confidence, hits, floor),
        "risk_coverage": metrics.risk_coverage(confidence, hits),
    }


def test_json_is_the_score(command: Mnist, artifact: Path, idx: Path, expected: dict[str, object]) -> None:
    result = command(artifact, "--data", idx, "--json")
    assert (result.code, result.err) == (0, "")
    assert len(result.out.splitlines()) == 1
    assert json.loads(result.out) == {
        "model": str(artifact / "model.onnx"),
        "data": str(idx / "t10k-images-idx3-ubyte"),
        "preprocess": "auto",
        **expected,
    }
    accuracy = expected["accuracy"]
    assert isinstance(accuracy, float)
    assert 0.8 < accuracy < 1  # 4,000 digits teach no more


@pytest.mark.parametrize("how", ["manifest", "folders"])
@pytest.mark.parametrize("preprocess", ["auto", "raw"])
def test_pictures_score_as_the_same_idx_files(
    command: Mnist,
    artifact: Path,
    mnist5k: Dataset,
    tmp_path: Path,
    expected: dict[str, object],
    how: str,
    preprocess: str,
) -> None:
    lines = ["file\tlabel"]
    for number in range(SAMPLES):
        image, label = mnist5k.test.images[number].numpy(), int(mnist5k.test.labels[number])
        path = tmp_path / str(label) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        lines.append(f"{path.relative_to(tmp_path)}\t{label}")
    if how == "manifest":
        (tmp_path / "manifest.tsv").write_text("\n".join(lines))
    result = command(artifact, "--data", tmp_path, "--preprocess", preprocess, "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert report["preprocess"] == preprocess
    assert report["data"] == str(tmp_path / "manifest.tsv" if how == "manifest" else tmp_path)
    assert report["confusion"] == expected["confusion"]
    assert report["loss"] == pytest.approx(expected["loss"], rel=1e-4)  # batches in another order


def test_the_report_for_people(
    command: Mnist, artifact: Path, idx: Path, expected: dict[str, object]
) -> None:
    result = command(artifact, "--data", idx)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == list(
        evaluate.as_text(
            {
                "model": str(artifact / "model.onnx"),
                "data": str(idx / "t10k-images-idx3-ubyte"),
                "preprocess": "auto",
                **expected,
            }
        )
    )
    assert f"accuracy: {expected['accuracy']:.2%} (95 % interval " in result.out


@pytest.mark.parametrize("file", ["model.onnx", "mnist_model.pth"])
def test_a_calibrated_model_says_what_its_floor_brings(
    command: Mnist, calibrated: Path, calibrated_run: Path, mnist5k: Dataset, idx: Path, file: str
) -> None:
    model = calibrated / file if file == "model.onnx" else calibrated_run / file
    answer = engine.open_engine(model).predict(mnist5k.test.images[:SAMPLES].numpy())
    labels = mnist5k.test.labels[:SAMPLES].numpy()
    report = json.loads(command(model, "--data", idx, "--json").out)
    for name, value in report_of(answer.logits, labels, DIGITS, 1.5, 0.8).items():
        assert report[name] == value

    # The same from the probabilities that users see.
    answered = answer.probabilities.max(axis=1) >= 0.8
    right = answer.probabilities.argmax(axis=1) == labels
    selective = report["selective"]
    assert selective["min_confidence"] == 0.8
    assert selective["refused"] == pytest.approx((~answered).mean())
    assert selective["accuracy_answered"] == pytest.approx(right[answered].mean())
    assert 0 < selective["refused"] < 1
    assert report["accuracy"] < selective["accuracy_answered"] < 1
    assert (
        f"not sure, below 80.0%: {selective['refused']:.2%} of the images; "
        f"of the rest {selective['accuracy_answered']:.2%} right"
    ) in command(model, "--data", idx).out.splitlines()


def test_a_model_that_is_never_sure() -> None:
    scores = report_of(np.zeros((2, 10), np.float32), np.array([0, 1]), floor=0.5)
    lines = list(evaluate.as_text({"model": "m.onnx", "data": "d", "preprocess": "auto", **scores}))
    assert "not sure, below 50.0%: 100.00% of the images" in lines


def report_on(names: tuple[int | str, ...]) -> str:
    """The text for 1,011 images of class 0, two of them taken for class 9, and one of class 9."""
    logits = 9 * np.eye(10, dtype=np.float32)[[0] * 1009 + [9] * 3]
    scores = report_of(logits, np.array([0] * 1011 + [9]), names)
    return "\n".join(evaluate.as_text({"model": "m.onnx", "data": "d", "preprocess": "auto", **scores}))


def test_the_tables_of_digits() -> None:
    assert (
        report_on(DIGITS)
        == """\
model: m.onnx
data: d (1,012 images)
accuracy: 99.80% (95 % interval 99.28% to 99.95%)
loss: 0.0189
calibration error: 0.0009
macro F1: 74.95%

label  images  precision   recall      F1
0       1,011    100.00%   99.80%  99.90%
1           0          -        -       -
2           0          -        -       -
3           0          -        -       -
4           0          -        -       -
5           0          -        -       -
6           0          -        -       -
7           0          -        -       -
8           0          -        -       -
9           1     33.33%  100.00%  50.00%

confusion: a row for each true label, a column for each answer
       0  1  2  3  4  5  6  7  8  9
0  1,009  0  0  0  0  0  0  0  0  2
1      0  0  0  0  0  0  0  0  0  0
2      0  0  0  0  0  0  0  0  0  0
3      0  0  0  0  0  0  0  0  0  0
4      0  0  0  0  0  0  0  0  0  0
5      0  0  0  0  0  0  0  0  0  0
6      0  0  0  0  0  0  0  0  0  0
7      0  0  0  0  0  0  0  0  0  0
8      0  0  0  0  0  0  0  0  0  0
9      0  0  0  0  0  0  0  0  0  1"""
    )


def test_long_labels_are_numbered_where_they_head_columns() -> None:
    lines = report_on(FASHION).splitlines()
    assert "T-shirt/top   1,011    100.00%   99.80%  99.90%" in lines
    assert "                   0  1  2  3  4  5  6  7  8  9" in lines
    assert "0 T-shirt/top  1,009  0  0  0  0  0  0  0  0  2" in lines
    assert "9 Ankle boot       0  0  0  0  0  0  0  0  0  1" in lines


def test_a_label_without_end_does_not_widen_the_tables() -> None:
    lines = report_on(("x" * 999, *"bcdefghij")).splitlines()
    assert max(map(len, lines)) < 80
    assert any(line.startswith(f"{'x' * 23}…   1,011") for line in lines)


def test_the_floor(command: Mnist, artifact: Path, idx: Path, expected: dict[str, object]) -> None:
    accuracy = expected["accuracy"]
    assert isinstance(accuracy, float)
    assert command(artifact, "--data", idx, "--min-accuracy", accuracy).code == 0
    above = math.nextafter(accuracy, 1)
    for options in ([], ["--json"]):
        good = command(artifact, "--data", idx, *options)
        result = command(artifact, "--data", idx, "--min-accuracy", above, *options)
        assert (result.code, result.out) == (1, good.out)
        assert result.err == (
            f"mnist evaluate: accuracy {accuracy} on 300 images is below --min-accuracy {above}\n"
        )


@pytest.mark.parametrize("floor", ["98", "-0.1", "nan", "high"])
def test_a_floor_that_is_no_share(command: Mnist, artifact: Path, idx: Path, floor: str) -> None:
    command(artifact, "--data", idx, "--min-accuracy", floor).assert_refused("--min-accuracy")


def test_bad_input_is_one_line(command: Mnist, artifact: Path, idx: Path, tmp_path: Path) -> None:
    command(artifact).assert_refused("--data")
    command(tmp_path / "no", "--data", idx).assert_refused("no such model", str(tmp_path / "no"))
    command(artifact, "--data", tmp_path / "no").assert_refused("no such data", str(tmp_path / "no"))
    command(artifact, "--data", tmp_path).assert_refused("holds no labelled images", str(tmp_path))
    (tmp_path / "manifest.tsv").write_text("file\tlabel\na.png\televen\n")
    command(artifact, "--data", tmp_path).assert_refused("manifest.tsv, line 2", "'eleven'")
    command(artifact, "--data", idx, "--preprocess", "none").assert_refused("--preprocess", "none")


def test_a_picture_of_another_size_is_refused_as_raw(command: Mnist, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    Image.new("L", (40, 40), 255).save(tmp_path / "1" / "blank.png")
    command(artifact, "--data", tmp_path, "--preprocess", "raw").assert_refused(
        "blank.png is not 28x28 pixels"
    )
    assert command(artifact, "--data", tmp_path).code == 0  # a blank one counts as a picture of its label


def test_a_damaged_picture_ends_it_and_is_named(command: Mnist, artifact: Path, tmp_path: Path) -> None:
    for label in "12":
        (tmp_path / label).mkdir()
        Image.new("L", (40, 40), 255).save(tmp_path / label / "blank.png")
    damaged = tmp_path / "2" / "damaged.png"
    damaged.write_bytes((tmp_path / "1" / "blank.png").read_bytes()[:-30])
    command(artifact, "--data", tmp_path).assert_refused(str(damaged), "damaged", "save it again")


def test_a_model_whose_answers_are_not_finite(
    command: Mnist, idx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = SimpleNamespace(
        path=Path("broken.onnx"),
        labels=DIGITS,
        training={},
        predict=lambda images: SimpleNamespace(logits=np.full((len(images), 10), np.nan, np.float32)),
    )
    monkeypatch.setattr(engine, "open_engine", lambda path: broken)
    result = command("broken.onnx", "--data", idx, "--json")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "mnist evaluate: broken.onnx answers with numbers that are not finite: export the model again\n"
    )


def modules_after(*arguments: object) -> set[str]:
    """The top-level modules that are loaded after a call of the command in a process of its own."""
    code = f"""
import sys
from serve_cli import evaluate, process
code = process.run(evaluate.app, "mnist evaluate", {[str(argument) for argument in arguments]!r})
print(*{{name.partition(".")[0] for name in sys.modules}})
sys.exit(code)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def test_nothing_of_the_training_half_is_loaded(artifact: Path, idx: Path) -> None:
    loaded = modules_after(artifact, "--data", idx)
    assert loaded >= {"numpy", "onnxruntime"}
    assert not loaded & {"torch", "accelerate", "onnx", "scipy", "sklearn", "matplotlib", "trainer", "export"}


def test_help_is_quick() -> None:
    assert not modules_after("--help") & {"numpy", "onnxruntime", "PIL"}
