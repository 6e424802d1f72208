"""Every method on every kind of network: timm's small ones and ours take steps, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tests.cli.in_process import augury
from tests.system.published import PUBLISHED
from tests.train.test_networks import SMALL
from torch import nn

from augury import passes
from augury.errors import UsageError
from augury_train.config import RunConfig, read_config
from augury_train.training.plan import make_plan
from augury_train.training.rehearsal import rehearse
from augury_train.training.trainer import Trainer

METHODS: dict[str, dict[str, Any]] = {
    "agmax": {},
    "dcutmix": {"prob": 1.0},
    "isda": {"lambda_0": 5.0},
    "resmooth": {},
}
TIMMS = timm.list_models("test_*")
QUICK = ("resnet20_cifar", "test_vit")
CLASSES = 3


def config_of(name: str, *methods: str, **changes: Any) -> RunConfig:
    """Two steps on noise of the network's smallest version. Attention of one place alone would give no gradients."""
    side = 96 if name in ("test_coatnet", "test_maxvit") else 32
    sections: dict[str, Any] = {
        "model": {"name": name, "kwargs": SMALL.get(name, {})},
        "data": {"dataset": f"synthetic:classes={CLASSES},size={side},images=12", "protocol": "paper"},
        "optim": {"epochs": 1, "batch_size": 6, "name": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        "train": {"trackers": []},
    }
    for section, values in changes.items():
        sections[section] = {**sections[section], **values}
    named = [{"name": method, "options": METHODS[method]} for method in methods]
    return read_config({"seed": 1, "device": "cpu", **sections, "methods": named})


class Watched:
    """A training of which the gradients and losses of each step are kept."""

    def __init__(self, config: RunConfig) -> None:
        self.trainer = trainer = Trainer(make_plan(config))
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor | None]] = []
        trainer.loop.step_module.register_forward_hook(lambda _, __, made: self.losses.append(float(made[0].detach())))
        trainer.loop.optimizer.optimizer.register_step_pre_hook(lambda *_: self._look())
        self.before = {name: value.clone() for name, value in self._trained()}
        trainer.methods.pre_train_stage()
        trainer.loop.run(lambda row: None)
        self.after = dict(self._trained())

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        parts = {"network": self.trainer.network, "methods": self.trainer.methods}
        return [(f"{part}.{name}", p) for part, module in parts.items() for name, p in module.named_parameters()]

    def _look(self) -> None:
        self.gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in self._trained()})


def assert_trains(model: str, method: str) -> None:
    """Two steps are taken, whose losses and gradients are finite and reach every weight."""
    done = Watched(config_of(model, method))
    assert len(done.losses) == len(done.gradients) == 2
    assert torch.tensor(done.losses).isfinite().all()
    for name, before in done.before.items():
        gradients = [step[name] for step in done.gradients]
        assert all(g is not None and g.isfinite().all() for g in gradients), name
        # Biases that a norm takes away again get no gradient but rounding.
        if before.ndim > 1:
            assert any(g is not None and g.any() for g in gradients), name
            assert not torch.equal(before, done.after[name]), name
    assert_own_outputs(done.trainer.network, done.trainer.data.format.size)


@torch.no_grad()
def assert_own_outputs(network: nn.Module, size: tuple[int, int, int]) -> None:
    """In evaluation, features and logits are bit for bit those of the network's own functions."""
    network.eval()
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    classifier = passes.classifier_of(network)
    made = passes.features_and_logits(network, images, classifier)
    maps = network.forward_features(images)
    assert torch.equal(made.features, network.forward_head(maps, pre_logits=True))
    assert torch.equal(made.logits, network.forward_head(maps))
    assert torch.equal(made.logits, network(images))
    assert torch.equal(made.logits, classifier(made.features))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", QUICK)
def test_each_method_trains_a_network_of_each_kind(model: str, method: str) -> None:
    assert_trains(model, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", sorted({*SMALL, *TIMMS} - {*QUICK}))
def test_each_method_trains_all_of_timms_small_networks_and_ours(model: str, method: str) -> None:
    assert_trains(model, method)


def refused(model: str, *methods: str, size: int = 32) -> str:
    """What a plan says."""
    data = {"dataset": f"synthetic:classes={CLASSES},size={size},images=12"}
    with pytest.raises(UsageError) as told:
        make_plan(config_of(model, *methods, data=data))
    return str(told.value)


LINEAR = "isda needs a model whose classifier is one nn.Linear; `{}` ends in {}. Choose another model."


@pytest.mark.parametrize(
    ("model", "end"),
    [
        ("dla46x_c", "Conv2d"),
        pytest.param("repvit_m1", "RepVitClassifier", marks=pytest.mark.slow),
        pytest.param("caformer_s18", "MlpHead", marks=pytest.mark.slow),
        pytest.param("cpubone_nano", "LinearLayer", marks=pytest.mark.slow),
    ],
)
def test_heads_that_are_not_one_linear_layer_are_refused_for_who_needs_one(model: str, end: str) -> None:
    assert refused(model, "isda", size=64) == LINEAR.format(model, end)
    plan = make_plan(config_of(model, "agmax", "resmooth", "dcutmix"))
    assert plan.spec.num_features is not None


@pytest.mark.slow
def test_logits_to_which_a_network_adds_are_not_its_linear_layers() -> None:
    assert refused("volo_d1_224", "isda", size=64) == LINEAR.format("volo_d1_224", "VOLO")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("crossvit_tiny_240", "has 2 classifiers; augury trains models with one"),
        pytest.param(
            "deit_tiny_distilled_patch16_224",
            "has 2 classifiers; augury trains models with one",
            marks=pytest.mark.slow,
        ),
        pytest.param("levit_128s", "has 2 classifiers; augury trains models with one", marks=pytest.mark.slow),
        pytest.param("efficientvim_m1", "has 4 classifiers; augury trains models with one", marks=pytest.mark.slow),
        pytest.param("mobilenetv5_300m_enc", "has no classifier: it makes features alone", marks=pytest.mark.slow),
    ],
)
def test_networks_with_several_classifiers_or_none_are_refused(model: str, told: str) -> None:
    for method in METHODS:
        assert refused(model, method) == f"model `{model}` {told}. Choose another model."


def test_a_dry_run_refuses_too(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--dataset", "synthetic:images=200,size=64"]
    code, _, told = augury(capsys, "run", "--dry-run", "--with", "isda", "--model", "volo_d1_224", *data)
    assert code == 2
    assert LINEAR.format("volo_d1_224", "VOLO") in " ".join(told.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted({*timm.list_models("*_cifar")} - {recipe.model for recipe in PUBLISHED.values()})
)
def test_our_networks_of_no_recipe_take_steps_at_full_size(name: str) -> None:
    """Those of a recipe take the steps of their own, in test_recipes_run.py."""
    done = rehearse(config_of(name, "isda", model={"kwargs": {}}, optim={"batch_size": 2, "name": "sgd"}))
    assert (done.model, done.batch_size) == (name, 2)
    assert done.step_seconds > 0
