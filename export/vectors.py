"""Test vectors: a few real digits with PyTorch's answers, as files that any ONNX runtime's tests can read."""

from onnx import numpy_helper

from export.parity import Questions
from serve_cli.spec import INPUT, OUTPUTS, VECTOR_INPUT, VECTOR_OUTPUTS


def vectors(questions: Questions) -> dict[str, bytes]:
    """The files of the digits to show, by path in the artifact directory."""
    shown = questions.shown()
    answers = (questions.reference.logits, questions.reference.probabilities)
    names = [INPUT["name"], *(output["name"] for output in OUTPUTS)]
    return {
        path: numpy_helper.from_array(values[shown], name).SerializeToString(deterministic=True)
        for path, name, values in zip(
            (VECTOR_INPUT, *VECTOR_OUTPUTS), names, (questions.images, *answers), strict=True
        )
    }
