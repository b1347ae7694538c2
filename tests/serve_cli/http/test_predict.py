"""POST /predict answers as `mnist infer --json` does, however a picture is sent."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import Mnist
from tests.serve_cli.drawn import sketch
from tests.serve_cli.http.serving import Reply, Served, png, serving

BOUNDARY = "frontier"


def upload(served: Served, *parts: tuple[str, bytes]) -> Reply:
    """Send a form of (Content-Disposition's parameters, content)."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    )
    end = f"--{BOUNDARY}--\r\n".encode()
    return served.ask("/predict", body + end, content_type=f"multipart/form-data; boundary={BOUNDARY}")


@pytest.fixture(scope="module")
def drawing(digit: np.ndarray) -> bytes:
    """A 7 drawn dark on light, larger than what is read at once."""
    grey = sketch(digit, np.random.default_rng(0), (900, 700)).grey(np.random.default_rng(0))
    return png(grey)


@pytest.mark.parametrize("kind", ["picture", "drawing"])
def test_the_answer_is_that_of_mnist_infer(
    served: Served, mnist: Mnist, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "7.png"
    path.write_bytes(request.getfixturevalue(kind))
    expected = json.loads(mnist("infer", path, "--json", "--top-k", 3).out)
    reply = upload(served, (f'name="file"; filename="{path}"', path.read_bytes()))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    reply = served.ask("/predict?top_k=3", path.read_bytes(), content_type="image/png")
    assert reply.json.keys() == expected.keys()
    assert reply.json["label"] == expected["label"] == 7
    assert reply.json["preprocessing"] == expected["preprocessing"]
    assert reply.json["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    assert [place["label"] for place in reply.json["top"]] == [place["label"] for place in expected["top"]]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_every_kind_of_picture_is_read(served: Served, digit: np.ndarray, tmp_path: Path, form: str) -> None:
    path = tmp_path / "7"
    Image.fromarray(255 - digit).resize((280, 280), Image.Resampling.BICUBIC).save(path, form)
    assert served.ask("/predict", path.read_bytes()).json["label"] == 7


@pytest.mark.parametrize(
    "kind", ["image/png", "IMAGE/JPEG", "application/octet-stream", "application/x-www-form-urlencoded", ""]
)
def test_the_bytes_decide_and_not_the_type(served: Served, picture: bytes, kind: str) -> None:
    reply = served.ask("/predict", picture, content_type=kind)
    assert (reply.json["label"], reply.json["file"]) == (7, "-")


def test_a_form_gives_the_name_back(served: Served, picture: bytes) -> None:
    reply = upload(served, ('name="note"', b"hello"), ('name="x"; filename="my 7.png"', picture))
    assert (reply.json["label"], reply.json["file"]) == (7, "my 7.png")


def test_a_form_without_a_file_is_refused(served: Served) -> None:
    reply = upload(served, ('name="file"', b"no file"))
    assert reply.status == 400
    assert "the form has no file" in reply.json["error"]


def test_pixels_are_what_the_net_saw(served: Served, digit: np.ndarray, picture: bytes) -> None:
    answer = served.ask("/predict?pixels=true", picture).json
    np.testing.assert_array_equal(answer["pixels"], digit)
    assert answer["labels"] == list(range(10))


def test_options_act(served: Served, picture: bytes, drawing: bytes) -> None:
    unsure = served.ask("/predict?min_confidence=1", drawing).json
    assert (unsure["label"], unsure["best_guess"]) == (None, 7)
    assert "confidence is below 100.0%" in unsure["reason"]
    assert served.ask("/predict?preprocess=raw", picture).json["label"] == 7
    refused = served.ask("/predict?preprocess=raw", drawing)
    assert (refused.status, "not 28x28" in refused.json["error"]) == (400, True)


def test_a_server_has_a_floor_of_its_own(drawing: bytes) -> None:
    with serving("--min-confidence", 1) as served:
        assert served.ask("/predict", drawing).json["label"] is None


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("top_k=0", "top_k"),
        ("top_k=11", "top_k"),
        ("top_k=seven", "top_k"),
        ("min_confidence=2", "min_confidence"),
        ("min_confidence=nan", "min_confidence"),
        ("preprocess=none", "preprocess"),
        ("pixels=perhaps", "pixels"),
        ("topk=3", "'topk'"),
    ],
)
def test_wrong_options_are_named(served: Served, picture: bytes, query: str, name: str) -> None:
    reply = served.ask(f"/predict?{query}", picture)
    assert reply.status == 400
    assert reply.json["error"].startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"seven", "not a picture but text"),
        (b"%PDF-1.4", "a PDF"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 20, "damaged"),
        (b"\0" * 100, "not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(served: Served, body: bytes, reason: str) -> None:
    reply = served.ask("/predict", body)
    assert reply.status == 400
    assert reason in reply.json["error"]
    assert "\n" not in reply.json["error"]


def test_a_blank_picture_is_not_sure(served: Served) -> None:
    answer = served.ask("/predict", png(np.full((50, 50), 255, np.uint8))).json
    assert (answer["label"], answer["reason"]) == (None, "the picture is blank")


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "idna", "undefined"])
def test_a_form_in_a_charset_that_takes_long_is_refused(served: Served, charset: str) -> None:
    """Python's punycode takes minutes for a name of a megabyte."""
    body = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f-"\r\n\r\n'.encode() + b"a" * 600_000
    kind = f"multipart/form-data; boundary={BOUNDARY}; charset={charset}"
    reply = served.ask("/predict", body + f"\r\n--{BOUNDARY}--\r\n".encode(), content_type=kind)
    assert (reply.status, "charset" in reply.json["error"]) == (400, True)
