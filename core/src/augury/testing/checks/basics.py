"""The class itself, and one ordinary walk: hooks, a step, batch, labels, loss, gradients, the pre-train stage."""

from __future__ import annotations

from augury.testing.bench import Bench, CheckFailed, NotApplicable, told
from augury.testing.harness import differing


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


def loss(bench: Bench) -> None:
    """The loss is one finite float32 number on the batch's device."""
    _faults(bench, "loss")


def _faults(bench: Bench, *kinds: str) -> None:
    bench.ready(shaped="shape" not in kinds)
    found = [fault.text for fault in bench.ordinary.faults if fault.kind.startswith(kinds)]
    if found:
        where = "compute_loss" if "loss" in kinds else "augment_batch"
        raise CheckFailed(f"{bench.name}: after {where}: " + "\n".join(found))


def gradients(bench: Bench) -> None:
    """Gradients reach every parameter of the network and of the method, and are finite."""
    bench.ready()
    walk, trial = bench.ordinary, bench.trial()
    if not walk.differentiable:
        raise CheckFailed(
            f"{bench.name}: the loss has no gradient: `loss.backward()` would fail. Something detaches it: .detach(), "
            ".item(), float(loss), torch.no_grad() or a tensor made anew."
        )
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
            "where the loss, or a part of it, is detached."
        )


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
