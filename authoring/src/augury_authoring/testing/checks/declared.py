"""What a class declares of itself, by which compositions that would be wrong are refused: held against what it does."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

import augury
from augury.choice import Chosen
from augury.method import Method, declared, hook_implementations, replaces_criterion
from augury_authoring.testing.bench import ORDINARY, Bench, CheckFailed, NotApplicable, attempt
from augury_authoring.testing.harness import STEPS, Trial, clone, differing, same
from augury_train.backbones.recomputing import statistics_kept

VIEWS = (
    "A method that compares views row by row says `views_alike = True`, and is then refused beside methods that mix "
    "each view with other images; one that does not says `views_alike = False`."
)


def declarations(bench: Bench) -> None:
    """Several views come with a word on mixing, and options declare what classes can declare."""
    cls, name = bench.cls, bench.name
    if cls.views > 1 and cls.views_alike is None:
        raise CheckFailed(f"{name}: needs {cls.views} views and does not say whether they must be mixed alike. {VIEWS}")
    for attribute in cls.declares(bench.candidate.options):
        if not isinstance(getattr(Method, attribute, None), bool) and attribute != "views_alike":
            raise CheckFailed(
                f"{name}: `declares` names `{attribute}`, which is no class attribute that is True or False. See "
                "augury.Method for those that are."
            )


def images(bench: Bench) -> None:
    """What `compute_loss` makes of the images is declared."""
    if "compute_loss" not in hook_implementations(bench.cls):
        raise NotApplicable("it has no compute_loss.")
    bench.ready()
    trials = bench.trial(), bench.trial()
    for _ in range(STEPS):
        losses = [_loss(trial, other_images=trial is trials[1]) for trial in trials]
        if losses[0] is None or losses[1] is None or same(losses[0], losses[1]):
            continue
        if not declared(bench.cls, bench.candidate.options, "reads_images"):
            raise CheckFailed(
                f"{bench.name}: its loss depends on `batch.images`, which its class does not declare. Behind a method "
                "that mixes inside the network they are not what the network saw: set `reads_images = True`, and such "
                "compositions are refused."
            )
        return


def _loss(trial: Trial, *, other_images: bool) -> Tensor | None:
    """The loss of a step, with other images put into the batch after the network has seen it."""
    batch = trial.batch()
    trial.augment(batch)
    loss = None
    if len(batch):
        output = augury.forward(trial.network, batch)
        if other_images:
            batch.images = batch.images.flip(2) + 1
        trial.seed("loss")
        loss = trial.methods.compute_loss(batch, output)
    trial.descend(loss)
    return None if loss is None else loss.detach()


class Conditional(augury.Method):
    """Sets logits that are conditional on each label."""

    contract = augury.CONTRACT_VERSION
    sets_class_logits = True

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, batch: augury.Batch, output: augury.ModelOutput) -> Generator[None, Tensor, Tensor]:
        """Raise the logit of class 0 for every label."""
        shift = torch.zeros_like(output.logits)
        shift[:, 0] = 2.0
        output.class_logits = (output.logits + shift)[:, None].expand(-1, batch.labels.shape[1], -1)
        return (yield)


def class_logits(bench: Bench) -> None:
    """A criterion reads `class_logits` if and only if it says so."""
    if not replaces_criterion(bench.cls):
        raise NotApplicable("it leaves the criterion to augury, or wraps it.")
    bench.ready()
    found = []
    for before in ((), (Chosen("conditional", Conditional, Conditional.Options()),)):
        trial = bench.trial(ORDINARY, before=before)
        found.append(attempt(lambda: _loss(trial, other_images=False), f"{bench.name}: behind `class_logits`"))  # noqa: B023
    if found[0] is None or found[1] is None:
        raise NotApplicable("it leaves no image of the batch.")
    says, reads = declared(bench.cls, bench.candidate.options, "reads_class_logits"), not same(found[0], found[1])
    if says and not reads:
        raise CheckFailed(
            f"{bench.name}: declares `reads_class_logits`, and its loss is the same whatever `output.class_logits` are."
            " Take the k-th label's logits from output.class_logits[:, k] where they are set, or do not declare it."
        )
    if reads and not says:
        raise CheckFailed(
            f"{bench.name}: its loss depends on `output.class_logits`, and its class does not declare it, so that it is"
            " refused beside methods that set them. Set `reads_class_logits = True`."
        )


def more_views(bench: Bench) -> None:
    """A batch of more views than it asks for serves it."""
    bench.ready()
    wanted = bench.cls.views + 1

    class MoreViews(Method):
        """Asks for one more view."""

        views = wanted

    trial = attempt(
        lambda: bench.trial(ORDINARY, after=[Chosen("more_views", MoreViews, MoreViews.Options())]),
        f"{bench.name}: beside a method that needs {wanted} views",
    )
    for _ in range(2):
        attempt(
            lambda: trial.step(),
            f"{bench.name}: on a batch of {wanted} views, as another method may need; it asks for {bench.cls.views}, "
            "and takes the first of more",
        )


def again(bench: Bench) -> None:
    """The loss of one batch, computed again, is the same, and moves no state."""
    if "compute_loss" not in hook_implementations(bench.cls):
        raise NotApplicable("it has no compute_loss.")
    bench.ready()
    trial = bench.trial()
    advice = (
        "A step's loss may be computed twice on one batch (optim.sam). While `run.again` is True, statistics and "
        "queues are left as they are; draws come from run.generator and run.random, which repeat; what joins a queue "
        "joins it in post_step, or it would be in it already the second time."
    )
    while trial.step_number < STEPS:
        batch = trial.batch()
        trial.augment(batch)
        if not len(batch):
            trial.descend(None)
            continue
        loss = trial.loss(batch)
        before = clone(trial.methods.state_dict())
        with trial.methods.again(), statistics_kept(trial.methods):
            second = trial.loss(batch)
        if found := differing(trial.methods.state_dict(), before):
            raise CheckFailed(
                f"{bench.name}: when a step's loss is computed again, its `{found[0]}` moves once more. {advice}"
            )
        if not torch.allclose(loss, second, rtol=1e-5, equal_nan=True):
            raise CheckFailed(
                f"{bench.name}: when the loss of step {trial.step_number} is computed again on the same batch, it is "
                f"{float(second.detach()):.6g} instead of {float(loss.detach()):.6g}. {advice}"
            )
        # The first one's graph may have been changed meanwhile.
        trial.descend(second)
