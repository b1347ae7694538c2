"""The answer to one picture: what `mnist infer` prints, as text and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_cli.preprocess import Preprocessed


@dataclass(frozen=True, kw_only=True)
class Answer:
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
        best = int(probabilities.argmax())
        confidence = float(probabilities[best])
        reason = picture.refusal
        if reason is None and confidence < floor:
            reason = f"confidence is below {floor:g}"
        return cls(
            file=file,
            label=labels[best] if reason is None else None,
            best_guess=labels[best],
            confidence=confidence,
            probabilities=probabilities.tolist(),
            labels=labels,
            reason=reason,
            picture=picture,
        )

    def ranking(self, top: int) -> list[tuple[int | str, float]]:
        """The `top` most probable labels with their probabilities, best first."""
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
        }
        if self.reason is not None:
            result["reason"] = self.reason
        if top > 1:
            result["top"] = [{"label": label, "probability": p} for label, p in self.ranking(top)]
        return result

    def to_text(self, top: int) -> str:
        """One line for people: `digit.png: 7 (99.8 %)`."""
        ranking = ", ".join(f"{label} ({p:.1%})" for label, p in self.ranking(top))
        if self.reason is None:
            return f"{self.file}: {ranking}"
        return f"{self.file}: not sure, {self.reason}" + (
            f"; best guess {ranking}" if self.picture.pixels.any() else ""
        )
