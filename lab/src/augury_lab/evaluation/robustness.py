"""Accuracy on images that were changed: attacked, corrupted, shifted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from augury.randomness import generator
from augury_lab.evaluation.attacks import PGD_STEPS, ascent, fgsm, pgd
from augury_lab.evaluation.results import Attacked, Corrupted, Shifted
from augury_lab.evaluation.subject import Subject
from augury_train.training.watch import Reporter

Change = Callable[[Tensor, int], Tensor]
"""Images N x ch x H x W in [0, 1] and the number of their batch -> the same, changed."""


def batches_in(subject: Subject, batch_size: int) -> int:
    """How many `batches` of its split a subject gives, at most."""
    smaller = min(batch_size, 128) if subject.loader == "stream" else batch_size
    return -(-len(subject) // smaller)


def watched(
    subject: Subject, what: str, reporter: Reporter, passes: int = 1, batch_size: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, with a bar over them; each counts `passes` times."""
    batch_size = batch_size or subject.batch_size
    reporter.start(what, batches_in(subject, batch_size), 0)
    try:
        for images, labels in subject.batches(batch_size):
            yield images, labels
            reporter.step(len(labels) * passes)
    finally:
        reporter.stop()


def attacked_by_fgsm(subject: Subject, epsilons: Sequence[float], reporter: Reporter) -> Attacked:
    """FGSM at each epsilon, in units of 1/255, and at 0; the gradient is taken once for all of them."""
    epsilons = _from_zero(epsilons)
    counts = torch.zeros(len(epsilons), dtype=torch.int64, device=subject.device)
    for images, labels in watched(subject, "FGSM", reporter, len(epsilons) + 1, subject.attacked_at_once):
        signs, _ = ascent(subject.logits, images, labels)
        with torch.no_grad():
            answers = [subject.logits(fgsm(images, signs, epsilon / 255)).argmax(1) for epsilon in epsilons]
        counts += (torch.stack(answers) == labels).sum(1)
    return Attacked("fgsm", len(subject), epsilons, _percent(counts, len(subject)))


def attacked_by_pgd(subject: Subject, epsilons: Sequence[float], seed: int, reporter: Reporter) -> Attacked:
    """PGD at each epsilon, in units of 1/255; what it counts as right at 0 is the clean accuracy."""
    epsilons = _from_zero(epsilons)
    counts = torch.zeros(len(epsilons), dtype=torch.int64, device=subject.device)
    for number, epsilon in enumerate(epsilons):
        draws = generator(seed, "pgd", f"{epsilon:g}", device=subject.device)
        for images, labels in watched(subject, f"PGD {epsilon:g}/255", reporter, batch_size=subject.attacked_at_once):
            steps = PGD_STEPS if epsilon else 0
            _, right = pgd(subject.logits, images, labels, epsilon / 255, draws, steps)
            counts[number] += right.sum()
    return Attacked("pgd", len(subject), epsilons, _percent(counts, len(subject)))


def corrupted(subject: Subject, seed: int, reporter: Reporter) -> Corrupted:
    """Every common corruption that changes images of these channels, at the five severities."""
    from augury_lab.evaluation.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, applicable

    names = applicable(subject.channels)

    def change(name: str, severity: int) -> Change:
        def apply(images: Tensor, batch: int) -> Tensor:
            draws = generator(seed, name, severity, batch, device=subject.device)
            return CORRUPTIONS[name](images, severity, draws)

        return apply

    changes = {f"{name} {severity}": change(name, severity) for name in names for severity in SEVERITIES}
    clean, found = _accuracies(subject, changes, "corruptions", reporter)
    top1 = {name: [found[f"{name} {severity}"] for severity in SEVERITIES] for name in names}
    groups = {
        group: _mean([value for name in members if name in top1 for value in top1[name]])
        for group, members in GROUPS.items()
    }
    return Corrupted(len(subject), clean, top1, groups, _mean([value for values in top1.values() for value in values]))


def shifted(subject: Subject, seed: int, reporter: Reporter) -> dict[str, Shifted]:
    """Occlusion, crops and colours, each at its own strengths."""
    from augury_lab.evaluation.shifts import SHIFTS

    def change(name: str, strength: float) -> Change:
        def apply(images: Tensor, batch: int) -> Tensor:
            draws = generator(seed, name, str(strength), batch, device=subject.device)
            return SHIFTS[name].apply(images, strength, draws)

        return apply

    changes = {
        f"{name} {strength}": change(name, strength) for name, shift in SHIFTS.items() for strength in shift.strengths
    }
    clean, found = _accuracies(subject, changes, "occlusion, crops and colours", reporter)
    return {
        name: Shifted(
            len(subject), clean, shift.axis, list(shift.strengths), [found[f"{name} {s}"] for s in shift.strengths]
        )
        for name, shift in SHIFTS.items()
    }


@torch.no_grad()
def _accuracies(
    subject: Subject, changes: Mapping[str, Change], what: str, reporter: Reporter
) -> tuple[float, dict[str, float]]:
    """Of the images as they are, and under each change. Each batch is read once for all of them."""
    counts = torch.zeros(1 + len(changes), dtype=torch.int64, device=subject.device)
    for number, (images, labels) in enumerate(watched(subject, what, reporter, len(counts))):
        seen = [subject.logits(images).argmax(1)]
        seen += [subject.logits(change(images, number)).argmax(1) for change in changes.values()]
        counts += (torch.stack(seen) == labels).sum(1)
    clean, *found = _percent(counts, len(subject))
    return clean, dict(zip(changes, found, strict=True))


def _from_zero(epsilons: Sequence[float]) -> list[float]:
    return [0.0, *(epsilon for epsilon in epsilons if epsilon)]


def _percent(counts: Tensor, images: int) -> list[float]:
    return [100 * count / images for count in counts.tolist()]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
