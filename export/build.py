"""Building an artifact directory: temporary folder, convert, prove, and only then its final name."""

import dataclasses
import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from export.convert import FORMATS, run_torch
from export.parity import Parity, measure
from export.source import Source
from serve_cli.runtime import Prediction
from serve_cli.spec import ARTIFACT_FILE, ARTIFACT_FILES, MODEL_FILES, PARITY_FILE, Contract
from trainer.data import Dataset, load_dataset
from trainer.run_directory import json_bytes
from trainer.staging import staged_folder

REFERENCE_BATCH = 256


@dataclass(frozen=True)
class Artifact:
    """What was published: the net's `accuracy` (0 to 1) on the test split, and the proof of each format."""

    accuracy: float
    proofs: Mapping[str, Parity]


def build_artifact(
    source: Source,
    formats: Sequence[str],
    *,
    output: Path,
    overwrite: bool,
    data_dir: Path | None,
    opset: int,
    tell: Callable[[str], None],
) -> Artifact:
    """Convert `source` to each of `formats`, prove it on the whole test split, and publish at `output`.

    `tell` receives a line about each step.

    Raises:
        CheckFailed: a format differs from PyTorch; nothing is published, what stood at `output` stays.
        InputError: the data or the output does not allow it.
    """
    with staged_folder(output, ours=ARTIFACT_FILES, overwrite=overwrite) as folder:
        dataset = load_dataset(source.dataset, data_dir)
        images = dataset.test.images.numpy()
        reference = run_torch(source.model(), images, REFERENCE_BATCH)
        accuracy = float((reference.logits.argmax(axis=1) == dataset.test.labels.numpy()).mean())
        contract = describe(source, dataset, accuracy)
        proofs: dict[str, Parity] = {}
        for name in formats:
            tell(f"{name}: converting, then comparing with PyTorch on {len(images):,} test images")
            proofs[name] = _publishable(name, source, contract, folder, images, reference, opset)
        parity = {name: dataclasses.asdict(proof) for name, proof in proofs.items()}
        (folder / PARITY_FILE).write_bytes(json_bytes(parity))
        files = {MODEL_FILES[name]: _describe_file(name, folder) for name in formats}
        described = {**dataclasses.asdict(contract), "parity": parity}
        (folder / ARTIFACT_FILE).write_bytes(json_bytes({"contract": described, "files": files}))
    return Artifact(accuracy, proofs)


def _publishable(
    name: str,
    source: Source,
    contract: Contract,
    folder: Path,
    images: np.ndarray,
    reference: Prediction,
    opset: int,
) -> Parity:
    """Write one format and return its proof, which the file then carries itself.

    Raises:
        CheckFailed: the file differs from PyTorch.
    """
    path = folder / MODEL_FILES[name]
    FORMATS[name].convert(source.model(), path, opset)
    FORMATS[name].stamp(path, contract)
    proof = _prove(name, path, images, reference)
    FORMATS[name].stamp(path, dataclasses.replace(contract, parity=dataclasses.asdict(proof)))
    _prove(name, path, images, reference)  # once more: what is published is what was proven, to the byte
    return proof


def _prove(name: str, path: Path, images: np.ndarray, reference: Prediction) -> Parity:
    proof = measure(FORMATS[name].load(path), images, reference)
    proof.require(path.name)
    return proof


def describe(source: Source, dataset: Dataset, accuracy: float) -> Contract:
    """The contract of a source whose `accuracy` (0 to 1) was measured on the test split; no proof yet."""
    layers = [module for module in source.net.state_dict().values() if module.ndim == 2]
    sizes = [layers[0].shape[1], *(layer.shape[0] for layer in layers)]
    return Contract(
        labels=dataset.labels,
        normalization={"mean": source.mean, "std": source.std},
        model={
            "layers": "-".join(map(str, sizes)),
            "parameters": sum(parameter.numel() for parameter in source.net.parameters()),
            "state_dict_sha256": source.state_dict_sha256,
        },
        training=source.training,
        evaluation={"dataset": dataset.name, "accuracy": accuracy, "samples": len(dataset.test)},
        parity={},
        versions={
            "mnist-toolkit": version("mnist-toolkit"),
            "onnx": version("onnx"),
            "onnxruntime": version("onnxruntime"),
            "python": platform.python_version(),
            "torch": version("torch"),
        },
    )


def _describe_file(name: str, folder: Path) -> dict[str, object]:
    """Format, size and SHA-256 of a model file, for artifact.json."""
    data = (folder / MODEL_FILES[name]).read_bytes()
    return {"format": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
