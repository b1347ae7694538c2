"""Two machines, which are namespaces of this one, and the config files for accelerate launch."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from typer.main import get_command

from trainer.main import app

SCRIPTS = Path(__file__).parent.parent / "scripts"
CONFIGS = sorted((SCRIPTS / "accelerate").glob("*.yaml"))
SKIPPED = 77


def test_two_machines_train_the_same_net_even_when_one_dies() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "two_machines"], capture_output=True, text=True, check=False
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    together, disturbed, bits = done.stdout.splitlines()
    assert re.search(r"^two machines: done .* 2 processes, largest difference", together)
    assert re.search(
        r"^killed with rank 0 after step (\d+): went on after step \1, .* 2 processes", disturbed
    )
    assert bits.endswith("the bits of the weights equal")


def commands(config: Path) -> list[list[str]]:
    """The commands in the comments of a config file, in words."""
    comments = [line.removeprefix("#").strip() for line in config.read_text().splitlines() if line[:1] == "#"]
    text = "\n".join(comments).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "accelerate launch" in line]
    return [shlex.split(line.partition("accelerate launch")[2]) for line in lines]


def test_two_processes_on_the_cpu_train_together(tmp_path: Path) -> None:
    (words,) = commands(SCRIPTS / "accelerate" / "cpu_two_processes.yaml")
    words[words.index("--output") + 1] = str(tmp_path / "run")
    limits = ["--dataset", "mnist5k", "--epochs", "1", "--limit", "640"]
    accelerate = Path(sys.executable).with_name("accelerate")

    done = subprocess.run(
        [accelerate, "launch", *words, *limits],
        cwd=SCRIPTS.parent,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "in 2 processes on cpu" in done.stdout


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_the_config_and_the_command_beside_it(config: Path) -> None:
    loaded = load_config_from_file(str(config))
    (words,) = commands(config)
    parser = launch_command_parser()

    launcher, _ = parser.parse_known_args(words)
    asked, _, _ = _validate_launch_command(launcher)

    assert Path(asked.config_file) == Path("scripts/accelerate", config.name)
    assert (asked.num_machines, asked.num_processes) == (loaded.num_machines, loaded.num_processes)
    assert asked.multi_gpu == (loaded.num_processes > 1)
    assert (asked.module, asked.training_script) == (True, "trainer.main")
    get_command(app).make_context("train", asked.training_script_args)
