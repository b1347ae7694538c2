"""The command line of an export: `mnist export`."""

from pathlib import Path
from typing import Annotated

import typer

from serve_cli.errors import InputError, needs_extra
from serve_cli.spec import ARTIFACT_FOLDER, MODEL_FILES
from trainer.config import DATASETS

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

ALL = "all"
LOW_ACCURACY = 0.5
"""Below this a net is trained hardly, or with another normalisation."""

CHOICES = ", ".join((*MODEL_FILES, ALL))
LAYOUTS = ("plain", "triton")

NOTICES = {
    "torchscript": "PyTorch deprecates this format, pt2 follows it; prefer ONNX where you can choose",
    "pt2": "PyTorch promises this format only for the version that wrote it and near ones",
}
"""What a user of a format should know, said once."""


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|STATE_DICT", help="A run directory, or a saved state_dict.")
    ],
    format_name: Annotated[str, typer.Option("--format", help=f"What to make: {CHOICES}.")] = "onnx",
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
        typer.Option(help="plain, or triton: a model repository for Triton and KServe, of one ONNX file."),
    ] = LAYOUTS[0],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where the test images lie or are downloaded to; MNIST_DATA_DIR if not given."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set, 18 or newer; 20 if not given.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help=f"For a bare state_dict: what to prove it on ({', '.join(DATASETS)}).")
    ] = None,
    mean: Annotated[
        float | None,
        typer.Option(help="For a bare state_dict: the mean it was trained with; 0.5 if not given."),
    ] = None,
    std: Annotated[
        float | None,
        typer.Option(help="For a bare state_dict: the std it was trained with; 0.5 if not given."),
    ] = None,
    license_name: Annotated[
        str,
        typer.Option(
            "--license", metavar="SPDX", help="The model's licence, for its metadata and its card: MIT, ..."
        ),
    ] = "unspecified",
) -> None:
    """Export a trained net, with proof.

    Each format is run against PyTorch on the whole test split and on edge pictures, at batch sizes 0, 1, 2,
    7, 64 and 256; ONNX in two engines. Only if no logit differs by more than 1e-4 and no label at all (for
    onnx-int8: the accuracy by at most 0.1 points, at most 0.2 % of the labels) does the artifact directory
    appear; otherwise the exit code is 1 and nothing that stood there is touched.

    Example: mnist export runs/notebook --format all --output artifact
    """
    if format_name not in (*MODEL_FILES, ALL):
        raise InputError(f"--format is {format_name}, expected one of {CHOICES}")
    if layout not in LAYOUTS:
        raise InputError(f"--layout is {layout}, expected one of {', '.join(LAYOUTS)}")
    if opset is not None and not (format_name == ALL or format_name.startswith("onnx")):
        raise InputError(f"--opset is for ONNX, not for --format {format_name}: leave it out")
    formats = list(MODEL_FILES) if format_name == ALL else [format_name]
    with needs_extra("train"):
        import torch

        from export.build import build_artifact
        from export.onnx_formats import DEFAULT_OPSET
        from export.source import read_source

        torch.set_num_threads(1)  # for a net of this size more are slower, and much slower on busy cores
        found = read_source(source, dataset=dataset, mean=mean, std=std)
        output = output or found.folder / ARTIFACT_FOLDER
        artifact = build_artifact(
            found,
            formats,
            output=output,
            layout=layout,
            overwrite=overwrite,
            data_dir=data_dir,
            opset=DEFAULT_OPSET if opset is None else opset,
            license_name=license_name,
            tell=lambda line: typer.echo(line, err=True),
        )
    for name in formats:
        if name in NOTICES:
            typer.echo(f"{name}: {NOTICES[name]}", err=True)
    for name, proof in artifact.proofs.items():
        path = artifact.files[name]
        size = f"{path.stat().st_size:,} bytes"
        diff = f"largest logit difference {proof.max_abs_logit_diff:.2g}"
        typer.echo(f"{path} ({size}): {diff}, {proof.argmax_flips} of {proof.samples:,} labels differ")
    typer.echo(f"test accuracy: {artifact.accuracy:.2%}")
    if artifact.accuracy < LOW_ACCURACY:
        typer.echo("warning: this net hardly reads; was it trained with another --mean and --std?", err=True)
