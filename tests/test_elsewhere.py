"""docs/elsewhere.md cannot rot: its programs run here, and give PyTorch's answers to the test vectors."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from serve_cli import picture, preprocess
from serve_cli.spec import BUNDLED_MODEL, INPUT, OUTPUTS, VECTOR_INPUT, VECTOR_OUTPUTS
from serve_cli.verify import read_vectors
from tests.documents import ROOT, read_blocks
from tests.serve_cli.http.serving import Served, serving

PROGRAMS = ROOT / "docs" / "elsewhere"
BLOCKS = read_blocks(ROOT / "docs" / "elsewhere.md")
TOLERANCE = 1e-4
PATIENCE_S = 900.0
"""Far more than anything here takes, so that a test that waits in vain ends."""

UNREACHABLE = re.compile(r"EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ENOTCACHED|ENOTFOUND|ETIMEDOUT")
"""What npm says where the registry cannot be reached."""

NPM = {"npm_config_prefer_offline": "true", "npm_config_fetch_retry_mintimeout": "1000"}

HEADER = "onnxruntime_cxx_api.h"
INCLUDES = [Path(prefix, "include", "onnxruntime") for prefix in ("/usr", "/usr/local")]

BROWSER = """
import os, sys
from playwright.sync_api import expect, sync_playwright
url, chromium, *pictures = sys.argv[1:]
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, chromium_sandbox=os.geteuid() != 0)
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/browser.html")
    expect(page.locator("#check")).to_contain_text("largest difference", timeout=60_000)
    label, probabilities = page.locator("#label"), page.locator("#probabilities")
    for picture in pictures:
        label.evaluate("(element) => { element.textContent = ''; }")
        page.locator("#file").set_input_files(picture)
        expect(label).not_to_be_empty()
        print(f"{label.text_content()}: {probabilities.text_content()}")
    print(page.locator("#check").text_content())
    print(*[address for address in asked if not address.startswith((url, "data:", "blob:"))], file=sys.stderr)
    browser.close()
"""
"""A program of its own: with the greenlets of Playwright in this process, a test of signals ends pytest."""


def blocks(test: str) -> list[str]:
    """The blocks of the page that `test` checks."""
    mark = f"tests/test_elsewhere.py::{test}"
    found = [block.text for block in BLOCKS if block.marks.get("checked by") == mark]
    assert found, f"no block of the page names {test}"
    return found


def bash(script: str, folder: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a block as a reader does, with the commands of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, **{name: str(value) for name, value in variables.items()}},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def printed(output: str) -> tuple[list[int], np.ndarray]:
    """The labels and the probabilities, float [N, 10], in lines such as `7: 0.000001 ...`."""
    lines = re.findall(r"^(\d):((?: \S+){10})$", output, flags=re.MULTILINE)
    return [int(label) for label, _ in lines], np.array([row.split() for _, row in lines], np.float64)


def assert_is_pytorchs(ran: subprocess.CompletedProcess[str], artifact: Path) -> None:
    """All test vectors are answered, with the labels and the probabilities of PyTorch."""
    assert ran.returncode == 0, ran.stderr
    labels, probabilities = printed(ran.stdout)
    expected = read_vectors(artifact)[2]
    assert labels == expected.argmax(axis=1).tolist()
    assert len(set(labels)) == 10
    assert np.abs(probabilities - expected).max() <= TOLERANCE
    assert largest_difference(ran.stdout) <= TOLERANCE


def largest_difference(output: str) -> float:
    found = re.search(r"largest difference: (\S+)$", output.strip())
    assert found, output
    return float(found[1])


def fill(folder: Path, artifact: Path = BUNDLED_MODEL) -> Path:
    """Put the programs of the page, and `artifact`, into `folder`."""
    shutil.copytree(PROGRAMS, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "artifact", ignore_errors=True)
    shutil.copytree(artifact, folder / "artifact")
    return folder


@contextmanager
def damaged(folder: Path) -> Iterator[None]:
    """Let the last probability in `folder` be another for a while."""
    path = folder / "artifact" / VECTOR_OUTPUTS[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + np.float32(0.5).tobytes())
    yield
    path.write_bytes(whole)


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, which is not on the PATH")


def npm_folder(request: pytest.FixtureRequest, block: str) -> Path:
    """A folder, kept from one run of the tests to the next, where the npm lines of `block` were run."""
    require("node", "npm")
    package = re.search(r"\S+@[\d.]+", block)
    assert package
    folder = fill(request.config.cache.mkdir(package[0].replace("@", "-")))
    install = "\n".join(line for line in block.splitlines() if line.startswith("npm "))
    ran = bash(install, folder, **NPM)
    if ran.returncode and (reason := UNREACHABLE.search(ran.stderr)):
        pytest.skip(f"needs {package[0]} from npm's registry, which cannot be reached: {reason[0]}")
    assert ran.returncode == 0, ran.stderr
    return folder


def test_the_page_shows_the_files_as_they_are() -> None:
    shown = {block.marks["file"]: block.text for block in BLOCKS if "file" in block.marks}
    here = {f"docs/elsewhere/{path.name}": path.read_text(encoding="utf-8") for path in PROGRAMS.iterdir()}
    assert shown == here


def test_every_block_is_checked_here() -> None:
    for block in BLOCKS:
        file, _, test = block.marks["checked by"].partition("::")
        assert file == "tests/test_elsewhere.py"
        assert test in globals()


def test_the_vectors_are_as_the_page_says(artifact: Path) -> None:
    (tree,) = blocks("test_the_vectors_are_as_the_page_says")
    stated = [re.split(r"\s{2,}", line) for line in tree.splitlines()]
    assert [name for name, _ in stated] == [f"artifact/{name}" for name in (VECTOR_INPUT, *VECTOR_OUTPUTS)]
    for folder in (artifact, BUNDLED_MODEL):
        count = (folder / VECTOR_INPUT).stat().st_size // 784
        for (name, about), value, vectors in zip(
            stated, (INPUT, *OUTPUTS), read_vectors(folder), strict=True
        ):
            shape = str(value["shape"]).replace("'", "")
            assert about == f"{value['name']}, {value['dtype']} {shape}"
            path = folder / name.removeprefix("artifact/")
            numbers = np.ascontiguousarray(vectors).tobytes()
            assert len(vectors) == count > 0
            assert len(path.read_bytes()) - len(numbers) < 40
            assert path.read_bytes().endswith(numbers)


def test_python_without_this_package(tmp_path: Path) -> None:
    (program,) = blocks("test_python_without_this_package")
    fill(tmp_path)
    run = [sys.executable, "-c", program]
    ran = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    labels = re.findall(r"\d", ran.stdout.partition("largest")[0])
    expected = read_vectors(BUNDLED_MODEL)[2]
    assert [int(label) for label in labels] == expected.argmax(axis=1).tolist()
    assert largest_difference(ran.stdout) <= TOLERANCE
    with damaged(tmp_path):
        ran = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert largest_difference(ran.stdout) > TOLERANCE


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A test vector as somebody would photograph it: large, dark on light, a JPEG."""
    digit = read_vectors(BUNDLED_MODEL)[0][0]
    path = tmp_path / "photo.jpg"
    Image.fromarray(255 - np.kron(digit, np.ones((12, 12), np.uint8))).save(path)
    return path


def test_pixels_come_from_a_picture(photo: Path) -> None:
    (command,) = blocks("test_pixels_come_from_a_picture")
    ran = bash(command, photo.parent)
    assert ran.returncode == 0, ran.stderr
    with Image.open(photo.with_name("digit.png")) as saved:
        pixels = np.asarray(saved)
    assert (pixels == preprocess.to_mnist(picture.read_file(photo)).pixels).all()
    assert pixels.any()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """`mnist serve` as the page starts it, on a free port, with the model in the package for `artifact`."""
    require("curl")
    words = shlex.split(blocks("test_http_gives_pytorchs_answers")[0])
    assert words[:2] == ["mnist", "serve"]
    with serving(*(BUNDLED_MODEL if word == "artifact" else word for word in words[2:])) as running:
        yield running


def ask(server: Served, command: str, folder: Path) -> Any:
    """The JSON that `command` gets, and what it prints after that."""
    ran = bash(command.replace("localhost:8000", f"localhost:{server.port}"), folder)
    assert ran.returncode == 0, ran.stderr
    answer, end = json.JSONDecoder().raw_decode(ran.stdout)
    return answer, ran.stdout[end:]


def test_pixels_come_over_http(server: Served, photo: Path) -> None:
    (command,) = blocks("test_pixels_come_over_http")
    answer, _ = ask(server, command, photo.parent)
    assert (answer["pixels"] == preprocess.to_mnist(picture.read_file(photo)).pixels).all()
    assert answer["label"] == read_vectors(BUNDLED_MODEL)[2][0].argmax()


def test_http_gives_pytorchs_answers(server: Served, tmp_path: Path) -> None:
    _, command = blocks("test_http_gives_pytorchs_answers")
    answer, rest = ask(server, command, fill(tmp_path))
    expected = read_vectors(BUNDLED_MODEL)[2][-1]
    (output,) = answer["outputs"]
    assert np.abs(np.array(output["data"]) - expected).max() <= TOLERANCE
    assert np.abs(np.array(rest.split(), np.float64) - expected).max() <= 1e-7


def test_node_gives_pytorchs_answers(request: pytest.FixtureRequest) -> None:
    (block,) = blocks("test_node_gives_pytorchs_answers")
    folder = npm_folder(request, block)
    assert_is_pytorchs(bash(block, folder, **NPM), BUNDLED_MODEL)
    with damaged(folder):
        ran = bash(block.splitlines()[-1], folder)
    assert ran.returncode == 1
    assert largest_difference(ran.stdout) > TOLERANCE


def test_node_with_the_native_engine_gives_pytorchs_answers(request: pytest.FixtureRequest) -> None:
    (block,) = blocks("test_node_with_the_native_engine_gives_pytorchs_answers")
    folder = npm_folder(request, block)
    assert_is_pytorchs(bash(block, folder, **NPM), BUNDLED_MODEL)
    assert not (folder / "node_modules" / "onnxruntime-web").exists()


@contextmanager
def sending(folder: Path, command: str) -> Iterator[str]:
    """The address of the files in `folder`, sent by the page's own command on a free port."""
    words = shlex.split(command, comments=True)
    assert words[0] == "python"
    assert words[-1] == "8080"
    with subprocess.Popen(
        [sys.executable, "-u", *words[1:-1], "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout
            found = re.search(r"port (\d+)", process.stdout.readline())
            assert found
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.kill()


def test_the_browser_gives_pytorchs_answers(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="needs playwright")
    names = ["chromium", "chromium-browser", "google-chrome"]
    chromium = os.environ.get("MNIST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not chromium:
        pytest.skip(f"needs Chromium: none of {', '.join(names)} is on the PATH, nor named by MNIST_CHROMIUM")
    (command,) = blocks("test_the_browser_gives_pytorchs_answers")
    folder = npm_folder(request, *blocks("test_node_gives_pytorchs_answers"))
    pictures = []
    for number, digit in enumerate(read_vectors(BUNDLED_MODEL)[0]):
        pictures.append(tmp_path / f"{number}.png")
        Image.fromarray(digit).save(pictures[-1])
    Image.new("L", (56, 28)).save(tmp_path / "wide.png")
    with sending(folder, command) as url:
        ran = subprocess.run(
            [sys.executable, "-c", BROWSER, url, chromium, *map(str, pictures), str(tmp_path / "wide.png")],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert_is_pytorchs(ran, BUNDLED_MODEL)
    assert "The picture is not 28x28 pixels" in ran.stdout
    assert ran.stderr.strip() == "", "the page asked another host"


def build_and_run(block: str, folder: Path, artifact: Path, **variables: object) -> None:
    """Run a block that compiles a program and runs it; the program must notice another answer, too."""
    require("g++")
    fill(folder, artifact)
    assert_is_pytorchs(bash(block, folder, **variables), artifact)
    with damaged(folder):
        ran = bash(block.splitlines()[-1], folder)
    assert ran.returncode == 1
    assert largest_difference(ran.stdout) > TOLERANCE


def test_cpp_with_libtorch_gives_pytorchs_answers(artifact: Path, tmp_path: Path) -> None:
    (block,) = blocks("test_cpp_with_libtorch_gives_pytorchs_answers")
    build_and_run(block, tmp_path, artifact)


@pytest.fixture
def onnxruntime_release(tmp_path: Path) -> Path:
    """onnxruntime as its releases have it: headers of this machine, and the library that Python uses."""
    named = os.environ.get("MNIST_ONNXRUNTIME_INCLUDE")
    include = next(
        (path for path in ([Path(named)] if named else INCLUDES) if (path / HEADER).is_file()), None
    )
    if include is None:
        pytest.skip(
            f"needs {HEADER}, of Debian 13's libonnxruntime-dev, or where MNIST_ONNXRUNTIME_INCLUDE says"
        )
    libraries = list(Path(onnxruntime.__path__[0], "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("needs the onnxruntime package to hold libonnxruntime.so, as on Linux")
    (tmp_path / "ort" / "lib").mkdir(parents=True)
    (tmp_path / "ort" / "include").symlink_to(include)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / "ort" / "lib" / name).symlink_to(libraries[0])
    return tmp_path / "ort"


def test_cpp_with_onnxruntime_gives_pytorchs_answers(onnxruntime_release: Path, tmp_path: Path) -> None:
    (block,) = blocks("test_cpp_with_onnxruntime_gives_pytorchs_answers")
    build_and_run(block, tmp_path / "program", BUNDLED_MODEL, ORT=onnxruntime_release)
