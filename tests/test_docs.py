"""No block of the documents can rot: each is run, compared or parsed, by the rules of tests/documents.py."""

import ast
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from typer.main import get_command

from serve_cli.spec import (
    ARTIFACT_FILES,
    ARTIFACT_FOLDER,
    BUNDLED_MODEL,
    STATE_DICT,
)
from tests.command import Mnist
from tests.documents import (
    DOCUMENTS,
    ENVIRONMENT,
    FENCE,
    MARKS,
    PATIENCE_S,
    ROOT,
    Block,
    check_extras,
    commands,
    read_blocks,
    script,
    turns,
)
from tests.serve_cli.http.serving import serving
from trainer import run_dir as run_files
from trainer.data import MNIST_FILES, Dataset
from trainer.main import app

BLOCKS = [block for path in DOCUMENTS for block in read_blocks(path)]
SHELL = ("sh", "console")
RUNNING = (*SHELL, "python")
SECTION = "@@ the next command @@"
NUMBER = re.compile(r"\d[\d,]*(\.\d+)?(e[-+]?\d+)?")


def marked(mark: str) -> list[Block]:
    return [block for block in BLOCKS if mark in block.marks]


def is_run(block: Block) -> bool:
    return block.language in RUNNING and not block.marks.keys() & {"not run", "checked by", "file"}


def has_rule(block: Block) -> bool:
    """Whether anything below, or the test that it names, would notice if the block were wrong."""
    if block.marks.keys() & {"help", "file", "checked by"}:
        return True
    if "not run" in block.marks:
        return block.language in SHELL
    return is_run(block) or block.language in ("yaml", "json")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_block_has_a_rule(path: Path) -> None:
    blocks = [block for block in BLOCKS if block.path == path]
    for block in blocks:
        assert block.marks.keys() <= MARKS, f"{block}: unknown mark"
        assert has_rule(block), f"{block}: a {block.language} block that nothing checks"
        assert block.marks.get("not run") != "", f"{block}: say why it is not run"
    fences = [line for line in path.read_text().splitlines() if line.lstrip().startswith(FENCE)]
    assert len(fences) == 2 * len(blocks), f"{path}: a fence is indented"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [*re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text), *re.findall(r'src="([^":]+)"', text)]
    for link in links:
        assert (path.parent / link).exists(), f"{path.name} links to {link}"


@pytest.mark.parametrize("block", marked("help"), ids=str)
def test_help_is_the_programs_own(block: Block, mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert block.text == mnist(*block.marks["help"].split()[1:]).out


@pytest.mark.parametrize("block", marked("file"), ids=str)
def test_a_shown_file_is_the_file(block: Block) -> None:
    assert block.text == (ROOT / block.marks["file"]).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", marked("checked by"), ids=str)
def test_the_test_that_checks_a_block_exists(block: Block) -> None:
    file, _, name = block.marks["checked by"].partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("yaml", "json")], ids=str)
def test_data_parses(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    else:
        assert all(isinstance(part, dict) for part in yaml.safe_load_all(block.text))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in SHELL], ids=str)
def test_the_shell_takes_the_syntax(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=script(block), text=True, check=True)


@pytest.mark.parametrize("block", marked("not run"), ids=str)
def test_commands_that_are_not_run_parse(block: Block, mnist: Mnist) -> None:
    for words in commands(block):
        check_command(words, mnist)


def check_command(words: list[str], mnist: Mnist) -> None:
    """Let each program of ours, and each launcher, read its arguments; other programs are not at hand."""
    program, *arguments = ["1" if "$" in word else word for word in words]
    arguments = arguments[: arguments.index("&")] if "&" in arguments else arguments
    if program == "mnist":
        assert mnist(*arguments, "--help").code == 0, words
    elif program == "accelerate":
        parser = launch_command_parser()
        check_training(parser.parse_args(arguments[1:]).training_script_args)
    elif program == "torchrun":
        check_training(get_args_parser().parse_args(arguments).training_script_args)
    elif program == "pip":
        check_extras(arguments)
    elif program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK), words


def check_training(flags: list[str]) -> None:
    get_command(app).make_context("trainer.main", flags)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader has in a clone, as far as blocks use it, as a copy that they may spoil."""
    for name in ("docs", "scripts/accelerate"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def write_mnist5k(raw: Path, dataset: Dataset) -> None:
    """Put 5,000 real digits where torchvision would download all of MNIST to."""
    raw.mkdir(parents=True)
    files = iter(MNIST_FILES)
    for split in (dataset.train, dataset.test):
        images = struct.pack(">4i", 0x803, *split.images.shape) + split.images.numpy().tobytes()
        labels = struct.pack(">2i", 0x801, len(split)) + split.labels.byte().numpy().tobytes()
        (raw / next(files)).write_bytes(images)
        (raw / next(files)).write_bytes(labels)


def steps(blocks: list[Block], folder: Path) -> list[tuple[Block, str, str | None]]:
    """The commands of a document in order, each with what it is said to print, None where nothing is said.

    The python blocks are one program, which runs where the first of them stands.
    """
    found: list[tuple[Block, str, str | None]] = []
    program = "".join(block.text for block in blocks if block.language == "python")
    for block in blocks:
        if block.language == "console":
            found += [(block, command, answer) for command, answer in turns(block)]
        elif block.language == "sh":
            found.append((block, block.text, None))
        elif program:
            (folder / "document.py").write_text(program, encoding="utf-8")
            found.append((block, "python document.py", None))
            program = ""
    return found


RUN = [path for path in DOCUMENTS if any(is_run(block) for block in BLOCKS if block.path == path)]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_the_document_runs(
    path: Path, folder: Path, mnist5k: Dataset, request: pytest.FixtureRequest
) -> None:
    blocks = [block for block in BLOCKS if block.path == path and is_run(block)]
    if any("needs mnist" in block.marks for block in blocks):
        request.getfixturevalue("full_mnist")
    write_mnist5k(folder / "data" / "MNIST" / "raw", mnist5k)
    parts = steps(blocks, folder)
    for block in blocks:
        for words in commands(block) if block.language in SHELL else ():
            if words[0] == "pip":
                check_extras(words)
    # What a reader installs is here already.
    lines = ["pip() { :; }", *(f"echo '{SECTION}'\n{command}" for _, command, _ in parts)]
    ran = subprocess.run(
        ["bash", "-eu", "-c", "\n".join(lines)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    printed = ran.stdout.split(f"{SECTION}\n")[1:]
    assert ran.returncode == 0, f"{parts[len(printed) - 1][1]}\n{ran.stdout}\n{ran.stderr}"
    for (block, command, answer), output in zip(parts, printed, strict=True):
        if answer is not None:
            assert_printed(block, command, answer, output)


def assert_printed(block: Block, command: str, answer: str, output: str) -> None:
    """Compare line by line; where figures vary, only what stands between them."""
    expected, found = (text.rstrip().splitlines() for text in (answer, output))
    if "figures vary" in block.marks:
        expected, found = (
            [" ".join(NUMBER.sub("N", line).split()) for line in lines] for lines in (expected, found)
        )
    assert found == expected, f"{block}: {command}"


RUN_FILES = {
    run_files.CONFIG,
    run_files.METRICS,
    run_files.REPORT,
    run_files.LOCAL,
    run_files.SAMPLES,
    run_files.LOSSES,
    run_files.CONFUSION,
    run_files.MISTAKES,
    STATE_DICT,
    run_files.CHECKPOINTS,
}


def block_of(page: str, language: str, holds: str) -> Block:
    """The only block of docs/`page` in `language` that contains `holds`."""
    (block,) = [b for b in BLOCKS if b.path.name == page and b.language == language and holds in b.text]
    return block


def listed(block: Block) -> set[str]:
    """The paths at the beginnings of the lines of a tree, below its folder."""
    return {line.split()[0].partition("/")[2].rstrip("/") for line in block.text.splitlines()}


def test_a_run_leaves_what_the_walk_shows(run_directory: Path) -> None:
    shown = [
        {name.partition("/")[2] for name in listed(block_of(page, "text", "metrics.jsonl"))}
        for page in ("walk.md", "training.md")
    ]
    assert shown == [RUN_FILES, RUN_FILES]
    left = {path.name for path in run_directory.iterdir() if not path.name.startswith(".")}
    assert left - {ARTIFACT_FOLDER} == RUN_FILES


def test_the_page_of_the_format_lists_every_file() -> None:
    files = listed(block_of("format.md", "text", "artifact.json"))
    assert files == set(ARTIFACT_FILES)
    shown = listed(block_of("export.md", "text", "artifact.json"))
    assert shown == {name.partition("/")[0] for name in files}


def test_the_server_answers_the_requests_of_the_pages(folder: Path, digit_png: Path) -> None:
    """mnist serve answers what the pages ask it, and what they ask Triton."""
    name = f"{__file__.rpartition('/')[2]}::test_the_server_answers_the_requests_of_the_pages"
    requests = [b for b in BLOCKS if b.marks.get("checked by", "").endswith(name)]
    pages = [b.path.name for b in requests]
    assert pages == ["serving.md"] * 2 + ["triton.md"] * 3
    (folder / "demo" / "digits").mkdir(parents=True)
    digit_png.rename(folder / "demo" / "digits" / "1917_5.png")
    with serving("--model", str(BUNDLED_MODEL)) as server:
        for block in requests[1:]:
            text = block.text.replace("localhost:8000", f"localhost:{server.port}")
            assert text != block.text
            command = ["bash", "-eu", "-c"] if block.language == "sh" else ["python", "-c"]
            ran = subprocess.run(
                [*command, text],
                cwd=folder,
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            assert ran.returncode == 0, f"{block}: {ran.stderr}"
            assert ran.stdout, block
            if block.language == "python":
                assert "b'" in ran.stdout
                assert ran.stdout.split(":")[2][0] == "7"
