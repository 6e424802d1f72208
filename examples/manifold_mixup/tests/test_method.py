"""The whole step against one written by hand, and what the options promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import augury
from augury_manifold_mixup import ManifoldMixup

CLASSES, ROWS = 3, 5
LAYERS = ("input", "first", "second")


class Network(nn.Module):
    """x -> h1 = tanh(W1 x) -> h2 = tanh(W2 h1) -> W3 h2, its stages told as timm tells them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh())
        self.fc = nn.Linear(6, CLASSES, bias=False)
        self.feature_info = [{"module": "first"}, {"module": "second"}]

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(self.first(images.flatten(1))))


def methods_of(network: nn.Module, **options: Any) -> augury.Composition:
    return augury.compose([(ManifoldMixup, options)], num_classes=CLASSES, network=network)


def batch_of(methods: augury.Composition, rows: int = ROWS) -> augury.Batch:
    images = torch.randn(rows, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return methods.batch(images, torch.arange(rows) % CLASSES)


def draws_of(methods: augury.Composition, layers: tuple[str, ...], alpha: float = 2.0) -> tuple[str, float, np.ndarray]:
    """The layer, lambda and partners of the present step."""
    run = augury.Run(methods.run, "manifoldmixup")
    layer, own_share = run.random.choice(layers), run.random.betavariate(alpha, alpha)
    return layer, own_share, torch.randperm(ROWS, generator=run.generator).numpy()


def by_hand(
    weights: list[np.ndarray], x: np.ndarray, labels: np.ndarray, layer: str, own_share: float, partners: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """Loss and gradients of a step, forward and backward written out: Mix(a) = S a with S_ii = lambda, S_ip(i) += 1 -
    lambda, at the one layer; loss = -mean_i sum_c (S y)_ic log p_ic."""
    mixing = own_share * np.eye(len(x)) + (1 - own_share) * np.eye(len(x))[partners]
    at = {name: mixing if name == layer else np.eye(len(x)) for name in LAYERS}
    w1, w2, w3 = weights
    h0 = at["input"] @ x
    t1 = np.tanh(h0 @ w1.T)
    h1 = at["first"] @ t1
    t2 = np.tanh(h1 @ w2.T)
    h2 = at["second"] @ t2
    z = h2 @ w3.T
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    targets = mixing @ np.eye(CLASSES)[labels]
    dz = (np.exp(log_p) - targets) / len(x)
    da2 = (at["second"].T @ (dz @ w3)) * (1 - t2**2)
    da1 = (at["first"].T @ (da2 @ w2)) * (1 - t1**2)
    return float(-(targets * log_p).sum(1).mean()), [da1.T @ h0, da2.T @ h1, dz.T @ h2]


@pytest.mark.parametrize("layers", [None, ("input",), ("first",), ("second",), ("fc",)])
def test_a_step_is_the_formula_with_its_gradients(layers: tuple[str, ...] | None) -> None:
    torch.manual_seed(0)
    network = Network().double()
    methods = methods_of(network, **({} if layers is None else {"layers": layers}))
    seen = set()
    for step in range(8):
        methods.run.step = step
        network.zero_grad()
        layer, own_share, partners = draws_of(methods, layers or LAYERS)
        seen.add(layer)
        batch = batch_of(methods)
        images = batch.images.flatten(1).numpy().copy()
        methods.augment_batch(batch)
        loss = methods.compute_loss(batch, augury.forward(network, batch))
        loss.backward()
        if layer == "fc":
            # Mixing logits: the same as mixing what enters a linear classifier without a bias.
            layer = "second"
        weights = [p.detach().numpy() for p in network.parameters()]
        expected, gradients = by_hand(weights, images, np.arange(ROWS) % CLASSES, layer, own_share, partners)
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            # Shares of labels are float32.
            np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-5, atol=1e-7)
    assert seen == set(layers or LAYERS)


def test_one_lambda_and_one_layer_a_batch_follow_their_distributions() -> None:
    methods = methods_of(Network(), alpha=0.7)
    shares, layers = [], []
    for step in range(2000):
        methods.run.step = step
        batch = methods.batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))
        methods.augment_batch(batch)
        assert torch.equal(batch.shares[0], batch.shares[1])
        shares.append(batch.shares[0, 0].item())
        layers.append("input" if batch.hidden is None else batch.hidden.layer)
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); the sample's own error is 0.008 and 0.002.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * 2.4), abs=0.008)
    assert all(layers.count(name) == pytest.approx(2000 / 3, abs=90) for name in LAYERS)


def test_what_was_mixed_before_keeps_all_its_labels() -> None:
    network = Network().double()
    methods = methods_of(network, layers=("first",))
    batch = batch_of(methods)
    own = torch.arange(ROWS)
    batch.mix(batch.images, torch.stack([own, own.roll(1)], 1), torch.full((ROWS, 2), 0.5))
    methods.augment_batch(batch)
    assert batch.labels.shape == (ROWS, 4)
    torch.testing.assert_close(batch.shares.sum(1), torch.ones(ROWS))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"alpha": 0}, "option `alpha` must be > 0, got 0"),
        ({"alpha": float("inf")}, "option `alpha` must be a finite number"),
        ({"layers": []}, "option `layers` must"),
        ({"layers": ["input", "input"]}, "option `layers` must be different layers, each named once"),
        ({"layer": "input"}, "unknown option `layer`.*Did you mean `layers`"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(augury.UsageError, match=line):
        methods_of(Network(), **options)


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        (
            ("input", "frist"),
            "`layers`: Network has no module `frist`. .*input, first, second, fc. Did you mean `first`",
        ),
        (("",), "has no module ``"),
    ],
)
def test_layers_that_the_network_does_not_have_are_refused_before_it_is_built(
    layers: tuple[str, ...], line: str
) -> None:
    devices = []

    def build() -> nn.Module:
        devices.append(torch.get_default_device().type)
        torch.rand(1, device="cpu")
        return Network()

    spec = augury.Spec(num_classes=CLASSES, build_network=build)
    state = torch.get_rng_state()
    with pytest.raises(augury.UsageError, match=line):
        ManifoldMixup.check(ManifoldMixup.Options(layers=layers), spec)
    ManifoldMixup.check(ManifoldMixup.Options(layers=("input", "first.0")), spec)
    assert torch.equal(torch.get_rng_state(), state)
    assert devices == ["meta", "meta"]


def test_a_network_that_does_not_tell_its_stages_needs_its_layers_named() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES))
    with pytest.raises(augury.UsageError, match="Sequential does not tell its stages. Name the layers"):
        ManifoldMixup.check(ManifoldMixup.Options(), augury.Spec(CLASSES, build_network=lambda: network))
    methods = methods_of(network.double())
    with pytest.raises(augury.UsageError, match="does not tell its stages"):
        methods.augment_batch(batch_of(methods))
    methods = methods_of(network, layers=("1",))
    methods.augment_batch(batch := batch_of(methods))
    assert augury.forward(network, batch, network[1]).logits.shape == (ROWS, CLASSES)


@pytest.mark.parametrize("name", ["coat_lite_tiny", "hrnet_w18_small"])
def test_stages_that_cannot_be_mixed_are_refused_before_training(name: str) -> None:
    """A stage that makes a list, or that is never called: timm tells such ones too."""
    size = timm.get_pretrained_cfg(name).input_size
    spec = augury.Spec(10, image_size=size, build_network=lambda: timm.create_model(name, num_classes=10))
    with pytest.raises(augury.UsageError, match=r"^manifold_mixup: layer `.*Set the option `layers`\.$"):
        ManifoldMixup.check(ManifoldMixup.Options(), spec)
