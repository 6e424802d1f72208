"""What is to be known of a network before it is built: whether it makes logits of these images, and its classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from augury.errors import UsageError, one_line
from augury.passes import classifier_of, features_and_logits
from augury_train.backbones.building import build, default_cfg
from augury_train.config import ModelConfig


@dataclass(frozen=True)
class Facts:
    """What is known of a network before it is built.

    Attributes:
        classifier: the module that makes its logits, on the meta device: its last layer, or the network itself where
            that one adds to what its last layer makes.
        num_features: A, width of the last layer's input.
        parameters, trained: how many it has, and how many of them are trained.
    """

    classifier: nn.Module
    num_features: int
    parameters: int
    trained: int


def inspect_model(config: ModelConfig, num_classes: int, image_size: tuple[int, int, int]) -> Facts:
    """Learn a network's facts without allocating it.

    Raises:
        UsageError: it cannot be built, has not one classifier, or makes no logits of these images in training.
    """
    default_cfg(config.name)
    # A comparison's runs, and whoever makes plan after plan, ask for the same network again and again.
    asked = (timm.models.model_entrypoint(config.name.split(".")[0]), repr(config), num_classes, image_size)
    if " at 0x" in asked[1]:
        # Something in it has no name of its own.
        return _inspect(config, num_classes, image_size)
    if asked not in _known:
        _known[asked] = _inspect(config, num_classes, image_size)
    return _known[asked]


_known: dict[Any, Facts] = {}


def _inspect(config: ModelConfig, num_classes: int, image_size: tuple[int, int, int]) -> Facts:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = build(config, num_classes, image_size)
        classifier = classifier_of(network)
        sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
        counts = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
        tried = None if _is_slow(network) else _try(network, classifier, config, num_classes, image_size)
    if tried is not None:
        return Facts(*tried, *counts)
    width = classifier.in_features if isinstance(classifier, nn.Linear) else getattr(network, "num_features", 0)
    return Facts(classifier, int(width), *counts)


def _is_slow(network: nn.Module) -> bool:
    """Whether a pass on the meta device takes minutes: recurrent layers take it one position after the other."""
    return any(isinstance(module, nn.RNNBase) for module in network.modules())


def _try(
    network: nn.Module,
    classifier: nn.Module,
    config: ModelConfig,
    num_classes: int,
    image_size: tuple[int, int, int],
) -> tuple[nn.Module, int] | None:
    """Pass images through a network in training on the meta device, for its classifier and the width of its features;
    None where that device has no form for all that the network does.

    Raises:
        UsageError: it does not work, or makes something else than logits.
    """
    made: list[Tensor] = []
    handle = classifier.register_forward_hook(lambda _, __, output: made.append(output))
    try:
        with torch.no_grad():
            output = features_and_logits(network.train(), torch.zeros(2, *image_size), classifier)
    except NotImplementedError:
        return None
    except UsageError:
        raise
    except Exception as error:
        if " meta " in f" {error} ":
            return None
        told = ", ".join(f"{key}={value}" for key, value in config.kwargs.items())
        what, way_out = (told, "Leave them out of model.kwargs") if told else (_images(image_size), _OTHER)
        raise UsageError(
            f"model `{config.name}` does not work with {what}: {one_line(str(error)).rstrip('.')}. {way_out}."
        ) from None
    finally:
        handle.remove()
    shape = tuple(output.logits.shape)
    if shape != (2, num_classes):
        raise UsageError(
            f"model `{config.name}` makes of two {_images(image_size)} what has the shape {shape}, not "
            f"(2, {num_classes}): no logits. {_OTHER}."
        )
    added = isinstance(classifier, nn.Linear) and made[-1] is not output.logits
    return network if added else classifier, output.features.shape[1]


_OTHER = "Choose another model, or another data.image_size"


def _images(size: tuple[int, int, int]) -> str:
    return f"images of {size[1]}x{size[2]} pixels and {size[0]} channel(s)"
