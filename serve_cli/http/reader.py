"""Pictures to answers: what `mnist infer` does with a file, for bodies, and for several at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serve_cli.answer import Answer
from serve_cli.errors import InputError
from serve_cli.http.options import Options
from serve_cli.http.refusal import Refusal
from serve_cli.infer import take_raw
from serve_cli.picture import decode
from serve_cli.preprocess import Preprocessed, to_mnist
from serve_cli.runtime import Predictor
from serve_cli.spec import IMAGE_SIZE, Preprocess

NAME = "the file"
"""What errors call it."""

ROWS = 4
"""Images of every call of the net, with black ones if there are fewer: on some processors the last bits of an
answer depend on the number, and so two answers to one picture would."""


class Job(NamedTuple):
    """A picture to read: its bytes, its name, and how."""

    data: bytes
    file: str
    options: Options


@dataclass(frozen=True)
class Reader:
    """Reads pictures with a model; below the confidence `floor` (0 to 1) it is not sure."""

    predictor: Predictor
    floor: float

    def read(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """Answer pictures, each or why not: a Refusal, or an error of ours."""
        pictures = [_attempt(job) for job in jobs]
        pixels = np.zeros((-(-len(jobs) // ROWS) * ROWS, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        for place, picture in enumerate(pictures):
            if isinstance(picture, Preprocessed):
                pixels[place] = picture.pixels
        probabilities = self.predictor.predict(pixels, batch_size=ROWS).probabilities
        return [
            picture if isinstance(picture, Exception) else self._answer(job, picture, row)
            for job, picture, row in zip(jobs, pictures, probabilities, strict=False)
        ]

    def read_one(self, job: Job) -> Answer:
        """Answer one picture.

        Raises:
            Refusal: it is no picture that can be read.
        """
        (result,) = self.read([job])
        if isinstance(result, Exception):
            raise result
        return result

    def _answer(self, job: Job, picture: Preprocessed, probabilities: np.ndarray) -> Answer:
        given = job.options.min_confidence
        floor = self.floor if given is None else given
        return Answer.of(job.file, picture, probabilities, self.predictor.labels, floor=floor)


def _attempt(job: Job) -> Preprocessed | Exception:
    """Prepare a picture; what is wrong with one must not keep others waiting."""
    try:
        return _prepare(job)
    except InputError as error:
        return Refusal(400, str(error), "picture")
    except Exception as error:
        return error


def _prepare(job: Job) -> Preprocessed:
    grey = decode(job.data, NAME)
    if job.options.preprocess == Preprocess.AUTO.value:
        return to_mnist(grey)
    if grey.shape != (IMAGE_SIZE, IMAGE_SIZE):
        raise InputError(f"{NAME} is not 28x28 pixels, as preprocess=raw takes them")
    return take_raw(grey, NAME)
