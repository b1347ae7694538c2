"""MODEL_CARD.md: the contract in the form that people and model hubs read."""

from collections.abc import Mapping
from string import Template
from typing import Any

from export.parity import MOST_LOST, REFERENCE, SUBSET
from serve_cli.spec import MODEL_FILES, PARITY_FILE, VECTORS, Contract
from serve_cli.tolerance import FLOAT

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

CARD = Template("""\
---
license: $license
library_name: onnx
pipeline_tag: image-classification
tags: [mnist, onnx]
datasets: [$dataset]
metrics: [accuracy]
---

# Digit classifier

$net with $parameters parameters that sorts 28x28 grey pictures into $classes classes: $labels. It reads \
$accuracy of the test images of $dataset right.

## Files

| File | Format | What it is |
|---|---|---|
$files

Each carries the same contract as JSON (`mnist info FILE --json`). `artifact.json` has the SHA-256 of \
every file, `$vectors/` real digits with the original's outputs; `mnist verify` replays them.

## Input and output

$tensors

Pixels are $polarity. Before the model, $preprocessing ($normalization).

## Use

`image` is uint8 as above, raw: no ToTensor, no Normalize, both are in the model. PyTorch's formats accept \
floats, too, and then compute nonsense.

```python
$uses
```

## Training

$training

## Evaluation

On the $samples test images of $dataset (SHA-256 $dataset_sha256), by the original: accuracy $accuracy (95 % \
interval $interval), cross-entropy $loss, expected calibration error $calibration_error.

| Label | Images | Precision | Recall | F1 |
|---|---|---|---|---|
$rows

## Confidence

$confidence

## Proof

Each file was compared with the original on all test images, on a part of them at the batch sizes \
$batch_sizes, float files on edge pictures, too, before it was published; `$parity_file` has the \
differences. Float files: every logit within $absolute + $relative of the row's largest, every weight to the \
last bit. The 8-bit file: at most $most_lost, or 3 images, less accurate. An image whose label is a matter \
of rounding does not count as another label.$slow

| Format | Engines | Other labels | Accuracy |
|---|---|---|---|
$proofs

## Limits

It knows $classes classes and nothing else: letters, several digits at once or any other picture get one \
of its labels too, often with a high probability. It was measured on the test images above; other pens, \
cameras and writers differ. Not for decisions about people without a second look.
""")


def model_card(contract: Contract, files: Mapping[str, str]) -> str:
    """The card of an artifact with `files`, by format; Markdown with the head that model hubs look for."""
    evaluation = contract.evaluation
    low, high = evaluation["accuracy_interval"]
    is_foreign = "onnx_sha256" in contract.model
    tensors = (contract.input, *contract.outputs)
    return CARD.substitute(
        license=contract.license,
        net=f"A net of {contract.model['layers']}"
        if is_foreign
        else f"A {contract.model['layers']} multilayer perceptron",
        parameters=f"{contract.model['parameters']:,}",
        classes=len(contract.labels),
        labels=", ".join(map(str, contract.labels)),
        files="\n".join(f"| `{file}` | {name} | {MODEL_FILES[name].about} |" for name, file in files.items()),
        vectors=VECTORS,
        tensors="\n".join(
            f"- `{tensor['name']}`: {tensor['dtype']} [{', '.join(map(str, tensor['shape']))}]"
            for tensor in tensors
        ),
        polarity=contract.input["polarity"],
        preprocessing=contract.preprocessing,
        normalization="x / 255, minus {mean}, divided by {std}".format(**contract.normalization)
        if contract.normalization
        else "the model's own",
        uses="\n\n".join(USES[name].format(file=file) for name, file in files.items()),
        training=_training(contract),
        samples=f"{evaluation['samples']:,}",
        dataset=evaluation["dataset"],
        dataset_sha256=evaluation["dataset_sha256"],
        accuracy=f"{evaluation['accuracy']:.2%}",
        interval=f"{low:.2%} to {high:.2%}",
        loss=f"{evaluation['loss']:.4f}",
        calibration_error=f"{evaluation['calibration_error']:.4f}",
        rows="\n".join(map(_class_row, evaluation["classes"])),
        confidence=_confidence(contract.calibration, "training" if is_foreign else "held-out training"),
        batch_sizes=", ".join(map(str, next(iter(contract.parity.values()))["batch_sizes"])),
        parity_file=PARITY_FILE,
        absolute=f"{FLOAT.absolute:g}",
        relative=f"{FLOAT.relative:g}",
        most_lost=f"{MOST_LOST:.1%}",
        slow=f" The original is an ONNX file in onnxruntime; {REFERENCE} got {SUBSET} test images."
        if is_foreign
        else "",
        proofs="\n".join(
            f"| {name} | {', '.join(proof['engines'])} | {proof['argmax_flips']} of {proof['samples']:,} "
            f"| {proof['accuracy']:.2%} |"
            for name, proof in contract.parity.items()
        ),
    )


def _class_row(row: Mapping[str, Any]) -> str:
    label = str(row["label"]).replace("|", "\\|")  # which would end the cell
    figures = " | ".join(f"{row[name]:.4f}" for name in ("precision", "recall", "f1"))
    return f"| {label} | {row['support']:,} | {figures} |"


def _training(contract: Contract) -> str:
    if not contract.training:
        return "Unknown: the net was brought as a state_dict or an ONNX file."
    training = contract.training
    settings = ", ".join(f"{key} {value}" for key, value in training["config"].items())
    versions = ", ".join(f"{name} {version}" for name, version in contract.versions.items())
    return (
        f"Recipe `{training['recipe']}` on the training images of {training['dataset']} "
        f"(SHA-256 {training['dataset_sha256']}): {settings}. Exported with {versions}."
    )


def _confidence(calibration: Mapping[str, Any], images: str) -> str:
    if not calibration:
        return (
            "`probabilities` are the softmax of `logits`, not calibrated: no images were held out for it. "
            "There is no threshold below which the prediction is 'not sure'."
        )
    validation, threshold = calibration["validation"], calibration["min_confidence"]
    return (
        f"`probabilities` are softmax(`logits` / {calibration['temperature']}), computed in the model: this "
        f"temperature has the least cross-entropy on {validation['samples']:,} {images} images, and "
        "takes their expected calibration error from "
        f"{validation['calibration_error_before']:.4f} to {validation['calibration_error_after']:.4f} (Guo "
        f"et al. 2017). Below a confidence of {threshold} the prediction should be 'not sure'. The threshold "
        f"was chosen on the same images for at most {calibration['error_rate']:.1%} errors among the other "
        f"predictions: {validation['refused']:.2%} of the images are below it, and {validation['errors']:,} "
        "of the other predictions are wrong. Other kinds of pictures differ."
    )
