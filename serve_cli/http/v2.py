"""The routes of the Open Inference Protocol, version 2, which Triton's and KServe's clients speak."""

from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response

from serve_cli.http.guard import HEADER_LENGTH, MODEL, VERSIONED
from serve_cli.http.load import Load
from serve_cli.http.shortcut import Endpoints
from serve_cli.http.telemetry import count_answers
from serve_cli.http.tensors import (
    DATATYPES,
    IMAGE_BYTES,
    MAX_BATCH,
    InferResponse,
    parse_request,
    write_response,
)
from serve_cli.http.work import SMALL_BYTES, Work
from serve_cli.runtime import OUTPUT_NAMES, Predictor
from serve_cli.spec import CLASSES, INPUT, MODEL_NAME, MODEL_VERSION, OUTPUTS

TAGS: list[str | Enum] = ["Open Inference Protocol"]
BINARY = "application/octet-stream"

SERVER = {
    "name": "mnist-toolkit",
    "version": version("mnist-toolkit"),
    "extensions": ["binary_tensor_data", "classification"],
}


def _described(tensor: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tensor["name"],
        "datatype": DATATYPES[tensor["dtype"]],
        "shape": [-1, *tensor["shape"][1:]],
    }


METADATA = {
    "name": MODEL_NAME,
    "versions": [MODEL_VERSION],
    "platform": "onnxruntime_onnx",
    "inputs": [_described(INPUT)],
    "outputs": [_described(output) for output in OUTPUTS],
}

FLAG = {"type": "boolean"}


def _parameters(**known: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": known}


REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _parameters(binary_data_output=FLAG),
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype", "data"],
                "description": "With binary tensors, the parameter binary_data_size takes the place of data.",
                "properties": {
                    "name": {"const": INPUT["name"]},
                    "shape": {
                        "type": "array",
                        "prefixItems": [
                            {"type": "integer", "minimum": 1, "maximum": MAX_BATCH},
                            *({"const": side} for side in INPUT["shape"][1:]),
                        ],
                        "minItems": 3,
                        "maxItems": 3,
                    },
                    "datatype": {"const": DATATYPES[INPUT["dtype"]]},
                    "parameters": _parameters(binary_data_size={"type": "integer"}),
                    "data": {
                        "type": "array",
                        "description": "All pixels in one list; it may be nested as the shape is.",
                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                        "minItems": IMAGE_BYTES,
                    },
                },
            },
        },
        "outputs": {
            "type": "array",
            "maxItems": len(OUTPUT_NAMES),
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"enum": OUTPUT_NAMES},
                    "parameters": _parameters(
                        classification={"type": "integer", "minimum": 0, "maximum": CLASSES}, binary_data=FLAG
                    ),
                },
            },
        },
    },
}
RESPONSE = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "id": {"type": "string"},
        "model_name": {"const": MODEL_NAME},
        "model_version": {"const": MODEL_VERSION},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"enum": OUTPUT_NAMES},
                    "datatype": {"enum": ["FP32", "BYTES"]},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "data": {"type": "array"},
                    "parameters": _parameters(binary_data_size={"type": "integer"}),
                },
            },
        },
    },
}


@dataclass(frozen=True)
class Tensors:
    """Answers requests with a model; an answer below `floor` (0 to 1) is counted as not sure."""

    predictor: Predictor
    floor: float

    def answer(self, body: bytes, header_length: str | None) -> InferResponse:
        """Answer one request, see `parse_request`.

        Raises:
            Refusal: it is not as the protocol or the model has it.
        """
        request = parse_request(body, header_length)
        prediction = self.predictor.predict(request.images)
        confidences = prediction.probabilities.max(axis=1).tolist()
        places = prediction.probabilities.argmax(axis=1).tolist()
        labels = self.predictor.labels
        count_answers(
            labels[place] if confidence >= self.floor else None
            for place, confidence in zip(places, confidences, strict=True)
        )
        return write_response(request, prediction, labels)


def add_about(app: FastAPI, load: Load, documented: dict[int | str, Any]) -> None:
    """Add the routes that say what there is and how it is; `documented` are the errors of all routes."""

    @app.get("/v2", summary="What this server is", tags=TAGS)
    async def server() -> dict[str, Any]:
        return SERVER

    @app.get("/v2/health/live", summary="Whether the server runs", tags=TAGS, response_class=Response)
    async def live() -> Response:
        return Response()

    async def ready() -> Response:
        """503 once the server is told to stop, so that nobody sends it more."""
        return Response(status_code=503 if load.stopping else 200)

    app.head("/v2/health/live", include_in_schema=False)(live)
    for path in ("/v2/health/ready", f"{MODEL}/ready", f"{VERSIONED}/ready"):
        app.get(
            path,
            summary="Whether the server takes requests",
            tags=TAGS,
            response_class=Response,
            responses={503: {"description": "It will stop"}},
        )(ready)
        app.head(path, include_in_schema=False)(ready)

    async def metadata() -> dict[str, Any]:
        return METADATA

    for path in (MODEL, VERSIONED):
        app.get(path, summary="The model's inputs and outputs", tags=TAGS, responses=documented)(metadata)


def add_infer(app: FastAPI, tensors: Tensors, work: Work, documented: dict[int | str, Any]) -> Endpoints:
    """Add the routes that infer; `documented` are the errors of all routes."""

    async def infer(request: Request) -> Response:
        body, length = await request.body(), request.headers.get(HEADER_LENGTH)
        if len(body) <= SMALL_BYTES:
            answer = tensors.answer(body, length)
        else:
            answer = await work.run(tensors.answer, body, length)
        if answer.header_length is None:
            return Response(answer.body, media_type="application/json")
        return Response(answer.body, media_type=BINARY, headers={HEADER_LENGTH: str(answer.header_length)})

    infer.__doc__ = (
        f"uint8 [N, 28, 28], N up to {MAX_BATCH}, white ink on black, to logits and probabilities "
        f"[N, {CLASSES}]; JSON, or the binary tensor extension. An output's parameter `classification` asks "
        "for the best classes with their labels. Pixels are taken as they are: `/predict` is for pictures."
    )
    paths = (f"{MODEL}/infer", f"{VERSIONED}/infer")
    for path in paths:
        app.post(
            path,
            tags=TAGS,
            summary="Classify a batch of images",
            response_class=Response,
            responses={
                200: {
                    "description": "The outputs",
                    "content": {"application/json": {"schema": RESPONSE}, BINARY: {}},
                },
                **documented,
            },
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": REQUEST}, BINARY: {}},
                }
            },
        )(infer)
    return dict.fromkeys(paths, infer)
