"""The mathematics against formulas written out in float64."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from augury_manifold_mixup.functional import first_stages, mix_rows, pair_shares, unknown_layers


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 4, 4), (5,), (1, 7)])
@pytest.mark.parametrize("own_share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_a_mixed_row_is_the_share_weighted_sum(shape: tuple[int, ...], own_share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    partners = torch.randperm(shape[0], generator=generator)
    mixed = mix_rows(values, partners, own_share)
    for row, partner in enumerate(partners.tolist()):
        torch.testing.assert_close(mixed[row], own_share * values[row] + (1 - own_share) * values[partner])
    assert own_share < 1 or torch.equal(mixed, values)
    assert mix_rows(values.bfloat16(), partners, own_share).dtype == torch.bfloat16


def test_the_gradient_returns_to_both_rows() -> None:
    """d loss / d h_i = lambda g_i + (1 - lambda) times the sum of g_j over the rows j that i is the partner of."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    partners, factor = torch.tensor([2, 0, 0, 3]), torch.randn(4, 3, dtype=torch.float64, generator=generator)
    (mix_rows(values, partners, 0.7) * factor).sum().backward()
    expected = 0.7 * factor
    for row, partner in enumerate(partners.tolist()):
        expected[partner] += 0.3 * factor[row]
    torch.testing.assert_close(values.grad, expected)
    assert torch.autograd.gradcheck(lambda v: mix_rows(v, partners, 0.7), (values,))


@pytest.mark.parametrize("own_share", [0.0, 1e-9, 0.3, 1 - 1e-9, 1.0])
def test_shares_are_the_same_in_all_rows_and_sum_to_one(own_share: float) -> None:
    shares = pair_shares(3, own_share, torch.device("cpu"))
    assert shares.dtype == torch.float32
    assert shares.shape == (3, 2)
    assert torch.equal(shares, shares[:1].expand(3, 2))
    assert torch.equal(shares.sum(1), torch.ones(3))
    torch.testing.assert_close(shares[0], torch.tensor([own_share, 1 - own_share]))


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        ("resnet20_cifar", ["layer1", "layer2"]),
        ("resnet18", ["layer1", "layer2"]),
        ("densenet121", ["features.denseblock1", "features.denseblock2"]),
        ("vit_tiny_patch16_224", ["blocks.0", "blocks.1"]),
        ("regnety_002", ["s1", "s2"]),
        ("efficientnet_b0", ["blocks.0", "blocks.1"]),
    ],
)
def test_the_first_stages_are_timm_s_without_the_stem(model: str, stages: list[str]) -> None:
    import augury_train.backbones  # noqa: F401  its networks join timm's

    with torch.device("meta"):
        network = timm.create_model(model)
    assert first_stages(network) == stages
    assert unknown_layers(network, ["input", *stages]) == []


def test_a_network_that_tells_nothing_has_no_stages() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    assert first_stages(network) == []
    assert unknown_layers(network, ["input", "0", "0.0", "", "1", "inputs"]) == ["", "1", "inputs"]
