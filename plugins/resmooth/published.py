"""ReSmooth (arXiv 2205.12606; IEEE TNNLS 2022): 6 baselines, 6 runs with RandAugment, 8 with negative augmentations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipe_rows import NO_NUMBER, Noted, Row, cosine, on, sgd, train

PAPER = "arXiv 2205.12606 (IEEE TNNLS 2022)"
NETWORKS = {"resnet18": "ResNet-18", "wrn28_10": "WRN-28-10"}
# On CIFAR-10, CIFAR-100 and SVHN, for both networks; M = 28 of 30.
RANDAUGMENT = {
    # data set: prob, N, smooth_aug
    "cifar10": (0.0, 2, 0.4),
    "cifar100": (0.2, 2, 0.6),
    "svhn": (0.0, 3, 0.3),
}
# smooth_aug by network and data set; prob is 0.6 in all.
NEGATIVE = {
    "jigsaw": {"resnet18": {"cifar10": 0.2, "cifar100": 0.4}, "wrn28_10": {"cifar10": 0.3, "cifar100": 0.4}},
    "rotate": {"resnet18": {"cifar10": 0.5, "cifar100": 0.5}, "wrn28_10": {"cifar10": 0.5, "cifar100": 0.5}},
}
# Rotation acts on the 8-bit image before crop and flip; jigsaw, and then Cutout, last.
WORDS = {"jigsaw": "crop:4 flip jigsaw", "rotate": "rotate90 crop:4 flip"}
TITLES = {"jigsaw": "ReSmooth with jigsaw", "rotate": "ReSmooth with rotation"}


def rows() -> Iterator[Row]:
    """Every run of the paper's tables of settings."""
    for network in NETWORKS:
        for dataset, (prob, n, smooth_aug) in RANDAUGMENT.items():
            yield _row(dataset, network, "baseline", "ReSmooth's baseline")
            options: dict[str, Any] = {"prob": prob, "smooth_aug": smooth_aug}
            words = f"randaugment_ra:n={n},m=28 crop:4 flip"
            yield _row(dataset, network, "randaugment", f"ReSmooth with RandAugment N={n} M=28", words, options)
        for kind, smoothing in NEGATIVE.items():
            for dataset, smooth_aug in smoothing[network].items():
                # Each image of the augmented half is taken as out of distribution, so no network is trained first.
                loss = Noted("smooth", "Every augmented image is taken as out of distribution: no pre-train stage.")
                options = {"prob": 0.6, "smooth_aug": smooth_aug, "loss": loss}
                yield _row(dataset, network, kind, TITLES[kind], WORDS[kind], options)


def _row(
    dataset: str,
    network: str,
    kind: str,
    title: str,
    augmented: str | None = None,
    options: dict[str, Any] | None = None,
) -> Row:
    cutout = augmented is not None and network == "wrn28_10"
    return Row(
        f"{dataset}-{network}-{kind}",
        f"{title}{' and Cutout' * cutout}: {on(dataset, NETWORKS[network])}",
        f"{PAPER}; the paper reports the best test epoch. {NO_NUMBER}.",
        None,
        {
            "data": {
                "dataset": dataset,
                "protocol": "paper",
                "base": "crop:4 flip",
                "augmented": f"{augmented} cutout:16" if cutout else augmented,
            },
            "model": {"name": f"{network}_cifar"},
            "optim": sgd(lr=0.2, weight_decay=5e-4, batch_size=256, epochs=200),
            "schedule": cosine(warmup_epochs=5, warmup_lr=0.1),
            "train": train(),
        },
        [] if options is None else [("resmooth", options)],
    )
