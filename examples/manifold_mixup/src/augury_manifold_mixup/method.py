"""Manifold Mixup as a method: options, the layers of the run's network, and the hook that mixes a batch."""

from __future__ import annotations

import difflib
from functools import partial
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import nn

import augury
from augury_manifold_mixup.functional import INPUT, first_stages, mix_rows, pair_shares, unknown_layers


def _once(layers: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(layers)) < len(layers):
        raise ValueError("different layers, each named once")
    return layers


Layers = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_once)]


class ManifoldMixup(augury.Method):
    """Mix the rows of a batch at a random layer of the network, and their labels alike (arXiv 1806.05236; ICML 2019).

    It has no state.
    """

    class Options(augury.Options):
        """The options of Manifold Mixup."""

        alpha: float = Field(
            2.0,
            gt=0,
            description="lambda ~ Beta(alpha, alpha) is the share that a row keeps of itself. Official programs: 2 on "
            "CIFAR and SVHN, 0.2 on Tiny-ImageNet",
        )
        layers: Layers | None = Field(
            None,
            description="where rows may be mixed, one drawn for each batch: `input`, or modules of the network, at "
            "whose output they are mixed. The input and the first two stages when unset, as in the paper's "
            "PreActResNets",
        )

    contract = "2.0"
    mixes = True
    mixes_hidden = True

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self._eligible: tuple[str, ...] | None = None

    @classmethod
    def check(cls, options: Options, spec: augury.Spec) -> None:
        """Refuse layers that the network does not have, or at which rows cannot be mixed, before it is built.

        Raises:
            UsageError: which ones, and which there are.
        """
        if spec.build_network is None:
            return
        # Nothing is computed there, but every layer is called, and says what shape it makes.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = spec.build_network().eval()
            layers = [layer for layer in eligible_layers(options, network) if layer != INPUT]
            if spec.image_size is not None:
                for layer in layers:
                    _try(layer, network, spec.image_size)

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        """Draw one layer and one lambda for the batch, and mix each row with another of its view there."""
        if self._eligible is None:
            self._eligible = self.options.layers or eligible_layers(self.options, run.network)
        # The host decides, in all processes alike, so that they mix at the same layer.
        layer = run.random.choice(self._eligible)
        own_share = run.random.betavariate(self.options.alpha, self.options.alpha)
        partners = batch.permutation(run.generator)
        sources = torch.stack([torch.arange(len(batch), device=batch.device), partners], 1)
        shares = pair_shares(len(batch), own_share, batch.device)
        mix = partial(mix_rows, partners=partners, own_share=own_share)
        if layer == INPUT:
            batch.mix(mix(batch.images), sources, shares)
        else:
            batch.mix_hidden(layer, mix, sources, shares)


def _try(layer: str, network: nn.Module, image_size: tuple[int, int, int]) -> None:
    """Refuse a layer at whose output rows cannot be mixed."""
    batch = augury.Batch.of(torch.empty(3, *image_size), torch.zeros(3))
    own = torch.arange(3)
    batch.mix_hidden(layer, lambda hidden: hidden, torch.stack([own, own], 1), torch.full((3, 2), 0.5))
    try:
        augury.forward(network, batch)
    except augury.UsageError as error:
        raise augury.UsageError(f"manifold_mixup: {error} Set the option `layers`.") from None


def eligible_layers(options: ManifoldMixup.Options, network: nn.Module) -> tuple[str, ...]:
    """The layers at which rows may be mixed: those of the options, else the input and the network's first two stages.

    Raises:
        UsageError: the network does not have one of them, or does not tell its stages.
    """
    stages = first_stages(network)
    if options.layers is None:
        if not stages:
            raise augury.UsageError(
                f"manifold_mixup: {type(network).__name__} does not tell its stages. Name the layers: "
                '--with \'manifold_mixup:layers=["input", "NAME"]\', NAME as network.named_modules() has it.'
            )
        return (INPUT, *stages)
    for layer in unknown_layers(network, options.layers):
        known = [INPUT, *stages, *(name for name, _ in network.named_children())]
        near = difflib.get_close_matches(layer, [name for name, _ in network.named_modules()], n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise augury.UsageError(
            f"manifold_mixup: option `layers`: {type(network).__name__} has no module `{layer}`. It has, among others, "
            f"{', '.join(dict.fromkeys(known))}.{hint}"
        )
    return options.layers
