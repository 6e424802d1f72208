"""The recipes of published runs as their files describe them: all of our methods' but those for the digits.

And what the papers' tables say, typed anew: not the tables that the recipes are written from,
plugins/<name>/published.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from augury_train.recipes import describe

ROOT = Path(__file__).parents[2]
FILES = {f"{path.parts[-5]}/{path.stem}": path for path in sorted(ROOT.glob("plugins/*/src/*/recipes/*.toml"))}
PUBLISHED = {name: describe(name, path) for name, path in FILES.items() if path.stem != "digits"}

# ISDA. Top-1 error in %, baseline -> ISDA, on CIFAR-10 and on CIFAR-100.
ISDA = """
| resnet32 | 7.39 → 7.09 | 31.20 → 30.27 |
| resnet110 | 6.76 → 6.33 | 28.67 → 27.57 |
| seresnet110 | 6.14 → 5.96 | 27.30 → 26.63 |
| wrn16_8 | 4.25 → 4.04 | 20.24 → 19.91 |
| wrn28_10 | 3.82 → 3.58 | 18.53 → 17.98 |
| resnext29_8x64d | 3.86 → 3.67 | 18.16 → 17.43 |
| densenetbc100_12 | 4.90 → 4.54 | 22.61 → 22.10 |
| shakeshake26_2x32d | 3.45 → 3.20 | 20.12 → 19.45 |
| shakeshake26_2x112d | 2.92 → 2.61 | 17.42 → 16.73 |
| wrn28_10-randaugment | 2.78 → 2.42 | 17.30 → 15.97 |
| wrn28_10-autoaugment | 2.65 → 2.56 | 16.60 → 15.62 |
| wrn28_10-cutout | 2.99 → 2.83 | 18.05 → 16.95 |
| shakeshake26_2x32d | 3.16 → 2.93 / 3.00 → 2.74 / 2.89 → 2.68 | 18.92 → 18.17 / 18.11 → 17.84 / 17.50 → 17.21 |
| shakeshake26_2x112d | 2.36 → 2.25 / 2.10 → 1.76 / 2.01 → 1.82 | 17.34 → 16.24 / 15.95 → 14.24 / 15.21 → 13.87 |
"""
ISDA_IMAGENET = "resnet50 23.0 → 21.9, resnet101 21.7 → 20.8, densenet121 23.7 → 23.2, resnext50 22.5 → 21.3"
# network: epochs, milestones, lr, batch, weight decay
ISDA_SETTINGS = {
    "resnet32": (160, [80, 120], 0.1, 128, 1e-4),
    "resnet110": (160, [80, 120], 0.1, 128, 1e-4),
    "seresnet110": (200, [80, 120, 160], 0.1, 128, 1e-4),
    "wrn16_8": (240, [60, 120, 160, 200], 0.1, 128, 5e-4),
    "wrn28_10": (240, [60, 120, 160, 200], 0.1, 128, 5e-4),
    "densenetbc100_12": (300, [150, 200, 250], 0.1, 64, 1e-4),
    "resnext29_8x64d": (350, [150, 225, 300], 0.05, 128, 5e-4),
    "shakeshake26_2x32d": (1800, [], 0.1, 64, 1e-4),
    "shakeshake26_2x112d": (1800, [], 0.1, 64, 1e-4),
    "shakepyramidnet110": (1800, [], 0.1, 128, 1e-4),
}
# AgMax. Top-1 accuracy in %: baseline/label smoothing/AgMax with 90 epochs, baseline -> AgMax otherwise.
AGMAX_90 = """
standard 76.4/76.8/76.9; cutout 76.2/76.5/77.1; mixup 76.5/76.7/77.6; cutmix 76.3/76.4/77.4; autoaugment 76.2/76.2/77.1;
cutout-autoaugment 75.7/75.7/76.6; mixup-autoaugment 75.9/76.5/77.1; cutmix-autoaugment 75.5/75.5/77.0
"""
AGMAX_OTHERS = """
imagenet-resnet50-270epochs-standard 76.8 → 77.2, imagenet-resnet50-270epochs-cutmix-autoaugment 78.5 → 79.1,
imagenet-resnet101-270epochs-cutmix-autoaugment 80.69 → 81.19,
cifar10-wrn40_2-standard 95.1 → 95.6, cifar10-wrn40_2-cutout-autoaugment 96.4 → 97.1,
cifar100-wrn40_2-standard 76.9 → 77.1, cifar100-wrn40_2-mixup-autoaugment 79.1 → 80.7,
cifar100-wrn28_10-standard 81.3 → 81.7, cifar100-wrn28_10-cutmix-autoaugment 85.0 → 85.3
"""
# DCutMix. Top-1 error in %: baseline, Mixup, CutMix, DMixup, DCutMix; then (K, alpha, prob), and DMixup's (K, alpha).
DCUTMIX = {
    "cifar100-pyramidnet110": ("19.85 18.92 17.97 18.60 16.95", (5, 0.2, 1), (3, 1 / 3)),
    "cifar100-pyramidnet200": ("16.45 15.63 14.47 15.07 13.86", (5, 1, 0.5), (3, 1)),
    "cifar10-pyramidnet200": ("3.85 3.09 2.88 2.90 2.42", (3, 1 / 3, 1), (5, 0.2)),
}
# ReSmooth: prob, the first and the last word of what is augmented, smooth_aug.
RESMOOTH = {
    "cifar10-resnet18-randaugment": (0, "randaugment_ra:n=2,m=28", "flip", 0.4),
    "cifar100-resnet18-randaugment": (0.2, "randaugment_ra:n=2,m=28", "flip", 0.6),
    "svhn-resnet18-randaugment": (0, "randaugment_ra:n=3,m=28", "flip", 0.3),
    "cifar10-wrn28_10-randaugment": (0, "randaugment_ra:n=2,m=28", "cutout:16", 0.4),
    "cifar100-wrn28_10-randaugment": (0.2, "randaugment_ra:n=2,m=28", "cutout:16", 0.6),
    "svhn-wrn28_10-randaugment": (0, "randaugment_ra:n=3,m=28", "cutout:16", 0.3),
    "cifar10-resnet18-jigsaw": (0.6, "crop:4", "jigsaw", 0.2),
    "cifar100-resnet18-jigsaw": (0.6, "crop:4", "jigsaw", 0.4),
    "cifar10-resnet18-rotate": (0.6, "rotate90", "flip", 0.5),
    "cifar100-resnet18-rotate": (0.6, "rotate90", "flip", 0.5),
    "cifar10-wrn28_10-jigsaw": (0.6, "crop:4", "cutout:16", 0.3),
    "cifar100-wrn28_10-jigsaw": (0.6, "crop:4", "cutout:16", 0.4),
    "cifar10-wrn28_10-rotate": (0.6, "rotate90", "cutout:16", 0.5),
    "cifar100-wrn28_10-rotate": (0.6, "rotate90", "cutout:16", 0.5),
}


def isda_rows() -> Iterator[tuple[str, str, str]]:
    """(name without its method, baseline, ISDA) of each row of ISDA's tables."""
    for row in ISDA.strip().splitlines():
        network, *columns = (cell.strip() for cell in row.strip("|").split("|"))
        for dataset, column in zip(("cifar10", "cifar100"), columns, strict=True):
            pairs = re.findall(r"([\d.]+) → ([\d.]+)", column)
            kinds = ("-cutout", "-randaugment", "-autoaugment") if len(pairs) == 3 else ("",)
            for kind, (baseline, isda) in zip(kinds, pairs, strict=True):
                yield f"{dataset}-{network}{kind}", baseline, isda
    for network, baseline, isda in re.findall(r"(\w+) ([\d.]+) → ([\d.]+)", ISDA_IMAGENET):
        yield f"imagenet-{network}", baseline, isda


def numbers() -> dict[str, str]:
    """Every published number, with its unit, by the name of its recipe."""
    error, accuracy = {}, {}
    for name, baseline, isda in isda_rows():
        error |= {f"isda/{name}-baseline": baseline, f"isda/{name}": isda}
    for name, (columns, _, _) in DCUTMIX.items():
        kinds = ("-baseline", "-mixup", "-cutmix", "-dmixup", "")
        error |= {f"dcutmix/{name}{kind}": number for kind, number in zip(kinds, columns.split(), strict=True)}
    for name, *columns in re.findall(r"([\w-]+) ([\d.]+)/([\d.]+)/([\d.]+)", AGMAX_90):
        kinds = ("-baseline", "-label_smoothing", "")
        accuracy |= {f"agmax/imagenet-resnet50-{name}{kind}": n for kind, n in zip(kinds, columns, strict=True)}
    for name, baseline, agmax in re.findall(r"([\w-]+) ([\d.]+) → ([\d.]+)", AGMAX_OTHERS):
        accuracy |= {f"agmax/{name}-baseline": baseline, f"agmax/{name}": agmax}
    texts = {name: f"{number} % top-1 error" for name, number in error.items()}
    return texts | {name: f"{number} % top-1 accuracy" for name, number in accuracy.items()}
