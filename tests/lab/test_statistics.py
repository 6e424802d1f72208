"""Whether a comparison finds what is there, finds nothing where nothing is, and says what it cannot know."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from augury_lab.experiment.statistics import MOST_SEEDS, Spread, holm, judge, needed_seeds, paired, spread

IMAGES = 10_000


def suites(
    number: int, seeds: int, compositions: int, effects: NDArray[np.float64] | float = 0.0, std: float = 0.3
) -> NDArray[np.float64]:
    """Accuracies of whole images: number x (1 + compositions) x seeds, the base first. A seed is good or bad for all of
    them (std 0.5), and each run is better or worse by itself (std 0.3 / sqrt 2, so that differences have `std`)."""
    draws = np.random.default_rng(12)
    common = draws.normal(90, 0.5, (number, 1, seeds))
    own = draws.normal(0, std / math.sqrt(2), (number, 1 + compositions, seeds))
    effect = np.concatenate([np.zeros(1), np.broadcast_to(effects, compositions)])[:, None]
    return np.rint((common + own + effect) * IMAGES / 100) * 100 / IMAGES


def named(scores: NDArray[np.float64]) -> dict[str, list[float]]:
    """A suite's scores by name; the base is `baseline`."""
    return {("baseline", *"abcdefgh")[number]: row.tolist() for number, row in enumerate(scores)}


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_the_interval_and_the_p_value_are_those_of_scipys_paired_t_test(seeds: int) -> None:
    for scores in suites(20, seeds, 1, effects=0.4):
        reference = stats.ttest_rel(scores[1], scores[0])
        low, high = reference.confidence_interval(0.95)
        # Of so many images that one is nothing: below, what is done where it is not.
        found = paired(scores[1].tolist(), scores[0].tolist(), 1000 * IMAGES)
        assert (found.mean, found.std) == pytest.approx(
            (np.mean(scores[1] - scores[0]), np.std(scores[1] - scores[0], ddof=1))
        )
        assert (found.low, found.high, found.p) == pytest.approx((low, high, reference.pvalue), rel=1e-9, abs=1e-12)


def test_holms_correction_is_that_of_his_paper() -> None:
    draws = np.random.default_rng(3)
    for count in (1, 2, 3, 7):
        for values in draws.uniform(0, 0.1, (50, count)):
            corrected = holm(values.tolist())
            # At each level: reject from the smallest on, while p <= level / (hypotheses not yet rejected).
            for level in (0.01, 0.05, 0.1, 0.3):
                rejected: set[int] = set()
                for number in np.argsort(values):
                    if values[number] > level / (count - len(rejected)):
                        break
                    rejected.add(int(number))
                assert {number for number, p in enumerate(corrected) if p is not None and p <= level} == rejected


def test_a_hypothesis_without_a_p_value_counts_and_is_not_rejected() -> None:
    assert holm([0.01, None, 0.5]) == [0.03, None, 1.0]
    assert holm([None, None]) == [None, None]
    assert holm([]) == []


def test_a_true_difference_is_found_with_its_sign_and_the_others_are_not_blamed() -> None:
    found = [judge(named(one), "baseline", IMAGES) for one in suites(100, 5, 3, effects=np.array([1.5, -1.5, 0.0]))]
    assert sum(one["a"].verdict == "better" for one in found) >= 99
    assert sum(one["b"].verdict == "worse" for one in found) >= 99
    assert sum(one["c"].verdict.startswith("not distinguishable from the baseline") for one in found) >= 90


def test_equal_compositions_are_not_distinguishable_in_95_of_100_suites() -> None:
    found = [judge(named(one), "baseline", IMAGES) for one in suites(500, 5, 4)]
    clean = sum(all(d.verdict.startswith("not distinguishable") for d in one.values()) for one in found)
    # At least: Holm's bound is 95 %, and the common base makes it a little better. 99.9 % of true programs pass.
    assert stats.binom.ppf(0.0005, 500, 0.95) <= clean <= 495
    # Uncorrected, a suite of four would cry wolf far more often.
    raw = sum(all(d.p is not None and d.p > 0.05 for d in one.values()) for one in found)
    assert raw < 450


def test_the_interval_covers_the_true_difference_in_95_of_100_suites() -> None:
    found = [paired(one[1].tolist(), one[0].tolist(), IMAGES) for one in suites(1000, 5, 1, effects=0.7)]
    covered = sum(one.low <= 0.7 <= one.high for one in found if one.low is not None and one.high is not None)
    low, high = stats.binom.ppf([0.0005, 0.9995], 1000, 0.95)
    assert low <= covered <= high


@pytest.mark.parametrize(("mean", "compositions"), [(0.3, 1), (-0.3, 4), (0.9, 4), (0.15, 2)])
def test_as_many_seeds_as_are_needed_find_the_difference_in_80_of_100_comparisons(
    mean: float, compositions: int
) -> None:
    needed = needed_seeds(mean, 0.3, compositions)
    assert needed is not None

    def power(seeds: int) -> float:
        draws = np.random.default_rng(5).normal(mean, 0.3, (40_000, seeds))
        t, p = stats.ttest_1samp(draws, 0, axis=1)
        return float(((p <= 0.05 / compositions) & (np.sign(t) == np.sign(mean))).mean())

    # 40,000 draws tell a power of 80 % to within 0.7 points at 99.9 %.
    assert power(needed) > 0.793
    assert power(needed - 1) < 0.807


def test_the_verdict_tells_how_many_seeds_are_needed() -> None:
    base = [90.0, 90.5, 91.0, 90.2, 90.8]
    ours = [90.5, 90.4, 91.5, 90.1, 91.4]
    found = judge({"baseline": base, "isda": ours}, "baseline", IMAGES)["isda"]
    assert found.p_holm == found.p == pytest.approx(stats.ttest_rel(ours, base).pvalue)
    assert found.needed == needed_seeds(0.28, float(np.std(np.subtract(ours, base), ddof=1)), 1)
    expected = f"not distinguishable from the baseline with 5 seeds; about {found.needed} would be needed"
    assert found.verdict == expected
    assert judge({"isda": base, "agmax": ours}, "isda", IMAGES)["agmax"].verdict == expected.replace(
        "the baseline", "isda"
    )


def test_a_tiny_difference_needs_more_seeds_than_anybody_trains() -> None:
    base, ours = [90.0, 90.5, 91.0], [90.5, 90.01, 91.01]
    found = judge({"baseline": base, "isda": ours}, "baseline", IMAGES)["isda"]
    assert found.needed is None
    assert found.verdict == "not distinguishable from the baseline with 3 seeds; more than 1,000 would be needed"
    assert needed_seeds(1e-9, 1.0, 1) is None
    assert needed_seeds(0.08, 0.9, 1) == pytest.approx(MOST_SEEDS, rel=0.01)


def test_needed_seeds_fall_as_the_difference_grows_also_where_nothing_is_missed() -> None:
    needed = [needed_seeds(mean, 0.1, 11) for mean in (0.05, 0.1, 0.2, 0.5, 1, 10, 1000)]
    assert None not in needed
    assert needed == sorted(needed, key=lambda n: -(n or 0))
    assert needed[-1] == 2


def test_equal_differences_are_no_certainty() -> None:
    """Two seeds that agree to the image are luck, or one chance in two for differences of one image."""
    one_image = 100 / IMAGES
    found = judge({"baseline": [90.0, 91.0], "a": [90 + one_image, 91 + one_image]}, "baseline", IMAGES)["a"]
    assert found.std == pytest.approx(0, abs=1e-9)
    assert found.p == pytest.approx(2 * stats.t.sf(math.sqrt(2), 1))
    assert found.verdict == "not distinguishable from the baseline with 2 seeds; about 10 would be needed"
    half = stats.t.ppf(0.975, 1) * one_image / math.sqrt(2)
    assert (found.low, found.high) == pytest.approx((one_image - half, one_image + half))
    base, many = [90.0, 91.0, 90.3, 90.2, 90.7], 100 * one_image
    assert judge({"baseline": base, "a": [b + many for b in base]}, "baseline", IMAGES)["a"].verdict == "better"


def test_differences_of_single_images_raise_no_more_false_alarms_than_promised() -> None:
    draws = np.random.default_rng(8)
    for seeds in (2, 3, 5):
        differences = draws.choice([-1, 1], (1000, seeds)) * 100 / IMAGES
        alarms = sum((paired((90 + d).tolist(), [90.0] * seeds, IMAGES).p or 0) <= 0.05 for d in differences)
        assert alarms <= stats.binom.ppf(0.9995, 1000, 0.05)


def test_a_method_that_does_nothing_is_called_the_same() -> None:
    base = [90.1, 90.7, 91.3]
    found = judge({"baseline": base, "a": base, "b": [90.7, 91.3, 90.1]}, "baseline", IMAGES)
    assert (found["a"].mean, found["a"].std, found["a"].p, found["a"].needed) == (0, 0, 1, None)
    start = "not distinguishable from the baseline with 3 seeds; "
    assert found["a"].verdict == start + "the same accuracy with every seed"
    assert found["b"].verdict == start + "the same accuracy on average"
    assert found["b"].needed is None


def test_one_seed_cannot_tell() -> None:
    found = judge({"baseline": [90.0], "a": [95.0]}, "baseline", IMAGES)["a"]
    assert (found.mean, found.std, found.low, found.high, found.p, found.p_holm, found.needed) == (5.0, *[None] * 6)
    assert found.verdict == "cannot be told from luck with one seed; run at least 3, better 5"


def test_a_score_that_is_not_a_number_makes_no_verdict_and_leaves_the_family_as_it_is() -> None:
    base, good = [90.0, 90.5, 91.0], [92.0, 92.4, 93.1]
    found = judge({"baseline": base, "a": [90.0, math.nan, 91.0], "b": good}, "baseline", IMAGES)
    assert math.isnan(found["a"].mean)
    assert found["a"].p_holm is None
    assert found["a"].verdict == "cannot be judged: a run's accuracy is not a number"
    assert found["b"].p_holm == pytest.approx(2 * stats.ttest_rel(good, base).pvalue)
    assert found["b"].verdict == "better"


def test_scores_that_cannot_be_paired_are_refused() -> None:
    for scores, base, images in (([1.0], [1.0, 2.0], 10), ([], [], 10), ([1.0], [1.0], 0)):
        with pytest.raises(ValueError, match="scores"):
            paired(scores, base, images)


def test_a_spread_divides_by_one_less() -> None:
    assert spread([1.0, 2.0, 4.0]) == Spread(pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))
    assert spread([1.5]) == Spread(1.5, None)
    assert math.isnan(spread([1.0, math.inf]).mean)
