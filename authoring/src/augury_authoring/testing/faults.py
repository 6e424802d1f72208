"""What can be wrong with a batch after `augment_batch`, and with a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from augury.batch import Batch
from augury.method import Method

NEAR = 1e-3
"""How far a sum of float32 shares may be from 1."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong. Faults of one `kind` have one cause; it begins with the part it belongs to: shape (nothing can
    go on with such a batch), form, label, loss or gradient."""

    kind: str
    text: str


class _Noting(Batch):
    """Notes that images were taken out of it, and what rows it is said to be mixed from."""

    taken = False
    mixings: tuple[tuple[Tensor, Tensor], ...] = ()

    def take(self, images: Tensor) -> None:
        """As a batch does."""
        self.taken = True
        super().take(images)

    def mix(self, images: Tensor, sources: Tensor, shares: Tensor) -> None:
        """As a batch does."""
        self.mixings = (*self.mixings, (sources, shares))
        super().mix(images, sources, shares)


class Watch:
    """A batch as it was before the methods."""

    def __init__(self, batch: Batch, classes: int, cls: type[Method] = Method) -> None:
        self.rows, self.views, self.pipelines = len(batch), batch.views, batch.pipelines
        self.images, self.indices, self.labels = batch.images.clone(), batch.indices.clone(), batch.labels.clone()
        self.classes, self.cls, self.hidden = classes, cls, batch.hidden
        batch.__class__ = _Noting

    def faults(self, batch: Batch) -> list[Fault]:
        """What is wrong with it now."""
        found = list(self._form(batch))
        # Values are not looked at where shapes are wrong.
        return found or [*self._rows(batch), *self._labels(batch)]

    def _form(self, batch: Batch) -> Iterator[Fault]:
        images = batch.images
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != self.images.shape[1]:
            yield Fault("shape images", f"`images` must be M x {self.images.shape[1]} x H x W, got {_shape(images)}.")
            return
        rows = len(images)
        if rows != self.rows and not getattr(batch, "taken", False):
            yield Fault(
                "shape rows",
                f"the batch had {self.rows} rows and has {rows}. Rows are left out by batch.take(images) alone, and "
                "none are added.",
            )
            return
        k = batch.labels.shape[1] if isinstance(batch.labels, Tensor) and batch.labels.ndim == 2 else 1
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "labels": ((rows, k), torch.int64),
            "shares": ((rows, k), torch.float32),
            "label_weights": ((rows, k), torch.float32),
            "smoothing": ((rows, k), torch.float32),
            "row_weights": ((rows,), torch.float32),
            "pipeline": ((rows,), torch.int64),
            "indices": ((rows,), torch.int64),
            "images": (tuple(images.shape), torch.float32),
        }
        for name, (shape, dtype) in wanted.items():
            value = getattr(batch, name)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != dtype:
                yield Fault(f"shape {name}", f"`{name}` must be {_shaped(shape, dtype)}, got {_shape(value)}.")
            elif value.device != self.images.device:
                yield Fault(
                    "shape device",
                    f"`{name}` is on {value.device}, the batch on {self.images.device}. Make tensors with "
                    "device=batch.device.",
                )
            elif value.requires_grad:
                yield Fault("shape gradient", f"`{name}` requires a gradient; a batch is data. Detach it.")
        if (batch.views, batch.pipelines) != (self.views, self.pipelines):
            yield Fault("shape views", "`views` and `pipelines` are facts of the run, and were changed.")

    def _rows(self, batch: Batch) -> Iterator[Fault]:
        if not batch.images.isfinite().all():
            yield Fault("form finite", "`images` holds numbers that are not finite.")
        if len(batch) % self.views or not self._of_one_image(batch):
            yield Fault(
                "form view-major",
                f"the rows are no longer view-major: row i of each of the {self.views} views must be of one image. Mix "
                "within a view (batch.permutation does), and leave images out with batch.take(images).",
            )
        if not torch.isin(batch.indices, self.indices).all():
            yield Fault("form indices", "`indices` names images that were not in the batch.")
        if len(batch) and not 0 <= int(batch.pipeline.min()) <= int(batch.pipeline.max()) < len(batch.pipelines):
            yield Fault("form pipeline", f"`pipeline` must be in 0 to {len(batch.pipelines) - 1}.")
        yield from self._mixing(batch)

    def _mixing(self, batch: Batch) -> Iterator[Fault]:
        """What is declared of mixing, and whether rows are mixed inside the network as is said."""
        inside = batch.hidden is not self.hidden
        grown = batch.labels.shape[1] > self.labels.shape[1]
        mixings = batch.mixings if isinstance(batch, _Noting) else ()
        declared = self.cls.mixes_hidden or (self.cls.mixes and not inside)
        if (grown or mixings or inside) and not declared:
            where, attribute = (" inside the network", "mixes_hidden") if inside else ("", "mixes")
            yield Fault(
                "form mixes",
                f"it mixed rows{where}, which its class does not declare: other methods could not be ordered around "
                f"it. Set `{attribute} = True` in the class.",
            )
        if not inside or batch.hidden is None or not mixings:
            return
        sources, shares = mixings[-1]
        told = torch.zeros(len(batch), len(batch), device=batch.device).scatter_add_(1, sources, shares.float())
        done = mixing_matrix(batch.hidden.mix, len(batch), batch.device)
        if done is not None and not torch.allclose(done, told, atol=NEAR):
            row = int((done - told).abs().sum(1).argmax())
            yield Fault(
                "form hidden",
                f"inside the network other rows are mixed than batch.mix_hidden is told: row {row} is made of "
                f"{_parts(done[row])}, and its labels are those of {_parts(told[row])}. `mix`, `sources` and `shares` "
                "say the same.",
            )

    def _of_one_image(self, batch: Batch) -> bool:
        return bool((batch.indices.view(self.views, -1) == batch.indices.view(self.views, -1)[0]).all())

    def _labels(self, batch: Batch) -> Iterator[Fault]:
        if not len(batch):
            return
        if not 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < self.classes:
            low, high = int(batch.labels.min()), int(batch.labels.max())
            yield Fault("label range", f"`labels` must be in 0 to {self.classes - 1}, got {low} to {high}.")
        sums = batch.shares.sum(1)
        off = (sums - 1).abs().nan_to_num(torch.inf)
        if off.max() > NEAR:
            row = int(off.argmax())
            yield Fault(
                "label sums",
                f"the label shares of a row must sum to 1: row {row} has `shares` {_numbers(batch.shares[row])}, "
                f"which sum to {float(sums[row]):.4g}. batch.mix keeps the sum where its shares sum to 1.",
            )
        # A sum that is off says it all.
        elif batch.shares.min() < -NEAR or batch.shares.max() > 1 + NEAR:
            yield Fault("label shares", f"`shares` must be in [0, 1], got {_range(batch.shares)}.")
        if not (batch.smoothing.min() >= 0 and batch.smoothing.max() <= 1):
            yield Fault(
                "label smoothing",
                f"`smoothing` must be in [0, 1], got {_range(batch.smoothing)}. Labels may be smoothed already: "
                "smoothing by a and then by b is smoothing by a + (1 - a) b.",
            )
        for name in ("row_weights", "label_weights"):
            weights = getattr(batch, name)
            if not (weights.isfinite().all() and weights.min() >= 0):
                yield Fault("label rows", f"`{name}` must be finite and >= 0, got {_range(weights)}.")


def loss_faults(loss: Any, device: str) -> list[Fault]:
    """What is wrong with a loss."""
    if not isinstance(loss, Tensor) or loss.ndim:
        return [Fault("loss form", f"the loss must be a tensor without dimensions, got {_shape(loss)}.")]
    found = []
    if loss.dtype != torch.float32:
        found.append(Fault("loss dtype", f"the loss must be float32, got {_name(loss.dtype)}."))
    if loss.device.type != torch.device(device).type:
        found.append(Fault("loss device", f"the loss is on {loss.device}, the batch on {device}."))
    if not loss.isfinite():
        found.append(Fault("loss finite", f"the loss is {float(loss.detach())}."))
    return found


def mixing_matrix(mix: Callable[[Tensor], Tensor], rows: int, device: torch.device | str = "cpu") -> Tensor | None:
    """What mixes rows, as M x M; None where it is no linear mixing of rows whatever their shape."""
    try:
        matrix = mix(torch.eye(rows, device=device))
        trial = torch.arange(3.0 * rows, device=device).view(rows, 3).sin()
        return matrix if torch.allclose(mix(trial), matrix @ trial, atol=1e-5) else None
    except Exception:
        # It may ask anything of a layer's output, its pixels say, which rows of three numbers do not have.
        return None


def _parts(shares: Tensor) -> str:
    """A mixture in words, its largest parts first."""
    most = shares.abs().argsort(descending=True)[: int((shares.abs() > NEAR).sum())]
    return " + ".join(f"{float(shares[row]):.3g} of row {int(row)}" for row in most[:4]) or "nothing"


def _shape(value: Any) -> str:
    return _shaped(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else f"{type(value).__name__}"


def _shaped(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{' x '.join(map(str, shape)) or 'a scalar'} {_name(dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.4g} to {float(values.max()):.4g}"


def _numbers(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values.tolist()) + ")"
