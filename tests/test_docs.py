"""No block of the documents can rot: each is run, compared or parsed, by the rules of tests/documents.py."""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from typer.main import get_command

from serve_cli.spec import (
    ARTIFACT_FILE,
    ARTIFACT_FILES,
    ARTIFACT_FOLDER,
    BUNDLED_MODEL,
    FORMAT_VERSION,
    METADATA_KEY,
    MODEL_FILES,
    PARITY_FILE,
    STATE_DICT,
    VECTOR_INPUT,
    VECTOR_OUTPUTS,
)
from tests.command import Mnist
from tests.documents import DOCUMENTS, FENCE, MARKS, ROOT, Block, commands, read_blocks, script, turns
from tests.serve_cli.http.serving import serving
from trainer import run_directory as run_files
from trainer.data import MNIST_FILES, Dataset
from trainer.main import app

BLOCKS = [block for path in DOCUMENTS for block in read_blocks(path)]
SHELL = ("sh", "console")
RUNNING = (*SHELL, "python")
PATIENCE_S = 600.0
"""Far more than anything here takes, so that a test that waits in vain ends."""

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "80",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
}
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


def check_extras(arguments: list[str]) -> None:
    """Of pip install '.[train]', each extra is one of the project's."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for found in re.findall(r"(?:^|\s)\.\[([\w,]+)\]", " ".join(arguments)):
        assert set(found.split(",")) <= extras.keys()


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


FORMAT = ROOT / "docs" / "format.md"
KINDS: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "text": str,
    "list": list,
    "object": dict,
}
OPEN = ("training.config", "contract")
"""Objects whose keys a table leaves to others."""


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the only table with keys below a heading of the page, by the key in the first column."""
    section = FORMAT.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, flags=re.MULTILINE)
    assert rows, heading
    return {key: rest.split(" | ") for key, rest in rows}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a JSON document with its value, lists of objects as `name[].key`."""
    if isinstance(value, dict) and path not in OPEN:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path, value


def assert_described(document: Any, rows: dict[str, list[str]]) -> None:
    """Each key of the document is in the table with its type, and the table has no other key."""
    found = list(leaves(document))
    assert {key for key, _ in found} == rows.keys()
    for key, value in found:
        kinds = [KINDS[kind] for kind in rows[key][0].split(" or ")]
        assert any(isinstance(value, kind) for kind in kinds), (key, value)
        assert not isinstance(value, bool), key


def test_the_page_describes_the_contract() -> None:
    contract = json.loads(bundled_onnx()[METADATA_KEY])
    assert_described(contract, table("The contract"))
    assert contract["format_version"] == FORMAT_VERSION
    assert f"`format_version` is {FORMAT_VERSION}." in FORMAT.read_text(encoding="utf-8")


def test_the_page_describes_a_contract_without_training_and_calibration(artifact: Path) -> None:
    """What the table says is there only of a run, or if calibrated, may be missing; nothing else may."""
    inventory = json.loads((artifact / ARTIFACT_FILE).read_text())
    rows = table("The contract")
    contract = {**inventory["contract"], "parity": inventory["contract"]["parity"]["onnx"]}
    missing = rows.keys() - {key for key, _ in leaves(contract)}
    assert missing == {key for key, row in rows.items() if row[1] == "if calibrated"}
    assert contract["calibration"] == {}


def test_the_page_describes_the_tensors() -> None:
    contract = json.loads(bundled_onnx()[METADATA_KEY])
    rows = table("The model")
    tensors = [("input", contract["input"]), *(("output", output) for output in contract["outputs"])]
    expected = {
        tensor["name"]: [direction, f"`{tensor['dtype']}`", f"`{json.dumps(tensor['shape'])}`"]
        for direction, tensor in tensors
    }
    assert {name: row[:3] for name, row in rows.items()} == expected


def bundled_onnx() -> dict[str, str]:
    """The metadata of the float model in the package."""
    model = onnx.load(BUNDLED_MODEL / MODEL_FILES["onnx"].name)
    return {pair.key: pair.value for pair in model.metadata_props}


def test_the_page_describes_the_metadata() -> None:
    rows = table("ONNX metadata")
    metadata = bundled_onnx()
    assert rows.keys() == metadata.keys()
    for key, row in rows.items():
        if key.startswith("Image."):
            assert row == [f"`{metadata[key]}`"]


def test_the_page_says_where_the_contract_is() -> None:
    rows = table("Where the contract is")
    assert {name: row[0] for name, row in rows.items()} == {
        name: f"`{file.name}`" for name, file in MODEL_FILES.items()
    }


def test_the_page_describes_the_inventory_and_the_proof() -> None:
    inventory = json.loads((BUNDLED_MODEL / ARTIFACT_FILE).read_text())
    described = {key: row for key, row in table("artifact.json").items() if not key.startswith("files.*")}
    assert {key: type(value) for key, value in inventory.items()} == dict.fromkeys(
        ("contract", "files"), dict
    )
    assert described.keys() == {"contract", "files"}
    of_files = {key: row for key, row in table("artifact.json").items() if key.startswith("files.*")}
    for file in inventory["files"].values():
        rows = {key: row for key, row in of_files.items() if row[1] == "always" or "format" in file}
        assert_described({"files": {"*": file}}, rows)
    for proof in json.loads((BUNDLED_MODEL / PARITY_FILE).read_text()).values():
        for difference in proof["engines"].values():
            assert_described({**proof, "engines": {"*": difference}}, table("parity.json"))


def test_the_page_describes_the_vectors() -> None:
    expected = {
        path: (tensor.name, list(tensor.dims))
        for path in (VECTOR_INPUT, *VECTOR_OUTPUTS)
        for tensor in [onnx.load_tensor(BUNDLED_MODEL / path)]
    }
    found = {
        path: (row[0].strip("`"), json.loads(row[2].strip("`")))
        for path, row in table("Test vectors").items()
    }
    assert found == expected


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


SRUN = """#!/usr/bin/env bash
# Stands in for SLURM's: a task a node, each with the variables that SLURM sets for it.
while [[ $1 == --* ]]; do echo "srun $1" >&2; shift; done
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
    SLURM_PROCID=$node SLURM_NODEID=$node SLURM_LOCALID=0 SLURM_STEP_ID=0 \\
        SLURM_STEP_NUM_TASKS=$SLURM_JOB_NUM_NODES SLURM_STEP_NUM_NODES=$SLURM_JOB_NUM_NODES "$@" &
    tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames node[1-2]" ] && printf 'localhost\\nlocalhost\\n'
"""


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def free_port(lowest: int, highest: int) -> int:
    """A port of this machine that nobody listens on."""
    for port in range(lowest, highest):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise AssertionError("no port is free")


QUICK = ("--recipe", "notebook", "--dataset", "mnist5k")


def test_the_sbatch_script_trains_on_two_nodes(tmp_path: Path) -> None:
    job = free_port(20000, 30000) - 20000
    programs = tmp_path / "bin"
    programs.mkdir()
    write_program(programs / "srun", SRUN)
    write_program(programs / "scontrol", SCONTROL)
    shutil.copy(ROOT / "docs" / "slurm" / "train.sbatch", tmp_path)
    slurm = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_GPUS_ON_NODE": "1",
        "ACCELERATE_USE_CPU": "true",
        "PATH": f"{programs}:{ENVIRONMENT['PATH']}",
    }
    ran = subprocess.run(
        ["bash", "train.sbatch", *QUICK, "--limit", "640", "--epochs", "1"],
        cwd=tmp_path,
        env=ENVIRONMENT | slurm,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 0, ran.stderr
    assert "in 2 processes on cpu" in ran.stdout
    assert "srun --kill-on-bad-exit=1" in ran.stderr
    config = json.loads((tmp_path / "runs" / "slurm" / run_files.CONFIG).read_text())
    assert config["recipe"] == "notebook"


def test_the_sbatch_script_asks_for_what_it_uses() -> None:
    text = (ROOT / "docs" / "slurm" / "train.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", text, flags=re.MULTILINE))
    assert asked["ntasks-per-node"] == "1"  # torchrun starts the others
    assert asked["signal"].startswith("TERM@")
    assert "requeue" in asked
    assert "--resume" in text


def manifests() -> dict[str, dict[str, Any]]:
    """The objects of docs/manifests/train.yaml by kind."""
    text = (ROOT / "docs" / "manifests" / "train.yaml").read_text(encoding="utf-8")
    return {part["kind"]: part for part in yaml.safe_load_all(text)}


def test_the_manifests_fit_together() -> None:
    objects = manifests()
    job, service = objects["Job"], objects["Service"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert f"--nnodes={job['spec']['completions']} " in container["args"][0]
    assert f"--rdzv-endpoint={name}-0.{pod['subdomain']}:" in container["args"][0]
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] == "runs"
    ]
    assert claims == [objects["PersistentVolumeClaim"]["metadata"]["name"]]
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_two_pods_train_and_go_on_after_the_first_one_died(tmp_path: Path) -> None:
    """On localhost, with the variables that Kubernetes sets; it would start both containers again."""
    (container,) = manifests()["Job"]["spec"]["template"]["spec"]["containers"]
    environment = ENVIRONMENT | {item["name"]: item["value"] for item in container["env"]}
    environment |= {"ACCELERATE_USE_CPU": "true", "HOME": str(tmp_path)}
    # Flags that come later replace those of the manifest.
    script = container["args"][0].replace(
        "mnist-train-0.mnist-train:29500", f"localhost:{free_port(30000, 40000)}"
    )
    script = (
        script.rstrip() + f" {' '.join(QUICK)} --epochs 4 --checkpoint-every 20 --output {tmp_path}/run\n"
    )
    log = tmp_path / "log"

    def start(index: int) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return subprocess.Popen(
                [*container["command"], script],
                env=environment | {"JOB_COMPLETION_INDEX": str(index)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    pods = [start(0), start(1)]
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "step-00000020", pods, log)
        os.killpg(pods[0].pid, signal.SIGKILL)
        assert [pod.wait(PATIENCE_S) for pod in pods] == [-signal.SIGKILL, 1], log.read_text()
        assert not (tmp_path / "run" / run_files.REPORT).exists()
        pods = [start(0), start(1)]
        assert [pod.wait(PATIENCE_S) for pod in pods] == [0, 0], log.read_text()
    finally:
        for pod in pods:
            with suppress(ProcessLookupError):
                os.killpg(pod.pid, signal.SIGKILL)
            pod.wait(PATIENCE_S)
    said = log.read_text()
    assert re.search(r"going on after step [1-9]\d+", said)
    assert "in 2 processes on cpu" in said


def wait_for(path: Path, pods: list[subprocess.Popen[bytes]], log: Path) -> None:
    """Wait until `path` is there, while all pods run."""
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert all(pod.poll() is None for pod in pods), log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def test_the_image_of_the_pods_gets_what_the_package_is_built_from() -> None:
    """It copies what the other Dockerfile copies, and installs an extra that is there."""
    text = (ROOT / "docs" / "manifests" / "train.Dockerfile").read_text()
    server = (ROOT / "Dockerfile").read_text()
    copies = re.findall(r"^COPY (?!--from).*$", text, flags=re.MULTILINE)
    assert copies == re.findall(r"^COPY (?!--from).*$", server, flags=re.MULTILINE)
    for line in re.findall(r"^RUN (.*)$", text, flags=re.MULTILINE):
        check_extras(shlex.split(line))
    (job,) = [part for part in manifests().values() if part["kind"] == "Job"]
    user = job["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in text
