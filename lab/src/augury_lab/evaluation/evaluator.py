"""An evaluation as a whole: runs side by side, from their folders to numbers, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from augury.errors import AuguryError, UsageError
from augury.outside import given_path
from augury.randomness import generator
from augury_lab.evaluation.attacks import check_epsilons
from augury_lab.evaluation.calibration import Calibration, calibrate, confidence_of
from augury_lab.evaluation.drawing import Confidences
from augury_lab.evaluation.landscape import SIDE, Landscape, loss_around
from augury_lab.evaluation.metrics import Mistake, by_class, worst
from augury_lab.evaluation.outliers import open_outliers, separate, shown
from augury_lab.evaluation.results import Evaluated, Evaluation
from augury_lab.evaluation.robustness import attacked_by_fgsm, attacked_by_pgd, corrupted, shifted, watched
from augury_lab.evaluation.subject import BATCH, SplitName, Subject, load_subjects
from augury_lab.evaluation.writing import choose_folder, refuse_taken, try_folder, write
from augury_train.data.splits import Split
from augury_train.inference.classifier import Weights
from augury_train.measures import chunks, logits_of, measure
from augury_train.progress import reporter_of
from augury_train.training.result import Result
from augury_train.training.watch import Reporter

LANDSCAPE_IMAGES = 512
"""Images at each point of a landscape, unless told otherwise."""
WORST = 32
"""Images in the picture of the worst."""


@dataclass(frozen=True)
class Asked:
    """What is looked into beside the accuracy, the classes and the calibration.

    Attributes:
        fgsm, pgd: epsilons in units of 1/255.
        corruptions, shifts, landscape: whether.
        ood: other data, by name or folder.
        images: how many of the split, drawn at random, for all that takes many passes; all of them when None, and
            512 for a landscape.
        points: of the landscape, both ways; odd.
        seed: of all that is drawn.
    """

    fgsm: Sequence[float] = ()
    pgd: Sequence[float] = ()
    corruptions: bool = False
    shifts: bool = False
    ood: Sequence[str] = ()
    landscape: bool = False
    images: int | None = None
    points: int = SIDE
    seed: int = 0


def evaluate(
    runs: Sequence[Path | str | Result] | Path | str | Result,
    *,
    split: SplitName = "test",
    weights: Weights = "best",
    fgsm: Sequence[float] = (),
    pgd: Sequence[float] = (),
    corruptions: bool = False,
    shifts: bool = False,
    ood: Sequence[str] = (),
    landscape: bool = False,
    images: int | None = None,
    points: int = SIDE,
    seed: int = 0,
    output: Path | str | None = None,
    device: str = "auto",
    batch_size: int = BATCH,
    progress: bool | Reporter = True,
) -> Evaluation:
    """Look closely at trained networks, side by side: accuracy, classes, confusion, worst images and calibration, and
    what else is asked for.

    Args:
        runs: run folders, or the results of runs.
        split: the images: `test`, `val` or `train`, without augmentation.
        weights: of the `best` or of the `last` epoch.
        fgsm, pgd: epsilons of the attacks, in units of 1/255.
        corruptions: whether to corrupt the images in the common ways, at five severities.
        shifts: whether to blank parts of them, crop them and change their colours.
        ood: other data, by name or folder.
        landscape: whether to measure the loss around the weights.
        images: how many of the split, drawn at random, are attacked, corrupted and so on; all of them when None, and
            512 for the landscape.
        points: of the landscape, both ways; odd, so that the network itself is in the middle.
        seed: of all that is drawn.
        output: folder for the files; `evaluation` within the run's folder, or here where there are several runs.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        batch_size: most images at once; attacks take no more than the training did.
        progress: whether to show bars; or who is told.

    Raises:
        UsageError: what was asked for cannot be: a missing or unfinished run, data that are gone or changed, runs of
            different data or splits, an epsilon below 0, a folder that cannot be written to.
        AuguryError: the device has too little memory.
    """
    named = [runs] if isinstance(runs, Path | str | Result) else list(runs)
    folders = [given_path(run.folder if isinstance(run, Result) else run, "RUN") for run in named]
    asked = Asked(
        check_epsilons(fgsm, "--fgsm"),
        check_epsilons(pgd, "--pgd"),
        corruptions,
        shifts,
        tuple(ood),
        landscape,
        check_count(images),
        check_points(points),
        seed,
    )
    reporter = reporter_of(progress)
    check_batch_size(batch_size)
    subjects = [replace(found, batch_size=batch_size) for found in load_subjects(folders, weights, split, device)]
    folder = choose_folder(folders, output)
    refuse_taken(folder)
    others = {name: open_outliers(name, subjects[0].config.data, subjects[0].channels) for name in asked.ood}
    try_folder(folder)
    notes = _notes(subjects, weights, asked)
    found, confidences = [], []
    unread: dict[str, list[str]] = {}
    for subject, few in _with_few(subjects, asked):
        watching = reporter.named(subject.name) if len(subjects) > 1 else reporter
        with _enough_memory(subject):
            run, seen = _evaluated(subject, few, asked, others, unread, watching)
        found.append(run)
        confidences.append(seen)
    notes += [_unread(name, bad) for name, bad in unread.items() if bad]
    notes += [f"{run.name}: {run.calibration.note}." for run in found if run.calibration.note]
    for note in notes:
        reporter.note(note)
    evaluation = Evaluation(str(folder), split, weights, seed, found, [], notes)
    return write(evaluation, subjects, confidences)


def check_count(images: int | None) -> int | None:
    """Raises: UsageError where it is no number of images."""
    if images is not None and images < 1:
        raise UsageError(f"--images must be 1 or more, got {images}. Leave it out for all images.")
    return images


def check_batch_size(batch_size: int) -> int:
    """Raises: UsageError where it is no number of images."""
    if batch_size < 1:
        raise UsageError(f"--batch-size must be 1 or more, got {batch_size}. Leave it out for {BATCH}.")
    return batch_size


@contextmanager
def _enough_memory(subject: Subject) -> Iterator[None]:
    """Raises: AuguryError where the device's memory does not hold a batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        size = subject.batch_size
        cure = f"Take fewer: --batch-size {max(1, size // 4)}" if size > 1 else "Use a larger one, or --device cpu"
        raise AuguryError(
            f"{subject.folder}: {subject.device} has too little free memory for batches of {size} images. {cure}."
        ) from None


def check_points(points: int) -> int:
    """Raises: UsageError where a grid of so many points both ways has no middle, or none near it."""
    if points < 5 or points % 2 == 0:
        raise UsageError(f"--points must be an odd number of 5 or more, got {points}. Write --points {SIDE}.")
    return points


def _notes(subjects: Sequence[Subject], weights: Weights, asked: Asked) -> list[str]:
    notes = [note for subject in subjects for note in subject.notes]
    first = subjects[0]
    if first.split_name == "test" and weights == "best":
        notes += [
            f"{subject.name}: data.protocol=paper, so its best epoch was chosen on the test split and flatters there."
            for subject in subjects
            if subject.data.splits.val is None
        ]
    many = asked.fgsm or asked.pgd or asked.corruptions or asked.shifts
    if many and asked.images is not None and asked.images < len(first):
        notes.append(f"attacks, corruptions and shifts are measured on {asked.images} of the {len(first)} images.")
    return notes


def _unread(name: str, bad: Sequence[str]) -> str:
    listed = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
    return f"--ood {name}: {len(bad)} of its images cannot be read and are left out: {listed}."


def _with_few(subjects: Sequence[Subject], asked: Asked) -> Iterator[tuple[Subject, Callable[[int | None], Subject]]]:
    """Each run, and how it is had with some of its images alone: the same for all runs."""
    made: dict[tuple[int, int], Split] = {}
    drawn = torch.randperm(len(subjects[0]), generator=generator(asked.seed, "images"))

    def few(subject: Subject, count: int | None) -> Subject:
        if count is None or count >= len(subject):
            return subject
        # One split object for all runs of the same data, so that its images are decoded once.
        key = id(subject.split), count
        made.setdefault(key, subject.split.take(drawn[:count].sort().values))
        return replace(subject, split=made[key])

    for subject in subjects:
        yield subject, partial(few, subject)


def _evaluated(
    subject: Subject,
    few: Callable[[int | None], Subject],
    asked: Asked,
    others: Mapping[str, Split],
    unread: dict[str, list[str]],
    reporter: Reporter,
) -> tuple[Evaluated, Confidences]:
    """One run's part, and its confidences; the names of other data's images that cannot be read go to `unread`."""
    logits, labels = _answers(subject, reporter)
    confidences = {"": confidence_of(logits)}
    # Before what takes long: it may turn out that none of them can be read.
    for name, other in others.items():
        confidences[name], unread[name] = shown(subject, _drawn(other, name, asked), name, reporter)
    some = few(asked.images)
    attacks = []
    if asked.fgsm:
        attacks.append(attacked_by_fgsm(some, asked.fgsm, reporter))
    if asked.pgd:
        attacks.append(attacked_by_pgd(some, asked.pgd, asked.seed, reporter))
    evaluated = Evaluated(
        name=subject.name,
        folder=str(subject.folder),
        model=subject.config.model.name,
        methods=[method.name for method in subject.config.methods],
        images=len(subject),
        measures=measure(logits, labels),
        classes=by_class(logits, labels, subject.classes),
        calibration=_calibration(subject, logits, labels, reporter),
        worst=_worst(subject, logits, labels),
        attacks=attacks,
        corruptions=corrupted(some, asked.seed, reporter) if asked.corruptions else None,
        shifts=shifted(some, asked.seed, reporter) if asked.shifts else {},
        outliers=[separate(confidences[""], confidences[name], name) for name in others],
        landscape=_landscape(few(asked.images or LANDSCAPE_IMAGES), asked, reporter) if asked.landscape else None,
    )
    return evaluated, confidences


def _answers(subject: Subject, reporter: Reporter) -> tuple[Tensor, Tensor]:
    """Logits N x C and labels N of the split, on the host."""
    batches = watched(subject, f"{subject.split_name} split", reporter)
    logits, labels = logits_of(subject.network, batches, subject.normalise)
    if bad := sum(int((~some.isfinite().all(1)).sum()) for some, _ in chunks(logits, labels)):
        raise AuguryError(
            f"{subject.folder}: its network gives numbers that are not finite on {bad} of {len(labels)} images, so "
            "nothing can be said of it. Train it anew with a lower optim.lr."
        )
    return logits, labels


def _calibration(subject: Subject, logits: Tensor, labels: Tensor, reporter: Reporter) -> Calibration:
    if subject.split_name == "val":
        why = "no temperature: it is fitted on the validation split, and would flatter there"
        return calibrate(logits, labels, None, why)
    val = subject.on("val")
    if val is None:
        return calibrate(logits, labels, None, "no temperature: there is no validation split to fit it on")
    return calibrate(logits, labels, _answers(val, reporter))


def _worst(subject: Subject, logits: Tensor, labels: Tensor) -> list[Mistake]:
    split = subject.split
    found = worst(logits, labels, subject.classes, WORST)
    return [replace(mistake, name=split.source.name(int(split.rows[mistake.image]))) for mistake in found]


def _drawn(other: Split, name: str, asked: Asked) -> Split:
    """As many of other data's images as are asked for."""
    if asked.images is None or asked.images >= len(other):
        return other
    drawn = torch.randperm(len(other), generator=generator(asked.seed, "ood", name))
    return other.take(drawn[: asked.images].sort().values)


def _landscape(subject: Subject, asked: Asked, reporter: Reporter) -> Landscape:
    batches = [(subject.normalise(images), labels) for images, labels in subject.batches()]
    reporter.start("landscape", asked.points**2, 0)
    try:
        return loss_around(subject.network, batches, seed=asked.seed, side=asked.points, told=reporter.step)
    finally:
        reporter.stop()
