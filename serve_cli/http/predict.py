"""POST /predict: a picture in, the JSON of `mnist infer --json` out."""

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from serve_cli.http.batch import Batch
from serve_cli.http.load import Load
from serve_cli.http.options import Options
from serve_cli.http.reader import Job, Reader
from serve_cli.http.refusal import Refusal
from serve_cli.http.shortcut import Endpoints
from serve_cli.http.telemetry import count_answers
from serve_cli.http.work import Work, is_small
from serve_cli.infer import STDIN
from serve_cli.spec import CLASSES

PATH = "/predict"

MAX_PARTS = 8
"""Files and fields of a form, each."""

FORM = "multipart/form-data"
PICTURE = {"schema": {"type": "string", "format": "binary"}}
CHARSETS = (b"utf-8", b"us-ascii", b"iso-8859-1")
"""Of a form's names, if it gives one. Python knows others, some of which take minutes for a megabyte."""

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


def add_predict(
    app: FastAPI, reader: Reader, work: Work, load: Load, documented: dict[int | str, Any]
) -> Endpoints:
    """Add the route; `documented` are the errors of all routes."""
    batch = Batch(reader.read, load)

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
        job = Job(data, file, options)
        is_quick = is_small(data) and reader.predictor.is_light
        answer = await batch.run(job) if is_quick else await work.run(reader.read_one, job)
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
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith(FORM):
        return STDIN, await request.body()
    _, parameters = parse_options_header(kind)
    if parameters.get(b"charset", b"utf-8").lower() not in CHARSETS:
        raise Refusal(400, "the charset of a form is utf-8: leave it out", "form")
    try:
        async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS) as form:
            for _, part in form.multi_items():
                if isinstance(part, UploadFile):
                    return part.filename or STDIN, await part.read()
    except UnicodeError as error:
        raise Refusal(400, f"the form's names cannot be read ({error})", "form") from error
    raise Refusal(400, "the form has no file: send one as the field 'file'", "form")
