"""The networks for small images: their size, timm's interface, and what the methods need of them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from augury import passes
from augury.errors import UsageError
from augury_train import backbones
from augury_train.backbones.stages import keep_statistics
from augury_train.config import ModelConfig

# Each family at a size that a test can train; depth and width are arguments of all of them.
SMALL: dict[str, dict[str, Any]] = {
    "resnet20_cifar": {"depth": 8},
    "seresnet110_cifar": {"depth": 8},
    "resnet18_cifar": {"layers": (1, 1, 1, 1), "channels": (4, 8, 8, 16)},
    "resnet50_cifar": {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8)},
    "resnext29_8x64d_cifar": {"layers": (1, 1, 2), "channels": (4, 8, 8), "cardinality": 2},
    "wrn28_10_cifar": {"depth": 10, "width": 1},
    "densenetbc100_12_cifar": {"block_config": (2, 2, 2), "growth_rate": 4},
    "pyramidnet110_a64_cifar": {"depth": 20, "alpha": 12},
    "shakepyramidnet110_cifar": {"depth": 14, "alpha": 12},
    "shakeshake26_2x32d_cifar": {"depth": 14, "width": 4},
}
SHAKING = ("shakeshake26_2x32d_cifar", "shakepyramidnet110_cifar")

# Millions of parameters with the classifier for 10 classes, and the weight layers, shortcuts left out.
SIZES: dict[str, tuple[float, int]] = {
    "resnet20_cifar": (0.27, 20),
    "resnet32_cifar": (0.46, 32),
    "resnet44_cifar": (0.66, 44),
    "resnet56_cifar": (0.85, 56),
    "resnet110_cifar": (1.73, 110),
    "seresnet110_cifar": (1.74, 110),
    "resnet18_cifar": (11.2, 18),
    "resnet34_cifar": (21.3, 34),
    "resnet50_cifar": (23.5, 50),
    "wrn16_8_cifar": (11.0, 14),
    "wrn28_10_cifar": (36.5, 26),
    "wrn40_2_cifar": (2.2, 38),
    "densenetbc100_12_cifar": (0.77, 100),
    "resnext29_8x64d_cifar": (34.4, 29),
    "resnext29_16x64d_cifar": (68.2, 29),
    "pyramidnet110_a64_cifar": (1.7, 110),
    "pyramidnet200_a240_cifar": (26.8, 200),
    "shakepyramidnet110_cifar": (28.5, 110),
    "shakeshake26_2x32d_cifar": (2.9, 26),
    "shakeshake26_2x96d_cifar": (26.2, 26),
    "shakeshake26_2x112d_cifar": (35.6, 26),
}


def small(name: str, size: tuple[int, int, int] = (3, 32, 32), classes: int = 5, **kwargs: Any) -> nn.Module:
    """A network of the family of `name`, as a run builds it, with the same weights each time."""
    torch.manual_seed(0)
    return backbones.build(ModelConfig(name=name, kwargs={**SMALL[name], **kwargs}), classes, size)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def paper_size(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# Size.


def test_all_of_them_are_told() -> None:
    assert set(timm.list_models("*_cifar")) == SIZES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_they_have_the_papers_size(name: str) -> None:
    published, layers = SIZES[name]
    network = paper_size(name)
    assert f"{parameters(network) / 1e6:.{len(str(published).split('.')[1])}f}" == str(published)
    weights = {
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not {"downsample", "shortcut", "se", "branch2"} & {*path.split(".")}
    }
    assert len(weights) == layers


def test_wide_networks_count_three_shortcuts_and_no_classifier_among_their_layers() -> None:
    for name, depth in (("wrn16_8_cifar", 16), ("wrn28_10_cifar", 28), ("wrn40_2_cifar", 40)):
        assert sum(isinstance(module, nn.Conv2d) for module in paper_size(name).modules()) == depth


def test_isdas_table_counts_shortcuts_that_its_shake_shake_program_never_uses() -> None:
    """36.4 M there: each block makes a shortcut of two 1x1 convolutions and a norm, also where none is needed."""
    widths = [112, 112, 112, 224, 224, 224, 448, 448, 448]
    unused = sum(width * width + 2 * width for width in widths)
    assert round((parameters(paper_size("shakeshake26_2x112d_cifar")) + unused) / 1e6, 1) == 36.4


def test_pyramidnet_200_has_its_published_size_with_100_classes_too() -> None:
    assert round(parameters(paper_size("pyramidnet200_a240_cifar", num_classes=100)) / 1e6, 1) == 26.8


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("wrn28_10_cifar", 640),
        ("pyramidnet110_a64_cifar", 4 * (16 + 64)),
        ("pyramidnet200_a240_cifar", 4 * (16 + 240)),
        ("shakepyramidnet110_cifar", 16 + 270),
        ("shakeshake26_2x112d_cifar", 448),
        ("densenetbc100_12_cifar", 342),
        ("resnext29_8x64d_cifar", 1024),
        ("resnet18_cifar", 512),
    ],
)
def test_their_features_have_the_papers_width(name: str, width: int) -> None:
    facts = backbones.inspect_model(ModelConfig(name=name), 7, (3, 32, 32))
    assert isinstance(facts.classifier, nn.Linear)
    assert (facts.num_features, facts.classifier.out_features) == (width, 7)


# timm's interface.


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 64, 64), (1, 9, 8)])
def test_logits_are_the_classifiers_of_the_features_at_each_size(name: str, size: tuple[int, int, int]) -> None:
    network = small(name, size).eval()
    x = images(2, *size)
    classifier = passes.classifier_of(network)
    assert isinstance(classifier, nn.Linear)
    output = passes.features_and_logits(network, x, classifier)
    assert output.features.shape == (2, network.num_features)
    torch.testing.assert_close(output.logits, classifier(output.features))
    assert output.logits.isfinite().all()
    maps = network.forward_features(x)
    assert maps.shape[:2] == (2, network.num_features)
    torch.testing.assert_close(network.forward_head(maps, pre_logits=True), output.features)
    torch.testing.assert_close(network.forward_head(maps), output.logits)
    assert network.in_chans == size[0]


@pytest.mark.parametrize("name", SMALL)
def test_maps_are_as_large_as_the_papers(name: str) -> None:
    """8x8 of 32x32 images after three stages, 4x4 after four; timm is told the same."""
    network = small(name)
    side = network.forward_features(images(2, 3, 32, 32)).shape[-1]
    assert side == (4 if name in ("resnet18_cifar", "resnet50_cifar") else 8)
    assert network.default_cfg["pool_size"] == (side, side)
    assert network.default_cfg["input_size"] == (3, 32, 32)


@pytest.mark.parametrize("name", SMALL)
def test_their_stages_are_told_as_timm_tells_its_own(name: str) -> None:
    network, x = small(name).eval(), images(2, 3, 32, 32)
    made: list[tuple[int, ...]] = []
    for tap in network.feature_info:
        network.get_submodule(tap["module"]).register_forward_hook(lambda _, __, y: made.append(tuple(y.shape[1:])))
    network(x)
    assert made == [(tap["num_chs"], *[32 // tap["reduction"]] * 2) for tap in network.feature_info]


@pytest.mark.parametrize("name", SMALL)
def test_the_classifier_can_be_left_out_and_replaced(name: str) -> None:
    network = small(name, classes=0).eval()
    x = images(2, 3, 32, 32)
    features = network(x)
    assert features.shape == (2, network.num_features)
    torch.testing.assert_close(features, network.forward_head(network.forward_features(x), pre_logits=True))
    network.reset_classifier(4)
    assert passes.classifier_of(network).out_features == network.num_classes == 4
    assert network(x).shape == (2, 4)
    network.reset_classifier(0, "")
    assert network(x).shape == network.forward_features(x).shape
    network.reset_classifier(3, "catavgmax")
    assert passes.classifier_of(network).in_features == 2 * network.num_features
    assert network(x).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_the_stem_and_the_classifier_are_where_timm_is_told(name: str) -> None:
    network = small(name)
    stem = network.get_submodule(network.default_cfg["first_conv"])
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.bias) == ((3, 3), (1, 1), None)
    assert network.get_submodule(network.default_cfg["classifier"]) is passes.classifier_of(network)


@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_of_training_only(name: str) -> None:
    network = small(name, drop_rate=0.5)
    x = images(4, 3, 32, 32)
    assert torch.equal(network.eval()(x), small(name).eval()(x))
    if name not in SHAKING:
        network.train()
        assert not torch.equal(network(x), network(x))


@pytest.mark.parametrize("name", ["wrn28_10_cifar", "pyramidnet110_a64_cifar", "shakeshake26_2x32d_cifar"])
def test_depths_that_make_no_three_equal_stages_are_told(name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be built with .*: depth must be \dn \+ \d with n >= 1, got 21"):
        small(name, depth=21)
    with pytest.raises(UsageError, match=r"depth must be"):
        small(name, depth=2)
    with pytest.raises(UsageError, match=r"cannot be built with .*drop_rate=2.*: dropout probability"):
        small(name, drop_rate=2)


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_probabilities_of_shakedrop_are_checked(keep: float) -> None:
    with pytest.raises(UsageError, match=rf"last_keep must be in \(0, 1\], got {keep}"):
        small("shakepyramidnet110_cifar", last_keep=keep)


# Training.


@pytest.mark.parametrize("name", SMALL)
def test_finite_gradients_reach_every_parameter(name: str) -> None:
    network = small(name).train()
    network(images(4, 3, 16, 16)).square().sum().backward()
    for path, parameter in network.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.any(), path


@pytest.mark.parametrize("name", SMALL)
def test_first_weights_have_the_deviation_of_the_papers_programs(name: str) -> None:
    """N(0, 2 / (k k out)), their mean square over all convolutions with that as the unit."""
    network = small(name)
    squares = [
        (m.weight.double() ** 2 * m.kernel_size[0] ** 2 * m.out_channels / 2).flatten()
        for path, m in network.named_modules()
        if isinstance(m, nn.Conv2d) and ".se." not in path
    ]
    assert torch.cat(squares).mean().item() == pytest.approx(1, abs=0.1)
    assert all((m.weight == 1).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_is_deterministic_and_each_image_its_own(name: str) -> None:
    network = small(name).eval()
    x = images(3, 3, 16, 16)
    state = torch.get_rng_state()
    together = network(x)
    assert torch.equal(together, network(x))
    torch.testing.assert_close(together, torch.cat([network(one[None]) for one in x]))
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"


@pytest.mark.parametrize("name", SMALL)
def test_training_draws_for_each_image_where_it_shakes_and_nothing_elsewhere(name: str) -> None:
    network = small(name).train()
    x = images(1, 3, 16, 16).expand(8, -1, -1, -1)
    state = torch.get_rng_state()
    logits = network(x)
    if name in SHAKING:
        assert len(torch.unique(logits.detach(), dim=0)) == 8, "equal images get different outputs"
        torch.set_rng_state(state)
        assert torch.equal(network(x), logits), "they are torch's generator's"
        assert not torch.equal(network(x), logits)
    else:
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_stays_half_up_to_the_logits(name: str) -> None:
    network = small(name).train()
    seen: dict[str, torch.dtype] = {}
    for stage in ("layer1", "layer3") if hasattr(network, "layer1") else ("features.denseblock1", "features.norm5"):
        network.get_submodule(stage).register_forward_hook(
            lambda _, __, output, stage=stage: seen.__setitem__(stage, output.dtype)
        )
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images(4, 3, 16, 16))
    assert set(seen.values()) == {torch.bfloat16}
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_stages_are_frozen_from_the_stem_on(name: str) -> None:
    stages = 5 if name in ("resnet18_cifar", "resnet50_cifar") else 4
    config = ModelConfig(name=name, kwargs=SMALL[name], frozen_stages=stages)
    network = backbones.build(config, 5, (3, 32, 32)).train()
    still = {path for path, p in network.named_parameters() if p.requires_grad}
    classifier = network.default_cfg["classifier"]
    last_norm = {"features.norm5"} if name.startswith("densenet") else set()  # timm's own grouping
    assert {path.rsplit(".", 1)[0] for path in still} == {classifier} | last_norm
    keep_statistics(network)
    norms = {path: m.training for path, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {path for path, training in norms.items() if training} == last_norm
    with pytest.raises(UsageError, match=rf"`{name}` has {stages} stages with the stem"):
        backbones.build(config.model_copy(update={"frozen_stages": stages + 1}), 5, (3, 32, 32))
    first = backbones.build(config.model_copy(update={"frozen_stages": 2}), 5, (3, 32, 32))
    frozen = {
        path.removeprefix("features.").split(".")[0] for path, p in first.named_parameters() if not p.requires_grad
    }
    assert frozen - {"bn1"} in ({"conv1", "layer1"}, {"conv0", "denseblock1", "transition1"})
