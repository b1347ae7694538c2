"""Test vectors: a few real digits with PyTorch's answers, as files that any ONNX runtime's tests can read."""

import numpy as np
from onnx import numpy_helper

from export.parity import Questions
from serve_cli.spec import CLASSES, INPUT, OUTPUTS, VECTOR_INPUT, VECTOR_OUTPUTS

OF_EACH_CLASS = 2


def vectors(questions: Questions) -> dict[str, bytes]:
    """The files of the first two test digits of each class, by path in the artifact directory."""
    shown = np.concatenate([np.flatnonzero(questions.labels == c)[:OF_EACH_CLASS] for c in range(CLASSES)])
    answers = (questions.reference.logits, questions.reference.probabilities)
    names = [INPUT["name"], *(output["name"] for output in OUTPUTS)]
    return {
        path: numpy_helper.from_array(values[shown], name).SerializeToString(deterministic=True)
        for path, name, values in zip(
            (VECTOR_INPUT, *VECTOR_OUTPUTS), names, (questions.images, *answers), strict=True
        )
    }
