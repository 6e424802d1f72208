"""What a finished run came to, and what it cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from augury.errors import UsageError
from augury.outside import RECORDED, parse_json, read_text
from augury_train.files import write_text
from augury_train.measures import Measures

RESULT = "result.json"


@dataclass(frozen=True)
class Costs:
    """What a run cost, its pre-train stages included, also where another run of a comparison made them.

    Attributes:
        seconds: all of it, evaluation and earlier sittings included.
        stage_seconds: of pre-train stages.
        images_per_second: in training, in images (not views).
        forward_passes: rows that went through a network to train: the one in training, one for each view of an image,
            and those that methods froze or trained in their stages.
        stage_passes: of pre-train stages.
        peak_bytes: largest memory: of the device on a GPU, else of the process; None where that cannot be known.
    """

    seconds: float
    stage_seconds: float
    images_per_second: float
    forward_passes: int
    stage_passes: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Attributes:
        folder: where everything of it is.
        epochs: that were trained.
        chosen_on: the split that chose the best epoch: `val`, or `test` under the papers' protocol.
        weights: `raw`, or `ema` where the moving average is what was measured and exported.
        best_epoch: the epoch with the highest accuracy on that split, the first of those that share it.
        best, last: how good the network of that epoch and of the last one is, by split: `val` and `test` where there
            are such.
        costs: what it took.
        notes: what the user may not expect, a line each.
    """

    folder: str
    epochs: int
    chosen_on: str
    weights: str
    best_epoch: int
    best: dict[str, Measures]
    last: dict[str, Measures]
    costs: Costs
    notes: list[str] = field(default_factory=list)

    @property
    def judged_on(self) -> Literal["test", "val"]:
        """The split that a comparison takes: `test`, or `val` where there is no test split."""
        return "test" if "test" in self.best else "val"


_RESULT = TypeAdapter(Result)


def write_result(result: Result, folder: Path) -> None:
    """Write a run's `result.json`, which makes it a finished one."""
    write_text(folder / RESULT, json.dumps(asdict(result), indent=2) + "\n")


def read_result(folder: Path) -> Result:
    """What `write_result` wrote; `folder` is where it is now.

    Raises:
        UsageError: it is missing or damaged.
    """
    path = folder / RESULT
    try:
        said = parse_json(read_text(path, RECORDED))
        found = _RESULT.validate_python(said)
        if not found.best or found.best.keys() != found.last.keys() or not found.best.keys() <= {"val", "test"}:
            raise ValueError("`best` and `last` must both tell of `val`, `test` or both")
        return replace(found, folder=str(folder))
    except FileNotFoundError:
        raise UsageError(f"{folder}: the run is not finished. Go on with: augury resume {folder}") from None
    except ValidationError as error:
        first = error.errors()[0]
        told = f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"
        raise UsageError(
            f"{path}: cannot be read ({told}). Delete it, and go on with: augury resume {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Delete it, and go on with: "
            f"augury resume {folder}"
        ) from None


def as_result(said: dict[str, Any]) -> Result:
    """A result from the JSON form of it.

    Raises:
        KeyError, TypeError: it is another thing.
    """
    of = {which: {split: Measures(**found) for split, found in said[which].items()} for which in ("best", "last")}
    return Result(**{**said, **of, "costs": Costs(**said["costs"])})
