"""AgMax in a composition: the loss in float64, the Q-network's life, mixing of each view, two processes."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from tests.plugins.agmax.reference import (
    AGREEMENTS,
    CLASSES,
    N,
    batch_of,
    composed,
    formula,
    log_softmax,
    random_output,
)
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury_agmax import AgMax
from augury_dcutmix import DCutMix
from augury_train.config import read_config, read_recipe
from augury_train.training.plan import make_plan


@pytest.mark.parametrize("beta", [0.0, 4.0, 0.5])
@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("scale", [2.0, 50.0])
def test_loss_and_gradients_are_the_formulas(beta: float, n: int, scale: float) -> None:
    methods = composed(dl_weight=beta).double()
    batch, output = batch_of(methods, n), random_output(2 * n, scale)
    wanted = [output.logits, *methods.parameters()]
    assert len(wanted) == 5

    loss = methods.compute_loss(batch, output)
    expected = formula(output.logits, methods["agmax"].q, batch.soft_targets(CLASSES), beta)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = torch.autograd.grad(loss, wanted)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("classes", [2, 1000])
def test_few_and_many_classes_with_the_width_that_follows(classes: int) -> None:
    methods = composed(classes=classes, n_units=None).double()
    batch, output = batch_of(methods, 3), random_output(6, classes=classes)
    loss = methods.compute_loss(batch, output)
    expected = formula(output.logits, methods["agmax"].q, batch.soft_targets(classes))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(one, output.logits)[0] for one in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_float32_is_close_and_an_extreme_prediction_finite() -> None:
    methods = composed()
    batch = batch_of(methods)
    for scale in (2.0, 50.0, 1e4):
        logits = random_output(scale=scale).logits.detach().float().requires_grad_()
        loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(2 * N, 3), logits))
        expected = formula(logits, methods["agmax"].q, batch.soft_targets(CLASSES))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in [logits, *methods.parameters()])


def test_a_float64_network_trains_with_a_float32_q_network() -> None:
    methods = composed()
    batch, output = batch_of(methods), random_output()
    loss = methods.compute_loss(batch, output)
    assert loss.dtype == torch.float64
    expected = formula(output.logits, methods["agmax"].q, batch.soft_targets(CLASSES))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


class Conditional(augury.Method):
    """Sets logits conditional on the label, as ISDA does."""

    sets_class_logits = True

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput) -> Generator[None, Tensor, Tensor]:
        output.class_logits = torch.zeros(len(output.logits), 1, CLASSES).double()
        return (yield)


@pytest.mark.parametrize("first", [True, False])
def test_the_terms_are_of_the_logits_whatever_the_criterion_sees(first: bool) -> None:
    methods = composed(Conditional) if first else composed(after=[Conditional])
    methods.double()
    batch, output = batch_of(methods), random_output()
    targets = batch.soft_targets(CLASSES)
    own = formula(output.logits, methods["agmax"].q, targets)
    cross_entropy = -(targets * log_softmax(output.logits)).sum(1).mean()
    # The criterion sees uniform predictions.
    expected = own - cross_entropy + torch.tensor(CLASSES).double().log()
    assert methods.compute_loss(batch, output).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("mode", ["dcutmix", "dmixup"])
@pytest.mark.parametrize("mixing_first", [True, False])
def test_each_view_is_mixed_by_itself_with_its_own_soft_labels(mixing_first: bool, mode: str) -> None:
    mixing = (DCutMix, {"k": 3, "alpha": 1.0, "mode": mode})
    methods = composed(mixing) if mixing_first else composed(after=[mixing])
    methods.double()
    batch = batch_of(methods)
    methods.augment_batch(batch)
    targets = batch.soft_targets(CLASSES)
    assert not torch.equal(targets[:N], targets[N:])
    output = random_output()
    expected = formula(output.logits, methods["agmax"].q, targets)
    assert methods.compute_loss(batch, output).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_draws_of_mixing_are_the_same_without_it() -> None:
    mixing = (DCutMix, {"k": 3, "alpha": 1.0})
    batches = []
    for methods in (composed(mixing), composed(after=[mixing])):
        batches.append(batch_of(methods))
        methods.augment_batch(batches[-1])
    alone = augury.compose([mixing], num_classes=CLASSES)
    batches.append(batch_of(composed()))
    alone.augment_batch(batches[-1])
    for batch in batches[1:]:
        assert torch.equal(batch.images, batches[0].images)
        assert torch.equal(batch.shares, batches[0].shares)


def test_the_q_network_trains() -> None:
    methods = composed()
    batch = batch_of(methods)
    logits = random_output().logits.detach().float()
    optimizer = torch.optim.SGD(methods.parameters(), lr=0.5)
    before = [p.detach().clone() for p in methods.parameters()]
    losses = []
    for _ in range(30):
        loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(2 * N, 3), logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        methods.step()
        losses.append(loss.item())
    # The logits are fixed: only the Q-network can make the two views' prediction agree.
    assert losses[-1] < losses[0] - 0.05
    assert all(not torch.equal(old, new) for old, new in zip(before, methods.parameters(), strict=True))
    logged = methods.post_epoch({})
    assert logged.keys() == {"agmax/entropy", "agmax/disagreement"}
    assert 0 < logged["agmax/disagreement"] < 1


def test_its_state_is_its_own_and_survives_a_checkpoint() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    keys = list(network.state_dict())
    methods = augury.compose([(AgMax, {"n_units": 8})], num_classes=CLASSES, network=network, classifier=network[1])
    state = methods.state_dict()
    assert set(state) == {
        "step",
        *(f"methods.agmax.q.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")),
    }
    assert list(network.state_dict()) == keys
    assert not {id(p) for p in network.parameters()} & {id(p) for p in methods.parameters()}

    other = composed(seed=9)
    batch, output = batch_of(methods), random_output()
    loss = methods.compute_loss(batch, output).item()
    assert other.compute_loss(batch, output).item() != loss
    other.load_state_dict(state)
    assert other.compute_loss(batch, output).item() == loss


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = composed(seed=3).state_dict()["methods.agmax.q.0.weight"]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(composed(seed=3).state_dict()["methods.agmax.q.0.weight"], first)
    assert not torch.equal(composed(seed=4).state_dict()["methods.agmax.q.0.weight"], first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("classes", "options", "units"), [(10, {}, 128), (100, {}, 512), (10, {"n_units": 7}, 7)])
def test_width_of_the_q_network(classes: int, options: dict[str, int], units: int) -> None:
    q = augury.compose([(AgMax, options)], num_classes=classes)["agmax"].q
    assert [tuple(p.shape) for p in q.parameters()] == [(units, 2 * classes), (units,), (classes, units), (classes,)]


def test_one_view_is_refused() -> None:
    message = r"^agmax: needs 2 view\(s\) of each image, got 1\. Pass a tuple of 2\.$"
    with pytest.raises(augury.UsageError, match=message):
        composed().batch(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [("dl_weight", -1.0, ">= 0"), ("dl_weight", float("nan"), "a finite number"), ("n_units", 0, ">= 1")],
)
def test_options_out_of_range_are_refused(option: str, value: float, allowed: str) -> None:
    with pytest.raises(augury.UsageError, match=f"agmax: option `{option}` must be {allowed}"):
        composed(**{option: value})


def terms(rank: int, size: int, folder: Path) -> None:
    """Loss and gradients of one process's images by agreement, as data-parallel training averages them."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    found = {}
    for agreement in AGREEMENTS:
        methods = composed(agreement=agreement)
        whole, output = batch_of(methods), random_output()
        n = N // size
        rows = torch.cat([torch.arange(n) + view * N + rank * n for view in range(2)])
        torch.manual_seed(3)
        last = nn.Linear(CLASSES, CLASSES)
        batch = augury.Batch.of(whole.images[rows], whole.labels[rows, 0], views=2)
        logits = last(output.logits.detach().float()[rows])
        loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(2 * n, 3), logits))
        loss.backward()
        ranks = augury.Ranks()
        gradients = [p.grad for p in [*last.parameters(), *methods.parameters()] if p.grad is not None]
        found[agreement] = [ranks.mean(t) for t in (loss.detach(), *gradients)]
    torch.save(found, folder / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_on_half_batches_are_one_on_the_whole(tmp_path: Path) -> None:
    terms(0, 1, tmp_path)
    mp.spawn(terms, args=(2, tmp_path), nprocs=2)
    one, *both = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert {agreement: len(tensors) for agreement, tensors in one.items()} == {"mi": 7, "mse": 3, "kl": 3, "ce": 3}
    for found in both:
        for agreement, tensors in one.items():
            for ours, expected in zip(found[agreement], tensors, strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_the_recipe_is_one_that_can_run() -> None:
    path = Path(inspect.getfile(AgMax)).parent / "recipes" / "digits.toml"
    plan = make_plan(read_config(read_recipe(path)))
    assert [(c.name, c.options) for c in plan.chosen] == [("agmax", AgMax.Options())]
