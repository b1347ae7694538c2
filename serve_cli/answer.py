"""The answer to one picture: what `mnist infer` prints, as text, as JSON and as CSV."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from serve_cli.preprocess import Preprocessed


class Answer(NamedTuple):
    """What the model says of one picture; `label` is None, and `reason` says why, when it is not sure."""

    file: str
    label: int | str | None
    best_guess: int | str
    confidence: float
    probabilities: list[float]
    labels: Sequence[int | str]
    reason: str | None
    picture: Preprocessed

    @classmethod
    def of(
        cls,
        file: str,
        picture: Preprocessed,
        probabilities: np.ndarray,
        labels: Sequence[int | str],
        *,
        floor: float,
    ) -> "Answer":
        """Judge float32 `probabilities` [10] of `picture`.

        Where no single digit was found, or below the confidence `floor` (0 to 1), the answer is "not sure".
        """
        shares: list[float] = probabilities.tolist()
        confidence = max(shares)
        best = labels[shares.index(confidence)]
        reason = picture.refusal
        if reason is None and confidence < floor:
            reason = f"confidence is below {floor:.1%}"
        return cls(file, best if reason is None else None, best, confidence, shares, labels, reason, picture)

    def ranking(self, top: int) -> list[tuple[int | str, float]]:
        """The `top` most probable labels with their probabilities, best first."""
        if top == 1:
            return [(self.best_guess, self.confidence)]
        pairs = zip(self.labels, self.probabilities, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[:top]

    def to_dict(self, top: int) -> dict[str, Any]:
        """The JSON object of this answer; `top` above 1 adds the ranking."""
        result: dict[str, Any] = {
            "file": self.file,
            "label": self.label,
            "best_guess": self.best_guess,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
            "preprocessing": self.picture.decisions,
        }
        if self.reason is not None:
            result["reason"] = self.reason
        if top > 1:
            result["top"] = [{"label": label, "probability": p} for label, p in self.ranking(top)]
        return result

    def to_row(self) -> list[object]:
        """The CSV row of this answer, see `header`."""
        return [self.file, self.label, self.best_guess, self.confidence, self.reason, *self.probabilities]

    def to_text(self, top: int) -> str:
        """One line for people: `digit.png: 7 (99.8%)`, in brackets what was odd about the picture."""
        text = ", ".join(f"{label} ({p:.1%})" for label, p in self.ranking(top))
        if self.reason is not None:
            guess = f"; best guess {text}" if self.picture.pixels.any() else ""
            text = f"not sure, {self.reason}{guess}"
        warnings = "; ".join(self.picture.decisions.get("warnings", ()))
        return f"{self.file}: {text} [{warnings}]" if warnings else f"{self.file}: {text}"


def header(labels: Sequence[int | str]) -> list[str]:
    """The names of the columns of `Answer.to_row`; a probability has the label's name after a p."""
    return ["file", "label", "best_guess", "confidence", "reason", *(f"p{label}" for label in labels)]
