"""Is a composition better than the base, or was it luck? Differences paired by seed, their interval, test and verdict.

What varies is the training: a seed changes initial weights, order and draws. The images judged on are the same in all
runs, so that nothing here speaks of other images than those.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05
"""Chance that a comparison in which all compositions equal the base calls any of them better or worse."""
POWER = 0.8
"""Chance that as many seeds as are said to be needed show a difference."""
MOST_SEEDS = 1000
"""More are not counted: nobody trains them, and the difference is too small to matter."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (divisor n - 1) over seeds; `std` is None for one seed, or where the mean is NaN."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """What a composition changes, in percentage points of top-1 accuracy, and whether that is more than luck.

    Attributes:
        mean: of the seeds' differences, composition minus base.
        std: their standard deviation (divisor n - 1); None for a single seed, as the others are.
        low, high: ends of the 95 % interval of the mean by Student's t, of this composition by itself.
        p: of the two-sided paired t-test.
        p_holm: `p` corrected for all compositions of the comparison; what the verdict goes by.
        needed: seeds that would show a difference as large as the one seen; None where the verdict is already better or
            worse, where more than 1,000 would be needed, and where that cannot be said.
        verdict: in words.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    needed: int | None
    verdict: str


@dataclass(frozen=True)
class Paired:
    """What `paired` found.

    Attributes:
        mean, std, low, high, p: as in `Difference`.
        least_std: the standard deviation that interval and test take: `std`, or one image's share where that is larger.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    p: float | None
    least_std: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation; NaN and None where a value is not finite."""
    if not all(map(math.isfinite, values)):
        return Spread(math.nan, None)
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired(scores: Sequence[float], base: Sequence[float], images: int) -> Paired:
    """The seed-by-seed differences, their 95 % interval and the two-sided paired t-test.

    Accuracies are whole images, so a few seeds can agree exactly by luck. Interval and test therefore take a standard
    deviation of one image, 100 / images points, where the one seen is smaller: without it two equal differences would
    give p = 0. With it equal differences of one image need seven seeds for p < 0.05, where the sign test needs six.

    Args:
        scores, base: top-1 accuracy in per cent of each seed, in the same order of seeds.
        images: of the split that they were measured on.

    Returns:
        All but the mean are None for one seed; the mean too is NaN where a score is.

    Raises:
        ValueError: not as many scores as the base has, none, or no images.
    """
    if len(scores) != len(base) or not scores or images < 1:
        raise ValueError(f"{len(scores)} scores and {len(base)} of the base, of {images} images")
    found = spread([a - b for a, b in zip(scores, base, strict=True)])
    if found.std is None:
        return Paired(found.mean, None, None, None, None, None)
    from scipy.special import stdtr, stdtrit

    freedom = len(scores) - 1
    std = max(found.std, 100 / images)
    error = std / math.sqrt(len(scores))
    half = error * float(stdtrit(freedom, 1 - LEVEL / 2))
    p = 2 * float(stdtr(freedom, -abs(found.mean) / error))
    return Paired(found.mean, found.std, found.mean - half, found.mean + half, p, std)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979, Scand. J. Statist. 6:65): reject what comes out at most the level.

    Args:
        p_values: of all hypotheses. One without a value (None) gets none and counts all the same, as never rejected.
    """
    order = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, number) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[number] = largest
    return corrected


def needed_seeds(mean: float, std: float, compositions: int) -> int | None:
    """The smallest number of seeds that finds a difference with its right sign in 80 % of comparisons.

    By the noncentral t distribution with n - 1 degrees of freedom and noncentrality sqrt(n) |mean| / std, two-sided at
    0.05 / compositions: the strictest step of Holm's procedure, at which a composition is found whatever the others do.
    It takes `mean` and `std` for the true ones; from a few seeds they are rough, so read "about".

    Args:
        mean, std: of the seeds' differences, in the same unit; std > 0.
        compositions: that are compared with the base.

    Returns:
        At least 2; None when more than 1,000 would be needed.
    """
    from scipy.special import nctdtr, stdtrit

    def enough(seeds: int) -> bool:
        threshold = float(stdtrit(seeds - 1, 1 - LEVEL / 2 / compositions))
        missed = float(nctdtr(seeds - 1, math.sqrt(seeds) * abs(mean) / std, threshold))
        # Where hardly anything is missed, scipy may give NaN.
        return not missed > 1 - POWER

    found = bisect.bisect_left(range(2, MOST_SEEDS + 1), True, key=enough) + 2
    return found if found <= MOST_SEEDS else None


def judge(scores: Mapping[str, Sequence[float]], base: str, images: int) -> dict[str, Difference]:
    """Compare every other composition with the base.

    Holm's family is all compositions other than the base: the chance to call any of them better or worse when none is
    stays below 5 %, however many they are.

    Args:
        scores: top-1 accuracy in per cent by composition, for each seed in the same order; higher is better.
        base: the composition that the others are compared with.
        images: of the split that they were measured on.

    Returns:
        By composition, in the given order, without the base.
    """
    found = {name: paired(values, scores[base], images) for name, values in scores.items() if name != base}
    corrected = holm([one.p for one in found.values()])
    seeds = len(scores[base])
    differences = {}
    for (name, one), p_holm in zip(found.items(), corrected, strict=True):
        luck = p_holm is not None and p_holm > LEVEL
        needed = None
        if luck and one.least_std and not _same(one.mean, images, seeds):
            needed = needed_seeds(one.mean, one.least_std, len(found))
        words = _verdict(one, p_holm, needed, base, seeds, images)
        differences[name] = Difference(one.mean, one.std, one.low, one.high, one.p, p_holm, needed, words)
    return differences


def _same(mean: float, images: int, seeds: int) -> bool:
    """Whether as many images are right in all seeds together; decimals may miss that by their rounding."""
    return abs(mean) * seeds < 0.5 * 100 / images


def _verdict(one: Paired, p_holm: float | None, needed: int | None, base: str, seeds: int, images: int) -> str:
    name = "the baseline" if base == "baseline" else base
    if math.isnan(one.mean):
        return "cannot be judged: a run's accuracy is not a number"
    if p_holm is None:
        return "cannot be told from luck with one seed; run at least 3, better 5"
    if p_holm <= LEVEL:
        return "better" if one.mean > 0 else "worse"
    start = f"not distinguishable from {name} with {seeds} seeds; "
    if _same(one.mean, images, seeds):
        every = one.std is not None and one.std < 0.01 * 100 / images
        return start + ("the same accuracy with every seed" if every else "the same accuracy on average")
    return start + (f"about {needed} would be needed" if needed else f"more than {MOST_SEEDS:,} would be needed")
