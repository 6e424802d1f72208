"""AgMax (Atienza, WACV 2022, pp. 372-381): ImageNet and CIFAR, in all augmentations, with both baselines.

What the paper's settings leave open is taken from the authors' program: the order of the words, ImageNet's crops,
CIFAR's statistics, and which RegNets and EfficientNets were trained, with which augmentations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from recipe_rows import NO_NUMBER, Noted, Row, Settings, cosine, imagenet, multistep, on, sgd, train

PAPER = "Atienza, WACV 2022, pp. 372-381"
BEST = "top-1 accuracy of the best test epoch."
COLUMNS = ("baseline", "label_smoothing", "agmax")


class Augmentation(NamedTuple):
    """One row of the paper's tables: its title, and what it is made of."""

    title: str
    autoaugment: bool = False
    cutout: bool = False
    mix: str = ""


AUGMENTATIONS = {
    "standard": Augmentation(""),
    "cutout": Augmentation("Cutout", cutout=True),
    "mixup": Augmentation("Mixup", mix="mixup"),
    "cutmix": Augmentation("CutMix", mix="cutmix"),
    "autoaugment": Augmentation("AutoAugment", autoaugment=True),
    "cutout-autoaugment": Augmentation("Cutout and AutoAugment", autoaugment=True, cutout=True),
    "mixup-autoaugment": Augmentation("Mixup and AutoAugment", autoaugment=True, mix="mixup"),
    "cutmix-autoaugment": Augmentation("CutMix and AutoAugment", autoaugment=True, mix="cutmix"),
}
# Mixup and CutMix are dcutmix with K = 2.
MIXING: dict[str, dict[str, dict[str, Any]]] = {
    "cifar": {
        "mixup": {"k": 2, "alpha": 1.0, "mode": "dmixup"},
        "cutmix": {"k": 2, "alpha": 1.0, "prob": 0.5},
    },
    "imagenet": {
        "mixup": {"k": 2, "alpha": 0.2, "mode": "dmixup"},
        "cutmix": {"k": 2, "alpha": 1.0, "prob": 1.0},
    },
}

# ImageNet, ResNet-50, 90 epochs: baseline, label smoothing 0.1, AgMax.
RESNET50 = {
    "standard": ("76.4", "76.8", "76.9"),
    "cutout": ("76.2", "76.5", "77.1"),
    "mixup": ("76.5", "76.7", "77.6"),
    "cutmix": ("76.3", "76.4", "77.4"),
    "autoaugment": ("76.2", "76.2", "77.1"),
    "cutout-autoaugment": ("75.7", "75.7", "76.6"),
    "mixup-autoaugment": ("75.9", "76.5", "77.1"),
    "cutmix-autoaugment": ("75.5", "75.5", "77.0"),
}
# ImageNet, 270 epochs: baseline, AgMax.
LONG = {
    ("resnet50", "standard"): ("76.8", "77.2"),
    ("resnet50", "cutmix-autoaugment"): ("78.5", "79.1"),
    ("resnet101", "cutmix-autoaugment"): ("80.69", "81.19"),
}
# CIFAR: baseline, AgMax. No other number of these tables is at hand.
CIFAR = {
    ("cifar10", "wrn40_2", "standard"): ("95.1", "95.6"),
    ("cifar10", "wrn40_2", "cutout-autoaugment"): ("96.4", "97.1"),
    ("cifar100", "wrn40_2", "standard"): ("76.9", "77.1"),
    ("cifar100", "wrn40_2", "mixup-autoaugment"): ("79.1", "80.7"),
    ("cifar100", "wrn28_10", "standard"): ("81.3", "81.7"),
    ("cifar100", "wrn28_10", "cutmix-autoaugment"): ("85.0", "85.3"),
}
# The RegNets and EfficientNets that the authors' script trains on ImageNet, and with what.
FURTHER = {
    "regnetx_002": ("standard", "cutmix-autoaugment"),
    "regnety_004": ("standard",),
    "efficientnet_b0": ("standard", "cutmix-autoaugment"),
    "efficientnet_b1": ("standard",),
}
TITLES = {
    "wrn40_2": "WRN-40-2",
    "wrn28_10": "WRN-28-10",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "regnetx_002": "RegNetX-200MF",
    "regnety_004": "RegNetY-400MF",
    "efficientnet_b0": "EfficientNet-B0",
    "efficientnet_b1": "EfficientNet-B1",
}


def rows() -> Iterator[Row]:
    """Every row of the tables, by column."""
    for augmentation, numbers in RESNET50.items():
        for column, number in zip(COLUMNS, numbers, strict=True):
            yield _resnet("resnet50", augmentation, column, number)
    for (network, augmentation), (baseline, agmax) in LONG.items():
        yield _resnet(network, augmentation, "baseline", baseline, long=True)
        yield _resnet(network, augmentation, "agmax", agmax, long=True)
    for network, augmentations in FURTHER.items():
        for augmentation in augmentations:
            yield from (_further(network, augmentation, column) for column in ("baseline", "agmax"))
    for dataset in ("cifar10", "cifar100"):
        for network in ("wrn40_2", "wrn28_10"):
            for augmentation in AUGMENTATIONS:
                known = CIFAR.get((dataset, network, augmentation))
                for column, published in zip(
                    COLUMNS, (known[0], None, known[1]) if known else (None,) * 3, strict=True
                ):
                    yield _cifar(dataset, network, augmentation, column, published)


def _resnet(network: str, augmentation: str, column: str, number: str, *, long: bool = False) -> Row:
    epochs = 270 if long else 90
    # Not said of ResNet-101: there the width that 1000 classes make it.
    n_units = Noted(2048, "The paper's for this length.") if long and network == "resnet50" else None
    return _row(
        ("imagenet", network + ("-270epochs" if long else ""), augmentation),
        column,
        f"{on('imagenet', TITLES[network])} for {epochs} epochs",
        f"{PAPER}, ImageNet, {epochs} epochs: {BEST}",
        number,
        _imagenet_data(augmentation),
        network,
        sgd(lr=0.1, weight_decay=1e-4, batch_size=256, epochs=epochs),
        multistep(75, 150, 225) if long else multistep(30, 60, 80),
        {"dl_weight": 4.0, "n_units": n_units, "q_init_std": 0.2},
    )


def _further(network: str, augmentation: str, column: str) -> Row:
    said = "its settings on ImageNet; which sizes and augmentations, from the authors' script"
    tested = Noted(0.8888, "Tested on the central 256 pixels of 288.")
    return _row(
        ("imagenet", network, augmentation),
        column,
        on("imagenet", TITLES[network]),
        f"{PAPER}, {said}. {NO_NUMBER}.",
        None,
        _imagenet_data(augmentation, crop_pct=tested, test_size=256),
        network,
        sgd(lr=0.1, weight_decay=5e-5, batch_size=128, epochs=100),
        cosine(
            warmup_epochs=5,
            every="epoch",
            length=Noted(105, "The cosine spans 100 epochs after the warm-up; training ends 5 before it does."),
        ),
        {"dl_weight": 4.0, "n_units": Noted(2048, "The paper's for this network."), "q_init_std": 0.2},
    )


def _imagenet_data(augmentation: str, *, crop_pct: Noted | None = None, test_size: int | None = None) -> Settings:
    kind = AUGMENTATIONS[augmentation]
    # Colour jitter and lighting are part of every run; Cutout comes after the normalisation.
    before, after = "random_resized_crop:0.08 flip", "color_jitter:0.4 lighting:0.1"
    base = f"{before} {after}"
    words = _words(before, "autoaugment:imagenet" * kind.autoaugment, after, "cutout:112" * kind.cutout)
    return imagenet(base, None if words == base else words, crop_pct=crop_pct, test_size=test_size)


def _words(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _cifar(dataset: str, network: str, augmentation: str, column: str, number: str | None) -> Row:
    kind = AUGMENTATIONS[augmentation]
    base = "crop:4 flip"
    words = _words(base, "autoaugment:cifar10" * kind.autoaugment, "cutout:16" * kind.cutout)
    data = {
        "dataset": dataset,
        "protocol": "paper",
        "base": base,
        "augmented": None if words == base else words,
        "mean": Noted([0.4914, 0.4822, 0.4465], "The same for both data sets, as in the authors' program."),
        "std": [0.2023, 0.1994, 0.2010],
    }
    said = f"CIFAR, the authors' plotting data: {BEST}" if number else f"its settings on CIFAR. {NO_NUMBER}."
    return _row(
        (dataset, network, augmentation),
        column,
        on(dataset, TITLES[network]),
        f"{PAPER}, {said}",
        number,
        data,
        f"{network}_cifar",
        sgd(lr=0.1, weight_decay=5e-4, batch_size=128, epochs=200),
        cosine(),
        {"dl_weight": 4.0},
    )


def _row(
    name: tuple[str, str, str],
    column: str,
    what: str,
    source: str,
    number: str | None,
    data: Settings,
    model: str,
    optim: Settings,
    schedule: Settings,
    options: Settings,
) -> Row:
    kind = AUGMENTATIONS[name[-1]]
    mixing = MIXING["imagenet" if name[0] == "imagenet" else "cifar"]
    title = {
        "baseline": "AgMax's baseline",
        "label_smoothing": "AgMax's baseline with label smoothing",
        "agmax": "AgMax",
    }
    return Row(
        "-".join((*name, *([] if column == "agmax" else [column]))),
        f"{title[column]}: {what}{f' with {kind.title}' if kind.title else ''}",
        source,
        f"{number} % top-1 accuracy" if number else None,
        {
            "data": data,
            "model": {"name": model},
            "optim": optim,
            "schedule": schedule,
            "train": train(label_smoothing=0.1 if column == "label_smoothing" else None),
        },
        ([("dcutmix", mixing[kind.mix])] if kind.mix else []) + ([("agmax", options)] if column == "agmax" else []),
    )
