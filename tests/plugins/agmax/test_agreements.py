"""The agreements beside mutual information: mean squared error, divergence and cross-entropy of the two views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.plugins.agmax.reference import (
    AGREEMENTS,
    CLASSES,
    N,
    batch_of,
    composed,
    formula,
    random_output,
    simple_formula,
)
from tests.train.small_runs import assert_same_run, resumed, rows_of, small
from torch import Tensor, nn

import augury
from augury_agmax import AgMax
from augury_dcutmix import DCutMix
from augury_train.training.checkpoint import load_checkpoint
from augury_train.training.trainer import train

SIMPLE = AGREEMENTS[1:]


def expected_loss(methods: augury.Composition, logits: Tensor, targets: Tensor) -> Tensor:
    agmax = methods["agmax"]
    agreement = agmax.options.agreement
    if agreement == "mi":
        return formula(logits, agmax.q, targets)
    return simple_formula(agreement, logits, targets)


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (1, 4), (5, 4), (6, 4), (3, 1000)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
@pytest.mark.parametrize("agreement", SIMPLE)
def test_loss_and_gradient_are_the_formulas(agreement: str, scale: float, n: int, classes: int) -> None:
    methods = composed(agreement=agreement, classes=classes)
    batch, output = batch_of(methods, n), random_output(2 * n, scale, classes)
    loss = methods.compute_loss(batch, output)
    expected = simple_formula(agreement, output.logits, batch.soft_targets(classes))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=1e-11)
    ours, theirs = (torch.autograd.grad(one, output.logits)[0] for one in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("scale", [2.0, 50.0, 1e4])
@pytest.mark.parametrize("agreement", SIMPLE)
def test_float32_is_close_and_an_extreme_prediction_finite(agreement: str, scale: float) -> None:
    methods = composed(agreement=agreement)
    batch = batch_of(methods)
    logits = random_output(scale=scale).logits.detach().float().requires_grad_()
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(2 * N, 3), logits))
    assert loss.item() == pytest.approx(expected_loss(methods, logits, batch.soft_targets(CLASSES)).item(), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_under_bf16_autocast_the_loss_is_float32_of_the_rounded_logits(agreement: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    methods = composed(agreement=agreement)
    batch = batch_of(methods)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(batch.images)
        loss = methods.compute_loss(batch, augury.ModelOutput(batch.images.flatten(1), logits))
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    expected = expected_loss(methods, logits, batch.soft_targets(CLASSES))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    for parameter in (*network.parameters(), *methods.parameters()):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["dcutmix", "dmixup"])
@pytest.mark.parametrize("agreement", SIMPLE)
def test_with_mixing_each_view_has_its_own_soft_labels(agreement: str, mode: str) -> None:
    # K = 2 is the papers' CutMix and Mixup.
    methods = composed((DCutMix, {"k": 2, "alpha": 1.0, "mode": mode}), agreement=agreement)
    batch = batch_of(methods)
    methods.augment_batch(batch)
    targets = batch.soft_targets(CLASSES)
    assert not torch.equal(targets[:N], targets[N:])
    output = random_output()
    expected = simple_formula(agreement, output.logits, targets)
    assert methods.compute_loss(batch, output).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("agreement", SIMPLE)
def test_there_is_no_q_network_and_the_agreement_is_logged(agreement: str) -> None:
    methods = composed(agreement=agreement)
    assert methods["agmax"].q is None
    assert list(methods.parameters()) == []
    assert set(methods.state_dict()) == {"step"}
    batch, output = batch_of(methods), random_output()
    whole = methods.compute_loss(batch, output).item()
    assert methods.post_epoch({}).keys() == {f"agmax/{agreement}"}
    alone = augury.compose([], num_classes=CLASSES).compute_loss(batch, output).item()
    methods.compute_loss(batch, output)
    assert methods.post_epoch({})[f"agmax/{agreement}"] == pytest.approx(whole - alone)


@pytest.mark.parametrize("agreement", ["mi", "mse"])
def test_a_run_keeps_and_exports_only_what_its_agreement_has(agreement: str, tmp_path: Path) -> None:
    config = small(("agmax", {"agreement": agreement}), "dcutmix", optim={"epochs": 1})
    train(config, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run")
    assert state is not None
    own = {name for name in state["loop"]["methods"] if "agmax" in name}
    assert (len(own) == 4) if agreement == "mi" else not own
    assert not any("agmax" in name or name.startswith("q.") for name in load_file(tmp_path / "run/last.safetensors"))
    (row,) = rows_of(tmp_path / "run")
    shown = {key for key in row if key.startswith("agmax/")}
    assert shown == ({"agmax/entropy", "agmax/disagreement"} if agreement == "mi" else {f"agmax/{agreement}"})


@pytest.mark.slow
def test_an_interrupted_run_without_a_q_network_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = small(("agmax", {"agreement": "kl"}))
    train(config, tmp_path / "run")
    resumed(config, tmp_path / "resumed", 3)
    assert_same_run(tmp_path / "run", tmp_path / "resumed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agreement": "js"}, "option `agreement` must be one of 'mi', 'mse', 'kl' or 'ce', got 'js'."),
        (
            {"agreement": "mse", "dl_weight": 1.0},
            "option `dl_weight` must be left at its default with agreement=mse, which has no Q-network, got 1.0. "
            "Set it with --with agmax:dl_weight=4.0.",
        ),
        ({"n_units": 8, "agreement": "kl"}, "option `n_units` must be left at its default with agreement=kl, "),
        ({"q_init_std": 0.2, "agreement": "ce"}, "option `q_init_std` must be left at its default with agreement=ce, "),
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(augury.UsageError) as refused:
        augury.compose([(AgMax, options)], num_classes=CLASSES)
    assert str(refused.value).startswith(f"agmax: {message}")


def test_defaults_may_be_said_with_any_agreement() -> None:
    said = AgMax.Options().model_dump() | {"agreement": "mse"}
    assert augury.compose([(AgMax, said)], num_classes=CLASSES)["agmax"].q is None
