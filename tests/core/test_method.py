"""The base class: options, frozen networks, and the check that a class's hooks can be called as meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

import augury
from augury.errors import UsageError
from augury.method import check_method, hook_implementations, replaces_criterion

SPEC = augury.Spec(num_classes=3)
MOVED = "Upgrade its package; its author finds in docs/moving.md how it is moved."


class Plain(augury.Method):
    """Has options, and hooks of every kind."""

    class Options(augury.Options):
        weight: float = Field(0.5, ge=0)
        mode: str = "one"

    @augury.hookimpl
    def augment_batch(self, batch, run):
        pass

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output, batch):
        return (yield)


class Replacing(augury.Method):
    @augury.hookimpl
    def compute_loss(self, output):
        return output.logits.mean()


def with_hook(function: Callable[..., Any], name: str = "augment_batch", **mark: Any) -> type:
    """A method whose only hook is `function`."""
    return type("Made", (augury.Method,), {name: augury.hookimpl(function, **mark)})


def test_options_are_typed_frozen_and_complete() -> None:
    options = Plain.Options(weight=2)
    assert (options.weight, options.mode) == (2.0, "one")
    with pytest.raises(ValidationError):
        options.weight = 3.0
    for wrong in ({"weigth": 1.0}, {"weight": -1}, {"weight": "many"}):
        with pytest.raises(ValidationError):
            Plain.Options(**wrong)


def test_a_method_keeps_its_options_and_the_facts() -> None:
    method = Plain(Plain.Options(mode="two"), SPEC)
    assert (method.options.mode, method.spec) == ("two", SPEC)
    assert not list(method.parameters())
    assert not method.state_dict()


def test_needs_are_modest_unless_declared() -> None:
    assert (Plain.views, Plain.linear_classifier, Plain.min_rows, Plain.facts) == (1, False, 1, ())
    assert (Plain.mixes, Plain.unmixed, Plain.pipelines(Plain.Options())) == (False, False, None)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))


class Keeping(Plain):
    """Holds a frozen network and one to train."""

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.aux = self.freeze(network())
        self.head = nn.Linear(2, 1)


def test_a_frozen_network_is_in_no_optimiser_but_in_the_state() -> None:
    method = Keeping(Plain.Options(), SPEC)
    assert {name for name, _ in method.named_parameters()} == {"head.weight", "head.bias"}
    frozen = {name.removeprefix("aux.module.") for name in method.state_dict() if name.startswith("aux.")}
    assert frozen == set(network().state_dict())
    assert not any(buffer.requires_grad for buffer in method.aux.buffers())


def test_a_frozen_network_stays_in_evaluation_mode() -> None:
    method = Keeping(Plain.Options(), SPEC).train()
    assert method.training
    assert method.head.training
    assert not any(part.training for part in method.aux.modules())
    images, statistics = torch.randn(6, 4), method.aux.module[1].running_mean.clone()
    assert torch.equal(method.aux(images), method.aux(images)), "no dropout"
    assert torch.equal(method.aux.module[1].running_mean, statistics), "no running statistics"


def test_freezing_copies_and_leaves_the_original_trainable() -> None:
    original = network()
    frozen = Keeping(Plain.Options(), SPEC).freeze(original)
    torch.testing.assert_close(frozen(torch.ones(1, 4)), original.eval()(torch.ones(1, 4)).detach())
    assert original.train().training
    assert len(list(original.parameters())) == 5
    with torch.no_grad():
        original[0].weight.zero_()
    assert frozen.module[0].weight.any()
    frozen.copy_from(original)
    assert not frozen.module[0].weight.any()
    original[0].weight.data.fill_(1)
    assert not frozen.module[0].weight.any(), "a copy again"


def test_a_frozen_network_passes_gradients_to_its_input_only_and_moves_with_the_method() -> None:
    method = Keeping(Plain.Options(), SPEC).double()
    images = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    method.aux(images).sum().backward()
    assert images.grad.any()
    assert all(buffer.grad is None for buffer in method.aux.buffers())


def test_the_hooks_of_a_class_and_of_its_bases() -> None:
    assert set(hook_implementations(Plain)) == {"augment_batch", "compute_loss"}
    assert set(hook_implementations(Keeping)) == {"augment_batch", "compute_loss"}
    assert hook_implementations(augury.Method) == {}
    assert [replaces_criterion(cls) for cls in (Plain, Replacing, with_hook(lambda self: None))] == [False, True, False]
    assert check_method(Keeping, "keeping") is Keeping


def test_what_is_no_method_is_refused() -> None:
    for thing in (nn.Linear, "isda", Plain(Plain.Options(), SPEC), None):
        with pytest.raises(UsageError, match=r"^some: .* is no method: it must be a subclass of augury\.Method\.$"):
            check_method(thing, "some")


def test_a_method_without_hooks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^idle: implements no hook\. .*compute_loss.*@augury\.hookimpl"):
        check_method(type("Idle", (augury.Method,), {"augment_batch": lambda self, batch: None}), "idle")


@pytest.mark.parametrize(
    ("ours", "contract", "fault"),
    [
        ("1.0", "1.0", ""),
        ("1.2", "1.1", ""),
        ("2.0", "1.0", "was written for contract 1.0, and this augury-core has contract 2.0. " + MOVED),
        ("2.0", "1.5", "was written for contract 1.5, and this augury-core has contract 2.0. " + MOVED),
        ("2.0", "2.1", "was written for contract 2.1, and this augury-core has contract 2.0. Upgrade augury-core."),
        ("1.0", "2.0", "was written for contract 2.0, and this augury-core has contract 1.0. Upgrade augury-core."),
        ("1.0", "1.1", "was written for contract 1.1, and this augury-core has contract 1.0. Upgrade augury-core."),
        ("1.0", "1", "`contract` must be a version such as '1.0', got '1'."),
        ("1.0", 1.0, "`contract` must be a version such as '1.0', got 1.0."),
        ("1.0", "one.0", "`contract` must be a version such as '1.0', got 'one.0'."),
    ],
)
def test_a_method_for_another_contract_is_refused(
    ours: str, contract: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augury.method.CONTRACT_VERSION", ours)
    cls = type("Old", (Plain,), {"contract": contract})
    if not fault:
        assert check_method(cls, "old") is cls
        return
    with pytest.raises(UsageError) as refused:
        check_method(cls, "old")
    assert str(refused.value) == f"old: {fault}"


def test_a_class_of_the_program_that_does_not_say_its_contract_is_for_todays() -> None:
    assert augury.CONTRACT_VERSION == "2.0"
    assert Plain.contract is None
    assert check_method(Plain, "plain") is Plain
    with pytest.raises(UsageError, match=r"^plain: was written for contract 1\.0"):
        check_method(Plain, "plain", unsaid="1.0")


@pytest.mark.parametrize("options", [dict, {"weight": 0.5}, nn.Module, None])
def test_untyped_options_are_refused(options: Any) -> None:
    with pytest.raises(UsageError, match=r"^free: its Options must be a subclass of augury\.Options, with a type for"):
        check_method(type("Free", (Plain,), {"Options": options}), "free")


def test_a_name_that_torchs_modules_use_is_refused() -> None:
    for name in ("update", "training", "criterion"):
        with pytest.raises(UsageError, match=rf"^{name}: torch's modules, or augury, use this name themselves\. Give"):
            check_method(Plain, name)


def test_a_misspelt_hook_is_refused_with_the_one_meant() -> None:
    with pytest.raises(UsageError) as caught:
        check_method(with_hook(lambda self, batch: None, "augment_bacth"), "typo")
    assert str(caught.value) == (
        "typo: unknown hook `augment_bacth`. Hooks: augment_batch, compute_loss, post_epoch, post_step, "
        "pre_train_stage. Did you mean `augment_batch`?"
    )


def default(self, batch, run=None):
    pass


def unknown_parameter(self, batch, trainer):
    pass


def keyword_only(self, batch, *, run):
    pass


def gathered(self, **facts):
    pass


def never_yields(self, batch):
    return None


def generator(self, batch):
    yield


def old_wrapper(self):
    yield


@pytest.mark.parametrize(
    ("function", "mark", "fault"),
    [
        (default, {}, "gives its parameter `run` a default, so pluggy would never fill it. Remove the default."),
        (unknown_parameter, {}, "has a parameter `trainer`; allowed: batch, run."),
        (keyword_only, {}, "takes `run` as keyword-only; make it an ordinary parameter."),
        (gathered, {}, "has a parameter `facts`; allowed: batch, run."),
        (never_yields, {"tryfirst": True}, "is marked tryfirst or trylast; the user's order is the order of calls."),
        (never_yields, {"trylast": True}, "is marked tryfirst or trylast; the user's order is the order of calls."),
        (old_wrapper, {"hookwrapper": True}, "is an old-style hookwrapper; use hookimpl(wrapper=True)."),
        (never_yields, {"wrapper": True}, "is a wrapper but never yields."),
        (generator, {}, "yields but is no wrapper. Mark it with hookimpl(wrapper=True)."),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_hook_that_pluggy_would_not_call_as_meant_is_refused(
    function: Callable[..., Any], mark: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_method(with_hook(function, **mark), "wrong")
    assert f"wrong: hook `augment_batch` {fault}" in str(caught.value)


def test_the_parameters_allowed_are_the_hooks_own() -> None:
    """`batch` is a parameter of augment_batch, and none of post_epoch."""
    with pytest.raises(UsageError, match=r"hook `post_epoch` has a parameter `batch`; allowed: run, metrics\."):
        check_method(with_hook(lambda self, batch: None, "post_epoch"), "wrong")


def test_every_fault_has_a_line() -> None:
    class Faulty(augury.Method):
        @augury.hookimpl(tryfirst=True)
        def augment_batch(self, batch=None, trainer=None):
            pass

        @augury.hookimpl(wrapper=True)
        def compute_loss(self, output) -> Tensor:
            return output.logits.mean()

        @augury.hookimpl
        def after_epoch(self):
            pass

    with pytest.raises(UsageError) as caught:
        check_method(Faulty, "faulty")
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("faulty: ") for line in lines)
