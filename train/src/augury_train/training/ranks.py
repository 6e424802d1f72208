"""What was each process's own, when a run goes on with another number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from augury.distributed import Ranks


def shared_out(before: Sequence[Mapping[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """The same for each of the processes of now, so that sums over all are what they were.

    Args:
        before: what each process of then had (`Loop.state`): `tally`, `scalars`, and `buffers` where they were several.
        ranks: the processes of now.
    """
    tallies = [own["tally"] for own in before]
    first = dict(tallies[0])
    for key in ("loss", "correct"):
        first[key] = sum(tally[key] for tally in tallies) / ranks.size
    for key in ("rows", "unmixed_rows", "images"):
        first[key] = sum(tally[key] for tally in tallies) // ranks.size
    sums = [own["scalars"]["sums"] for own in before]
    shared: dict[str, Any] = {
        "tally": first,
        "scalars": {
            "sums": {name: _mean([some[name] for some in sums]) for name in sums[0]},
            "counts": dict(before[0]["scalars"]["counts"]),
        },
    }
    if "buffers" in before[0]:
        names = before[0]["buffers"]
        shared["buffers"] = {name: _mean([own["buffers"][name] for own in before]) for name in names}
    return shared


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Of whole numbers, which count what all did alike, the first."""
    return torch.stack(list(values)).mean(0) if values[0].is_floating_point() else values[0]
