"""MODEL_CARD.md: what the contract says, in the form that people and model hubs read."""

from collections.abc import Mapping
from typing import Any

from export.parity import MOST_LOST
from serve_cli.spec import MODEL_FILES, PARITY_FILE, VECTORS, Contract
from serve_cli.tolerance import FLOAT
from trainer.calibrate import HIGHEST_FLOOR, LOWEST_FLOOR

_ONNX_USE = """\
session = onnxruntime.InferenceSession("{file}")
logits, probabilities = session.run(["logits", "probabilities"], {{"image": image}})  # numpy"""

USES = {
    "onnx": _ONNX_USE,
    "onnx-int8": _ONNX_USE,
    "torchscript": 'logits, probabilities = torch.jit.load("{file}")(image)  # torch',
    "pt2": 'logits, probabilities = torch.export.load("{file}").module()(image)  # torch',
}
"""How a program runs a file of each format."""

_FLOAT_BOUND = f"logits within {FLOAT.absolute:g} + {FLOAT.relative:g} of the row's largest"
BOUNDS = {
    **dict.fromkeys(MODEL_FILES, _FLOAT_BOUND),
    "onnx-int8": f"at most {MOST_LOST:.1%} less accurate",
}
"""What the proof of each format allows."""


def model_card(contract: Contract, files: Mapping[str, str]) -> str:
    """The card of an artifact with `files`, by format; Markdown with the head that model hubs look for."""
    return (
        "\n\n".join(
            (
                _head(contract),
                "# Digit classifier",
                _purpose(contract),
                "## Files",
                _files(files),
                "## Input and output",
                _tensors(contract),
                "## Use",
                _use(files),
                "## Training",
                _training(contract),
                "## Evaluation",
                _evaluation(contract.evaluation),
                "## Confidence",
                _confidence(contract.calibration),
                "## Proof",
                _proof(contract.parity),
                "## Limits",
                _limits(contract),
            )
        )
        + "\n"
    )


def _head(contract: Contract) -> str:
    return "\n".join(
        (
            "---",
            f"license: {contract.license}",
            "library_name: onnx",
            "pipeline_tag: image-classification",
            "tags: [mnist, onnx]",
            f"datasets: [{contract.evaluation['dataset']}]",
            "metrics: [accuracy]",
            "---",
        )
    )


def _purpose(contract: Contract) -> str:
    labels = ", ".join(map(str, contract.labels))
    return (
        f"A {contract.model['layers']} multilayer perceptron with {contract.model['parameters']:,} "
        f"parameters that sorts 28x28 grey pictures into {len(contract.labels)} classes: {labels}. It has "
        f"{contract.evaluation['accuracy']:.2%} of the test images of {contract.evaluation['dataset']} right."
    )


def _files(files: Mapping[str, str]) -> str:
    rows = [f"| `{file}` | {name} | {MODEL_FILES[name].about} |" for name, file in files.items()]
    return "\n".join(("| File | Format | What it is |", "|---|---|---|", *rows)) + (
        "\n\nEach carries the same contract as JSON (`mnist info FILE --json`). `artifact.json` has the "
        f"SHA-256 of every file, `{VECTORS}/` real digits with PyTorch's outputs; `mnist verify` replays "
        "them."
    )


def _tensors(contract: Contract) -> str:
    rows = [_tensor(contract.input), *map(_tensor, contract.outputs)]
    return (
        "\n".join(rows)
        + f"\n\nPixels are {contract.input['polarity']}. Before the model, {contract.preprocessing} "
        f"(x / 255, minus {contract.normalization['mean']}, divided by {contract.normalization['std']})."
    )


def _use(files: Mapping[str, str]) -> str:
    calls = "\n\n".join(USES[name].format(file=file) for name, file in files.items())
    return (
        "`image` is uint8 as above, raw: no ToTensor, no Normalize, both are in the model. PyTorch's formats "
        f"accept floats too, and then compute nonsense.\n\n```python\n{calls}\n```"
    )


def _cell(label: int | str) -> str:
    """A label as text that does not end the cell of a table."""
    return str(label).replace("|", "\\|")


def _tensor(tensor: Mapping[str, Any]) -> str:
    shape = ", ".join(map(str, tensor["shape"]))
    return f"- `{tensor['name']}`: {tensor['dtype']} [{shape}]"


def _training(contract: Contract) -> str:
    if not contract.training:
        return "Unknown: the model came as a bare state_dict."
    training = contract.training
    settings = ", ".join(f"{key} {value}" for key, value in training["config"].items())
    versions = ", ".join(f"{name} {version}" for name, version in contract.versions.items())
    return (
        f"Recipe `{training['recipe']}` on the training images of {training['dataset']} "
        f"(SHA-256 {training['dataset_sha256']}): {settings}. Exported with {versions}."
    )


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["accuracy_interval"]
    classes = [
        f"| {_cell(row['label'])} | {row['support']:,} | {row['precision']:.4f} | {row['recall']:.4f} "
        f"| {row['f1']:.4f} |"
        for row in evaluation["classes"]
    ]
    return "\n".join(
        (
            f"On the {evaluation['samples']:,} test images of {evaluation['dataset']} (SHA-256 "
            f"{evaluation['dataset_sha256']}), by PyTorch: accuracy {evaluation['accuracy']:.2%} (95 % "
            f"interval {low:.2%} to {high:.2%}), cross-entropy {evaluation['loss']:.4f}, "
            f"expected calibration error {evaluation['calibration_error']:.4f}.",
            "",
            "| Label | Images | Precision | Recall | F1 |",
            "|---|---|---|---|---|",
            *classes,
        )
    )


def _confidence(calibration: Mapping[str, Any]) -> str:
    if not calibration:
        return (
            "`probabilities` are the softmax of `logits`, not calibrated: no images were held out for it. "
            "There is no floor below which an answer is 'not sure'."
        )
    validation, floor = calibration["validation"], calibration["min_confidence"]
    return (
        f"`probabilities` are softmax(`logits` / {calibration['temperature']}), computed in the model: this "
        f"temperature has the least cross-entropy on {validation['samples']:,} held-out training images, and "
        "takes their expected calibration error from "
        f"{validation['calibration_error_before']:.4f} to {validation['calibration_error_after']:.4f} (Guo "
        f"et al. 2017). Below a confidence of {floor} the answer should be 'not sure'. It was chosen on the "
        f"same images for at most {calibration['error_rate']:.1%} errors among the answers given, from "
        f"{LOWEST_FLOOR} to {HIGHEST_FLOOR}: it refuses {validation['refused']:.2%} of them, and "
        f"{validation['errors']:,} of the other answers are wrong. Pictures of another kind differ."
    )


def _proof(parity: Mapping[str, Any]) -> str:
    rows = [
        f"| {name} | {', '.join(proof['engines'])} | {BOUNDS[name]} "
        f"| {proof['argmax_flips']} of {proof['samples']:,} | {proof['accuracy']:.2%} |"
        for name, proof in parity.items()
    ]
    batch_sizes = ", ".join(map(str, next(iter(parity.values()))["batch_sizes"]))
    return "\n".join(
        (
            "Each file was compared with PyTorch on all test images, float files on edge pictures, too, at "
            f"batch sizes {batch_sizes}, before it was published; `{PARITY_FILE}` has the differences. Float "
            "files hold the weights of the net to the last bit. An image whose label is a matter of rounding "
            "does not count as another label.",
            "",
            "| Format | Engines | Bound | Other labels | Accuracy |",
            "|---|---|---|---|---|",
            *rows,
        )
    )


def _limits(contract: Contract) -> str:
    return (
        f"It knows {len(contract.labels)} classes and nothing else: letters, several digits at once or any "
        "other picture get one of its labels too, often with a high probability. It was measured on the test "
        "images above; other pens, cameras and writers differ. Not for decisions about people without a "
        "second look."
    )
