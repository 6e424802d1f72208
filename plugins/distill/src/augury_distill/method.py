"""Distillation as a method: its options, the teacher, and the term that it puts in the criterion's place."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor, nn

import augury
from augury_distill.functional import divergences


class Distill(augury.Method):
    """Train the network on a trained network's outputs for the same images (Hinton et al., arXiv 1503.02531).

    loss = (1 - weight) * criterion + weight * T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over the
    rows. Where a method mixes images, the teacher sees the mixed ones (Beyer et al., arXiv 2106.05237).

    State: a teacher that was given as a module; one that is read by its place is kept by the run.
    """

    class Options(augury.Options):
        """The options of distillation."""

        model_config = ConfigDict(arbitrary_types_allowed=True)

        teacher: str | nn.Module = Field(
            description="the trained network to learn from: a run's folder, an exported folder, a file of weights, or "
            "a name of timm's with pretrained weights of these classes; in Python also a module, the batch's images "
            "-> logits, which is copied"
        )
        temperature: float = Field(
            4.0,
            gt=0,
            allow_inf_nan=False,
            description="T, of both softmaxes. Paper: 1 to 20; 4 is usual on CIFAR",
        )
        weight: float = Field(
            0.9,
            ge=0,
            le=1,
            description="share of the teacher in the loss; the labels have the rest. Paper: much more than the labels; "
            "0.9 is usual on CIFAR, and 1 leaves the labels out (arXiv 2106.05237)",
        )

        @field_validator("teacher", mode="before")
        @classmethod
        def _place_or_module(cls, value: Any) -> Any:
            if isinstance(value, nn.Module) or (isinstance(value, str) and value.strip()):
                return value
            raise ValueError("a run's folder, a file of weights, a name of timm's, or in Python an nn.Module")

    contract = "2.0"
    reads_images = True
    sharded = True

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        given = options.teacher
        self.teacher = self.freeze(given) if isinstance(given, nn.Module) else None

    @classmethod
    def check(cls, options: Options, spec: augury.Spec) -> None:
        """Refuse a teacher that cannot be read."""
        if isinstance(options.teacher, nn.Module):
            return
        about = "distill: option `teacher`"
        if spec.read_network is None:
            raise augury.UsageError(
                f"{about} is {options.teacher[:80]!r}, and this loop reads no networks. Give the network itself, an "
                "nn.Module: the batch's images -> logits."
            )
        try:
            spec.read_network(options.teacher)
        except augury.UsageError as error:
            raise augury.UsageError("\n".join(f"{about}: {line}" for line in str(error).splitlines())) from None

    @augury.hookimpl
    def pre_train_stage(self, run: augury.Run) -> None:
        """Read the teacher, so that the run has its copy before the first checkpoint and is resumed without it."""
        self._read(run)

    @augury.hookimpl(wrapper=True)
    def compute_loss(
        self, batch: augury.Batch, output: augury.ModelOutput, run: augury.Run
    ) -> Generator[None, Tensor, Tensor]:
        """Move `weight` of the criterion to the teacher; what other methods add to the loss keeps its size."""
        loss = yield
        options = self.options
        with torch.no_grad():
            teacher = self._read(run)(batch.images).to(output.logits)
        if teacher.shape != output.logits.shape:
            raise augury.UsageError(
                f"distill: option `teacher`: its logits have the shape {tuple(teacher.shape)}, the network's "
                f"{tuple(output.logits.shape)}. Give a network of the same {run.num_classes} classes."
            )
        rows = divergences(output.logits, teacher, options.temperature)
        # A class's weight counts for the teacher's part as for the label's.
        rows = (batch.shares * batch.label_weights).sum(1) * rows
        run.log("divergence", rows.mean())
        held = output.row_losses
        assert held is not None, "the criterion was asked"
        return output.replace_rows(loss, held + options.weight * (rows - held), batch)

    def _read(self, run: augury.Run) -> nn.Module:
        return self.teacher if self.teacher is not None else run.read_network(self.options.teacher)
