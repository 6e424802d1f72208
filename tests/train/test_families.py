"""What is caught of a network's pass, for every family of timm; and what is refused, since it makes no such thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from tests.train.small_runs import small
from torch import Tensor, nn

import augury
from augury import passes
from augury.errors import UsageError
from augury_train import backbones
from augury_train.config import ModelConfig
from augury_train.training.plan import make_plan

# What is caught, in networks of which each does one thing differently.


class Odd(nn.Module):
    """Images -> features by `stem`, and logits as `head` makes them of features and the classifier."""

    def __init__(self, head: Callable[[nn.Module, Tensor], Any], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.head, self.fc = stem or nn.Flatten(), head, nn.Linear(12, 5)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: Tensor) -> Any:
        return self.head(self.fc, self.stem(images))


def passed(network: nn.Module) -> augury.ModelOutput:
    batch = augury.Batch.of(torch.randn(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64))
    return augury.forward(network, batch)


def test_features_are_what_enters_the_classifier_with_their_gradients() -> None:
    network = Odd(lambda fc, x: fc(nn.functional.layer_norm(x.tanh(), (12,))))
    images = torch.randn(2, 3, 2, 2, requires_grad=True)
    output = passes.features_and_logits(network, images, network.fc)
    expected = nn.functional.layer_norm(images.flatten(1).tanh(), (12,))
    assert torch.equal(output.features, expected)
    assert torch.equal(output.logits, expected @ network.fc.weight.T + network.fc.bias)
    incoming = torch.randn(2, 12)
    torch.testing.assert_close(
        torch.autograd.grad(output.features, images, incoming, retain_graph=True),
        torch.autograd.grad(expected, images, incoming),
    )
    assert not network.fc._forward_pre_hooks, "nothing is left behind"


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (lambda fc, x: fc(x) + fc(2 * x), "calls its classifier, a Linear, 2 times in a pass; .* call it once"),
        (lambda fc, x: x @ fc.weight.T, "calls its classifier, a Linear, 0 times in a pass; .* call it once"),
        (lambda fc, x: (fc(x), x), "makes a tuple in training; augury trains models that make one tensor of logits"),
        (lambda fc, x: fc(x.repeat(3, 1))[:2], "gives its classifier, a Linear, 6 rows for 2 images"),
    ],
)
def test_a_pass_without_one_row_of_features_for_each_image_is_refused(head: Any, told: str) -> None:
    with pytest.raises(UsageError, match=rf"^model Odd {told}[^\n]*\.$"):
        passed(Odd(head))


def test_the_layer_inside_a_head_that_pools_is_the_classifier() -> None:
    network = timm.create_model("samvit_base_patch16", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=5)
    classifier = passes.classifier_of(network.eval())
    assert classifier is network.head.fc
    images = torch.randn(2, 3, 32, 32)
    output = passes.features_and_logits(network, images, classifier)
    assert output.features.shape == (2, network.num_features)
    assert torch.equal(output.logits, network(images))
    assert torch.equal(output.logits, classifier(output.features))


# What a plan refuses, before anything is built.


def plan_of(name: str, size: int = 32, **kwargs: Any) -> augury.Spec:
    data = {"dataset": f"synthetic:classes=4,size={size},images=100", "augmented": "flip"}
    return make_plan(small(model={"name": name, "kwargs": kwargs}, data=data)).spec


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        pytest.param(
            "inception_v3",
            {"aux_logits": True},
            "makes a tuple in training; .* Switch its other",
            marks=pytest.mark.slow,
        ),
        ("test_vit", {"global_pool": ""}, r"makes of two images .* what has the shape \(2, 5, 4\), not \(2, 4\)"),
        pytest.param(
            "resnetv2_18",
            {"global_pool": ""},
            r"what has the shape \(2, 4, 1, 1\), not \(2, 4\): no logits",
            marks=pytest.mark.slow,
        ),
        (
            "inception_v4",
            {},
            r"does not work with images of 32x32 pixels and 3 channel\(s\): .* another data.image_size",
        ),
        ("test_resnet", {"output_stride": 3}, "cannot be built with"),
    ],
)
def test_networks_that_make_no_logits_of_these_images_are_refused(name: str, kwargs: Any, told: str) -> None:
    with pytest.raises(UsageError, match=rf"^model `{name}` [^\n]*{told}[^\n]*\.$"):
        plan_of(name, 299 if name == "inception_v3" else 32, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet20_cifar", {"global_pool": "catavgmax"}),
        pytest.param("mobilenetv3_small_050", {}, marks=pytest.mark.slow),
        pytest.param("resnetv2_18", {"global_pool": "catavgmax"}, marks=pytest.mark.slow),  # a convolution
    ],
)
def test_the_width_that_methods_are_told_is_that_of_the_features(name: str, kwargs: Any) -> None:
    """Where timm's `num_features` is another, too: it means the feature map's."""
    network = timm.create_model(name, num_classes=4, **kwargs).eval()
    width = plan_of(name, 64, **kwargs).num_features
    assert width != network.num_features
    output = passes.features_and_logits(network, torch.randn(1, 3, 64, 64), passes.classifier_of(network))
    assert output.features.shape == (1, width)


def test_plan_after_plan_asks_a_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="resnet20_cifar", kwargs={"depth": 8})
    facts = backbones.inspect_model(config, 3, (3, 16, 16))
    built: list[str] = []
    build = backbones.build
    monkeypatch.setattr(
        "augury_train.backbones.inspecting.build", lambda model, *rest: built.append(model.name) or build(model, *rest)
    )
    assert backbones.inspect_model(config.model_copy(), 3, (3, 16, 16)) is facts
    assert built == []
    assert backbones.inspect_model(config, 4, (3, 16, 16)).classifier.out_features == 4
    assert backbones.inspect_model(config.model_copy(update={"kwargs": {"depth": 14}}), 3, (3, 16, 16)) is not facts
    assert built == ["resnet20_cifar"] * 2


# All families of timm.

_EACH = """
beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240
cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121
densenetbc100_12_cifar dla46x_c dpn48b eca_botnext26ts_256 edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0
fastvit_s12 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 gmixer_12_224 hardcorenas_b hgnetv2_b0
hiera_tiny_224 hrnet_w18_small iformer_s inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lcnetv2_small legacy_seresnet18 legacy_xception levit_512_s8 lowformer_b0 mobilenetv3_small_050 mobilenetv5_base
mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small pit_xs_224
pnasnet5large poolformer_s12 pvt_v2_b0 pyramidnet110_a64_cifar qwen3_vit_306m rdnet_tiny regnetx_002
repghostnet_050 repvit_m1 res2net50_14w_8s resnest14d resnet18_cifar resnet20_cifar resnetv2_18 rexnet_100
sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s shakeshake26_2x32d_cifar shvit_s1 skresnet18
starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet
test_coatnet test_convnext test_efficientnet_gn test_mambaout test_nfnet test_resnet test_vit test_vit_relpos
tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny
vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 wrn40_2_cifar xception41p
xcit_nano_12_p8_384
"""
EACH = _EACH.split()
"""The smallest network of each file of timm 1.0.31, one with one classifier where there is one."""

SEVERAL = {"crossvit_tiny_240", "efficientformer_l1", "efficientformerv2_s0", "efficientvim_m1", "swiftformer_xs"}
NOT_LINEAR = {
    "caformer_s18": "MlpHead",
    "cpubone_nano": "LinearLayer",
    "dla46x_c": "Conv2d",
    "dpn48b": "Conv2d",
    "iformer_s": "RepVitClassifier",
    "levit_512_s8": "NormLinear",
    "repvit_m1": "RepVitClassifier",
    "resnetv2_18": "Conv2d",
    "volo_d1_224": "VOLO",
}
LARGE = 12_000_000
"""Parameters; larger networks are passed through on the meta device alone, which shows whence their logits come."""


@pytest.mark.slow
def test_each_file_of_timms_has_its_network_here() -> None:
    if timm.__version__ == "1.0.31":
        files = {timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[1] for name in EACH}
        # The contract suite registers a network, too, where a test has imported it.
        assert files == set(timm.list_modules()) - {"network"}


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_each_family_can_be_trained_or_is_refused(name: str) -> None:
    """What is caught is what the logits are computed from, and what methods are told of it is so."""
    if not timm.is_model(name):
        pytest.skip("not in this version of timm")
    config, size = ModelConfig(name=name), backbones.data_config(name)["input_size"]
    if name in SEVERAL:
        with pytest.raises(UsageError, match=rf"^model `{name}` has \d classifiers; "):
            backbones.inspect_model(config, 4, size)
        return
    facts = backbones.inspect_model(config, 4, size)
    assert type(facts.classifier).__name__ == NOT_LINEAR.get(name, "Linear")
    assert facts.num_features >= 16
    with torch.device("meta"):
        parameters = sum(p.numel() for p in backbones.build(config, 4, size).parameters())
    if parameters < LARGE:
        assert_caught(backbones.build(config, 4, size).eval(), size, facts)


@torch.no_grad()
def assert_caught(network: nn.Module, size: tuple[int, int, int], facts: backbones.Facts) -> None:
    classifier = passes.classifier_of(network)
    images = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    output = passes.features_and_logits(network, images, classifier)
    assert output.features.shape == (1, facts.num_features)
    maps = network.forward_features(images)
    assert torch.equal(output.logits, network.forward_head(maps))
    if isinstance(facts.classifier, nn.Linear):
        assert torch.equal(output.logits, classifier(output.features))
    # timm's own features are those, up to a norm that some have before the classifier, which is at its first values.
    if not isinstance(classifier, nn.Conv2d | nn.Linear):
        return
    own = network.forward_head(maps, pre_logits=True).flatten(1)
    torch.testing.assert_close(own, output.features, rtol=1e-4, atol=1e-5)
