"""What pre-train stages made, kept in the run's folder: found again by the run that goes on, and by other runs that
would make the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from augury.distributed import Ranks
from augury.errors import UsageError
from augury_train.backbones.weights import load_weights, save_weights
from augury_train.files import folder_inside
from augury_train.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint

FOLDER = "stages"


class Kept:
    """The files `stages/<method>/<name>.safetensors` of a run, each with a digest of all that decides what is in it,
    and with what it cost.

    Attributes:
        seconds, passes: what others, and earlier sittings, spent on what was found.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        ranks: Ranks,
        folder: Path | None,
        others: Sequence[Path] = (),
        device: torch.device | str = "cpu",
        count: Callable[[], int] = lambda: 0,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Keep in the run's `folder`; None keeps nothing.

        Args:
            facts: what decides all that stages make, as JSON has it.
            ranks: the processes of the run; the first one writes.
            folder: the run's.
            others: folders of runs whose stages may have made the same.
            device: where processes gather numbers.
            count: forward passes that this run has made so far.
            note: is told of what is damaged.
        """
        self.seconds, self.passes = 0.0, 0
        self._count, self._note = count, note
        self._facts, self._ranks = dict(facts), ranks
        self._folder, self._others, self._device = folder, list(others), device

    def recall_or(
        self, key: str, make: Callable[[], Mapping[str, Tensor]], given: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """What is kept under `key` for the same facts, in this run or in another; else what `make` makes, which is
        kept.

        Args:
            key: `<method>/<name>`.
            make: makes tensors by name; called in every process or in none.
            given: what decides them beside the run's settings, as JSON has it.

        Returns:
            tensors on the CPU, whether they were made or found.
        """
        if self._folder is None:
            return _on_cpu(make())
        digest = self._digest(key, given)
        own = self._path(self._folder, key)
        found, place = None, None
        cost: dict[str, str] = {}
        for place in self._places(key):
            found, cost = _read(place, digest)
            if found is not None:
                break
        # Either all processes make it or none does.
        everywhere = self._ranks.gather_rows(torch.tensor([found is not None], device=self._device))
        if found is None or not everywhere.all():
            # What making it finds of an earlier sitting is part of what it cost.
            seconds, passes = self.seconds, self.passes
            begun, counted = time.perf_counter(), self._count()
            found, place = _on_cpu(make()), None
            seconds = self.seconds - seconds + time.perf_counter() - begun
            cost = {"seconds": str(seconds), "passes": str(self.passes - passes + self._count() - counted)}
        else:
            self.seconds += float(cost.get("seconds", 0))
            self.passes += int(cost.get("passes", 0))
        if self._ranks.rank == 0 and place != own:
            folder_inside(self._folder, FOLDER, *key.split("/")[:-1])
            save_weights(own, found, {**cost, "digest": digest})
        self._forget_progress(key)
        return found

    def progress(self, key: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """How far the making of `key` was when this run was interrupted, for the same facts."""
        folder = self._progress_folder(key)
        if folder is None or not checkpoints(folder):
            return None
        try:
            found = load_checkpoint(folder, self._note) or {}
        except UsageError as error:
            self._note(f"{str(error).splitlines()[0]}. The stage begins anew.")
            return None
        seconds, state = found.get("seconds"), found.get("state")
        if found.get("digest") != self._digest(key, given):
            return None
        if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf and isinstance(state, dict)):
            return None
        self.seconds += seconds
        return state

    @contextlib.contextmanager
    def fitting(self, key: str) -> Iterator[None]:
        """Around giving what was kept under `key` to what it was made by.

        Raises:
            UsageError: it does not fit.
        """
        try:
            yield
        except UsageError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            told = " ".join(str(error).split()[:30])
            raise UsageError(
                f"{self._progress_folder(key)}: what is kept of this stage is damaged "
                f"({type(error).__name__}: {told}). Delete it, with the file of that name beside it, and go on."
            ) from error

    def save_progress(
        self, key: str, given: Mapping[str, Any], step: int, state: dict[str, Any], seconds: float = 0.0
    ) -> None:
        """Keep how far the making of `key` is, and the time spent on it."""
        if self._folder is not None and self._ranks.rank == 0:
            folder = folder_inside(self._folder, FOLDER, *key.split("/"))
            save_checkpoint(folder, step, {"digest": self._digest(key, given), "state": state, "seconds": seconds})

    def _forget_progress(self, key: str) -> None:
        folder = self._progress_folder(key)
        if folder is not None and self._ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)

    def _places(self, key: str) -> list[Path]:
        folders = [folder for folder in (self._folder, *self._others) if folder is not None]
        return [self._path(folder, key) for folder in folders]

    def _progress_folder(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / FOLDER / key

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / FOLDER / f"{key}.safetensors"

    def _digest(self, key: str, given: Mapping[str, Any]) -> str:
        text = json.dumps([key, self._facts, dict(given)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _read(path: Path, digest: str) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    """The tensors of a file of that digest and what they cost; None for any other file and for none."""
    try:
        found, said = load_weights(path)
        if said.pop("digest", None) != digest:
            return None, {}
        if not (0 <= float(said.get("seconds", 0)) < math.inf and int(said.get("passes", 0)) >= 0):
            return None, {}
        return found, said
    except (OSError, ValueError):
        return None, {}
