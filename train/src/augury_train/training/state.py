"""The form of a run's checkpoint: a file whose digest is right can still be anybody's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from augury.errors import UsageError
from augury_train.formats import check_format
from augury_train.training.checkpoint import load_checkpoint

Whole = Annotated[int, Field(ge=0, lt=2**62)]
Number = Annotated[float, Field(ge=0)]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class _Scalars(_Form):
    sums: dict[str, Single]
    counts: dict[str, int]


def _single(tensor: Tensor) -> Tensor:
    if tensor.dim() or tensor.is_complex():
        raise ValueError("must be one number")
    return tensor


Single = Annotated[Tensor, AfterValidator(_single)]


class _Tally(_Form):
    loss: Single
    correct: Single
    batches: Whole
    rows: Whole
    unmixed_rows: Whole
    images: Whole
    seconds: Number
    lr: Number = 0.0
    skipped: Whole | None


class _Own(_Form):
    torch_rng: Tensor
    cuda_rng: Tensor | None
    tally: _Tally
    scalars: _Scalars
    buffers: dict[str, Tensor] = {}


class _Loop(_Form):
    format: int = 1
    network: dict[str, Tensor]
    average: dict[str, Tensor] | None
    methods: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    epoch: Whole
    step: Whole
    passes: Whole
    last_finite: tuple[Whole, float, Number] | None = None
    ranks: Annotated[list[_Own], Field(min_length=1)]


class _Best(_Form):
    epoch: Whole
    top1: float


class _Spent(_Form):
    seconds: Number
    side_passes: Whole
    peak_bytes: Whole | None
    stage_seconds: Number
    stage_passes: Whole


class _State(_Form):
    loop: _Loop
    best: _Best
    spent: _Spent
    accumulation: Annotated[int, Field(ge=1)] = 1
    halved: list[str] = []


def load_state(folder: Path, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any] | None:
    """A run's newest checkpoint that is whole, None if there is none yet.

    Args:
        folder: the run's.
        tell: as for `load_checkpoint`.

    Raises:
        UsageError: all are damaged, or the newest that is whole is no run's, or of a later augury.
    """
    state = load_checkpoint(folder, tell)
    if state is None:
        return None
    loop = state.get("loop")
    check_format(loop.get("format") if isinstance(loop, dict) else None, f"{folder}: its newest checkpoint")
    try:
        _State.model_validate(state)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(
            f"{folder}: its newest checkpoint is no run's (`{'.'.join(map(str, first['loc']))}`: {first['msg']}). "
            "Delete it to go on from the one before, or start the run anew."
        ) from None
    return state
