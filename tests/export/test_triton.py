"""The Triton configuration: what Triton's own protobuf reads from it, and that the exported graph fits it."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from export.triton import (
    CONFIG_FILE,
    LABELS_FILE,
    MODEL_FILE,
    config_pbtxt,
    labels_txt,
)
from serve_cli.spec import MODEL_NAME, MODEL_VERSION
from tests.command import Mnist

ONNX_TYPES = {"tensor(uint8)": schema.TYPE_UINT8, "tensor(float)": schema.TYPE_FP32}


@pytest.fixture(scope="module")
def config() -> schema.ModelConfig:
    return text_format.Parse(config_pbtxt(), schema.ModelConfig())


@pytest.fixture(scope="module")
def session(artifact: Path) -> ort.InferenceSession:
    return ort.InferenceSession(artifact / MODEL_FILE, providers=["CPUExecutionProvider"])


def tensors(config: schema.ModelConfig) -> list[tuple[str, int, list[int]]]:
    return [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in (*config.input, *config.output)]


def test_every_field_is_the_one_meant(config: schema.ModelConfig) -> None:
    expected = schema.ModelConfig(
        name=MODEL_NAME,
        backend="onnxruntime",
        default_model_filename=MODEL_FILE,
        version_policy={"latest": {"num_versions": 1}},
        max_batch_size=256,
        input=[{"name": "image", "data_type": schema.TYPE_UINT8, "dims": [28, 28]}],
        output=[
            {"name": "logits", "data_type": schema.TYPE_FP32, "dims": [10]},
            {
                "name": "probabilities",
                "data_type": schema.TYPE_FP32,
                "dims": [10],
                "label_filename": LABELS_FILE,
            },
        ],
        dynamic_batching={"preferred_batch_size": [64, 256], "max_queue_delay_microseconds": 100},
        instance_group=[{"count": 1, "kind": schema.ModelInstanceGroup.KIND_CPU}],
        parameters={"intra_op_thread_count": schema.ModelParameter(string_value="1")},
        model_warmup=[
            {
                "name": "full_batch",
                "batch_size": 256,
                "inputs": {
                    "image": schema.ModelWarmup.Input(
                        data_type=schema.TYPE_UINT8, dims=[28, 28], zero_data=True
                    )
                },
            }
        ],
    )
    assert config == expected


def test_the_tensors_are_the_graphs(config: schema.ModelConfig, session: ort.InferenceSession) -> None:
    graph = [*session.get_inputs(), *session.get_outputs()]
    assert tensors(config) == [(value.name, ONNX_TYPES[value.type], value.shape[1:]) for value in graph]
    assert all(isinstance(value.shape[0], str) for value in graph), "the batch must be free"


def test_the_graph_takes_each_batch_that_triton_may_make(
    config: schema.ModelConfig, session: ort.InferenceSession
) -> None:
    (image,) = config.input
    for size in (1, *config.dynamic_batching.preferred_batch_size, config.max_batch_size):
        outputs = session.run(None, {image.name: np.zeros((size, *image.dims), np.uint8)})
        assert [output.shape for output in outputs] == [(size, *output.dims) for output in config.output]


def test_a_label_a_line_in_the_order_of_the_classes() -> None:
    assert labels_txt(("T-shirt/top", "Ankle boot", 7)) == "T-shirt/top\nAnkle boot\n7\n"


def test_the_export_leaves_a_repository(
    run_directory: Path, artifact: Path, tmp_path: Path, mnist: Mnist
) -> None:
    command = ("export", run_directory, "--layout", "triton", "--output", tmp_path / "repository")
    assert mnist(*command).code == 0
    assert [path.name for path in (tmp_path / "repository").iterdir()] == [MODEL_NAME]
    folder = tmp_path / "repository" / MODEL_NAME
    parsed = text_format.Parse((folder / CONFIG_FILE).read_text(), schema.ModelConfig())
    assert parsed == text_format.Parse(config_pbtxt(), schema.ModelConfig())
    assert (folder / LABELS_FILE).read_text() == "".join(f"{label}\n" for label in range(10))
    model = folder / MODEL_VERSION / parsed.default_model_filename
    assert model.read_bytes() == (artifact / "model.onnx").read_bytes()
    for path in (tmp_path / "repository", folder):
        assert mnist("verify", path).code == 0
        assert mnist("info", path).out.startswith(f"file: {model} (")

    mnist(*command).assert_refused("exists already")
    assert mnist(*command, "--format", "onnx-int8", "--overwrite").code == 0
    assert model.read_bytes() == (artifact / "model.int8.onnx").read_bytes()
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    assert mnist("verify", folder).code == 1
    mnist("info", model).assert_refused("is not the file that artifact.json speaks of")
