"""What the blocks of the networks compute, by the papers' formulas in float64; and that shaking resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from tests.train.small_runs import assert_same_run, resumed, small
from torch import Tensor, nn

import augury_train.backbones  # noqa: F401  ours join timm's registry
from augury_train.backbones.pyramidnet_cifar import PyramidBlock, PyramidNetCifar, basic_branch, bottleneck_branch
from augury_train.backbones.shakeshake_cifar import ShakeBlock
from augury_train.backbones.shaking import ShakeDrop, ShakeShake, shaken
from augury_train.backbones.wrn_cifar import WideBlock
from augury_train.training.trainer import train

# Shaking.


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def test_shaken_has_one_factor_forward_and_another_backward() -> None:
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    forward, backward = column([-0.7, 0.2, 1]), column([0.1, 0.9, 1])
    y = shaken(x, forward, backward)
    torch.testing.assert_close(y, forward * x)
    incoming = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(y, x, incoming)
    torch.testing.assert_close(gradient, backward * incoming)


def drawn(layer: nn.Module, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What a layer gives, and its gradients for an incoming one of ones."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    output = layer(*inputs)
    return output.detach(), list(torch.autograd.grad(output.sum(), inputs))


def per_image(values: Tensor) -> Tensor:
    """M x ... -> M, all values of an image being the same."""
    rows = values.flatten(1)
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    return rows[:, 0]


def test_shake_shake_draws_shares_for_each_image_and_others_for_the_gradient() -> None:
    torch.manual_seed(0)
    ones, zeros = torch.ones(4000, 2, 1, 2, dtype=torch.float64), torch.zeros(4000, 2, 1, 2, dtype=torch.float64)
    mixed, (to_one, to_other) = drawn(ShakeShake(), ones, zeros)
    forward, backward = per_image(mixed), per_image(to_one)
    torch.testing.assert_close(to_one + to_other, ones)
    for share in (forward, backward):
        assert 0 <= share.min() < 0.01
        assert 0.99 < share.max() < 1
        assert share.mean().item() == pytest.approx(0.5, abs=0.02)
        assert share.var().item() == pytest.approx(1 / 12, abs=0.005)
    assert abs(torch.corrcoef(torch.stack([forward, backward]))[0, 1]) < 0.05
    # The same draws mix any two branches by those shares.
    torch.manual_seed(0)
    one, other = torch.randn(2, 4000, 2, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).unbind()
    share = forward.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(ShakeShake()(one, other), share * one + (1 - share) * other)


def test_shake_drop_keeps_or_shakes_each_image() -> None:
    torch.manual_seed(0)
    ones = torch.ones(8000, 2, 1, 2, dtype=torch.float64)
    output, (gradient,) = drawn(ShakeDrop(0.7), ones)
    forward, backward = per_image(output), per_image(gradient)
    kept = forward == 1
    assert kept.double().mean().item() == pytest.approx(0.7, abs=0.02)
    assert (backward[kept] == 1).all()
    shaken_forward, shaken_backward = forward[~kept], backward[~kept]
    assert -1 <= shaken_forward.min() < -0.99
    assert 0.99 < shaken_forward.max() < 1
    assert 0 <= shaken_backward.min() < 0.01
    assert 0.99 < shaken_backward.max() < 1
    assert shaken_forward.mean().item() == pytest.approx(0, abs=0.04)
    assert shaken_backward.mean().item() == pytest.approx(0.5, abs=0.02)
    assert abs(torch.corrcoef(torch.stack([shaken_forward, shaken_backward]))[0, 1]) < 0.05
    assert forward.mean().item() == pytest.approx(0.7, abs=0.02), "evaluation's factor is the mean of training's"


def test_shaking_is_the_mean_in_evaluation() -> None:
    one, other = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    torch.testing.assert_close(ShakeShake().eval()(one, other), 0.5 * one + 0.5 * other)
    torch.testing.assert_close(ShakeDrop(0.3).eval()(one), 0.3 * one)


def test_the_probability_to_keep_falls_linearly_to_the_last_block() -> None:
    network = timm.create_model("shakepyramidnet110_cifar", depth=14, alpha=12)
    keeps = [module.keep for module in network.modules() if isinstance(module, ShakeDrop)]
    assert keeps == pytest.approx([1 - k / 6 * 0.5 for k in range(1, 7)])
    assert not any(isinstance(m, ShakeDrop) for m in timm.create_model("pyramidnet110_a64_cifar", depth=11).modules())


@pytest.mark.parametrize("name", ["shakeshake26_2x32d_cifar", "shakepyramidnet110_cifar"])
def test_shaking_compiles_to_one_graph(name: str) -> None:
    network = timm.create_model(name, depth=8, **({"width": 4} if "shakeshake" in name else {"alpha": 6})).train()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    state = torch.get_rng_state()
    expected = network(x)
    torch.set_rng_state(state)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("shakeshake26_2x32d_cifar", {"depth": 8, "width": 4}),
        pytest.param("shakepyramidnet110_cifar", {"depth": 8, "alpha": 6}, marks=pytest.mark.slow),
        pytest.param("wrn28_10_cifar", {"depth": 10, "width": 1, "drop_rate": 0.3}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_shakes_or_drops_resumes_bit_for_bit(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    config = small(model={"name": name, "kwargs": kwargs})
    train(config, tmp_path / "whole")
    resumed(config, tmp_path / "resumed", 3)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


# Blocks.


def double(module: nn.Module) -> nn.Module:
    """In float64 and evaluation, with norms that do something."""
    generator = torch.Generator().manual_seed(3)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor in (m.weight, m.bias, m.running_mean, m.running_var):
                assert tensor is not None
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return module.double().eval()


def norm(x: Tensor, layer: Any) -> Tensor:
    """Gamma (x - mean) / sqrt(variance + eps) + beta."""
    gamma, beta, mean, variance = (
        v.reshape(1, -1, 1, 1) for v in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    )
    return gamma * (x - mean) / (variance + 1e-5).sqrt() + beta


def conv(x: Tensor, layer: Any, stride: int = 1) -> Tensor:
    side = layer.weight.shape[-1]
    return F.conv2d(x, layer.weight, stride=stride, padding=side // 2)


def maps(channels: int, side: int = 6) -> Tensor:
    return torch.randn(2, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("width", "out", "stride"), [(4, 4, 1), (4, 6, 1), (4, 6, 2), (4, 4, 2)])
def test_a_wide_block_is_pre_activated(width: int, out: int, stride: int) -> None:
    block, x = double(WideBlock(width, out, stride, drop_rate=0.3)), maps(width)
    seen = norm(x, block.bn1).relu()
    branch = conv(norm(conv(seen, block.conv1, stride), block.bn2).relu(), block.conv2)
    shortcut = x if (width, stride) == (out, 1) else conv(seen, block.shortcut, stride)
    torch.testing.assert_close(block(x), shortcut + branch)


def test_dropout_of_a_wide_block_lies_between_its_convolutions() -> None:
    block, x = WideBlock(4, 4, 1, drop_rate=0.3).double().train(), maps(4)
    seen: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for rate in (0.3, 0.0):
        block.drop.p = rate
        block(x)
    dropped, whole = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.7)
    assert kept.double().sum() / (whole != 0).sum() == pytest.approx(0.7, abs=0.1)
    network = timm.create_model("wrn28_10_cifar", depth=10, width=1, drop_rate=0.3).train()
    assert network.drop_rate == 0.3
    features = torch.ones(1, 64, 2, 2)
    assert torch.equal(network.forward_head(features, pre_logits=True), torch.ones(1, 64)), "none at the classifier"


@pytest.mark.parametrize(("stride", "added", "side"), [(1, 2, 6), (2, 3, 6), (2, 0, 7)])
def test_a_pyramidal_block(stride: int, added: int, side: int) -> None:
    x = maps(4, side)
    block = double(PyramidBlock(basic_branch(4, 4 + added, stride), stride, added, keep=1))
    first, conv1, second, conv2, last = block.branch
    branch = norm(conv(norm(conv(norm(x, first), conv1, stride), second).relu(), conv2), last)
    torch.testing.assert_close(block(x), branch + padded(x, stride, added))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pyramidal_bottleneck(stride: int) -> None:
    x = maps(10)
    block = double(PyramidBlock(bottleneck_branch(10, 3, stride), stride, 2, keep=0.6))
    first, conv1, second, conv2, third, conv3, last = block.branch
    inner = norm(conv(norm(conv(norm(x, first), conv1), second).relu(), conv2, stride), third).relu()
    torch.testing.assert_close(block(x), 0.6 * norm(conv(inner, conv3), last) + padded(x, stride, 2))


def padded(x: Tensor, stride: int, added: int) -> Tensor:
    """Means of what lies in each square of `stride` pixels, and zeros for the new channels."""
    side = -(-x.shape[-1] // stride)
    squares = [
        [x[:, :, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].mean((2, 3)) for j in range(side)]
        for i in range(side)
    ]
    means = torch.stack([torch.stack(row, -1) for row in squares], -2)
    return torch.cat((means, torch.zeros(len(x), added, side, side, dtype=x.dtype)), 1)


def test_pyramids_widen_by_the_same_amount_at_each_block() -> None:
    """D_k = 16 + 64 k / 36, rounded; the program's first and last ones by hand."""
    with torch.device("meta"):
        network = PyramidNetCifar(110, 64)
    inner = [
        block.branch[1].out_channels for stage in (network.layer1, network.layer2, network.layer3) for block in stage
    ]
    assert inner[:6] == [18, 20, 21, 23, 25, 27]
    assert inner[11:13] == [37, 39]
    assert inner[-3:] == [76, 78, 80]
    assert len(inner) == 36


@pytest.mark.parametrize(("width", "out", "stride", "side"), [(4, 4, 1, 6), (4, 6, 1, 6), (4, 6, 2, 6), (4, 6, 2, 7)])
def test_a_block_of_two_branches(width: int, out: int, stride: int, side: int) -> None:
    block, x = double(ShakeBlock(width, out, stride)), maps(width, side)
    branches = []
    for conv1, norm1, conv2, norm2 in (block.branch1, block.branch2):
        branches.append(norm(conv(norm(conv(x.relu(), conv1, stride), norm1).relu(), conv2), norm2))
    shortcut = x
    if (width, stride) != (out, 1):
        # The second path sees the pixel to the lower right, zero beyond the border.
        beyond = torch.zeros(2, width, side + 1, side + 1, dtype=x.dtype)
        beyond[:, :, :side, :side] = x.relu()
        paths = beyond[:, :, :side:stride, :side:stride], beyond[:, :, 1::stride, 1::stride]
        halves = [
            conv(path, layer) for path, layer in zip(paths, (block.shortcut.conv1, block.shortcut.conv2), strict=True)
        ]
        shortcut = norm(torch.cat(halves, 1), block.shortcut.bn)
    torch.testing.assert_close(block(x), shortcut + sum(branches) / 2)


def test_squeeze_and_excitation_has_a_sixteenth_of_the_channels_and_no_bias() -> None:
    network = timm.create_model("seresnet110_cifar", depth=8)
    for stage, inner in ((network.layer1, 1), (network.layer2, 2), (network.layer3, 4)):
        gate = stage[0].se
        assert [tuple(p.shape[:2]) for p in gate.parameters()] == [(inner, 16 * inner), (16 * inner, inner)]
        x = torch.randn(2, 16 * inner, 4, 4, generator=torch.Generator().manual_seed(5))
        squeezed = x.mean((2, 3))
        excited = (squeezed @ gate.fc1.weight.flatten(1).T).relu() @ gate.fc2.weight.flatten(1).T
        torch.testing.assert_close(gate(x), x * excited.sigmoid()[:, :, None, None])


def test_the_stem_of_the_dense_network_is_one_convolution() -> None:
    network = timm.create_model("densenetbc100_12_cifar", block_config=(2, 2, 2)).eval()
    assert [name for name, _ in network.features.named_children()][:2] == ["conv0", "denseblock1"]
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    taps: list[tuple[int, ...]] = []
    for tap in network.feature_info:
        network.get_submodule(tap["module"]).register_forward_hook(lambda _, __, y: taps.append(tuple(y.shape[1:])))
    network(x)
    assert taps == [(tap["num_chs"], *[16 // tap["reduction"]] * 2) for tap in network.feature_info]
    assert [tap["reduction"] for tap in network.feature_info] == [1, 1, 2, 4]
    modules = [name for name, _ in network.features.named_children()]
    assert [f"features.{modules[end]}" for end in network.feature_ends] == [t["module"] for t in network.feature_info]


@pytest.mark.parametrize(("name", "stages"), [("resnet18_cifar", 4), ("resnext29_8x64d_cifar", 3)])
def test_timms_residual_networks_have_a_stem_without_reduction(name: str, stages: int) -> None:
    network = timm.create_model(name, layers=(1,) * stages, channels=(4, 8, 8, 16)[:stages]).eval()
    assert [info["reduction"] for info in network.feature_info] == [1, 1, 2, 4, 8][: stages + 1]
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    y = F.conv2d(x, network.conv1.weight, padding=1)
    y = F.batch_norm(y, torch.zeros(64), torch.ones(64)).relu()
    for stage in range(1, stages + 1):
        y = network.get_submodule(f"layer{stage}")(y)
    torch.testing.assert_close(network.forward_features(x), y)
