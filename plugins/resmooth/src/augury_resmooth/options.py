"""The options of ReSmooth, and what they need: a frozen network, a mixture, both or neither."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from torch import nn

import augury
from augury_resmooth.functional import Mixture

_ONLY_FOR = {
    "weighting": ("sample_smooth",),
    "variant": ("sample_smooth",),
    "smooth_aug": ("sample_smooth", "smooth"),
    "temperature": ("distill",),
    "lambda_": ("distill",),
    "top_k": ("distill",),
}
"""The losses that an option has a say in."""


class ReSmoothOptions(augury.Options):
    """The options of ReSmooth."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    loss: Literal["sample_smooth", "smooth", "distill"] = Field(
        "sample_smooth",
        description="what augmented images are trained with: labels smoothed by how little the frozen network knows "
        "the image (`sample_smooth`, the paper's method); all smoothed by `smooth_aug` (`smooth`: plain label "
        "smoothing, and the paper's negative augmentations, whose images are all out of distribution); or the frozen "
        "network's answer as a second target (`distill`)",
    )
    prob: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of base images in a batch and in the loss. Paper: with RandAugment 0.2 on CIFAR-100, 0 "
        "on CIFAR-10 and SVHN; with jigsaw or rotation 0.6",
    )
    smooth_org: float = Field(
        0.0, ge=0, le=1, description="label smoothing of base images. Paper: 0 in the runs it reports"
    )
    smooth_aug: float = Field(
        0.4,
        ge=0,
        le=1,
        description="label smoothing of an augmented image that is surely out of distribution. Paper, with "
        "RandAugment: 0.4 on CIFAR-10, 0.6 on CIFAR-100, 0.3 on SVHN",
    )
    weighting: Literal["regular", "reverse", "random", "uniform"] = Field(
        "regular",
        description="which probability q of being in distribution smooths an image by (1 - q) smooth_aug: its own "
        "(`regular`); or, as the paper's ablations and for base images too, whose q is 1, the opposite 1 - q "
        "(`reverse`), that of another image of the batch (`random`), or a draw from [0, 1) (`uniform`)",
    )
    variant: Literal["paper", "official"] = Field(
        "paper",
        description="`official`: the label's own term keeps the factor 1 - smooth_aug for every augmented image, as in "
        "the authors' program: row weight 1 - q smooth_aug with smoothing (1 - q) smooth_aug / (1 - q smooth_aug). "
        "It is of loss=sample_smooth alone",
    )
    temperature: float = Field(
        5.0, gt=0, description="of both networks' softmax, with loss=distill, of the label's term too. Paper: 5"
    )
    lambda_: float = Field(0.5, ge=0, description="weight of temperature^2 KL, with loss=distill. Paper: 0.5")
    top_k: int | None = Field(
        None,
        ge=2,
        description="with loss=distill: how many of the frozen network's likeliest classes to compare; all when unset",
    )
    fair_comparison: Literal["mix", "id", "ood"] | None = Field(
        None,
        description="the paper's ablation: train on min(images in distribution, images out of it, 256) augmented "
        "images of each batch, of the one part (`id`: q >= 0.5), the other (`ood`) or both (`mix`); a batch without "
        "one part is skipped",
    )
    pretrained: str | None = Field(
        None,
        description="a run folder, or a file of weights, of this model trained on base images of these classes: it is "
        "the frozen network, and the stage trains none",
    )
    frozen: nn.Module | None = Field(
        None,
        exclude=True,
        description="in Python: a network trained on base images, images -> logits, which is copied; the stage "
        "trains one when unset",
    )
    mixture: Mixture | None = Field(
        None,
        exclude=True,
        description="in Python: the mixture fitted to the log-losses of `frozen`: (weights, means, variances), two "
        "numbers each, ID first; the stage fits one when unset",
    )

    @field_validator(*_ONLY_FOR)
    @classmethod
    def _used(cls, value: Any, info: ValidationInfo) -> Any:
        name, loss = str(info.field_name), info.data.get("loss", "sample_smooth")
        if loss in _ONLY_FOR[name] or value == cls.model_fields[name].default:
            return value
        raise ValueError(f"left out with loss={loss}, where it has no say")

    @field_validator("fair_comparison")
    @classmethod
    def _all_augmented(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("prob") not in (None, 0, cls.model_fields["prob"].default):
            raise ValueError("left out with a `prob`, or prob=0: it trains on augmented images alone")
        return value

    @field_validator("pretrained", "frozen")
    @classmethod
    def _needed(cls, value: Any, info: ValidationInfo) -> Any:
        said = info.data
        if value is None:
            return value
        if not _needs_network(said.get("loss"), said.get("weighting"), said.get("fair_comparison")):
            raise ValueError("left out here: these options need no frozen network")
        if info.field_name == "frozen" and said.get("pretrained") is not None:
            raise ValueError("left out where `pretrained` names a network")
        return value

    @field_validator("mixture")
    @classmethod
    def _usable(cls, mixture: Mixture | None, info: ValidationInfo) -> Mixture | None:
        if mixture is None:
            return None
        if "frozen" in info.data and info.data["frozen"] is None:
            raise ValueError("given together with `frozen`, the network whose losses it was fitted to")
        said = info.data
        if not _judges(said.get("loss"), said.get("weighting"), said.get("fair_comparison")):
            raise ValueError("left out here: these options tell no image from another")
        if fault := mixture.fault():
            raise ValueError(fault)
        return mixture

    @property
    def needs_network(self) -> bool:
        """Whether a frozen network takes part."""
        return _needs_network(self.loss, self.weighting, self.fair_comparison)

    @property
    def judges(self) -> bool:
        """Whether the frozen network and the mixture tell ID from OOD."""
        return _judges(self.loss, self.weighting, self.fair_comparison)

    @property
    def base_share(self) -> float:
        """The share of base rows in a batch."""
        return 0.0 if self.fair_comparison is not None else self.prob


def _judges(loss: str | None, weighting: str | None, fair_comparison: str | None) -> bool:
    return (loss == "sample_smooth" and weighting != "uniform") or fair_comparison is not None


def _needs_network(loss: str | None, weighting: str | None, fair_comparison: str | None) -> bool:
    return loss == "distill" or _judges(loss, weighting, fair_comparison)
