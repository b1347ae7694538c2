"""The batch script and the manifests of docs/several-machines.md, run with stand-ins for their schedulers."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.documents import ENVIRONMENT, PATIENCE_S, ROOT, check_extras
from trainer import run_dir as run_files

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
        wait_for(tmp_path / "run" / "checkpoints", "step-*", pods, log)
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


def wait_for(folder: Path, pattern: str, pods: list[subprocess.Popen[bytes]], log: Path) -> None:
    """Wait until `folder` has a file with a name like `pattern`, while all pods run."""
    end = time.monotonic() + PATIENCE_S
    while not list(folder.glob(pattern)):
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
