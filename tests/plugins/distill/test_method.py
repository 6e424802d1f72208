"""Distillation in a composition: what share the teacher has in the loss, and which images it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.plugins.distill.networks import Teacher
from tests.train.small_runs import rows_of, small
from torch import Tensor, nn

import augury
from augury.choice import Chosen
from augury.composition import Composition
from augury_distill import Distill
from augury_distill.functional import divergences
from augury_train.training.plan import make_plan
from augury_train.training.trainer import train

CLASSES, FEATURES = 10, 4


class Recording(Teacher):
    """A teacher that keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        assert not torch.is_grad_enabled()
        assert not self.training
        return super().forward(images)


class ConditionalLogits(augury.Method):
    """Sets logits conditional on the label, as isda does."""

    sets_class_logits = True

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, batch: augury.Batch, output: augury.ModelOutput) -> Any:
        output.class_logits = 3 * output.logits[:, None].expand(-1, batch.labels.shape[1], -1)
        return (yield)


def composed(*others: Any, teacher: Any = None, before: Any = (), **options: Any) -> augury.Composition:
    given = {"teacher": Teacher() if teacher is None else teacher, **options}
    return augury.compose(
        [*before, (Distill, given), *others], num_classes=CLASSES, classifier=nn.Linear(FEATURES, CLASSES)
    )


def made(methods: augury.Composition, n: int = 6, seed: int = 0) -> tuple[augury.Batch, augury.ModelOutput]:
    """An augmented batch, smoothed and weighted, and what a network made of it."""
    draws = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 3, 8, 8, generator=draws) for _ in range(methods.views)]
    batch = methods.batch(views, torch.randint(0, CLASSES, (n,), generator=draws))
    rows = len(batch)
    batch.smoothing = 0.3 * torch.rand(rows, 1, generator=draws)
    batch.label_weights = 0.2 + torch.rand(rows, 1, generator=draws)
    batch.row_weights = 0.5 + torch.rand(rows, generator=draws)
    methods.augment_batch(batch)
    logits = 2 * torch.randn(rows, CLASSES, generator=draws, dtype=torch.float64)
    features = torch.randn(rows, FEATURES, generator=draws, dtype=torch.float64)
    return batch, augury.ModelOutput(features, logits.requires_grad_())


def checkpointed(folder: Path) -> list[str]:
    """The keys of a run's checkpoints, at all depths."""
    found: list[str] = []
    waiting = [torch.load(path, weights_only=True) for path in folder.glob("**/*.pt")]
    assert waiting
    while waiting:
        if isinstance(part := waiting.pop(), dict):
            found += map(str, part)
            waiting += part.values()
    return found


def expected(
    batch: augury.Batch, logits: Tensor, t: float, weight: float, class_logits: Tensor | None = None
) -> Tensor:
    """(1 - weight) * criterion + weight * T^2 KL, row by row and label by label."""
    with torch.no_grad():
        teacher = Teacher().eval()(batch.images).double()
    given = logits[:, None].expand(-1, batch.labels.shape[1], -1) if class_logits is None else class_logits
    log_p, log_u = given.log_softmax(2), logits.log_softmax(1)
    p, log_q = (teacher / t).softmax(1), (logits / t).log_softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch)):
        kl = t * t * (p[i] * (p[i].log() - log_q[i])).sum()
        row = torch.zeros((), dtype=torch.float64)
        for k, label in enumerate(batch.labels[i]):
            eps, share = batch.smoothing[i, k].double(), (batch.shares * batch.label_weights)[i, k].double()
            ce = -(1 - eps) * log_p[i, k, label] - eps * log_u[i].mean()
            row = row + share * ((1 - weight) * ce + weight * kl)
        total = total + batch.row_weights[i].double() * row / len(batch)
    return total


@pytest.mark.parametrize("before", [(), (("dcutmix", {"k": 3, "alpha": 1.0}),)])
@pytest.mark.parametrize(("t", "weight"), [(4.0, 0.9), (1.0, 0.3), (2.5, 0.0), (20.0, 1.0)])
@pytest.mark.parametrize("n", [1, 6])
def test_the_loss_is_the_formula(before: tuple[Any, ...], t: float, weight: float, n: int) -> None:
    methods = composed(before=before, temperature=t, weight=weight)
    batch, output = made(methods, n)
    logits = output.logits
    loss = methods.compute_loss(batch, output)
    torch.testing.assert_close(loss, expected(batch, logits, t, weight), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    again = logits.detach().requires_grad_()
    (reference,) = torch.autograd.grad(expected(batch, again, t, weight), again)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("first", [True, False])
def test_logits_conditional_on_a_label_are_the_criterions_alone(first: bool) -> None:
    mixing = ("dcutmix", {"k": 2, "alpha": 1.0})
    methods = composed(ConditionalLogits, before=(mixing,)) if first else composed(before=(mixing, ConditionalLogits))
    batch, output = made(methods)
    logits = output.logits.detach()
    loss = methods.compute_loss(batch, output)
    conditional = 3 * logits[:, None].expand(-1, batch.labels.shape[1], -1)
    torch.testing.assert_close(loss.detach(), expected(batch, logits, 4.0, 0.9, conditional), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", [True, False])
def test_other_methods_terms_keep_their_size(before: bool) -> None:
    """AgMax's term is what it is without a teacher: the difference of the two losses is the same."""

    def losses(weight: float) -> tuple[float, augury.Batch, Tensor]:
        agmax = ("agmax", {"agreement": "mse"})
        methods = composed(before=(agmax,), weight=weight) if before else composed(agmax, weight=weight)
        batch, output = made(methods)
        return float(methods.compute_loss(batch, output).detach()), batch, output.logits.detach()

    plain, batch, logits = losses(0.0)
    taught, _, _ = losses(0.75)
    term = float((logits[:6] - logits[6:]).square().mean())
    assert plain == pytest.approx(float(expected(batch, logits, 4.0, 0.0)) + term, rel=1e-5)
    assert taught == pytest.approx(float(expected(batch, logits, 4.0, 0.75)) + term, rel=1e-5)


def test_the_teacher_sees_the_images_as_the_methods_left_them() -> None:
    methods = composed(before=(("dcutmix", {"k": 2, "alpha": 1.0}),), teacher=Recording())
    batch, output = made(methods)
    assert batch.mixed
    methods.compute_loss(batch, output)
    (seen,) = methods["distill"].teacher.module.seen
    assert torch.equal(seen, batch.images)
    methods.eval().train()
    methods.post_epoch({})
    assert len(methods["distill"].teacher.module.seen) == 1, "nothing but a loss asks the teacher"


def test_a_methods_row_weights_leave_rows_out_of_the_teachers_part_as_well() -> None:
    methods = augury.compose(["augmix", (Distill, {"teacher": Teacher()})], num_classes=CLASSES)
    batch, output = made(methods)
    logits = output.logits.detach()
    loss = float(methods.compute_loss(batch, output).detach())
    p = logits.unflatten(0, (3, -1)).softmax(2)
    divergence = float((p * (p / p.mean(0)).log()).sum(2).mean())
    assert loss == pytest.approx(float(expected(batch, logits, 4.0, 0.9)) + 12 * divergence, rel=1e-5)
    assert (batch.row_weights == 0).sum() == 12


def test_the_teacher_is_a_copy_without_gradient_and_is_saved() -> None:
    teacher = Teacher()
    methods = composed(teacher=teacher)
    batch, output = made(methods)
    with torch.no_grad():
        teacher.fc.weight.zero_()
    methods.compute_loss(batch, output).backward()
    assert list(methods.parameters()) == []
    assert "methods.distill.teacher.module.fc.weight" in methods.state_dict()
    assert methods["distill"].teacher.module.fc.weight.any()
    other = composed(teacher=Teacher(seed=1))
    other.load_state_dict(methods.state_dict())
    (batch, output), (again, same) = made(methods), made(other)
    assert torch.equal(methods.compute_loss(batch, output), other.compute_loss(again, same))


def test_a_loss_that_is_asked_again_is_the_same() -> None:
    methods = composed()
    batch, output = made(methods)
    first = methods.compute_loss(batch, output)
    with methods.again():
        assert torch.equal(methods.compute_loss(batch, output), first)


def test_it_logs_the_divergence_without_its_weight() -> None:
    methods = composed(temperature=3.0)
    batch, output = made(methods)
    methods.compute_loss(batch, output)
    with torch.no_grad():
        rows = divergences(output.logits, Teacher().eval()(batch.images).double(), 3.0)
    rows = rows * (batch.shares * batch.label_weights).sum(1)
    assert methods.post_epoch({}) == {"distill/divergence": pytest.approx(float(rows.mean()))}


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("teacher", "", "a run's folder, a file of weights, a name of timm's, or in Python an nn.Module"),
        ("teacher", 3, "a run's folder, a file of weights, a name of timm's, or in Python an nn.Module"),
        ("teacher", None, "a run's folder, a file of weights, a name of timm's, or in Python an nn.Module"),
        ("temperature", 0.0, "> 0"),
        ("temperature", float("inf"), "a finite number"),
        ("weight", -0.1, ">= 0"),
        ("weight", 1.1, "<= 1"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, allowed: str) -> None:
    options = {"teacher": Teacher(), option: value}
    with pytest.raises(augury.UsageError) as caught:
        augury.compose([(Distill, options)], num_classes=CLASSES)
    line = str(caught.value)
    assert line.startswith(f"distill: option `{option}` must be {allowed}, got ")
    assert "\n" not in line


def test_a_teacher_is_required() -> None:
    with pytest.raises(augury.UsageError, match="^distill: option `teacher` must be given, got nothing.$"):
        make_plan(small("distill"))


def test_a_place_is_refused_in_a_loop_that_reads_no_networks() -> None:
    with pytest.raises(augury.UsageError) as refused:
        composed(teacher="runs/first")
    assert str(refused.value) == (
        "distill: option `teacher` is 'runs/first', and this loop reads no networks. Give the network itself, an "
        "nn.Module: the batch's images -> logits."
    )


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("no/such/run", "distill: option `teacher`: no/such/run: no such file or folder, and timm has no model of "),
        ("test_resnet", "distill: option `teacher`: test_resnet: timm's pretrained weights know 1000 classes"),
    ],
)
def test_a_teacher_that_cannot_be_read_is_refused_before_training(place: str, why: str) -> None:
    with pytest.raises(augury.UsageError) as refused:
        make_plan(small(("distill", {"teacher": place})))
    assert str(refused.value).startswith(why)


def test_a_teacher_of_other_classes_is_refused_at_the_first_loss() -> None:
    methods = composed(teacher=Teacher(classes=7))
    batch, output = made(methods)
    with pytest.raises(augury.UsageError, match=r"distill: option `teacher`: its logits have the shape \(6, 7\), "):
        methods.compute_loss(batch, output)


def test_hidden_mixing_is_refused_beside_it() -> None:
    class MixesInside(augury.Method):
        mixes_hidden = True

        @augury.hookimpl
        def augment_batch(self) -> None:
            pass

    with pytest.raises(augury.UsageError, match="distill looks at the images that the network saw, and mixesinside"):
        composed(MixesInside)


def test_it_trains_with_dcutmix_and_isda_from_a_run(tmp_path: Path) -> None:
    train(small(optim={"epochs": 1}), tmp_path / "teacher")
    options = {"teacher": str(tmp_path / "teacher")}
    train(small("dcutmix", "isda", ("distill", options), optim={"epochs": 1}), tmp_path / "student")
    (row,) = rows_of(tmp_path / "student")
    assert row["distill/divergence"] > 0
    assert not [key for key in checkpointed(tmp_path / "student") if "distill" in key or "teacher" in key]


def test_a_teacher_is_read_before_the_first_checkpoint() -> None:
    class Lends:
        read: list[str] = []

        def read_network(self, place: str) -> nn.Module:
            self.read.append(place)
            return Teacher()

    spec = augury.Spec(num_classes=CLASSES)
    methods = Composition([Chosen("distill", Distill, Distill.Options(teacher="anywhere"))], spec)
    methods.pre_train_stage(Lends())  # type: ignore[arg-type]
    assert Lends.read == ["anywhere"]
    batch, output = made(methods)
    logits = output.logits.detach()
    loss = methods.compute_loss(batch, output).detach()
    torch.testing.assert_close(loss, expected(batch, logits, 4.0, 0.9), rtol=1e-5, atol=1e-6)
    assert Lends.read == ["anywhere"]
    assert list(methods.state_dict()) == ["step"]
