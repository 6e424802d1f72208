"""ISDA (arXiv 1909.12220, NeurIPS 2019; arXiv 2007.10538, T-PAMI 2021): its CIFAR and ImageNet tables.

What the tables of settings leave open is taken from the authors' program: the order of the words, ImageNet's crops, and
lambda_0 of ResNeXt-50.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipe_rows import NO_NUMBER, Noted, Row, cosine, imagenet, multistep, on, sgd, train

PAPERS = "arXiv 1909.12220 (NeurIPS 2019) and 2007.10538 (T-PAMI 2021)"

# Settings by network: optimiser and schedule.
RESNET = sgd(lr=0.1, weight_decay=1e-4, batch_size=128, epochs=160), multistep(80, 120)
SE_RESNET = sgd(lr=0.1, weight_decay=1e-4, batch_size=128, epochs=200), multistep(80, 120, 160)
WRN = sgd(lr=0.1, weight_decay=5e-4, batch_size=128, epochs=240), multistep(60, 120, 160, 200, rate=0.2)
DENSENET = sgd(lr=0.1, weight_decay=1e-4, batch_size=64, epochs=300), multistep(150, 200, 250)
RESNEXT = sgd(lr=0.05, weight_decay=5e-4, batch_size=128, epochs=350), multistep(150, 225, 300)
SHAKE_SHAKE = sgd(lr=0.1, weight_decay=1e-4, batch_size=64, epochs=1800), cosine()
SHAKE_PYRAMID = sgd(lr=0.1, weight_decay=1e-4, batch_size=128, epochs=1800), cosine()

CIFAR = {
    "resnet32": ("ResNet-32", RESNET),
    "resnet110": ("ResNet-110", RESNET),
    "seresnet110": ("SE-ResNet-110", SE_RESNET),
    "wrn16_8": ("WRN-16-8", WRN),
    "wrn28_10": ("WRN-28-10", WRN),
    "resnext29_8x64d": ("ResNeXt-29 8x64d", RESNEXT),
    "densenetbc100_12": ("DenseNet-BC-100-12", DENSENET),
    "shakeshake26_2x32d": ("Shake-Shake 26 2x32d", SHAKE_SHAKE),
    "shakeshake26_2x112d": ("Shake-Shake 26 2x112d", SHAKE_SHAKE),
    "shakepyramidnet110": ("shake-PyramidNet-110", SHAKE_PYRAMID),
}
DROPOUT = {"wrn16_8": 0.3, "wrn28_10": 0.3}

# Top-1 error in %, mean of five runs. (network, augmentation): CIFAR-10 baseline, ISDA, CIFAR-100 baseline, ISDA.
ERRORS = {
    ("resnet32", ""): ("7.39", "7.09", "31.20", "30.27"),
    ("resnet110", ""): ("6.76", "6.33", "28.67", "27.57"),
    ("seresnet110", ""): ("6.14", "5.96", "27.30", "26.63"),
    ("wrn16_8", ""): ("4.25", "4.04", "20.24", "19.91"),
    ("wrn28_10", ""): ("3.82", "3.58", "18.53", "17.98"),
    ("resnext29_8x64d", ""): ("3.86", "3.67", "18.16", "17.43"),
    ("densenetbc100_12", ""): ("4.90", "4.54", "22.61", "22.10"),
    ("shakeshake26_2x32d", ""): ("3.45", "3.20", "20.12", "19.45"),
    ("shakeshake26_2x112d", ""): ("2.92", "2.61", "17.42", "16.73"),
    ("wrn28_10", "cutout"): ("2.99", "2.83", "18.05", "16.95"),
    ("wrn28_10", "randaugment"): ("2.78", "2.42", "17.30", "15.97"),
    ("wrn28_10", "autoaugment"): ("2.65", "2.56", "16.60", "15.62"),
    ("shakeshake26_2x32d", "cutout"): ("3.16", "2.93", "18.92", "18.17"),
    ("shakeshake26_2x32d", "randaugment"): ("3.00", "2.74", "18.11", "17.84"),
    ("shakeshake26_2x32d", "autoaugment"): ("2.89", "2.68", "17.50", "17.21"),
    ("shakeshake26_2x112d", "cutout"): ("2.36", "2.25", "17.34", "16.24"),
    ("shakeshake26_2x112d", "randaugment"): ("2.10", "1.76", "15.95", "14.24"),
    ("shakeshake26_2x112d", "autoaugment"): ("2.01", "1.82", "15.21", "13.87"),
    ("shakepyramidnet110", ""): (None, None, None, None),
}
AUGMENTATIONS = {
    # name: what the title says, words after reflect_crop:4 flip
    "": ("", None),
    "cutout": ("Cutout", "cutout:16"),
    "randaugment": ("RandAugment", "randaugment:n=2,m=9"),
    "autoaugment": ("AutoAugment and Cutout", "autoaugment:cifar10 cutout:16"),
}
OPEN = {"randaugment": " RandAugment's N and M are not stated there; 2 and 9 here."}

# Top-1 error in %. network: its name, timm's, baseline, ISDA, lambda_0.
IMAGENET = {
    "resnet50": ("ResNet-50", "resnet50", "23.0", "21.9", 7.5),
    "resnet101": ("ResNet-101", "resnet101", "21.7", "20.8", 7.5),
    "densenet121": ("DenseNet-121", "densenet121", "23.7", "23.2", 1.0),
    "resnext50": ("ResNeXt-50", "resnext50_32x4d", "22.5", "21.3", Noted(7.5, "As ResNets have it.")),
}


def rows() -> Iterator[Row]:
    """Every row of the tables, with and without ISDA."""
    for (network, augmentation), (*cifar10, base100, isda100) in ERRORS.items():
        for dataset, numbers in (("cifar10", cifar10), ("cifar100", (base100, isda100))):
            for method, number in zip((False, True), numbers, strict=True):
                yield _cifar(dataset, network, augmentation, method, number)
    for network, (_, _, baseline, isda, _) in IMAGENET.items():
        yield _imagenet(network, False, baseline)
        yield _imagenet(network, True, isda)


def _cifar(dataset: str, network: str, augmentation: str, method: bool, number: str | None) -> Row:
    title, (optim, schedule) = CIFAR[network]
    with_, words = AUGMENTATIONS[augmentation]
    base = "reflect_crop:4 flip"
    said = f"top-1 error, mean of five runs.{OPEN.get(augmentation, '')}"
    dropout = DROPOUT.get(network)
    return Row(
        "-".join(filter(None, (dataset, network, augmentation, "" if method else "baseline"))),
        _title(method, on(dataset, title), with_),
        f"{PAPERS}, CIFAR table: {said}" if number else f"{PAPERS}, settings on CIFAR. {NO_NUMBER}.",
        _error(number),
        {
            "data": {
                "dataset": dataset,
                "protocol": "paper",
                "base": base,
                "augmented": f"{base} {words}" if words else None,
                "mean": Noted([0.49137, 0.48235, 0.44667], "(125.3, 123.0, 113.9) / 255 and (63.0, 62.1, 66.7) / 255."),
                "std": [0.24706, 0.24353, 0.26157],
            },
            "model": {
                "name": f"{network}_cifar",
                "kwargs": {"drop_rate": dropout} if dropout else None,
            },
            "optim": optim,
            "schedule": schedule,
            "train": train(),
        },
        [("isda", {"lambda_0": 0.5, "covariance": "full"})] if method else [],
    )


def _imagenet(network: str, method: bool, number: str) -> Row:
    title, model, _, _, lambda_0 = IMAGENET[network]
    options: dict[str, Any] = {
        "lambda_0": lambda_0,
        "covariance": Noted("diagonal", "As the authors' program: full matrices of 1000 classes take gigabytes."),
    }
    return Row(
        "-".join(filter(None, ("imagenet", network, "" if method else "baseline"))),
        _title(method, on("imagenet", title)),
        f"{PAPERS}, ImageNet table: top-1 error.",
        _error(number),
        {
            "data": imagenet("random_resized_crop:0.08 flip"),
            "model": {"name": model},
            "optim": sgd(lr=0.2, weight_decay=1e-4, batch_size=512, epochs=300, nesterov=False),
            "schedule": cosine(),
            "train": train(),
        },
        [("isda", options)] if method else [],
    )


def _title(method: bool, what: str, augmentation: str = "") -> str:
    return ("ISDA: " if method else "ISDA's baseline: ") + what + (f" with {augmentation}" if augmentation else "")


def _error(number: str | None) -> str | None:
    return f"{number} % top-1 error" if number else None
