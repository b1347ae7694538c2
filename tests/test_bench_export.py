"""scripts/bench_export in small: what it finds in real exports, and in damaged ones."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_export"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What the script defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        return runpy.run_path(str(SCRIPT))


def test_one_round_of_everything(run_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = [sys.executable, SCRIPT, "--run", run_directory, "--rounds", "1", "--damaged", "3"]
    done = subprocess.run([*command, "--json", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(path.read_bytes())
    ours, torch = report["export"]
    assert (ours["contestant"], torch["contestant"]) == ("mnist export", "torch.onnx.export")
    for figure in (ours, torch):
        assert 0 < figure["max_abs_logit_diff"] < 1e-4
        assert (figure["label_flips"], figure["samples"]) == (0, 1000)
        assert 437_544 < figure["bytes"] < 500_000, "four bytes a weight, and some more"
    assert ours["files"] > torch["files"] >= 1
    assert {figure["contestant"]: figure["noticed"] for figure in report["damage"]} == {
        "mnist export": 3,
        "proof of mnist export": 3,
        "torch.onnx.export": 0,
    }
    assert "| mnist verify | 3 of 3 |" in done.stdout.splitlines()
    assert len(report["comparisons"]) == 4 + 2


def test_one_weight_is_damaged(script: dict[str, Any], artifact: Path) -> None:
    for number, damage, changed in ((0, 1e-3, [1, 0, 0]), (2, 1e-3, [0, 0, 1]), (1, 0.0, [0, 0, 0])):
        whole, damaged = (onnx.load(artifact / "model.onnx") for _ in range(2))
        script["damage_weight"](damaged, number, damage)
        pairs = zip(weights(whole), weights(damaged), strict=True)
        differences = [(before != after).sum() for before, after in pairs]
        assert sorted(differences) == sorted(changed)
        assert sum(differences) == sum(changed)


def weights(proto: onnx.ModelProto) -> list[np.ndarray]:
    return [numpy_helper.to_array(item) for item in proto.graph.initializer if len(item.dims) == 2]


def test_comparisons(script: dict[str, Any]) -> None:
    """Less is better of everything but of what is noticed, and files are not compared."""
    common = {"bytes": 10, "files": 2, "max_abs_logit_diff": 1e-5, "label_flips": 0}
    found = script["compare_exports"](
        [
            {"contestant": "mnist export", "seconds": 8.0, **common},
            {"contestant": "torch.onnx.export", "seconds": 4.0, **common},
        ]
    )
    assert [(item.what.partition(",")[0], item.verdict()) for item in found] == [
        *(("s", "worse"), ("bytes of the model", "equal")),
        *(("largest difference of a logit", "equal"), ("labels that differ", "equal")),
    ]
    digest, proof = script["compare_checks"](
        [
            {"contestant": "mnist export", "noticed": 20, "damaged": 20},
            {"contestant": "proof of mnist export", "noticed": 19, "damaged": 20},
            {"contestant": "torch.onnx.export", "noticed": 0, "damaged": 20},
        ]
    )
    assert (digest.our_values, proof.our_values) == ([20], [19])
    assert digest.verdict() == proof.verdict() == "better"
