"""DCutMix (arXiv 2110.04248; IEEE Access 2023): three settings, each with its baseline, Mixup, CutMix and DMixup.

Mixup and CutMix are K = 2 of the same method. What the paper's settings leave open for them: alpha, here 1; and
the chance that a batch is mixed, here that of the setting's DCutMix, as for DMixup.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipe_rows import Noted, Row, multistep, on, sgd, train

PAPER = "arXiv 2110.04248 (IEEE Access 2023), CIFAR table: top-1 error of the best test epoch."
NETWORKS = {
    "pyramidnet110": ("pyramidnet110_a64_cifar", "PyramidNet-110 (widened by 64)"),
    "pyramidnet200": ("pyramidnet200_a240_cifar", "PyramidNet-200 (widened by 240)"),
}
THIRD = Noted(1 / 3, "A third.")

# Top-1 error in %, and (K, alpha, prob) of DCutMix, (K, alpha) of DMixup.
RUNS = {
    # data set, network: baseline, Mixup, CutMix, DMixup, DCutMix, DCutMix's, DMixup's
    ("cifar100", "pyramidnet110"): ("19.85", "18.92", "17.97", "18.60", "16.95", (5, 0.2, 1.0), (3, THIRD)),
    ("cifar100", "pyramidnet200"): ("16.45", "15.63", "14.47", "15.07", "13.86", (5, 1.0, 0.5), (3, 1.0)),
    ("cifar10", "pyramidnet200"): ("3.85", "3.09", "2.88", "2.90", "2.42", (3, THIRD, 1.0), (5, 0.2)),
}


def rows() -> Iterator[Row]:
    """Every number of the table."""
    for (dataset, network), numbers in RUNS.items():
        baseline, mixup, cutmix, dmixup, dcutmix, (k, alpha, prob), (dmixup_k, dmixup_alpha) = numbers
        yield _row(dataset, network, "baseline", "DCutMix's baseline", baseline)
        two = {"k": 2, "alpha": Noted(1.0, "Not stated in the paper's settings."), "prob": prob}
        yield _row(dataset, network, "mixup", "DCutMix's baseline with Mixup", mixup, two | {"mode": "dmixup"})
        yield _row(dataset, network, "cutmix", "DCutMix's baseline with CutMix", cutmix, two)
        blended = {"k": dmixup_k, "alpha": dmixup_alpha, "prob": prob, "mode": "dmixup"}
        yield _row(dataset, network, "dmixup", "DMixup", dmixup, blended)
        yield _row(dataset, network, "", "DCutMix", dcutmix, {"k": k, "alpha": alpha, "prob": prob})


def _row(dataset: str, network: str, kind: str, title: str, number: str, options: dict[str, Any] | None = None) -> Row:
    model, said = NETWORKS[network]
    return Row(
        "-".join(filter(None, (dataset, network, kind))),
        f"{title}: {on(dataset, said)}",
        PAPER,
        f"{number} % top-1 error",
        {
            "data": {
                "dataset": dataset,
                "protocol": "paper",
                "base": "crop:4 flip",
                "mean": Noted([0.4914, 0.4822, 0.4465], "The same for both data sets, as in the authors' program."),
                "std": [0.2023, 0.1994, 0.2010],
            },
            "model": {"name": model},
            "optim": sgd(lr=0.25, weight_decay=4e-5, batch_size=64, epochs=300),
            "schedule": multistep(225, 270),
            "train": train(),
        },
        [] if options is None else [("dcutmix", options)],
    )
