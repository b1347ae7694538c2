"""What the net saw: drawn by --show, saved by --save-input."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_cli.seen import FIRST_GREY, draw, has_colours
from tests.command import Mnist


@pytest.fixture
def drawing(digit: np.ndarray, tmp_path: Path) -> Path:
    """The digit as somebody would draw it: large, dark on light."""
    path = tmp_path / "drawing.png"
    Image.fromarray(255 - np.kron(digit, np.ones((9, 9), np.uint8))).save(path)
    return path


def test_show_draws_below_the_answer(mnist: Mnist, drawing: Path, artifact: Path) -> None:
    result = mnist("infer", drawing, drawing, "--model", artifact, "--show")
    lines = result.out.splitlines()
    assert len(lines) == 2 * 17
    assert lines[:17] == lines[17:]
    assert lines[0].startswith(f"{drawing}: 7 (")
    assert result.out.isascii()
    assert {len(line) for line in lines[1:17]} == {32}
    assert "@" in "".join(lines[2:16])


def test_ascii_keeps_place_and_strength() -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[2:4, 5] = 255
    pixels[27, 27] = 60
    rows = [line[3:-1] for line in draw(pixels, colours=False).splitlines()[1:-1]]
    assert rows[1] == " " * 5 + "@" + " " * 22
    assert rows[13] == " " * 27 + "."
    assert "".join(rows).count(" ") == 14 * 28 - 2


def test_half_blocks_have_two_greys() -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[0, 0] = 255
    lines = draw(pixels, colours=True).splitlines()
    assert len(lines) == 14
    assert lines[0].startswith(f"  \x1b[38;5;{FIRST_GREY + 23};48;5;{FIRST_GREY}m\u2580")
    assert all(line.count("\u2580") == 28 and line.endswith("\x1b[0m") for line in lines)


@pytest.mark.parametrize(
    ("variables", "encoding", "expected"),
    [
        ({"TERM": "xterm"}, "utf-8", True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "utf-8", False),
        ({"TERM": "dumb"}, "utf-8", False),
        ({}, "utf-8", False),
        ({"TERM": "xterm"}, "ascii", False),
    ],
)
def test_colours_are_for_terminals_that_have_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], encoding: str, expected: bool
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    Terminal.encoding = encoding
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not has_colours(), "pytest's output is no terminal"
    monkeypatch.setattr("sys.stdout", Terminal())
    assert has_colours() is expected


def test_a_saved_picture_gives_the_same_answer_raw(
    mnist: Mnist, drawing: Path, artifact: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen.png"
    first = json.loads(mnist("infer", drawing, "-m", artifact, "--json", "--save-input", seen).out)
    with Image.open(seen) as image:
        assert (image.size, image.mode) == ((28, 28), "L")
    again = json.loads(mnist("infer", seen, "-m", artifact, "--json", "--preprocess", "raw").out)
    assert again["probabilities"] == first["probabilities"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawing.png", "seen.png"]


def test_a_saved_picture_may_be_saved_again(
    mnist: Mnist, drawing: Path, digit_png: Path, artifact: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen.png"
    assert mnist("infer", drawing, "-m", artifact, "--save-input", seen).code == 0
    before = seen.read_bytes()
    assert mnist("infer", digit_png, "-m", artifact, "--save-input", seen).code == 0
    assert seen.read_bytes() != before


@pytest.mark.parametrize("target", ["drawing.png", "other.png", "notes.png", "./", "seen/../drawing.png"])
def test_no_other_file_is_replaced(
    mnist: Mnist, drawing: Path, digit_png: Path, artifact: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "other.png").write_bytes(digit_png.read_bytes())
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "seen").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.png")}
    result = mnist("infer", drawing, "-m", artifact, "--save-input", f"{tmp_path}/{target}")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.glob("*.png")} == before


def test_a_saved_picture_that_is_read_is_not_replaced(
    mnist: Mnist, drawing: Path, artifact: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen.png"
    mnist("infer", drawing, "-m", artifact, "--save-input", seen)
    result = mnist("infer", seen, "-m", artifact, "--save-input", seen)
    assert result.code == 2
    assert "does not replace" in result.err


def test_several_pictures_are_saved_in_a_folder(
    mnist: Mnist, drawing: Path, digit_png: Path, artifact: Path, tmp_path: Path
) -> None:
    folder = f"{tmp_path}/seen/"
    assert mnist("infer", drawing, digit_png, "-m", artifact, "--save-input", folder).code == 0
    assert sorted(path.name for path in Path(folder).iterdir()) == ["digit.png", "drawing.png"]
    assert np.array_equal(np.asarray(Image.open(f"{folder}/digit.png")), np.asarray(Image.open(digit_png)))
    twice = mnist("infer", digit_png, digit_png, "-m", artifact, "--save-input", folder)
    assert twice.code == 2
    assert twice.out.count(": 7 (") == 2
    assert "another picture of this call" in twice.err


@pytest.mark.parametrize(
    ("names", "target", "message"),
    [
        (["drawing.png", "drawing.png"], "seen.png", "takes one picture"),
        (["."], "seen.png", "takes one picture"),
        (["drawing.png"], "seen.jpg", "writes PNG"),
        (["drawing.png"], "", "--save-input is empty"),
        (["."], "seen/", "name another folder"),
        (["drawing.png"], "no/such/folder.png", "cannot write"),
    ],
)
def test_where_nothing_can_be_saved(
    mnist: Mnist,
    drawing: Path,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    target: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mnist("infer", *names, "-m", artifact, "--save-input", target)
    assert result.code == 2
    assert message in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["drawing.png"]
