"""Building an artifact directory: temporary folder, convert, prove, and only then its final name."""

import dataclasses
import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from export import triton
from export.format import Format, Order
from export.formats import FORMATS
from export.model_card import model_card
from export.parity import BATCH_SIZES, Parity, Questions, edge_pictures, measure, most_bytes
from export.source import Source
from export.torch_formats import runner
from export.vectors import vectors
from serve_cli.errors import InputError
from serve_cli.metrics import score
from serve_cli.spec import (
    ARTIFACT_FILE,
    ARTIFACT_FILES,
    MODEL_CARD,
    MODEL_FILES,
    MODEL_NAME,
    PARITY_FILE,
    TRITON_FILE,
    Contract,
    temperature_of,
)
from serve_cli.verify import verify_artifact
from trainer.atomic import atomic_folder
from trainer.data import Dataset, Split, load_dataset
from trainer.model import DeployedModel, Normalize
from trainer.run_dir import json_bytes

REFERENCE_BATCH = 256

CALIBRATION_IMAGES = 10_000
"""Training images that set the ranges of the 8-bit format; with 2,000 the error is twice as large."""

USUAL_NORMALIZATIONS = ((0.5, 0.5), (0.1307, 0.3081), (0.0, 1.0))
"""Mean and std in tutorials: the notebook's, those of MNIST's pixels, none."""

CLEARLY, TRAINED = 0.01, 0.5
"""How much better (0 to 1) than the given one, and how well at all, another normalisation must read to be
mentioned."""

DECIMALS = 6
"""Of the figures in a contract."""

OURS = frozenset((*ARTIFACT_FILES, *triton.REPOSITORY_FILES))
"""All files of an artifact directory, in any layout."""


@dataclass(frozen=True)
class Artifact:
    """What was published: the `accuracy` (0 to 1) on the test split, and file and proof of each format.

    `fits_better` is a usual (mean, std) with which the net reads training images clearly better, if any.
    """

    accuracy: float
    fits_better: tuple[float, float] | None
    files: Mapping[str, Path]
    proofs: Mapping[str, Parity]


def build_artifact(
    source: Source,
    formats: Sequence[str],
    *,
    output: Path,
    layout: str,
    overwrite: bool,
    data_dir: Path | None,
    opset: int,
    license_name: str,
    tell: Callable[[str], None],
) -> Artifact:
    """Convert `source` to each of `formats`, prove it on the whole test split, and publish at `output`.

    `tell` receives a line about each step.

    Raises:
        CheckFailed: a format differs from PyTorch; nothing is published, what stood at `output` stays.
        InputError: the data or the output does not allow it.
    """
    _require_opset(formats, opset)
    root, files = Path(), {name: MODEL_FILES[name].name for name in formats}
    if layout == "triton":
        root, files = Path(MODEL_NAME), dict.fromkeys(formats, TRITON_FILE)
    with atomic_folder(output, ours=OURS, overwrite=overwrite) as folder:
        dataset = load_dataset(source.dataset, data_dir)
        questions = ask(source, dataset)
        contract = describe(source, dataset, questions, license_name)
        order = Order(opset=opset, calibration=dataset.train.images[:CALIBRATION_IMAGES].numpy())
        proofs: dict[str, Parity] = {}
        for name, file in files.items():
            tell(f"{name}: converting, then comparing with PyTorch on {len(dataset.test):,} test images")
            path = folder / root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            proofs[name] = _publishable(FORMATS[name], source, contract, path, questions, order)
        parity = {name: proof.statement() for name, proof in proofs.items()}
        proven = {name: dataclasses.asdict(proof) for name, proof in proofs.items()}
        (folder / root / PARITY_FILE).write_bytes(json_bytes(proven))
        if layout == "triton":
            triton.write_configuration(folder / root, contract.labels)
        _complete(folder / root, dataclasses.replace(contract, parity=parity), files, questions)
        verify_artifact(folder / root)  # as its users will
    return Artifact(
        accuracy=contract.evaluation["accuracy"],
        fits_better=fits_better(source, dataset.train.take(torch.arange(len(order.calibration)))),
        files={name: output / root / file for name, file in files.items()},
        proofs=proofs,
    )


def _require_opset(formats: Sequence[str], opset: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    for name in formats:
        first = FORMATS[name].first_opset
        if first is not None and not first <= opset <= newest:
            raise InputError(f"--opset is {opset}, {name} takes {first} to {newest}")


def ask(source: Source, dataset: Dataset) -> Questions:
    """All pictures that the formats are asked about, with PyTorch's answers."""
    images = np.concatenate([dataset.test.images.numpy(), edge_pictures()])
    reference = runner(source.model())(images, REFERENCE_BATCH)
    return Questions(images=images, labels=dataset.test.labels.numpy(), reference=reference)


def fits_better(source: Source, train: Split) -> tuple[float, float] | None:
    """A usual (mean, std) with which a bare net reads `train` clearly better than with its own, or None.

    A state_dict does not say how its pixels were normalised, and a wrong guess only costs accuracy.
    """
    if source.training:
        return None

    def accuracy(mean: float, std: float) -> float:
        run = runner(DeployedModel(source.net, Normalize(mean, std)).eval())
        found = run(train.images.numpy(), REFERENCE_BATCH).logits.argmax(axis=1)
        return float((found == train.labels.numpy()).mean())

    best = max(USUAL_NORMALIZATIONS, key=lambda usual: accuracy(*usual))
    at_least = max(accuracy(source.mean, source.std) + CLEARLY, TRAINED)
    return best if accuracy(*best) > at_least else None


def _publishable(
    kind: Format, source: Source, contract: Contract, path: Path, questions: Questions, order: Order
) -> Parity:
    """Write one format and return its proof, which the file then carries itself.

    Raises:
        CheckFailed: the file differs from PyTorch.
    """
    kind.convert(source.model(), path, order)
    kind.stamp(path, contract)
    proof = _prove(kind, path, contract, questions, BATCH_SIZES)
    kind.stamp(path, dataclasses.replace(contract, parity=proof.statement()))
    _prove(kind, path, contract, questions, (REFERENCE_BATCH,))  # the stamp has changed bytes of the file
    return proof


def _prove(
    kind: Format, path: Path, contract: Contract, questions: Questions, batch_sizes: tuple[int, ...]
) -> Parity:
    engines = {name: load(path) for name, load in kind.engines.items()}
    proof = measure(engines, questions, quantized=kind.quantized, batch_sizes=batch_sizes)
    if kind.quantized:
        sizes = [int(size) for size in contract.model["layers"].split("-")]
        proof.require_close(path.name, path.stat().st_size, most_bytes(sizes))
    else:
        proof.require_equal(path.name)
    return proof


def describe(source: Source, dataset: Dataset, questions: Questions, license_name: str) -> Contract:
    """The contract of a source, with what the test split says of it; no proof yet."""
    layers = [module for module in source.net.state_dict().values() if module.ndim == 2]
    sizes = [layers[0].shape[1], *(layer.shape[0] for layer in layers)]
    logits = questions.reference.logits[: len(questions.labels)]
    return Contract(
        labels=dataset.labels,
        normalization={"mean": source.mean, "std": source.std},
        model={
            "layers": "-".join(map(str, sizes)),
            "parameters": sum(parameter.numel() for parameter in source.net.parameters()),
            "state_dict_sha256": source.state_dict_sha256,
        },
        training=source.training,
        calibration=source.calibration,
        evaluation={
            "dataset": dataset.name,
            "dataset_sha256": dataset.test.sha256,
            **_rounded(score(logits, questions.labels, dataset.labels, temperature_of(source.calibration))),
        },
        parity={},
        versions={
            "mnist-toolkit": version("mnist-toolkit"),
            "onnx": version("onnx"),
            "onnxruntime": version("onnxruntime"),
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        license=license_name,
    )


def _rounded(value: Any) -> Any:
    """`value` with every float in it rounded: a loss is not the same to the last bit each time."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DECIMALS) if isinstance(value, float) else value


def _complete(root: Path, contract: Contract, files: Mapping[str, str], questions: Questions) -> None:
    """Write what stands beside the model files and their proof: test vectors, model card, inventory."""
    (root / MODEL_CARD).write_text(model_card(contract, files), encoding="utf-8", newline="\n")
    for path, data in vectors(questions).items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(data)
    (root / ARTIFACT_FILE).write_bytes(json_bytes(_inventory(root, contract, files)))


def _inventory(root: Path, contract: Contract, files: Mapping[str, str]) -> dict[str, object]:
    """The content of artifact.json: the contract, and size and SHA-256 of every file that is there."""
    formats = {file: {"format": name} for name, file in files.items()}
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {
        "contract": dataclasses.asdict(contract),
        "files": {path: {**formats.get(path, {}), **_describe_file(root / path)} for path in paths},
    }


def _describe_file(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
