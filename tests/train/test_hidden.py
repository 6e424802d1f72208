"""Mixing inside the network: what the contract gives a method that mixes activations, held against a pass by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.train.small_runs import losses_of, small, with_network
from torch import Tensor, nn

import augury
from augury.choice import choose, conflicts
from augury_train.config import RunConfig
from augury_train.training.rehearsal import preview

N, CLASSES = 6, 4


class Network(nn.Module):
    """Two layers and a classifier, in timm's shape."""

    def __init__(self, inputs: int = 16, classes: int = CLASSES) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, 5), nn.Linear(5, 5)
        self.act = nn.Tanh()
        self.pair, self.swapped, self.unused = Pair(), Swapped(), nn.Identity()
        self.fc = nn.Linear(5, classes)
        self.num_features = 5

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.act(self.first(images.flatten(1)))
        hidden, _ = self.pair(hidden)
        hidden = self.swapped(hidden)[0]
        return self.fc(self.act(self.second(hidden)))


class Pair(nn.Module):
    """Makes two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Inside(augury.Method):
    """Mixes each row with another at one layer."""

    class Options(augury.Options):
        layer: str = "first"
        share: float = 0.25

    mixes_hidden = True

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        own, other = torch.arange(len(batch), device=batch.device), batch.permutation(run.generator)
        share = self.options.share
        shares = torch.tensor([[1 - share, share]], device=batch.device).expand(len(batch), 2)
        batch.mix_hidden(
            self.options.layer, lambda h: (1 - share) * h + share * h[other], torch.stack([own, other], 1), shares
        )


class Swapped(nn.Module):
    """Makes tokens first, rows second."""

    def forward(self, x: Tensor) -> Tensor:
        return x[None].expand(3, -1, -1)


class InsideToo(Inside):
    """A second one."""


class Images(augury.Method):
    """Mixes images: each with the one before it."""

    mixes = True

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        own = torch.arange(len(batch))
        sources = torch.stack([own, own.roll(1)], 1)
        batch.mix((batch.images + batch.images.roll(1, 0)) / 2, sources, torch.full((len(batch), 2), 0.5))


class Takes(augury.Method):
    """Leaves images out."""

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        batch.take(torch.arange(2))


def network() -> Network:
    torch.manual_seed(0)
    return Network().double()


def batch_of(methods: augury.Composition, n: int = N) -> augury.Batch:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(methods.views)]
    return methods.batch(images, torch.arange(n) % CLASSES)


@pytest.mark.parametrize("n", [1, 5, 6])
@pytest.mark.parametrize("before", [[], [Images]])
def test_a_step_is_the_formula_with_its_gradients(n: int, before: list[type[augury.Method]]) -> None:
    """h' = (1 - s) h + s h[other] at the first layer; labels are those of what the rows are mixed from."""
    net, methods = network(), augury.compose([*before, Inside], num_classes=CLASSES)
    batch = batch_of(methods, n)
    loaded = batch.soft_targets(CLASSES).double()
    methods.augment_batch(batch)
    images, mixed_labels = batch.images.clone(), (loaded + loaded.roll(1, 0)) / 2 if before else loaded
    other = batch_of(methods, n).permutation(augury.Run(methods.run, "inside").generator)
    loss = methods.compute_loss(batch, augury.forward(net, batch))
    loss.backward()

    by_hand = copy.deepcopy(net)
    by_hand.zero_grad()
    hidden = by_hand.first(images.flatten(1))
    hidden = 0.75 * hidden + 0.25 * hidden[other]
    logits = by_hand.fc(by_hand.second(hidden.tanh()).tanh())
    targets = 0.75 * mixed_labels + 0.25 * mixed_labels[other]
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-9)


def test_nothing_of_it_stays_in_the_network() -> None:
    net, methods = network(), augury.compose([Inside], num_classes=CLASSES)
    batch = batch_of(methods)
    methods.augment_batch(batch)
    untouched = net(batch.images)
    changed = augury.forward(net, batch)
    assert not torch.equal(changed.logits, untouched)
    assert torch.equal(net(batch.images), untouched)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_activations_keep_their_type_under_autocast() -> None:
    net, methods = Network(), augury.compose([Inside], num_classes=CLASSES)
    batch = batch_of(methods)
    batch.images = batch.images.float()
    methods.augment_batch(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = augury.forward(net, batch)
    assert output.logits.dtype == torch.bfloat16
    assert methods.compute_loss(batch, output).dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "frist",
            "the network has no layer `frist` to mix at. At its top: first, second, act, pair, swapped, unused, fc.",
        ),
        ("", "the network has no layer `` to mix at."),
        ("act", "layer `act` is called 2 times in a pass. Mix at one that is called once."),
        (
            "unused",
            "layer `unused` was not called in the forward pass, or not where it can be seen: a compiled network",
        ),
        ("swapped", "layer `swapped` makes a tensor of shape (3, 6, 5) of 6 rows; only what has the rows first can be"),
        ("pair", "layer `pair` makes a tuple; only rows of a tensor can be mixed. Name another."),
    ],
)
def test_layers_that_cannot_be_mixed_are_refused(layer: str, message: str) -> None:
    net, methods = network(), augury.compose([(Inside, {"layer": layer})], num_classes=CLASSES)
    batch = batch_of(methods)
    methods.augment_batch(batch)
    with pytest.raises(augury.UsageError) as refused:
        augury.forward(net, batch)
    assert str(refused.value).startswith(message)
    assert not any(module._forward_hooks for module in net.modules())


def test_mixing_keeps_the_shape() -> None:
    net, batch = network(), batch_of(augury.compose([], num_classes=CLASSES))
    own = torch.arange(N)
    batch.mix_hidden("first", lambda hidden: hidden[:2], torch.stack([own, own], 1), torch.full((N, 2), 0.5))
    with pytest.raises(augury.UsageError, match=r"layer `first`: mixing made a tensor of shape \(2, 5\) of \(6, 5\)"):
        augury.forward(net, batch)


def test_wrapped_and_compiled_networks_are_seen_through() -> None:
    net = network()

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = net

        def forward(self, images: Tensor) -> Tensor:
            return self.module(images)

    compiled = Wrapper()
    compiled._orig_mod = net
    outputs = []
    for given in (net, Wrapper(), compiled):
        methods = augury.compose([Inside], num_classes=CLASSES)
        batch = batch_of(methods)
        methods.augment_batch(batch)
        outputs.append(augury.forward(given, batch, net.fc).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_an_output_made_without_the_mixing_is_refused() -> None:
    net, methods = network(), augury.compose([Inside], num_classes=CLASSES)
    batch = batch_of(methods)
    methods.augment_batch(batch)
    with pytest.raises(augury.MethodError, match=r"layer `first`.*made without that\. Make it with augury\.forward"):
        methods.compute_loss(batch, augury.ModelOutput(torch.zeros(N, 5), net(batch.images)))


@pytest.mark.parametrize("after", [Images, Takes, Inside])
def test_nothing_may_change_the_rows_afterwards(after: type[augury.Method]) -> None:
    methods = augury.compose([Inside], num_classes=CLASSES)
    batch = batch_of(methods)
    methods.augment_batch(batch)
    with pytest.raises(
        augury.MethodError, match=r"`augment_batch` raised ValueError: batch\.\w+ after batch.mix_hidden"
    ):
        augury.compose([after], num_classes=CLASSES).augment_batch(batch)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([Images, Inside], None),
        ([Inside, Takes], None),
        (
            [Inside, Images],
            "inside mixes inside the network, so no method can mix after it. Name images before inside.",
        ),
        (
            [Inside, InsideToo],
            "inside mixes inside the network, so no method can mix after it. Leave insidetoo or inside out.",
        ),
    ],
)
def test_the_order_is_checked_before_training(methods: list[type[augury.Method]], message: str | None) -> None:
    chosen, _ = choose(methods)
    assert conflicts(chosen) == ([] if message is None else [message])


class Unmixed(augury.Method):
    """Measures images."""

    unmixed = True

    @augury.hookimpl
    def augment_batch(self) -> None:
        pass


def test_a_method_that_measures_images_comes_before() -> None:
    chosen, _ = choose([Inside, Unmixed])
    assert conflicts(chosen) == ["unmixed must see images before inside mixes them. Name unmixed before inside."]


def test_a_network_that_does_not_tell_its_classifier_is_given_one() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    batch = augury.Batch.of(torch.randn(2, 1, 4, 4), torch.zeros(2))
    output = augury.forward(net, batch, net[1])
    torch.testing.assert_close(output.features, batch.images.flatten(1))
    torch.testing.assert_close(output.logits, net(batch.images))
    with pytest.raises(augury.UsageError, match=r"Sequential does not tell its classifier\. Give it: augury.forward"):
        augury.forward(net, batch)


@pytest.fixture
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer knows the method by name."""
    from augury import registry

    monkeypatch.setattr(registry.Register, "resolve", lambda self, name: (Known(name), {}))
    monkeypatch.setattr(registry.Register, "load_class", lambda self, name: Inside)


class Known:
    def __init__(self, name: str) -> None:
        self.name = name


def settings(layer: str, **sections: Any) -> RunConfig:
    return small(("inside", {"layer": layer}), **sections)


@pytest.mark.usefixtures("_known")
def test_a_run_mixes_inside_and_its_pass_is_never_a_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda _: lambda *given: pytest.fail("a compiled pass sees no hook"))
    torch.manual_seed(0)
    net = Network(64, 10)
    plain = losses_of(with_network(settings("first"), net))
    compiled = losses_of(with_network(settings("first", train={"compile": True}), net))
    without = losses_of(with_network(small(), net))
    assert plain == compiled
    assert plain != without


@pytest.mark.usefixtures("_known")
def test_a_preview_says_where_rows_are_mixed() -> None:
    figure = preview(settings("layer1"), columns=2)["batch"]
    captions = [ax.get_xlabel() for ax in figure.axes]
    assert sum("mixed at layer1" in caption for caption in captions) == 2
