"""The paper's ablations, each against its formula in float64: weightings, the official variant, distillation, fair
comparisons."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from tests.plugins.resmooth.networks import AUGMENTED, BASE, MIXTURE, C, Network, composed, make_batch, pattern, trained
from torch import Tensor, nn

import augury
from augury_resmooth import ReSmooth
from augury_resmooth.functional import distillation, official_smoothing

ROWS = [(10, 3), (7, 0), (5, 5), (1, 0), (32, 11)]


def id_probabilities(frozen: nn.Module, batch: augury.Batch) -> list[float]:
    """P(ID) of rows from the formula, in Python's floats; 1 of base rows."""
    found = []
    for logits, label, pipeline in zip(
        frozen(batch.images).detach().double().tolist(),
        batch.labels[:, 0].tolist(),
        batch.pipeline.tolist(),
        strict=True,
    ):
        x = math.log(math.log(sum(math.exp(z) for z in logits)) - logits[label] + 1e-10)
        id_, ood = (w * math.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(v) for w, m, v in zip(*MIXTURE, strict=True))
        found.append(1.0 if pipeline == BASE else id_ / (id_ + ood))
    return found


def mean_by_part(losses: list[float], pipeline: list[int], prob: float) -> float:
    """prob of the base rows' mean and 1 - prob of the augmented ones'; the one there is where the other is missing."""
    means = {
        part: sum(part_losses) / len(part_losses)
        for part in (BASE, AUGMENTED)
        if (part_losses := [loss for loss, made in zip(losses, pipeline, strict=True) if made == part])
    }
    return sum(means.values()) if len(means) == 1 else prob * means[BASE] + (1 - prob) * means[AUGMENTED]


def loss_of(methods: augury.Composition, batch: augury.Batch, logits: Tensor) -> Tensor:
    return methods.compute_loss(batch, augury.ModelOutput(torch.zeros(len(logits), 1), logits))


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("weighting", ["regular", "reverse"])
@pytest.mark.parametrize(("rows", "base_rows"), ROWS)
@pytest.mark.parametrize(("org", "aug"), [(0.05, 0.7), (0.0, 1.0)])
def test_weightings_are_the_formulas(
    rows: int, base_rows: int, weighting: str, variant: str, org: float, aug: float
) -> None:
    network, prob = trained(), 0.3
    options = {"prob": prob, "smooth_org": org, "smooth_aug": aug, "weighting": weighting, "variant": variant}
    methods = composed(network=network, **options)
    batch = make_batch(methods, pattern(rows, base_rows))
    logits = (2 * torch.randn(rows, C, dtype=torch.float64)).requires_grad_()
    pipeline, labels = batch.pipeline.tolist(), batch.labels[:, 0].tolist()
    losses = []
    for q, made, label, z in zip(id_probabilities(network, batch), pipeline, labels, logits, strict=True):
        log_p = z.log_softmax(0)
        own, uniform = log_p[label], log_p.mean()
        if weighting == "regular" and made == BASE:
            losses.append(-(1 - org) * own - org * uniform)
            continue
        smooth = (1 - (q if weighting == "regular" else 1 - q)) * aug
        # The official program's factor of the label's own term does not depend on q.
        losses.append(-(1 - aug if variant == "official" else 1 - smooth) * own - smooth * uniform)
    expected = mean_by_part(losses, pipeline, prob)  # type: ignore[arg-type]
    (wanted,) = torch.autograd.grad(expected, logits)  # type: ignore[arg-type]
    methods.augment_batch(batch)
    loss = loss_of(methods, batch, logits)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=2e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], wanted, atol=2e-6, rtol=1e-5)


def test_official_is_a_row_weight_and_a_smoothing() -> None:
    q, s = torch.rand(200, dtype=torch.float64), 0.6
    smoothed = torch.rand(200) < 0.8
    epsilon, weight = official_smoothing(q, smoothed, 0.1, s)
    torch.testing.assert_close(weight[smoothed], 1 - q[smoothed] * s)
    torch.testing.assert_close((weight * (1 - epsilon))[smoothed], torch.full_like(q, 1 - s)[smoothed])
    torch.testing.assert_close((weight * epsilon)[smoothed], ((1 - q) * s)[smoothed])
    assert (epsilon[~smoothed] == 0.1).all()
    assert (weight[~smoothed] == 1).all()
    # A row that the frozen network knows, and smooth_aug = 1: there is nothing left of its loss.
    epsilon, weight = official_smoothing(torch.ones(1).double(), torch.ones(1, dtype=torch.bool), 0.0, 1.0)
    assert (float(epsilon), float(weight)) == (0, 0)


def test_random_shuffles_what_the_rows_would_have_had() -> None:
    network = trained()
    methods = composed(network=network, weighting="random", smooth_org=0.3, smooth_aug=0.8)
    seen = []
    for step in range(4):
        batch = make_batch(methods, pattern(40, 12))
        expected = sorted((1 - q) * 0.8 for q in id_probabilities(network, batch))
        methods.augment_batch(batch)
        assert sorted(batch.smoothing[:, 0].tolist()) == pytest.approx(expected, abs=1e-6)
        seen.append(batch.smoothing[batch.made_by("base")].tolist())
        methods.step()
        assert step or max(seen[0])[0] > 0, "base rows take part"
    assert seen[0] != seen[1]


def test_uniform_draws_for_all_rows_and_needs_no_network() -> None:
    methods = augury.compose([(ReSmooth, {"weighting": "uniform", "smooth_aug": 0.5, "prob": 0.25})], num_classes=C)
    assert list(methods.parameters()) == []
    assert not any("frozen" in name for name in methods.state_dict())
    draws = []
    for _ in range(20):
        batch = make_batch(methods, pattern(200, 50))
        methods.augment_batch(batch)
        methods.step()
        draws.append(batch.smoothing[:, 0])
    drawn = torch.stack(draws)
    assert 0 <= float(drawn.min()) < 0.01 < 0.49 < float(drawn.max()) < 0.5
    assert float(drawn.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(drawn.var()) == pytest.approx(0.25 / 12, rel=0.05)
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize(("rows", "base_rows"), ROWS)
def test_plain_smoothing_needs_no_network_and_no_stage(rows: int, base_rows: int) -> None:
    options = {"loss": "smooth", "smooth_aug": 0.35, "smooth_org": 0.1, "prob": 0.6}
    methods = augury.compose([(ReSmooth, options)], num_classes=C)
    methods.pre_train_stage()  # lends nothing, and nothing is asked for
    batch, logits = make_batch(methods, pattern(rows, base_rows)), torch.randn(rows, C, dtype=torch.float64)
    losses = []
    for made, label, z in zip(batch.pipeline.tolist(), batch.labels[:, 0].tolist(), logits, strict=True):
        epsilon = 0.35 if made == AUGMENTED else 0.1
        log_p = z.log_softmax(0)
        losses.append(float(-(1 - epsilon) * log_p[label] - epsilon * log_p.mean()))
    expected = mean_by_part(losses, batch.pipeline.tolist(), 0.6)
    methods.augment_batch(batch)
    assert float(loss_of(methods, batch, logits)) == pytest.approx(expected, abs=2e-6)
    # There is no split to tell of.
    assert set(methods.post_epoch({"epoch": 1})) == {"resmooth/smoothing"}


def distilled(z: Tensor, t: Tensor, label: int, temperature: float, lambda_: float, top_k: int | None) -> Tensor:
    """CE(z/T, y) + lambda T^2 KL(student || teacher) of a row, class by class."""
    kept = sorted(range(len(t)), key=lambda c: -float(t[c]))[: top_k or len(t)]
    ours = [torch.exp(z[c] / temperature) for c in kept]
    theirs = [torch.exp(t[c] / temperature) for c in kept]
    student, teacher = [o / sum(ours) for o in ours], [o / sum(theirs) for o in theirs]
    kl = sum(a * torch.log(a / b) for a, b in zip(student, teacher, strict=True))
    ce = -torch.log(torch.exp(z[label] / temperature) / torch.exp(z / temperature).sum())
    return ce + lambda_ * temperature**2 * kl


@pytest.mark.parametrize(
    ("temperature", "lambda_", "top_k"), [(5.0, 0.5, None), (2.0, 1.5, 2), (1.0, 0.0, 3), (3, 1, 4)]
)
@pytest.mark.parametrize(("rows", "base_rows"), ROWS)
def test_distillation_is_the_formula(
    rows: int, base_rows: int, temperature: float, lambda_: float, top_k: int | None
) -> None:
    network, prob = trained(), 0.4
    options = {"loss": "distill", "prob": prob, "smooth_org": 0.1}
    options |= {"temperature": temperature, "lambda_": lambda_, "top_k": top_k}
    methods = augury.compose([(ReSmooth, {"frozen": network, **options})], num_classes=C)
    methods.pre_train_stage()  # no mixture is needed
    batch = make_batch(methods, pattern(rows, base_rows))
    logits = (3 * torch.randn(rows, C, dtype=torch.float64)).requires_grad_()
    teacher = network(batch.images).detach().double()
    pipeline, losses = batch.pipeline.tolist(), []
    for made, label, z, t in zip(pipeline, batch.labels[:, 0].tolist(), logits, teacher, strict=True):
        if made == BASE:
            losses.append(-0.9 * z.log_softmax(0)[label] - 0.1 * z.log_softmax(0).mean())
        else:
            losses.append(distilled(z, t, label, temperature, lambda_, top_k))
    expected = mean_by_part(losses, pipeline, prob)  # type: ignore[arg-type]
    (wanted,) = torch.autograd.grad(expected, logits)  # type: ignore[arg-type]
    methods.augment_batch(batch)
    loss = loss_of(methods, batch, logits)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], wanted, atol=1e-6, rtol=1e-4)


def test_a_teacher_of_few_classes_is_compared_over_all() -> None:
    logits, teacher = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    torch.testing.assert_close(distillation(logits, teacher, 2.0, 7), distillation(logits, teacher, 2.0))
    assert distillation(logits, logits, 5.0).abs().max() < 1e-12


class Mixing(augury.Method):
    """Blends each row with the next one, and sets conditional logits."""

    sets_class_logits = True

    mixes = True

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        sources = torch.stack([torch.arange(len(batch)), torch.arange(len(batch)).roll(-1)], 1)
        images = 0.75 * batch.images + 0.25 * batch.images.roll(-1, 0)
        batch.mix(images, sources, torch.tensor([[0.75, 0.25]]).expand(len(batch), 2))

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, batch: augury.Batch, output: augury.ModelOutput) -> Any:
        given = output.logits[:, None] if output.class_logits is None else output.class_logits
        output.class_logits = given + torch.arange(2)[None, :, None]
        return (yield)


def test_distillation_of_mixed_rows_asks_the_teacher_about_the_mixture() -> None:
    network = trained()
    methods = augury.compose([(ReSmooth, {"frozen": network, "loss": "distill", "prob": 0.0}), Mixing], num_classes=C)
    batch, logits = make_batch(methods, [AUGMENTED] * 6), torch.randn(6, C, dtype=torch.float64)
    methods.augment_batch(batch)
    teacher, expected = network(batch.images).detach().double(), 0.0
    for row in range(6):
        for label, share in zip(batch.labels[row].tolist(), (0.75, 0.25), strict=True):
            expected -= share * float((logits[row] / 5).log_softmax(0)[label])
        expected += float(distilled(logits[row], teacher[row], 0, 5.0, 0.5, None))
        expected += float((logits[row] / 5).log_softmax(0)[0])
    assert float(loss_of(methods, batch, logits)) == pytest.approx(expected / 6, rel=1e-6)


class Conditional(augury.Method):
    """Sets conditional logits before anybody else does."""

    sets_class_logits = True

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput) -> Any:
        output.class_logits = 2 * output.logits[:, None]
        return (yield)


def test_distillation_builds_on_conditional_logits_that_are_there() -> None:
    network, options = trained(), {"loss": "distill", "prob": 0.0, "lambda_": 0.0}
    methods = augury.compose([Conditional, (ReSmooth, {"frozen": network, **options})], num_classes=C)
    batch, logits = make_batch(methods, [AUGMENTED] * 5), torch.randn(5, C, dtype=torch.float64)
    methods.augment_batch(batch)
    expected = nn.functional.cross_entropy(2 * logits / 5, batch.labels[:, 0])
    assert float(loss_of(methods, batch, logits)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("part", ["id", "ood", "mix"])
def test_fair_comparison_takes_equally_many_of_each_part(part: str) -> None:
    network = trained()
    methods = composed(network=network, fair_comparison=part, prob=0.2, smooth_aug=0.5)
    chosen: list[set[int]] = []
    for _ in range(6):
        batch = make_batch(methods, [BASE] * 8 + [AUGMENTED] * 40, seed=3)
        q = id_probabilities(network, batch)
        inside = {i for i in range(8, 48) if q[i] >= 0.5}
        outside = set(range(8, 48)) - inside
        assert min(len(inside), len(outside)) > 3
        methods.augment_batch(batch)
        methods.step()
        assert len(batch) == min(len(inside), len(outside))
        taken = set(batch.indices.tolist())
        assert len(taken) == len(batch), "each once"
        assert taken <= {"id": inside, "ood": outside, "mix": inside | outside}[part]
        expected = [(1 - q[i]) * 0.5 for i in batch.indices.tolist()]
        assert batch.smoothing[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
        assert batch.row_weights.tolist() == [1.0] * len(batch)
        chosen.append(taken)
    assert part != "mix" or any(taken & inside and taken & outside for taken in chosen)
    parts = {"id": inside, "ood": outside}
    # All of the smaller part, and another choice of the larger one in each step.
    assert len(parts.get(part, set())) == len(chosen[0]) or any(a != b for a, b in itertools.pairwise(chosen))


@pytest.mark.parametrize(
    ("options", "smoothing"),
    [({"loss": "smooth", "smooth_aug": 0.3}, 0.3), ({"loss": "distill"}, 0.0), ({"weighting": "uniform"}, None)],
)
def test_fair_comparison_judges_whatever_the_loss(options: dict[str, Any], smoothing: float | None) -> None:
    network = trained()
    methods = composed(network=network, fair_comparison="ood", prob=0.0, **options)
    batch = make_batch(methods, [AUGMENTED] * 60)
    q = id_probabilities(network, batch)
    methods.augment_batch(batch)
    assert 0 < len(batch) < 60
    assert all(q[i] < 0.5 for i in batch.indices.tolist())
    assert smoothing is None or batch.smoothing[:, 0].tolist() == pytest.approx([smoothing] * len(batch))


def test_fair_comparison_takes_256_at_most() -> None:
    methods = composed(fair_comparison="id", prob=0.0)
    batch = make_batch(methods, [AUGMENTED] * 2000)
    methods.augment_batch(batch)
    assert len(batch) == 256


def test_a_batch_without_one_part_is_skipped_and_counted() -> None:
    methods = composed(fair_comparison="mix", prob=0.0)
    for seed in (1, 2, 3):
        batch = make_batch(methods, [AUGMENTED] * (1 if seed == 1 else 60), seed=seed)
        methods.augment_batch(batch)
        assert (len(batch) == 0) == (seed == 1)
        methods.step()
    assert methods.post_epoch({"epoch": 2})["resmooth/skipped"] == pytest.approx(1 / 3)


def test_a_fair_comparison_asks_for_augmented_rows_alone() -> None:
    assert composed(fair_comparison="id").pipeline_shares == {"base": 0.0, "augmented": 1.0}


def test_a_single_image_is_not_trained_on() -> None:
    for rows in range(2, 40):
        methods = composed(fair_comparison="mix")
        batch = make_batch(methods, [AUGMENTED] * rows, seed=rows)
        methods.augment_batch(batch)
        assert len(batch) != 1


def test_views_of_an_image_stay_together_in_a_fair_comparison() -> None:
    class TwoViews(augury.Method):
        views = 2

        @augury.hookimpl
        def post_epoch(self) -> None:
            return None

    methods = composed(TwoViews, fair_comparison="ood", prob=0.0)
    batch = make_batch(methods, [AUGMENTED] * 80)
    methods.augment_batch(batch)
    assert len(batch) > 0
    assert batch.view(0).indices.tolist() == batch.view(1).indices.tolist()


def test_accuracy_is_told_by_part() -> None:
    network = trained()
    methods = composed(network=network, prob=0.2)
    right = {True: [0, 0], False: [0, 0]}
    for seed in range(3):
        batch = make_batch(methods, pattern(50, 10), seed=seed)
        logits = torch.randn(50, C)
        for q, made, label, z in zip(
            id_probabilities(network, batch), batch.pipeline.tolist(), batch.labels[:, 0].tolist(), logits, strict=True
        ):
            if made == AUGMENTED:
                right[q >= 0.5][0] += 1
                right[q >= 0.5][1] += int(z.argmax()) == label
        methods.augment_batch(batch)
        loss_of(methods, batch, logits)
    row = methods.post_epoch({"epoch": 2})
    for name, known in (("id", True), ("ood", False)):
        assert row[f"resmooth/{name}_top1"] == pytest.approx(100 * right[known][1] / right[known][0])
    assert not methods["resmooth"].answered.any(), "the next epoch starts from nothing"


@pytest.mark.parametrize("part", ["id", "ood"])
def test_accuracy_of_a_fair_comparison_is_that_of_its_part(part: str) -> None:
    methods = composed(fair_comparison=part, prob=0.0)
    batch = make_batch(methods, [AUGMENTED] * 60)
    methods.augment_batch(batch)
    loss_of(methods, batch, torch.nn.functional.one_hot(batch.labels[:, 0], C).float())
    row = methods.post_epoch({"epoch": 2})
    assert row[f"resmooth/{part}_top1"] == 100
    assert len([name for name in row if name.endswith("_top1")]) == 1


def test_rows_that_were_mixed_have_no_accuracy() -> None:
    methods = composed(Mixing, prob=0.0)
    batch = make_batch(methods, [AUGMENTED] * 30)
    methods.augment_batch(batch)
    loss_of(methods, batch, torch.randn(30, C))
    assert set(methods.post_epoch({"epoch": 2})) == {"resmooth/smoothing", "resmooth/ood_share"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss": "soft"}, "option `loss` must be one of 'sample_smooth', 'smooth' or 'distill', got 'soft'"),
        ({"weighting": "shuffled"}, "option `weighting` must be one of"),
        ({"loss": "smooth", "weighting": "reverse"}, "option `weighting` must be left out with loss=smooth"),
        ({"loss": "distill", "smooth_aug": 0.3}, "option `smooth_aug` must be left out with loss=distill"),
        ({"temperature": 2.0}, "option `temperature` must be left out with loss=sample_smooth"),
        ({"loss": "distill", "temperature": 0}, "option `temperature` must be > 0"),
        ({"loss": "distill", "temperature": math.inf}, "option `temperature` must be a finite number"),
        ({"loss": "distill", "lambda_": -1}, "option `lambda_` must be >= 0"),
        ({"loss": "distill", "top_k": 1}, "option `top_k` must be >= 2"),
        ({"loss": "distill", "top_k": 5, "frozen": Network()}, "option `top_k` must be at most the 4 classes, got 5"),
        ({"fair_comparison": "both"}, "option `fair_comparison` must be one of 'mix', 'id' or 'ood'"),
        ({"loss": "smooth", "pretrained": "run"}, "option `pretrained` must be left out here: these options need no"),
        ({"weighting": "uniform", "frozen": Network()}, "option `frozen` must be left out here"),
        ({"pretrained": "run", "frozen": Network()}, "option `frozen` must be left out where `pretrained` names"),
        ({"loss": "smooth", "variant": "official"}, "option `variant` must be left out with loss=smooth"),
        ({"fair_comparison": "id", "prob": 0.5}, "option `fair_comparison` must be left out with a `prob`"),
        (
            {"loss": "distill", "frozen": Network(), "mixture": MIXTURE},
            "option `mixture` must be left out here: these options tell no image from another",
        ),
        ({"pretrained": "run"}, 'option `pretrained` needs augury\'s own loop. Pass ("resmooth", {"frozen": model})'),
    ],
)
def test_options_that_do_not_go_together_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(augury.UsageError, match=r"^resmooth: ") as error:
        augury.compose([(ReSmooth, options)], num_classes=C)
    assert told in str(error.value)
