"""Build an artifact directory: stage, convert, prove, publish."""

import dataclasses
import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper

from export import onnx_formats as onnx
from export import torch_formats as pytorch
from export import triton
from export.model_card import model_card
from export.parity import (
    REFERENCE,
    Parity,
    ParityInputs,
    Runner,
    edge_pictures,
    measure,
    require_same_weights,
    require_small,
)
from export.source import NetSource, Source
from export.torch_formats import ConversionOptions
from serve_cli.errors import CheckFailed, InputError
from serve_cli.metrics import score
from serve_cli.runtime import CHUNK
from serve_cli.spec import (
    ARTIFACT_FILE,
    ARTIFACT_FILES,
    INPUT,
    MODEL_CARD,
    MODEL_FILES,
    MODEL_NAME,
    OUTPUTS,
    PARITY_FILE,
    TRITON_FILE,
    VECTOR_INPUT,
    VECTOR_OUTPUTS,
    Contract,
    temperature_of,
)
from serve_cli.tolerance import TOLERANCES
from serve_cli.verify import verify_artifact
from trainer.atomic import atomic_folder
from trainer.calibrate import calibrate
from trainer.data import Dataset, Split, load_dataset
from trainer.model import DeployedModel
from trainer.run_dir import json_bytes

CALIBRATION_IMAGES = 10_000
"""Training images that set the ranges of the 8-bit format; with 2,000 the error is twice as large."""

CHECK_IMAGES, SLOW_CHECK_IMAGES = 5_000, 1_000
"""Training images on which the usual normalisations are compared: of a state_dict, of an ONNX file."""

FEW_TEST_IMAGES = 100

USUAL_NORMALIZATIONS = (
    (0.5, 0.5),
    (0.1307, 0.3081),
    (0.0, 1.0),
    (0.0, 0.00392157),
    (0.5, -0.5),
    (0.8693, -0.3081),
    (1.0, -1.0),
)
"""Mean and std in tutorials: the notebook's, those of MNIST's pixels, none, pixels from 0 to 255; then the
first three for inverted pixels: 1 - x, normalised with mean and std, is x with 1 - mean and -std."""

CLEARLY = 0.01
"""Another way to prepare the pixels is recommended if the net reads this much better with it (0 to 1)."""

TRAINED = 0.5
"""And if it reads at least this share of the images."""

POOR = 0.85
"""Below this accuracy other activations are tried, and the user is warned. Nets of 4,000 digits have 0.88."""

RELU = "ReLU"

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "GELU": torch.nn.functional.gelu,
    "ELU": torch.nn.functional.elu,
    "leaky ReLU": torch.nn.functional.leaky_relu,
}
"""What people put between the layers in place of ReLU; a state_dict does not say it."""

AS_ONNX = "export it to ONNX there (torch.onnx.export), and bring the ONNX file"

LONGEST_REASON = 200

DECIMALS = 6
"""Of the figures in a contract."""

OURS = frozenset((*ARTIFACT_FILES, *triton.REPOSITORY_FILES))
"""All files of an artifact directory, in any layout."""


@dataclass(frozen=True)
class Format:
    """How a model becomes the bytes of a file, how a contract gets into them, and how the file is opened.

    The proof runs the file in all `backends`. `weights` reads the net's weights out of the bytes of a float
    file; without it the format is the 8-bit one. `first_opset` is the oldest operator set it can have.
    """

    convert: Callable[[DeployedModel, ConversionOptions], bytes]
    embed: Callable[[bytes, Contract], bytes]
    backends: Mapping[str, Callable[[Path], Runner]]
    weights: Callable[[bytes], Mapping[str, np.ndarray]] | None
    first_opset: int | None = None


ONNX_BACKENDS = {"onnxruntime": onnx.run_onnxruntime, REFERENCE: onnx.run_reference}

FORMATS = {
    "onnx": Format(onnx.convert_onnx, onnx.embed_contract, ONNX_BACKENDS, onnx.weights, onnx.FIRST_OPSET),
    "onnx-int8": Format(onnx.convert_int8, onnx.embed_contract, ONNX_BACKENDS, None, onnx.FIRST_INT8_OPSET),
    "torchscript": Format(
        pytorch.convert_torchscript,
        pytorch.embed_contract,
        {"torch.jit": pytorch.run_torchscript},
        pytorch.torchscript_weights,
    ),
    "pt2": Format(
        pytorch.convert_pt2, pytorch.embed_contract, {"torch.export": pytorch.run_pt2}, pytorch.pt2_weights
    ),
}
"""The export formats; names and files are those of the contract."""


@dataclass(frozen=True)
class Artifact:
    """What was published: the `accuracy` (0 to 1) on the test split, and file and proof of each format.

    `warning` says why the net may not be what the user thinks; it is empty for most.
    """

    accuracy: float
    warning: str
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
    opset: int | None,
    license_name: str,
    min_accuracy: float,
    log: Callable[[str], None],
) -> Artifact:
    """Convert `source` to each of `formats`, prove it on the whole test split, and publish at `output`.

    `data_dir` defaults to that of the run. `log` receives a line about each step.

    Raises:
        CheckFailed: a format differs from the original, or the net reads less than `min_accuracy` (0 to 1) of
            the test split; nothing is published, what was at `output` stays.
        InputError: the data or the output does not allow it.
    """
    _require_formats(source, formats, opset)
    root, files = Path(), {name: MODEL_FILES[name].name for name in formats}
    if layout == "triton":
        root, files = Path(MODEL_NAME), dict.fromkeys(formats, TRITON_FILE)
    with atomic_folder(output, ours=OURS, overwrite=overwrite) as folder:
        dataset = load_dataset(source.dataset, data_dir or source.data_dir)
        source.require_same_data(dataset)
        if len(dataset.test) < FEW_TEST_IMAGES:
            log(f"warning: the data has only {len(dataset.test)} test images, so the proof says little")
        warning = require_accuracy(source, dataset, min_accuracy, log)
        if not isinstance(source, NetSource):
            source = calibrated(source, dataset.train)
        inputs = parity_inputs(source, dataset)
        contract = describe(source, dataset, inputs, license_name)
        options = ConversionOptions(
            opset=opset or onnx.DEFAULT_OPSET,
            calibration_images=dataset.train.images[:CALIBRATION_IMAGES].numpy(),
        )
        proofs: dict[str, Parity] = {}
        for name, file in files.items():
            log(f"{name}: converting, then comparing with the original on {len(dataset.test):,} test images")
            path = folder / root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            proofs[name] = write_proven(name, path, source, contract, inputs, options, log)
        if layout == "triton":
            triton.write_configuration(folder / root, contract.labels)
        _write_descriptions(folder / root, contract, files, proofs, inputs)
        verify_artifact(folder / root)  # as its users will
    return Artifact(
        accuracy=contract.evaluation["accuracy"],
        warning=warning,
        files={name: output / root / file for name, file in files.items()},
        proofs=proofs,
    )


def _require_formats(source: Source, formats: Sequence[str], opset: int | None) -> None:
    """Raise unless `source` can become each of `formats` in this operator set.

    Raises:
        InputError: it cannot.
    """
    if not isinstance(source, NetSource):
        if formats != ["onnx"]:
            raise InputError("an ONNX file becomes --format onnx: leave the other formats out")
        if opset is not None:
            raise InputError("an ONNX file keeps its own operator set: leave --opset out")
        return
    for name in formats:
        first = FORMATS[name].first_opset
        if opset is not None and first is not None and not first <= opset <= onnx.NEWEST_OPSET:
            raise InputError(f"--opset is {opset}, {name} takes {first} to {onnx.NEWEST_OPSET}")


def parity_inputs(source: Source, dataset: Dataset) -> ParityInputs:
    """The images that every file is run on, with the outputs of the original."""
    images = np.concatenate([dataset.test.images.numpy(), edge_pictures()])
    reference = source.runner()(images, CHUNK)
    return ParityInputs(images=images, labels=dataset.test.labels.numpy(), reference=reference)


def write_proven(
    name: str,
    path: Path,
    source: Source,
    contract: Contract,
    inputs: ParityInputs,
    options: ConversionOptions,
    log: Callable[[str], None],
) -> Parity:
    """Write a file of the format `name`, prove it, and embed the statement of its proof.

    The proof runs on the file with a contract that lacks the statement. The graph in the final file is the
    same bytes, so a replay of the test vectors is enough for it.

    Raises:
        CheckFailed: the file differs from the original.
    """
    kind = FORMATS[name]
    converted = source.convert(kind.convert, options)
    path.write_bytes(kind.embed(converted, contract))
    parity = require_proof(name, path, source, inputs, log)
    path.write_bytes(kind.embed(converted, dataclasses.replace(contract, parity=parity.statement())))
    _replay(name, path, inputs)
    return parity


def require_proof(
    name: str, path: Path, source: Source, inputs: ParityInputs, log: Callable[[str], None]
) -> Parity:
    """Prove the file of the format `name` at `path`; `log` receives why a backend cannot run it.

    Raises:
        CheckFailed: it differs from the original.
    """
    kind = FORMATS[name]
    if kind.weights is not None:
        require_same_weights(path.name, kind.weights(path.read_bytes()), source.weights())
    backends = {backend: load(path) for backend, load in kind.backends.items()}
    slow = () if isinstance(source, NetSource) else (REFERENCE,)
    for backend in slow:
        try:
            backends[backend](inputs.images[:1], 1)
        except Exception as error:  # it raises many kinds, and does not know every operator
            reason = shorten(str(error), LONGEST_REASON, placeholder=" ...")
            log(f"{backend} cannot run this model ({reason}): it is compared in onnxruntime alone")
            del backends[backend]
    parity = measure(backends, inputs, int8=kind.weights is None, slow=slow)
    if isinstance(source, NetSource) and kind.weights is None:
        parity.require_int8(path.name)
        require_small(path.name, path.stat().st_size, source.layer_sizes())
    else:
        parity.require_float(path.name)
    return parity


def _replay(name: str, path: Path, inputs: ParityInputs) -> None:
    """Run the final file on the test vectors, as `mnist verify` does for ONNX files."""
    places = inputs.vector_positions()
    found = next(iter(FORMATS[name].backends.values()))(path)(inputs.images[places], CHUNK)
    expected = inputs.reference.logits[places], inputs.reference.probabilities[places]
    worst = TOLERANCES[name].worst((found.logits, found.probabilities), expected)
    if not worst.share <= 1:
        raise CheckFailed(
            f"{path.name} differs from the original by up to {worst.difference:.3g} on the test vectors "
            f"(allowed: {worst.allowed:.3g}): nothing was published"
        )


def require_accuracy(
    source: Source, dataset: Dataset, min_accuracy: float, log: Callable[[str], None]
) -> str:
    """Why a net may not be used as it was trained, in one line, or nothing; `log` receives how well it reads.

    A bare file does not say how its pixels were normalised, nor a state_dict its activation, and a wrong
    guess passes every comparison with the original. So the usual ones are tried on training images. The test
    split only decides whether the net is good enough.

    Raises:
        CheckFailed: it reads less than `min_accuracy` (0 to 1) of the test split.
    """
    accuracy = _accuracy(source, dataset.test)
    cause = "" if source.training else find_cause(source, dataset.train, accuracy, log)
    if accuracy < min_accuracy:
        raise CheckFailed(
            f"the net reads only {accuracy:.1%} of the test images, --min-accuracy is {min_accuracy:g}: "
            f"nothing was published; {cause or 'train it longer'}"
        )
    return cause


def find_cause(source: Source, train: Split, accuracy: float, log: Callable[[str], None]) -> str:
    """Why the net of a bare file reads worse than it could, or nothing.

    `accuracy` is that on the test split, from 0 to 1. `log` receives how well the given normalisation fits.
    """
    count = min(CHECK_IMAGES if isinstance(source, NetSource) else SLOW_CHECK_IMAGES, len(train))
    train = train.take(torch.arange(count))
    read, given = f"of {len(train):,} training images", (source.mean, source.std)
    tries = {
        (mean, std, name): _accuracy(changed, train)
        for mean, std in ((given, *USUAL_NORMALIZATIONS) if source.normalizes else (given,))
        for name, changed in _with_activations(
            dataclasses.replace(source, mean=mean, std=std), all_of_them=accuracy < POOR
        )
    }
    own = tries[*given, RELU]
    mean, std, name = best = max(tries, key=lambda way: tries[way] - CLEARLY * (way[2] != RELU))
    if tries[best] > max(own + CLEARLY, TRAINED):
        inverted = " (it was trained on inverted pixels)" if std < 0 else ""
        flags = f"--mean {mean} --std {std}"
        if name == RELU:
            way, advice = f"{flags}{inverted}", "export it with those"
        else:
            way, advice = f"{name} in place of {RELU}", AS_ONNX
            way += f" and {flags}{inverted}" if (mean, std) != given else ""
        return f"with {way} it reads {tries[best]:.1%} {read}, as it is {own:.1%}: {advice}"
    if source.normalizes:
        log(f"normalisation: --mean {source.mean} --std {source.std} fits, {own:.1%} {read} are read right")
    if accuracy < POOR:
        return (
            f"it reads {own:.1%} {read}, far less than a trained net: was it trained on pictures prepared in "
            "another way, or on other labels?"
        )
    return ""


def _with_activations(source: Source, *, all_of_them: bool) -> Iterator[tuple[str, Source]]:
    """Yield the source itself and, of a state_dict, also with each of ACTIVATIONS."""
    yield RELU, source
    if all_of_them and isinstance(source, NetSource):
        for name, activation in ACTIVATIONS.items():
            yield name, source.with_activation(activation)


def _accuracy(source: Source, split: Split) -> float:
    predicted = source.runner()(split.images.numpy(), CHUNK).logits.argmax(axis=1)
    return float((predicted == split.labels.numpy()).mean())


def calibrated(source: Source, train: Split) -> Source:
    """The source with temperature and confidence threshold found on training images.

    The net may have learned from them, and then seems surer than it is: the temperature is at least 1.
    """
    train = train.take(torch.arange(min(CHECK_IMAGES, len(train))))
    logits = source.runner()(train.images.numpy(), CHUNK).logits
    return dataclasses.replace(
        source, calibration=calibrate(logits, train.labels.numpy(), lowest_temperature=1.0)
    )


def describe(source: Source, dataset: Dataset, inputs: ParityInputs, license_name: str) -> Contract:
    """The contract of a source, with its evaluation on the test split; no proof yet."""
    logits = inputs.reference.logits[: len(inputs.labels)]
    packages = ("mnist-toolkit", "onnx", "onnxruntime", "torch")
    return Contract(
        labels=dataset.labels,
        normalization={"mean": source.mean, "std": source.std} if source.normalizes else {},
        model=source.describe(),
        training=source.training,
        calibration=source.calibration,
        evaluation={
            "dataset": dataset.name,
            "dataset_sha256": dataset.test.sha256,
            **_rounded(score(logits, inputs.labels, dataset.labels, temperature_of(source.calibration))),
        },
        parity={},
        versions=dict(
            sorted([("python", platform.python_version()), *((name, version(name)) for name in packages)])
        ),
        license=license_name,
    )


def _rounded(value: Any) -> Any:
    """`value` with every float in it rounded: a loss is not the same to the last bit each time."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DECIMALS) if isinstance(value, float) else value


def _write_descriptions(
    root: Path,
    contract: Contract,
    files: Mapping[str, str],
    proofs: Mapping[str, Parity],
    inputs: ParityInputs,
) -> None:
    """Write what lies beside the model files: proof, test vectors, model card, inventory."""
    proven = {name: dataclasses.asdict(proof) for name, proof in proofs.items()}
    statements = {name: proof.statement() for name, proof in proofs.items()}
    contract = dataclasses.replace(contract, parity=statements)
    (root / PARITY_FILE).write_bytes(json_bytes(proven))
    (root / MODEL_CARD).write_text(model_card(contract, files), encoding="utf-8", newline="\n")
    for path, data in vector_files(inputs).items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(data)
    (root / ARTIFACT_FILE).write_bytes(json_bytes(_inventory(root, contract, files)))


def vector_files(inputs: ParityInputs) -> dict[str, bytes]:
    """A few digits with the original's outputs, by path in the artifact, in the form of ONNX's own tests."""
    places = inputs.vector_positions()
    tensors = (inputs.images, inputs.reference.logits, inputs.reference.probabilities)
    names = [INPUT["name"], *(output["name"] for output in OUTPUTS)]
    return {
        path: numpy_helper.from_array(values[places], name).SerializeToString(deterministic=True)
        for path, name, values in zip((VECTOR_INPUT, *VECTOR_OUTPUTS), names, tensors, strict=True)
    }


def _inventory(root: Path, contract: Contract, files: Mapping[str, str]) -> dict[str, object]:
    """The content of artifact.json: the contract, and size and SHA-256 of every file that is there."""
    formats = {file: {"format": name} for name, file in files.items()}
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {
        "contract": dataclasses.asdict(contract),
        "files": {path: {**formats.get(path, {}), **_size_and_hash(root / path)} for path in paths},
    }


def _size_and_hash(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
