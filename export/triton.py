"""What stands beside an ONNX file in a Triton model repository: the configuration and the labels.

    repository/mnist/config.pbtxt
    repository/mnist/labels.txt
    repository/mnist/1/model.onnx

Triton takes every folder in a repository for a model, and every numbered folder in a model for a version;
further files do not disturb it. docs/triton.md shows how such a repository is served.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from serve_cli.runtime import CHUNK
from serve_cli.spec import ARTIFACT_FILES, INPUT, MODEL_NAME, OUTPUTS, TRITON_FILE

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
MODEL_FILE = Path(TRITON_FILE).name

REPOSITORY_FILES = tuple(
    f"{MODEL_NAME}/{name}" for name in (*ARTIFACT_FILES, CONFIG_FILE, LABELS_FILE, TRITON_FILE)
)
"""All that an export in this layout may leave: with the model, what every artifact has."""

LABELLED_OUTPUT = "probabilities"
"""The output that a client can ask to have as classes: `value:index:label`, the largest first."""

PREFERRED_BATCH_SIZES = (64, CHUNK)
"""onnxruntime on one core has 95 % of the speed at 64 images that it has at CHUNK: no reason to wait on."""

QUEUE_DELAY_US = 100
"""What computing about 35 images takes on one core."""

DATA_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}

CONFIG = Template("""\
# Written by mnist export. What each field means:
# https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md

name: "$name"
backend: "onnxruntime"
default_model_filename: "$model_file"

# Of several version folders (1, 2, ...) the newest is served.
version_policy { latest { num_versions: 1 } }

# Triton puts the batch in front of the dims: a request for one image has the shape [1, 28, 28].
max_batch_size: $max_batch_size
$tensors
# Requests that arrive together are computed together. A batch of a preferred size leaves at once, a smaller
# one when its oldest request has waited this long. Set the delay to 0 if one client asks one thing at a time.
dynamic_batching {
  preferred_batch_size: [ $preferred_batch_sizes ]
  max_queue_delay_microseconds: $queue_delay_us
}

# An instance keeps one core busy. Several cores: set count to their number, and leave the threads at 1, for
# more threads in one instance are slower for a net of this size. Without this group Triton would start two
# instances, or one on each GPU. A GPU: kind: KIND_GPU and gpus: [ 0 ], and start the container with --gpus 1;
# measure first, copying the images may take longer than computing them here.
instance_group {
  count: 1
  kind: KIND_CPU
}
parameters { key: "intra_op_thread_count" value { string_value: "1" } }

# The model is ready once each instance has computed a full batch.
model_warmup {
  name: "full_batch"
  batch_size: $max_batch_size
  inputs {
    key: "$input_name"
    value { data_type: $input_type dims: [ $input_dims ] zero_data: true }
  }
}
""")


def write_configuration(folder: Path, labels: Sequence[int | str]) -> None:
    """Write the configuration and the labels into the model's `folder`."""
    (folder / CONFIG_FILE).write_text(config_pbtxt(), encoding="ascii", newline="\n")
    (folder / LABELS_FILE).write_text(labels_txt(labels), encoding="utf-8", newline="\n")


def config_pbtxt() -> str:
    """Triton's ModelConfig of an exported model, as protobuf text with comments for who has to tune it."""
    return CONFIG.substitute(
        name=MODEL_NAME,
        model_file=MODEL_FILE,
        max_batch_size=CHUNK,
        tensors=_tensor("input", INPUT) + "".join(_tensor("output", output) for output in OUTPUTS),
        preferred_batch_sizes=_list(PREFERRED_BATCH_SIZES),
        queue_delay_us=QUEUE_DELAY_US,
        input_name=INPUT["name"],
        input_type=DATA_TYPES[INPUT["dtype"]],
        input_dims=_list(INPUT["shape"][1:]),
    )


def labels_txt(labels: Sequence[int | str]) -> str:
    """A label a line, in the order of the classes."""
    return "".join(f"{label}\n" for label in labels)


def _tensor(kind: str, tensor: Mapping[str, Any]) -> str:
    """An `input` or `output` of the configuration; its dims are the shape without the batch."""
    fields = [
        f'name: "{tensor["name"]}"',
        f"data_type: {DATA_TYPES[tensor['dtype']]}",
        f"dims: [ {_list(tensor['shape'][1:])} ]",
    ]
    if tensor["name"] == LABELLED_OUTPUT:
        fields.append(f'label_filename: "{LABELS_FILE}"')
    return "\n  ".join([f"{kind} {{", *fields]) + "\n}\n"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
