"""The command line of an export: `mnist export`."""

import dataclasses
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve_cli.errors import InputError, needs_extra
from serve_cli.process import among, ending_on_sigterm
from serve_cli.spec import ARTIFACT_FOLDER, MODEL_FILES, ONNX_FORMATS
from trainer.config import DATASETS, OWN

if TYPE_CHECKING:
    from export.artifact import Artifact

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

ALL = "all"
CHOICES = ", ".join((*MODEL_FILES, ALL))
LICENSE = re.compile(r"\(*[A-Za-z0-9.+-]+\)*( (AND|OR|WITH) \(*[A-Za-z0-9.+-]+\)*)*")
"""What SPDX expressions are written with: https://spdx.github.io/spdx-spec/"""

PLAIN, TRITON = "plain", "triton"

NOTICES = {
    "torchscript": "PyTorch deprecates this format, pt2 follows it; prefer ONNX where you can choose",
    "pt2": "PyTorch promises this format only for the version that wrote it and near ones",
}
"""What a user of a format should know, said once."""


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|STATE_DICT|ONNX", help="A run directory, a saved state_dict, or an ONNX file."
        ),
    ],
    format_names: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            autocompletion=among((*MODEL_FILES, ALL)),
            help=f"What to make, may be repeated: {CHOICES}; onnx if not given.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"The artifact directory to make; {ARTIFACT_FOLDER} beside the state_dict if not given.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the artifact that stands there, all its files.")
    ] = False,
    layout: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=among((PLAIN, TRITON)),
            help="plain, or triton: a model repository for Triton and KServe, of one ONNX file.",
        ),
    ] = PLAIN,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Data of your own to prove it on, as in mnist train --data; for a run, where its data is.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the test images lie or are downloaded to; the run's, or MNIST_DATA_DIR if not given.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(metavar="N", help="ONNX operator set, 18 or newer (onnx-int8: 19); 20 if not given."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=among(DATASETS),
            help=f"For a bare state_dict or ONNX file: what to prove it on ({', '.join(DATASETS)}).",
        ),
    ] = None,
    mean: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="For a bare state_dict or ONNX file: the mean of its normalisation, of pixels from 0 to 1; "
            "0.5 if not given.",
        ),
    ] = None,
    std: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="For a bare state_dict or ONNX file: the std of its normalisation; 0.5 if not given. A "
            "negative one inverts the pixels.",
        ),
    ] = None,
    min_accuracy: Annotated[
        float,
        typer.Option(
            metavar="P",
            min=0,
            max=1,
            help="Publish nothing that reads less of the test images (0.98 for 98 %).",
        ),
    ] = 0.5,
    license_name: Annotated[
        str,
        typer.Option(
            "--license", metavar="SPDX", help="The model's licence, for its metadata and its card: MIT, ..."
        ),
    ] = "unspecified",
) -> None:
    """Export a trained net, with proof.

    Converts a run, or a state_dict of the tutorial's net, to files that run without this program, in a folder
    that describes them: contract, proof, hashes, test vectors, model card. An ONNX file of any classifier of
    28x28 pixels (torch.onnx.export, Keras, scikit-learn) gets the normalisation, a softmax and the contract
    into its graph.

    Each file is compared with the original on the whole test split in batches of 256, and on a part of it in
    batches of 0, 1 and 7; float files on edge pictures, too; ONNX in two backends. The folder appears only if
    every logit agrees within 1e-4 + 1e-5 of the largest one of its image, every weight to the last bit, and
    every label but for ties, which are reported. An onnx-int8 file may read 0.1 points (or 3 images) worse
    and change 0.2 % (or 10) of the labels. A bare state_dict or ONNX file is tried with the usual
    normalisations, and the one that fits is named. If a check fails, nothing that was there changes.

    Exit codes: 0 done, 1 the proof failed, 2 bad usage or bad input, 130 and 143 stopped by Ctrl-C or
    SIGTERM; nothing is left of what was not proven.

    \b
    Examples:
      mnist export runs/notebook
      mnist export runs/notebook --format all --output artifact
      mnist export mnist_model.pth --mean 0.1307 --std 0.3081 --license MIT
      mnist export cnn.onnx --mean 0.5 --std 0.5 --output artifact
      mnist export runs/notebook --layout triton --output repository
    """
    formats = chosen_formats(format_names, layout=layout, opset=opset)
    if layout == TRITON and output is None:
        raise InputError("--layout triton needs --output: name the folder that becomes the repository")
    if not LICENSE.fullmatch(license_name):
        raise InputError(f"--license is {license_name!r}, expected an SPDX expression: MIT, CC-BY-4.0, ...")
    if data is not None:
        if data_dir is not None or dataset not in (None, OWN):
            raise InputError("--data names data of your own: leave --data-dir and --dataset out")
        data_dir, dataset = data, None
    with needs_extra("train"), without_garbage_collection():
        import torch

        from export.source import read_source

        torch.set_num_threads(1)  # for a net of this size more are slower, and much slower on busy cores
        log = partial(typer.echo, err=True)
        found = read_source(source, dataset=dataset, mean=mean, std=std, note=log)
        if data is not None and not found.training:  # a run has its dataset
            found = dataclasses.replace(found, dataset=OWN)
        from export.artifact import build_artifact  # imports the exporters, 3 s

        with ending_on_sigterm():
            artifact = build_artifact(
                found,
                formats,
                output=output or found.folder / ARTIFACT_FOLDER,
                layout=layout,
                overwrite=overwrite,
                data_dir=data_dir,
                opset=opset,
                license_name=license_name,
                min_accuracy=min_accuracy,
                log=log,
            )
    for line in notices(artifact):
        typer.echo(line, err=True)
    for line in results(artifact):
        typer.echo(line)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Save 1.5 s: the imports and the exporter make half a million objects, nearly all of which stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def chosen_formats(names: list[str] | None, *, layout: str, opset: int | None) -> list[str]:
    """The formats that the flags ask for, each once, in the order of the table.

    Raises:
        InputError: there is no such format or layout, or the flags do not go together.
    """
    names = names or ["onnx"]
    for name in names:
        if name not in (*MODEL_FILES, ALL):
            raise InputError(f"--format is {name}, expected one of {CHOICES}")
    formats = [name for name in MODEL_FILES if name in names or ALL in names]
    if layout not in (PLAIN, TRITON):
        raise InputError(f"--layout is {layout}, expected {PLAIN} or {TRITON}")
    if layout == TRITON and formats not in [[name] for name in ONNX_FORMATS]:
        raise InputError(
            f"--layout triton takes --format {' or '.join(ONNX_FORMATS)}, not {', '.join(names)}"
        )
    if opset is not None and not set(ONNX_FORMATS).intersection(formats):
        raise InputError(f"--opset is for ONNX, not for --format {', '.join(names)}: leave it out")
    return formats


def notices(artifact: "Artifact") -> Iterator[str]:
    """Yield what a user should know about the formats that were made, and about the net."""
    for name, proof in artifact.proofs.items():
        if name in NOTICES:
            yield f"{name}: {NOTICES[name]}"
        if proof.ties:
            yield f"{name}: {proof.ties} of {proof.argmax_flips} differing labels are ties, see parity.json"
    if artifact.warning:
        yield f"warning: {artifact.warning}"


def results(artifact: "Artifact") -> Iterator[str]:
    """Yield a line for each file, and the accuracy."""
    for name, proof in artifact.proofs.items():
        path = artifact.files[name]
        size = path.stat().st_size
        yield (
            f"{path} ({size:,} bytes): largest logit difference {proof.max_abs_logit_diff:.2g}, "
            f"{proof.argmax_flips} of {proof.samples:,} labels differ"
        )
    yield f"test accuracy: {artifact.accuracy:.2%}"
