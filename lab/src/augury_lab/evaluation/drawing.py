"""The pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from augury_lab.evaluation import pictures
from augury_lab.evaluation.calibration import Reliability
from augury_lab.evaluation.metrics import Mistake
from augury_lab.evaluation.results import Evaluated, Evaluation
from augury_lab.evaluation.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Confidences = Mapping[str, Tensor]
"""The largest softmax of each image, N float64 in [0, 1]: of a run's own images under the name "", of other data under
their names."""
NAN = float("nan")


def drawn(
    evaluation: Evaluation, subjects: Sequence[Subject], confidences: Sequence[Confidences]
) -> Iterator[tuple[str, Figure]]:
    """Every picture with the name of its file; `confidences` are of each run."""
    for run, subject, theirs in zip(evaluation.runs, subjects, confidences, strict=True):
        classes = [row.name for row in run.classes.rows]
        title = run.name if len(subjects) > 1 else ""
        counts = torch.tensor(run.classes.confusion)
        yield evaluation.file("confusion", run, "png"), pictures.confusion(counts, classes, title)
        yield evaluation.file("worst", run, "png"), _worst(run.worst, subject)
        if run.outliers:
            others = {name: scores for name, scores in theirs.items() if name}
            yield evaluation.file("outliers", run, "png"), pictures.outliers(theirs[""], others)
    yield "reliability.png", pictures.reliability(_reliability(evaluation.runs))
    if attacks := _attacks(evaluation.runs):
        yield "attacks.png", pictures.sweeps(attacks)
    yield from _changed(evaluation.runs)


def _worst(mistakes: Sequence[Mistake], subject: Subject) -> Figure:
    label = {name: number for number, name in enumerate(subject.classes)}
    images = subject.images(torch.tensor([mistake.image for mistake in mistakes])).cpu()
    return pictures.worst(
        images,
        [label[mistake.true] for mistake in mistakes],
        [label[mistake.predicted] for mistake in mistakes],
        [mistake.p_predicted for mistake in mistakes],
        subject.classes,
    )


def _reliability(runs: Sequence[Evaluated]) -> dict[str, pictures.Bins]:
    panels = {}
    for run in runs:
        of = f"{run.name}, " if len(runs) > 1 else ""
        panels[f"{of}as trained"] = _bins(run.calibration.before)
        if run.calibration.after is not None:
            panels[f"{of}temperature {run.calibration.temperature:.2f}"] = _bins(run.calibration.after)
    return panels


def _bins(found: Reliability) -> pictures.Bins:
    means = [[NAN if value is None else value for value in values] for values in (found.confidence, found.accuracy)]
    return pictures.Bins(means[0], means[1], found.images, found.ece)


def _attacks(runs: Sequence[Evaluated]) -> dict[str, pictures.Sweep]:
    panels = {}
    for number, attack in enumerate(runs[0].attacks):
        top1 = {run.name: run.attacks[number].top1 for run in runs}
        panels[attack.attack.upper()] = pictures.Sweep("ε / (1/255)", attack.epsilons, top1)
    return panels


def _changed(runs: Sequence[Evaluated]) -> Iterator[tuple[str, Figure]]:
    corrupted = {run.name: run.corruptions for run in runs if run.corruptions is not None}
    if corrupted:
        top1 = {name: found.top1 for name, found in corrupted.items()}
        clean = {name: found.clean for name, found in corrupted.items()}
        yield "corruptions.png", pictures.corruptions(top1, clean)
    panels = {}
    for name, shift in runs[0].shifts.items():
        sweeps = {run.name: [run.shifts[name].clean, *run.shifts[name].top1] for run in runs}
        panels[name.replace("_", " ")] = pictures.Sweep(shift.axis, [shift.unchanged, *shift.strengths], sweeps)
    if panels:
        yield "shifts.png", pictures.sweeps(panels)
    landscapes = {run.name: run.landscape for run in runs if run.landscape is not None}
    if landscapes:
        losses = {
            name: [[NAN if value is None else value for value in row] for row in found.loss]
            for name, found in landscapes.items()
        }
        steps = next(iter(landscapes.values())).steps
        yield "landscape.png", pictures.landscape(losses, steps, steps)
