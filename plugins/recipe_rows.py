"""One published run, and the TOML text of its recipe."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT = 2
"""Format of the settings in these tables (`augury_train.formats`)."""
WIDTH = 120
"""Of a comment's line."""
ORDER = ("data", "model", "optim", "schedule", "train")
"""Of a recipe's sections."""
DATA_SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "imagenet": "ImageNet"}
"""The data sets' names as the papers write them."""
NO_NUMBER = "No published number is at hand"

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Noted:
    """A setting's value, with a comment that says why it is so."""

    value: Any
    why: str


@dataclass(frozen=True)
class Row:
    """What the file of one run says.

    Attributes:
        name: of the file, without its suffix.
        source: where run and number stand, what the number is, and what the source leaves open.
        published: the number with its unit, None where none is at hand.
        sections: the settings, by section.
        methods: names and options, in the order of application.
    """

    name: str
    title: str
    source: str
    published: str | None
    sections: Mapping[str, Settings]
    methods: Sequence[tuple[str, Settings]] = field(default=())

    def text(self, written_from: str) -> str:
        """The file; `written_from` is the module that its row stands in."""
        assert set(self.sections) <= set(ORDER), self.name
        parts = [
            f"# Written by `make recipes` from {written_from}: change it there.",
            *_lines({"format": FORMAT, "title": self.title, "source": self.source, "published": self.published}),
        ]
        for section in ORDER:
            if lines := _lines(self.sections.get(section, {})):
                parts += ["", f"[{section}]", *lines]
        for name, options in self.methods:
            parts += ["", "[[methods]]", *_lines({"name": name})]
            if lines := _lines(options):
                parts += ["", "[methods.options]", *lines]
        return "\n".join(parts) + "\n"


def _lines(values: Settings) -> list[str]:
    """`key = value` of those that are not None, each after its comment."""
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, Noted):
            lines += textwrap.wrap(value.why, WIDTH, initial_indent="# ", subsequent_indent="# ")
            value = value.value
        if value is not None:
            lines.append(f"{key} = {_toml(value)}")
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        assert '"' not in value, value
        assert "\\" not in value, value
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    # 1e-4 rather than 0.0001, as papers write it.
    small = isinstance(value, float) and 0 < value < 1e-3
    text = f"{value:.0e}".replace("e-0", "e-") if small else repr(value)
    assert float(text) == value
    return text


# Settings that several papers share.


def sgd(*, lr: float, weight_decay: float, batch_size: int, epochs: int, nesterov: bool = True) -> dict[str, Any]:
    """Section `optim`: stochastic gradient descent with momentum 0.9."""
    return {
        "name": "sgd" if nesterov else Noted("momentum", "SGD without Nesterov's momentum."),
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "epochs": epochs,
    }


def multistep(*milestones: int, rate: float = 0.1) -> dict[str, Any]:
    """Section `schedule`: the learning rate times `rate` after those epochs."""
    return {"name": "multistep", "milestones": list(milestones), "decay_rate": rate}


def cosine(
    *, warmup_epochs: int | None = None, warmup_lr: float | None = None, every: str | None = None, length: Any = None
) -> dict[str, Any]:
    """Section `schedule`: a warm-up, then half a cosine to 0, which ends after `length` epochs in all."""
    return {
        "name": "cosine",
        "every": every,
        "warmup_epochs": warmup_epochs,
        "warmup_lr": warmup_lr,
        "length": length,
    }


def train(*, label_smoothing: float | None = None) -> dict[str, Any]:
    """Section `train`."""
    return {
        "precision": Noted("fp32", "As the papers' programs; bf16 is faster on GPUs that have it."),
        "label_smoothing": label_smoothing,
    }


def imagenet(
    base: str, augmented: str | None = None, *, crop_pct: Any = None, test_size: int | None = None
) -> Settings:
    """Section `data` for ImageNet: `train/` and `val/` in the folder `imagenet` of the data root."""
    return {
        "dataset": Noted("imagenet", "The folder imagenet in AUGURY_DATA, with train/ and val/."),
        "loader": Noted("stream", "Crops reach the borders of the whole image."),
        "image_size": 224,
        "test_size": test_size,
        "crop_pct": crop_pct or Noted(0.875, "Tested on the central 224 pixels of 256."),
        "interpolation": "bilinear",
        "protocol": "paper",
        "base": base,
        "augmented": augmented,
    }


def on(dataset: str, network: str) -> str:
    """`ResNet-32 on CIFAR-10`."""
    return f"{network} on {DATA_SETS[dataset]}"
