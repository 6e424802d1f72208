"""How sure a trained network is of each of its training images when they are mixed with others, and which to keep.

Training images are cut at random into groups of about 256, as evaluation shows them. Each group is mixed with itself
`passes` times, each time anew, by the `augment_batch` of methods that mix; of image i, pass t sees the row whose first
image it is, in which it has the share w_t, and the network's softmax p_t. With weights w_t / sum(w) and entropies in
nats,

    p = mean of p_t      entropy     H(p)                 all of the uncertainty
                         expected    mean of H(p_t)       what is left where the mix is known
                         information H(p) - expected      what depends on the mix (>= 0)
                         margin      q_y - max q_c, c != y, of the softmax q of the image itself and its class y

Rows count by w_t because one that hardly shows an image says hardly anything of it: p is the mean over all pixels
that were shown of the image. One of which no pixel was shown counts as unmixed. Each half of the passes orders the
images by its own entropy; how well the two orders agree tells whether the passes are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from augury.batch import Batch
from augury.choice import Chosen, choose
from augury.composition import Composition, compose
from augury.errors import AuguryError, UsageError, refuse_all
from augury.method import hook_implementations
from augury.passes import classifier_of
from augury.randomness import generator
from augury.registry import Register
from augury_lab.evaluation.subject import Subject, load_subject
from augury_train.inference.classifier import Weights
from augury_train.training.watch import Reporter, Silent

PASSES = 30
"""With 10, two seeds hardly agreed on the digits' order (rank correlation 0.2 at K = 5)."""
GROUP = 256
"""Images that are mixed with each other."""
ALONE = 1e-12
"""What the unmixed image counts for beside its mixes, in whole images."""
TRIES = 100
"""How often a batch is drawn anew where chance leaves it unmixed."""
END = "uncertain"
"""Which images a subset keeps: on 15 % of the digits these made the better networks (docs/uncertainty.md)."""
Named = Sequence[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Uncertainty:
    """What `measure_uncertainty` found; tensors are N long, on the host, in the order of the training split.

    Attributes:
        subject: the network and its training images.
        methods: what mixed, with the options that were given.
        passes, seed: as asked for.
        entropy, expected, information, margin: float64, as above.
        predicted: int64, the most likely class of the image itself.
        reliability: rank correlation to be expected with the entropies of as many other passes; None of one pass.
    """

    subject: Subject
    methods: Named
    passes: int
    seed: int
    entropy: Tensor
    expected: Tensor
    information: Tensor
    margin: Tensor
    predicted: Tensor
    reliability: float | None


def measure_uncertainty(
    folder: Path | str,
    methods: Named | None = None,
    *,
    passes: int = PASSES,
    weights: Weights = "best",
    seed: int = 0,
    device: str = "auto",
    register: Register | None = None,
    reporter: Reporter | None = None,
) -> Uncertainty:
    """Measure a run's uncertainty of its training images.

    Args:
        folder: the run's.
        methods: what mixes, as (name, options); those of the run's own methods that mix when None.
        passes: mixes of each image.
        weights: of the best epoch, or of the last.
        seed: of the groups and of the mixes.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        register: what method names mean.
        reporter: who watches.

    Raises:
        UsageError: no such run, nothing that mixes, methods that cannot mix here, or less than one pass.
        AuguryError: the network's answers are not finite.
    """
    if passes < 1:
        raise UsageError(f"--passes must be >= 1, got {passes}.")
    subject = load_subject(folder, weights, "train", device)
    chosen = _mixing(subject, methods, register)
    mixer = compose(
        chosen,
        num_classes=len(subject.classes),
        classifier=classifier_of(subject.network),
        network=subject.network,
        image_size=(subject.channels, subject.side, subject.side),
        seed=seed,
        device=subject.device,
        register=register,
    )
    reporter = reporter or Silent()
    order = torch.randperm(len(subject), generator=generator(seed, "uncertainty"))
    groups = order.tensor_split(-(-len(order) // GROUP))
    labels = subject.split.labels
    found = torch.zeros(len(order), 7, dtype=torch.float64)
    reporter.start("uncertainty", len(groups), 0)
    try:
        for group in groups:
            found[group] = _measure(subject, mixer, group, labels[group].to(subject.device), passes).cpu()
            reporter.step(len(group))
    finally:
        reporter.stop()
    entropy, expected, information, margin, predicted, *halves = found.unbind(1)
    reliability = _reliability(*halves) if passes > 1 else None
    return Uncertainty(
        subject, chosen, passes, seed, entropy, expected, information, margin, predicted.long(), reliability
    )


def _mixing(subject: Subject, named: Named | None, register: Register | None) -> Named:
    """Those of the methods that mix.

    Raises:
        UsageError: none of the run's does, or one that was asked for does not; or it would need more than the images.
    """
    wanted = subject.config.named_methods() if named is None else list(named)
    chosen, problems = choose(wanted, register)
    refuse_all(problems)
    mixing = [pair for pair, c in zip(wanted, chosen, strict=True) if _mixes_images(c)]
    cure = "Name one that does, --with METHOD (`augury plugins info METHOD` says whether it mixes)."
    if not mixing or (named is not None and len(mixing) < len(wanted)):
        if named is None:
            has = ", ".join(name for name, _ in wanted) or "none"
            raise UsageError(f"{subject.folder}: none of its methods ({has}) mixes images. {cure}")
        other = next((c.name for c in chosen if not _mixes_images(c)), "nothing")
        raise UsageError(f"--with: {other} mixes no images, or not only them. {cure}")
    for c in chosen:
        if _mixes_images(c) and "pre_train_stage" in hook_implementations(c.cls):
            raise UsageError(f"{c.name} mixes by what a pre-train stage made, which a run does not export. {cure}")
    return mixing


def _mixes_images(chosen: Chosen) -> bool:
    """Whether it mixes images and nothing inside a network, which is not looked at here."""
    return chosen.cls.mixes and not chosen.cls.mixes_hidden


def _measure(subject: Subject, mixer: Composition, group: Tensor, labels: Tensor, passes: int) -> Tensor:
    """n x 7 float64: entropy, expected, information, margin and predicted class of a group of images, and the entropies
    of the two halves of the passes."""
    mean, std = (torch.tensor(v, device=subject.device)[:, None, None] for v in (subject.mean, subject.std))
    images = (subject.images(group) - mean) / std
    clean = _probabilities(subject, images)
    # Shares may round to no pixel in all of few passes: then the image itself is all there is, at next to no weight.
    total = clean.new_full((2, len(clean)), ALONE)
    halves = ALONE * clean.repeat(2, 1, 1)
    expected = 2 * ALONE * _entropy(clean)
    for number in range(passes):
        batch = _mixed(mixer, images, labels)
        found, share = _probabilities(subject, batch.images), batch.shares[:, 0].double()
        halves[number % 2].index_add_(0, batch.indices, found * share[:, None])
        total[number % 2].index_add_(0, batch.indices, share)
        expected.index_add_(0, batch.indices, _entropy(found) * share)
    apart = [_entropy(half / shown[:, None]) for half, shown in zip(halves, total, strict=True)]
    whole = _entropy(halves.sum(0) / total.sum(0)[:, None])
    expected = expected / total.sum(0)
    own = clean.gather(1, labels[:, None])[:, 0]
    others = clean.scatter(1, labels[:, None], -1.0).amax(1)
    information = (whole - expected).clamp(min=0)
    return torch.stack([whole, expected, information, own - others, clean.argmax(1).double(), *apart], 1)


def _mixed(mixer: Composition, images: Tensor, labels: Tensor) -> Batch:
    """The images mixed with each other; the methods' next draws are others."""
    for _ in range(TRIES):
        batch = mixer.batch(images, labels)
        mixer.augment_batch(batch)
        mixer.step()
        if batch.mixed:
            return batch
    names = " and ".join(mixer.methods)
    raise UsageError(f"{names}: no batch was mixed in {TRIES} tries. Give options that mix, --with NAME:OPTION=VALUE.")


@torch.no_grad()
def _probabilities(subject: Subject, images: Tensor) -> Tensor:
    """N x C float64 of normalised images."""
    logits: Tensor = subject.network(images)
    if bad := int((~logits.isfinite().all(1)).sum()):
        raise AuguryError(
            f"{subject.folder}: its network gives numbers that are not finite on {bad} of a group of {len(logits)} "
            "images, so nothing can be said of it. Train it anew with a lower optim.lr."
        )
    return logits.double().softmax(1)


def _entropy(probabilities: Tensor) -> Tensor:
    """Of each row, in nats."""
    return -torch.xlogy(probabilities, probabilities).sum(1)


def _reliability(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two halves, and of that what Spearman and Brown's formula makes for the whole; 0
    where a half is the same everywhere, which orders nothing."""
    from scipy.stats import rankdata

    # Equal ones share the mean of their ranks: in the order of their places both halves would agree.
    ranks = torch.stack([torch.from_numpy(rankdata(half.numpy())) for half in (first, second)])
    correlation = float(torch.corrcoef(ranks)[0, 1])
    return 2 * correlation / (1 + correlation) if correlation > 0 else 0.0


def choose_subset(found: Uncertainty, keep: float, end: str = END) -> Tensor:
    """The most uncertain, or the most certain, share of each class, one image at least.

    Args:
        found: what is known of the training split.
        keep: share of the images of each class, rounded to whole ones.
        end: `uncertain` keeps the highest entropies, `certain` the lowest.

    Returns:
        n int64, places in the training split, in order.

    Raises:
        UsageError: a share outside (0, 1], or another end.
    """
    check_choice(keep, end)
    order = found.entropy.argsort(descending=end == "uncertain", stable=True)
    labels = found.subject.split.labels[order]
    kept = []
    for label in labels.unique().tolist():
        members = order[labels == label]
        kept.append(members[: max(1, round(keep * len(members)))])
    return torch.cat(kept).sort().values


def check_choice(keep: float | None, end: str) -> None:
    """Raises: UsageError where `choose_subset` cannot choose so; None is no choice."""
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(f"--keep must be more than 0 and at most 1, got {keep}.")
    if end not in ("certain", "uncertain"):
        raise UsageError(f"--end must be uncertain or certain, got `{end}`.")
