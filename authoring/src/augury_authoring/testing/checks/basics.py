"""The class itself, and one ordinary walk: hooks, a step, batch, labels, loss, gradients, the pre-train stage."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import augury
from augury.batch import Batch
from augury.criterion import Criterion
from augury.method import hook_implementations, replaces_criterion
from augury_authoring.testing.bench import Bench, CheckFailed, NotApplicable, attempt, told
from augury_authoring.testing.harness import STEPS, Trial, differing, same

NEAR = 1e-6
"""How far two losses may be apart, relatively, for no other reason than rounding."""


def hooks(bench: Bench) -> None:
    """Every hook has a signature that can be called, and what the class declares is valid."""
    if bench.hook_faults:
        raise CheckFailed(bench.hook_faults)


def a_step(bench: Bench) -> None:
    """A training of two epochs raises nothing."""
    if bench.hook_faults:
        bench.ready()
    if bench.stage_error is not None:
        raise NotApplicable("its pre-train stage fails; see test_pre_train_stage.")
    if bench.ordinary.error is not None:
        raise CheckFailed(f"in an ordinary step on {bench.images} images of 3 x 8 x 8: {told(bench.ordinary.error)}")
    if not bench.ordinary.losses and not bench.ordinary.misshapen:
        raise CheckFailed(
            f"{bench.name}: takes all images out of every batch of {bench.images}, so nothing is trained. Test it with "
            "options that leave some: options = {...} in the test's class."
        )


def batch_form(bench: Bench) -> None:
    """After augment_batch every field has its shape, dtype and device."""
    _faults(bench, "shape", "form")


def labels(bench: Bench) -> None:
    """Label shares are in [0, 1] and sum to 1, labels are classes, smoothing is in [0, 1], row weights are no less than
    0."""
    _faults(bench, "label")


def kept(bench: Bench) -> None:
    """The weights and the smoothing that rows come with are changed, not replaced."""
    bench.ready()
    trials = bench.trial(), bench.trial()
    for number in range(STEPS):
        plain, given = (trial.batch(number) for trial in trials)
        # Each row has other values than any mixture or mean of rows.
        rows = torch.linspace(0.3, 0.6, len(given)).square()
        plain.row_weights, plain.smoothing = torch.ones_like(rows), torch.zeros_like(rows)[:, None]
        plain.label_weights = torch.ones_like(rows)[:, None]
        given.row_weights, given.smoothing = 1 + rows, rows[:, None].clone()
        given.label_weights = 2 + rows[:, None]
        for trial, batch in zip(trials, (plain, given), strict=True):
            trial.augment(batch)
        _not_replaced(bench.name, "augment_batch", plain, given)
        for trial, batch in zip(trials, (plain, given), strict=True):
            if len(batch):
                trial.loss(batch)
            trial.methods.step()
        _not_replaced(bench.name, "compute_loss", plain, given)


def _not_replaced(name: str, hook: str, plain: Batch, given: Batch) -> None:
    """Fail where rows that came with other weights, or with another smoothing, have the same now."""
    for field, full, advice in (
        ("row_weights", 0.0, "Multiply them: batch.row_weights = batch.row_weights * w."),
        ("label_weights", 0.0, "Multiply them: batch.label_weights = batch.label_weights * w."),
        ("smoothing", 1.0, "Smoothing by a and then by b is smoothing by a + (1 - a) b."),
    ):
        one, other = getattr(plain, field), getattr(given, field)
        if one.shape != other.shape:
            continue  # the method chooses rows by these
        lost = ((one == other) & (one != full)).nonzero()
        if len(lost):
            place = tuple(lost[0].tolist())
            raise CheckFailed(
                f"{name}: {hook} sets `{field}` of row {place[0]} to {float(one[place]):.4g} whatever it was, which "
                f"throws away what the run's settings and other methods say of the row. {advice}"
            )


def loss(bench: Bench) -> None:
    """The loss is one finite float32 number on the batch's device."""
    _faults(bench, "loss")


def criterion(bench: Bench) -> None:
    """A criterion of the method's own heeds the shares of a row's labels and the weights of rows."""
    if not replaces_criterion(bench.cls):
        raise NotApplicable("it leaves the criterion to augury, or wraps it.")
    bench.ready()
    where = f"{bench.name}: on rows that have two labels"
    told = attempt(lambda: _two_labels(bench), where)
    for changed, what, advice in _HEEDED:
        if same(told, attempt(partial(_two_labels, bench, **changed), where)):
            raise CheckFailed(
                f"{bench.name}: it replaces the criterion, and its loss is the same when {what}: what other methods "
                f"and the run's settings say of rows is lost. In compute_loss, {advice}."
            )


_HEEDED: tuple[tuple[dict[str, float], str, str], ...] = (
    (
        {"share": 0.2},
        "the two labels of each row swap their shares, 0.8 and 0.2",
        "labels are M x K, and `shares` says how much of a row each is: batch.soft_targets(run.num_classes) has them "
        "as M x C",
    ),
    (
        {"weight": 1.5},
        "the weights of its labels change",
        "multiply each label's part by batch.label_weights (row weights are augury's affair)",
    ),
)


def _two_labels(bench: Bench, share: float = 0.8, weight: float = 0.5) -> Tensor:
    """The loss of a batch whose rows have a neighbour's label beside their own, each with a weight."""
    trial = bench.trial()
    batch = trial.batch(0)
    trial.augment(batch)
    if not len(batch):
        raise NotApplicable("it leaves no image of the batch.")
    rows = torch.arange(len(batch)).view(batch.views, -1).roll(1, 1).flatten()
    batch.labels = torch.cat([batch.labels, batch.labels[rows]], 1)
    batch.shares = torch.cat([share * batch.shares, (1 - share) * batch.shares[rows]], 1)
    batch.smoothing = torch.cat([batch.smoothing, batch.smoothing[rows]], 1)
    batch.label_weights = torch.cat([weight * batch.label_weights, (2 - weight) * batch.label_weights[rows]], 1)
    return trial.loss(batch).detach()


def _faults(bench: Bench, *kinds: str) -> None:
    bench.ready(shaped="shape" not in kinds)
    found = [fault.text for fault in bench.ordinary.faults if fault.kind.startswith(kinds)]
    if found:
        where = "compute_loss" if "loss" in kinds else "augment_batch"
        raise CheckFailed(f"{bench.name}: after {where}: " + "\n".join(found))


def gradients(bench: Bench) -> None:
    """Gradients reach every parameter of the network and of the method, are finite, and are those of the loss."""
    bench.ready()
    walk, trial = bench.ordinary, bench.trial()
    if not walk.differentiable:
        raise CheckFailed(
            f"{bench.name}: the loss has no gradient: `loss.backward()` would fail. Something detaches it: .detach(), "
            ".item(), float(loss), torch.no_grad() or a tensor made anew."
        )
    if left := [fault.text for fault in walk.faults if fault.kind.startswith("gradient")]:
        raise CheckFailed(f"{bench.name}: {left[0]}")
    own, network = trial.methods[bench.name], trial.network
    wanted = [f"network.{name}" for name, _ in network.named_parameters()]
    wanted += [f"{bench.name}.{name}" for name, p in own.named_parameters() if p.requires_grad]
    if walk.broken:
        raise CheckFailed(f"{bench.name}: gradients that are not finite, of {_some(sorted(walk.broken))}.")
    missed = [name for name in wanted if name not in walk.reached]
    if missed:
        raise CheckFailed(
            f"{bench.name}: in {len(walk.losses)} steps no gradient reached {_some(missed)}. A parameter of the method "
            "must take part in the loss (state that is not trained is a buffer); a parameter of the network is missed "
            "where the loss is detached from it. Where a term starts later, options = {...} in the test's class lets "
            "it start at once; where a parameter is meant to take no part, `test_gradients_arrive = None` says so."
        )
    if _detached_term(bench, trial):
        raise CheckFailed(
            f"{bench.name}: it changes the loss, and no gradient: what it adds trains nothing. Something detaches it: "
            ".detach(), .item(), float(...), torch.no_grad() or a tensor made anew. A number that is only to be seen "
            "goes to run.log(name, value)."
        )


def _detached_term(bench: Bench, trial: Trial) -> bool:
    """Whether the loss is another than the criterion's on the same batch, and all gradients are the same, in each step
    in which it is another."""
    if "compute_loss" not in hook_implementations(bench.cls) or replaces_criterion(bench.cls):
        return False
    weights = [p for p in (*trial.network.parameters(), *trial.methods.parameters()) if p.requires_grad]
    changed = False
    for _ in range(STEPS):
        batch, loss = trial.batch(), None
        trial.augment(batch)
        if len(batch):
            output = augury.forward(trial.network, batch)
            plain = Criterion().compute_loss(batch, output)
            # At once: the method may change the output in place.
            wanted = _gradients(plain, weights)
            trial.seed("loss")
            loss = trial.methods.compute_loss(batch, output)
            number, bare = float(loss.detach()), float(plain.detach())
            if abs(number - bare) > NEAR * max(1.0, abs(bare)) and loss.requires_grad:
                changed = True
                if not all(map(same, wanted, _gradients(loss, weights))):
                    return False
        trial.descend(loss)
    return changed


def _gradients(loss: Tensor, weights: list[torch.nn.Parameter]) -> list[Tensor]:
    """Those of a loss, 0 where it does not depend on a weight; its graph is kept."""
    return list(torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True))


def stage(bench: Bench) -> None:
    """The pre-train stage runs, and makes the same state again, whatever global generators hold."""
    if not bench.has_stage:
        raise NotApplicable("it has no pre-train stage.")
    if bench.hook_faults:
        bench.ready()
    if bench.stage_error is not None:
        raise CheckFailed(f"on {bench.images} digits a batch: {told(bench.stage_error)}")
    one = bench.chosen().made
    assert one is not None
    other = bench.after_stage(start=1)
    if found := differing(one.state_dict(), other.state_dict()):
        raise CheckFailed(
            f"{bench.name}: its pre-train stage, run twice with one seed, made another {_some(found)}. Draw from "
            "run.generator and run.random, and give what draws by itself (scikit-learn's random_state, say) a seed "
            "from run.random."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"`{name}`" for name in names[:4]) + more
