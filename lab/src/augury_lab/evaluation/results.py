"""What an evaluation found out; accuracies and errors in percent."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from augury_lab.evaluation.calibration import Calibration
from augury_lab.evaluation.landscape import Landscape
from augury_lab.evaluation.metrics import Classes, Mistake
from augury_lab.evaluation.outliers import Outliers
from augury_train.measures import Measures

LETTERS = 48
"""Of a run's name in the name of a file, so that no system finds it too long."""


@dataclass(frozen=True)
class Attacked:
    """Accuracy under attack.

    Attributes:
        attack: `fgsm` or `pgd`.
        images: that were attacked.
        epsilons: largest change of a pixel, in units of 1/255; the first one is 0, which is no attack.
        top1: at each of them.
    """

    attack: str
    images: int
    epsilons: list[float]
    top1: list[float]


@dataclass(frozen=True)
class Corrupted:
    """Accuracy on corrupted images (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Attributes:
        images: that were corrupted.
        clean: the same images as they are.
        top1: by corruption, at the severities 1 to 5.
        groups: the mean of each group of corruptions.
        mean: of all corruptions and severities.
    """

    images: int
    clean: float
    top1: dict[str, list[float]]
    groups: dict[str, float]
    mean: float


@dataclass(frozen=True)
class Shifted:
    """Accuracy under one change of growing strength.

    Attributes:
        images: that were changed.
        clean: the same images as they are.
        axis: what a strength is.
        strengths: from the least shift to the greatest.
        top1: at each of them.
    """

    images: int
    clean: float
    axis: str
    strengths: list[float]
    top1: list[float]

    @property
    def unchanged(self) -> float:
        """The strength that would leave images as they are: shares that shrink come from 1, all else grows from 0."""
        return 1.0 if self.strengths[0] > self.strengths[-1] else 0.0


@dataclass(frozen=True)
class Evaluated:
    """One run's part of an evaluation. What was not asked for is None, or empty.

    Attributes:
        name: the run's, among those evaluated together.
        folder: its folder.
        model: the network's name.
        methods: that it was trained with.
        images: in the split.
        measures: top-1, top-5, negative log-likelihood and calibration error.
        classes: how each class fares.
        calibration: reliability, and temperature scaling.
        worst: the images of the highest loss.
        attacks: by FGSM, by PGD.
        corruptions: common ones.
        shifts: occlusion, crops and colours.
        outliers: other data.
        landscape: the loss around the weights.
    """

    name: str
    folder: str
    model: str
    methods: list[str]
    images: int
    measures: Measures
    classes: Classes
    calibration: Calibration
    worst: list[Mistake]
    attacks: list[Attacked]
    corruptions: Corrupted | None
    shifts: dict[str, Shifted]
    outliers: list[Outliers]
    landscape: Landscape | None


@dataclass(frozen=True)
class Evaluation:
    """Runs evaluated side by side, on the same images.

    Attributes:
        folder: where the files are.
        split: `test`, `val` or `train`.
        weights: `best` or `last`.
        seed: of all that is drawn.
        runs: in the order asked for.
        files: written, by their names in the folder.
        notes: what the user may not expect, a line each.
    """

    folder: str
    split: str
    weights: str
    seed: int
    runs: list[Evaluated]
    files: list[str]
    notes: list[str]

    def file(self, stem: str, run: Evaluated, suffix: str) -> str:
        """The name of a file that each run has one of; no two runs' are the same."""
        if len(self.runs) == 1:
            return f"{stem}.{suffix}"
        name = _plain(run.name)
        # Some systems take A for a.
        same = sum(_plain(other.name).casefold() == name.casefold() for other in self.runs)
        if same > 1 or len(name) > LETTERS:
            digest = hashlib.sha256(os.fsencode(run.name)).hexdigest()
            name = f"{name[:LETTERS]}-{digest[:8]}"
        return f"{stem}-{name}.{suffix}"

    def to_json(self) -> dict[str, Any]:
        """The same in what JSON has words for: what is not finite is None; the counts of the confusion, which have
        files of their own, are left out."""
        said = asdict(self)
        for run in said["runs"]:
            del run["classes"]["confusion"]
        return dict(_finite(said))


def _plain(name: str) -> str:
    return name.replace("/", "-").replace("\\", "-")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
