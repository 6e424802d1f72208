"""What one process wants and all must do: heard by all at the same step, without waiting for a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist

from augury.distributed import Ranks, waiting


class Agreement:
    """Whether any process wants something. All hear it at the same call, the one after that in which it was said, so
    that no device is waited for."""

    def __init__(self, ranks: Ranks) -> None:
        """Between the processes `ranks`; all of them make one at the same time, and call it equally often."""
        self._group: Any = None
        self._asked: Any = None
        self._answer = torch.zeros(1)
        if ranks.size > 1:
            members = dist.get_process_group_ranks(ranks.group or dist.group.WORLD)
            self._group = dist.new_group(members, backend="gloo")

    def __call__(self, mine: bool) -> bool:
        """Say what this process wants; returns what any of them said in the call before, or just now in a single
        one."""
        if self._group is None:
            return mine
        said = False
        if self._asked is not None:
            with waiting:
                self._asked.wait()
            said = bool(self._answer)
        self._answer = torch.tensor([float(mine)])
        self._asked = dist.all_reduce(self._answer, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return said
