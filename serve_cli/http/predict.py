"""POST /predict: a picture in, the JSON of `mnist infer --json` out."""

import json
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile

from serve_cli.answer import Answer
from serve_cli.errors import InputError
from serve_cli.http.refusal import Refusal
from serve_cli.http.shortcut import Endpoints
from serve_cli.http.telemetry import count_answers
from serve_cli.http.work import Work, is_small
from serve_cli.infer import STDIN, take_raw
from serve_cli.picture import decode
from serve_cli.preprocess import to_mnist
from serve_cli.runtime import Predictor
from serve_cli.spec import CLASSES, IMAGE_SIZE, Preprocess

PATH = "/predict"

NAME = "the picture"
"""What errors call it."""

MAX_PARTS = 8
"""Files and fields of a form, each."""

FORM = "multipart/form-data"
PICTURE = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "required": True,
    "description": "The bytes of a picture file, or a form with one.",
    "content": {
        **{f"image/{kind}": PICTURE for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff")},
        "application/octet-stream": PICTURE,
        FORM: {"schema": {"type": "object", "properties": {"file": PICTURE["schema"]}, "required": ["file"]}},
    },
}

LABEL = {"type": ["integer", "string"]}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
ANSWER = {
    "type": "object",
    "required": ["file", "label", "best_guess", "confidence", "probabilities", "preprocessing"],
    "properties": {
        "file": {"type": "string", "description": "The name of an uploaded file, else -."},
        "label": {"type": ["integer", "string", "null"], "description": "null: not sure, see reason."},
        "best_guess": LABEL,
        "confidence": SHARE,
        "probabilities": {"type": "array", "items": SHARE, "minItems": CLASSES, "maxItems": CLASSES},
        "preprocessing": {"type": "object", "description": "What was decided about the picture."},
        "reason": {"type": "string", "description": "Why there is no label."},
        "top": {"type": "array", "description": "With top_k: the most probable labels.", "items": {}},
        "labels": {
            "type": "array",
            "description": "With pixels: the labels of probabilities.",
            "items": LABEL,
        },
        "pixels": {"type": "array", "description": "With pixels: 28 rows of what the net saw.", "items": {}},
    },
}


class Options(BaseModel, extra="forbid", allow_inf_nan=False):
    """What the query says.

    FastAPI would read it, too, but takes as long over none as the net over a picture.
    """

    top_k: int = Field(default=1, ge=1, le=CLASSES, description="How many labels, best first.")
    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="Below this the answer is not sure."
    )
    preprocess: Preprocess = Field(
        default=Preprocess.AUTO, description="raw: the picture is 28x28, white ink on black."
    )
    pixels: bool = Field(default=False, description="Add what the net saw.")

    @classmethod
    def of(cls, request: Request) -> "Options":
        """The options of a request.

        Raises:
            Refusal: one is not as documented.
        """
        if not request.scope["query_string"]:
            return DEFAULTS
        try:
            return cls.model_validate(dict(request.query_params))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise Refusal(400, f"{name}: {first['msg']}", "parameter") from error

    @classmethod
    def documented(cls) -> list[dict[str, Any]]:
        """The parameters, as OpenAPI describes them."""
        schema = cls.model_json_schema()
        return [
            {"name": name, "in": "query", "description": about.pop("description"), "schema": about}
            for name, about in schema["properties"].items()
        ]


DEFAULTS = Options.model_validate({})


@dataclass(frozen=True)
class Reader:
    """Reads pictures with a model; below the confidence `floor` (0 to 1) it is not sure."""

    predictor: Predictor
    floor: float

    def read(self, data: bytes, file: str, options: "Options") -> Answer:
        """Answer the bytes of a picture file called `file`.

        Raises:
            Refusal: it is no picture that can be read.
        """
        raw = options.preprocess == Preprocess.RAW
        floor = self.floor if options.min_confidence is None else options.min_confidence
        try:
            grey = decode(data, NAME)
            if raw and grey.shape != (IMAGE_SIZE, IMAGE_SIZE):
                raise InputError(f"{NAME} is not 28x28 pixels, as preprocess=raw takes them")
            picture = take_raw(grey, NAME) if raw else to_mnist(grey)
        except InputError as error:
            raise Refusal(400, str(error), "picture") from error
        probabilities = self.predictor.predict(picture.pixels[None]).probabilities[0]
        return Answer.of(file, picture, probabilities, self.predictor.labels, floor=floor)


def add_predict(app: FastAPI, reader: Reader, work: Work, documented: dict[int | str, Any]) -> Endpoints:
    """Add the route; `documented` are the errors of all routes."""

    @app.post(
        PATH,
        tags=["pictures"],
        summary="Read the digit in a picture",
        description="Any size, colour and polarity; the digit is cropped, scaled and centred.",
        response_class=Response,
        responses={
            200: {"description": "The answer", "content": {"application/json": {"schema": ANSWER}}},
            **documented,
        },
        openapi_extra={"parameters": Options.documented(), "requestBody": BODY},
    )
    async def predict(request: Request) -> Response:
        options = Options.of(request)
        file, data = await _picture(request)
        if is_small(data):
            answer = reader.read(data, file, options)
        else:
            answer = await work.run(reader.read, data, file, options)
        count_answers([answer.label])
        result = answer.to_dict(options.top_k)
        if options.pixels:
            result |= {"labels": answer.labels, "pixels": answer.picture.pixels.tolist()}
        return Response(json.dumps(result), media_type="application/json")

    return {PATH: predict}


async def _picture(request: Request) -> tuple[str, bytes]:
    """The name and the bytes of what was sent.

    Raises:
        Refusal: a form without a file.
    """
    if not request.headers.get("content-type", "").lower().startswith(FORM):
        return STDIN, await request.body()
    async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS) as form:
        for _, part in form.multi_items():
            if isinstance(part, UploadFile):
                return part.filename or STDIN, await part.read()
    raise Refusal(400, "the form has no file: send one as the field 'file'", "form")
