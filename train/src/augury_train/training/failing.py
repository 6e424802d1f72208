"""What a run that fails says of how it goes on."""

from __future__ import annotations

from pathlib import Path

from augury.errors import AuguryError, MethodError, RunError
from augury_train.data.decoding import UnreadableImage


def with_a_way_on(error: AuguryError, config: Path, how: str) -> AuguryError:
    """The error as it is told at the end of a run: what can be mended ends with how the run goes on after that.

    Args:
        error: why the run ended.
        config: the run's settings; without them there is nothing to go on with.
        how: the command with which it goes on.

    Returns:
        The same error, or another one where an image failed: a run that has begun can leave none out.
    """
    if not config.exists():
        return error
    if isinstance(error, UnreadableImage):
        error = RunError(f"{error.name}: not a readable image ({error.reason}). Put a readable one in its place.")
    if isinstance(error, RunError | MethodError):
        error.args = (f"{error}\nOnce that is mended, go on with: {how}",)
    return error
