"""What the query of /predict says."""

from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field, ValidationError

from serve_cli.http.refusal import Refusal
from serve_cli.spec import CLASSES, Preprocess

LONGEST_NAME = 40
"""Characters of a parameter's name that an error repeats."""


class Options(BaseModel, extra="forbid", allow_inf_nan=False):
    """The options of `mnist infer`, and `pixels`.

    FastAPI would read them, too, but takes as long over none as the net over a picture.
    """

    top_k: int = Field(default=1, ge=1, le=CLASSES, description="How many labels, best first.")
    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="Below this the answer is not sure."
    )
    preprocess: Literal["auto", "raw"] = Field(
        default=Preprocess.AUTO.value, description="raw: the picture is 28x28, white ink on black."
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
            name = str(first["loc"][0])[:LONGEST_NAME]
            known = name in cls.model_fields
            reason = first["msg"] if known else f"no such parameter, there are {', '.join(cls.model_fields)}"
            raise Refusal(400, f"{name if known else repr(name)}: {reason}", "parameter") from error

    @classmethod
    def documented(cls) -> list[dict[str, Any]]:
        """The parameters, as OpenAPI describes them."""
        return [
            {"name": name, "in": "query", "description": about.pop("description"), "schema": about}
            for name, about in cls.model_json_schema()["properties"].items()
        ]


DEFAULTS = Options.model_validate({})
