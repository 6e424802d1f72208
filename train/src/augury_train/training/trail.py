"""What became of a batch, place by place: enough to say later where numbers stopped being finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from augury.batch import Batch, ModelOutput
from augury.method import CRITERION
from augury.run import NETWORK

LOADER = "loader"
_FIELDS = ("images", "shares", "label_weights", "smoothing", "row_weights")


@dataclass(frozen=True)
class Mark:
    """Numbers that stand for what was seen at one place.

    Attributes:
        who: a method's name, or one of `LOADER`, `NETWORK` and the criterion's.
        kind: `batch`, `output` or `loss`.
        seen: by the name of what was looked at, a scalar that is not finite where anything of it is not.
    """

    who: str
    kind: str
    seen: Mapping[str, Tensor]

    def broken(self) -> list[str]:
        """Names of what is not finite; waits for the device."""
        return [name for name, value in self.seen.items() if not bool(value.isfinite())]


class Trail:
    """The places that a batch has passed, in their order. Scalars on the device; nothing is read while they are made.

    Attributes:
        marks: the places.
        made: features and logits that the network made, copied, where they are kept.
    """

    def __init__(self, *, keep_output: bool = False, keep_graph: bool = False) -> None:
        """Mark the way of one batch.

        Args:
            keep_output: whether to keep what the network made.
            keep_graph: whether marks of outputs and losses hold the tensors themselves, to be differentiated; whoever
                comes next gets others of the same numbers, which may be changed in place.
        """
        self.marks: list[Mark] = []
        self.made: tuple[Tensor, Tensor] | None = None
        self._keep_output, self._keep_graph = keep_output, keep_graph

    def images(self, batch: Batch) -> None:
        """The loader made a batch; the rest of it is augury's own."""
        self._mark(LOADER, "batch", {"images": batch.images})

    def batch(self, who: str, batch: Batch) -> None:
        """A method has changed the batch."""
        self._mark(who, "batch", {name: getattr(batch, name) for name in _FIELDS})

    def output(self, who: str, output: ModelOutput, before: Mapping[str, Version] | None = None) -> None:
        """The network, or a method, has set fields of the output, or changed them in place; those that are of the same
        version as `before` are none of its."""
        fields = {name: value for name, value in vars(output).items() if value is not None}
        if before is not None:
            fields = {name: value for name, value in fields.items() if not before[name].of(value)}
        if self._keep_output and who == NETWORK:
            self.made = output.features.detach().clone(), output.logits.detach().clone()
        if self._keep_graph:
            self.marks.append(Mark(who, "output", fields))
            for name, value in fields.items():
                setattr(output, name, value + 0)
        else:
            self._mark(who, "output", fields)

    def loss(self, who: str, loss: Tensor) -> None:
        """The criterion, or a method that adds to it or replaces it, has returned a loss."""
        # A wrapper may add to it in place.
        self.marks.append(Mark(who, "loss", {"loss": loss if self._keep_graph else loss.detach().clone()}))

    def versions(self, output: ModelOutput) -> Mapping[str, Version]:
        """The fields of an output as they are now."""
        return {field: Version.now(value) for field, value in vars(output).items()}

    def received(self, loss: Tensor) -> Tensor:
        """What a wrapper gets of a loss; the first that is got is the criterion's."""
        if not self.has_loss:
            self.loss(CRITERION, loss)
        return loss + 0 if self._keep_graph else loss

    @property
    def has_loss(self) -> bool:
        """Whether any loss is marked: the innermost is the criterion's."""
        return any(mark.kind == "loss" for mark in self.marks)

    @torch.no_grad()
    def _mark(self, who: str, kind: str, tensors: Mapping[str, Tensor]) -> None:
        # What is none of a tensor is refused elsewhere, in words of its own.
        found = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and value.numel()}
        if found:
            self.marks.append(Mark(who, kind, dict(zip(found, norms_of([*found.values()]), strict=True))))


@dataclass(frozen=True)
class Version:
    """A tensor as it is now: another one, or the same after a change in place, is another version."""

    value: object
    number: int | None

    @classmethod
    def now(cls, value: object) -> Version:
        counted = isinstance(value, Tensor) and not value.is_inference()
        return cls(value, value._version if counted else None)  # type: ignore[attr-defined]

    def of(self, value: object) -> bool:
        """Whether `value` is of this version."""
        return value is self.value and Version.now(value).number == self.number


@torch.no_grad()
def norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The 2-norm of each: not finite if and only if some number in it is not. A GPU is not waited for."""
    wide = [_wide(tensor) for tensor in tensors]
    # In one call, and on a GPU in few kernels, which add up in float64 as fast as the numbers can be read.
    if any(tensor.is_cuda for tensor in wide):
        return list(torch._foreach_norm(wide, 2, dtype=torch.float64))
    # A CPU takes ten times as long for it, and squares beyond float32 are rare.
    norms = torch._foreach_norm(wide, 2)
    return list(norms) if bool(torch.stack(norms).isfinite().all()) else [_careful_norm(t) for t in wide]


def _careful_norm(tensor: Tensor) -> Tensor:
    largest = tensor.abs().max().double() if tensor.numel() else torch.zeros((), dtype=torch.float64)
    fine = bool(largest.isfinite()) and bool(largest)
    return largest * torch.linalg.vector_norm(tensor / largest) if fine else largest


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
