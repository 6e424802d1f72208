"""The format number in the files that augury writes, so that a later augury knows what they mean.

Settings (`config.json`, recipes, `suite.json`), checkpoints and weights carry it. A file that has none is of format 1:

1. After the warm-up the learning rate follows the curve that began with the training (`schedule.warmup_prefix` is false
   unless set), and the moving average warms up (`train.ema_warmup` is true unless set). A checkpoint sums the losses of
   an epoch over batches.
2. The curve begins after the warm-up, at `optim.lr`; the moving average has the decay that was set. A checkpoint sums
   the losses over rows.
"""

from __future__ import annotations

from augury.errors import UsageError, shown

FORMAT = 2
"""The format that this augury writes."""


def check_format(found: object, subject: str) -> int:
    """Return the format number of a file, 1 where it has none.

    Args:
        found: the number in the file, None where there is none.
        subject: what an error begins with.

    Raises:
        UsageError: `found` is no format, or that of a later augury.
    """
    if found is None:
        return 1
    if type(found) is not int or found < 1:
        raise UsageError(f"{subject}: `format` must be a whole number from 1 to {FORMAT}, got {shown(found)}.")
    if found > FORMAT:
        raise UsageError(
            f"{subject}: was written in format {found} by a later augury; this one reads formats 1 to {FORMAT}. "
            "Update augury."
        )
    return found
