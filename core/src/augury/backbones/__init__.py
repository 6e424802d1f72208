"""Networks: every classifier that timm knows, ours among them."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from augury.backbones import densenet_cifar as densenet_cifar  # joins timm's registry, as the others of this form
from augury.backbones import pyramidnet_cifar as pyramidnet_cifar
from augury.backbones import resnet_cifar as resnet_cifar
from augury.backbones import resnet_small_stem as resnet_small_stem
from augury.backbones import shakeshake_cifar as shakeshake_cifar
from augury.backbones import trained
from augury.backbones import wrn_cifar as wrn_cifar
from augury.backbones.stages import freeze_stages
from augury.batch import Batch, ModelOutput
from augury.config import ModelConfig
from augury.errors import UsageError

_NOT_THE_MODELS = {"checkpoint_path", "cache_dir", "features_only", "out_indices", "feature_cfg"} | {
    "model_name",
    "num_classes",
    "in_chans",
    "device",
    "dtype",
}
"""Arguments of timm.create_model that are the run's, or make no classifier."""

Pass = Callable[[nn.Module, Tensor, nn.Module], ModelOutput]


@dataclass(frozen=True)
class Facts:
    """What is known of a network before it is built: its classifier (on the meta device) and the width of that one's
    input."""

    classifier: nn.Module
    num_features: int


def data_config(name: str) -> dict[str, Any]:
    """How a model wants its images, as timm says: `input_size` (channels, height, width), `crop_pct`, `interpolation`,
    `mean` and `std` of each channel on the scale of [0, 1].

    Raises:
        UsageError: timm has no such model.
    """
    return resolve_data_config(pretrained_cfg=_default_cfg(name))


def build(config: ModelConfig, num_classes: int, image_size: tuple[int, int, int]) -> nn.Module:
    """Build a network: fresh weights are drawn from torch's generator, trained ones read where `config` says so; on the
    meta device there are none to read.

    Raises:
        UsageError: timm has no such model, or cannot build it for these images, or its weights cannot be had.
    """
    _refuse_other_weights(config)
    if torch.get_default_device().type == "meta":
        config = untrained(config)
    arguments: dict[str, Any] = {"in_chans": image_size[0], **config.kwargs}
    if _fixed(config.name):
        arguments.setdefault("img_size", image_size[1:])
    if config.checkpoint is not None:
        arguments["pretrained_cfg_overlay"] = trained.overlay(config.checkpoint, _default_cfg(config.name))
    starts_trained = config.pretrained or config.checkpoint is not None
    try:
        with trained.quietly():
            network = timm.create_model(config.name, pretrained=starts_trained, num_classes=num_classes, **arguments)
    except Exception as error:
        # That the network can be built at all, the plan has tried on the meta device.
        if starts_trained:
            raise UsageError(trained.explain(config, error)) from None
        # Arguments that somebody gives can make a network fail in any way.
        if not config.kwargs and not isinstance(error, TypeError | ValueError | RuntimeError | AssertionError):
            raise
        told = ", ".join(f"{key}={value}" for key, value in arguments.items() if key != "pretrained_cfg_overlay")
        raise UsageError(
            f"model `{config.name}` cannot be built with {told}: {error}. Choose another model or image size."
        ) from None
    freeze_stages(network, config)
    return network


def _refuse_other_weights(config: ModelConfig) -> None:
    """Refuse arguments that name files, addresses or code: weights have a setting, and so do images and classes."""
    odd = [key for key in config.kwargs if key in _NOT_THE_MODELS or key.startswith("pretrained")]
    if odd:
        raise UsageError(
            f"config: key `model.kwargs` must not have `{odd[0][:80]}`: it is no argument of the network itself. "
            "Weights to start from are model.checkpoint or model.pretrained; classes and channels are the data's."
        )


def fixed_size(config: ModelConfig) -> bool:
    """Whether a network takes images of the size alone that it was built for."""
    return _fixed(config.name) and not config.kwargs.get("dynamic_img_size")


def _fixed(name: str) -> bool:
    return bool(_default_cfg(name).get("fixed_input_size"))


def untrained(config: ModelConfig) -> ModelConfig:
    """The same network with fresh weights."""
    return config.model_copy(update={"pretrained": False, "checkpoint": None})


def inspect_model(config: ModelConfig, num_classes: int, image_size: tuple[int, int, int]) -> Facts:
    """Learn a network's facts without allocating it."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = build(config, num_classes, image_size)
        if config.kwargs:
            _try(network, config, image_size)
    classifier = classifier_of(network)
    width = classifier.in_features if isinstance(classifier, nn.Linear) else getattr(network, "num_features", 0)
    return Facts(classifier, int(width))


def _try(network: nn.Module, config: ModelConfig, image_size: tuple[int, int, int]) -> None:
    """Pass images through a network on the meta device: arguments can make one that is built and does not work.

    Raises:
        UsageError: it does not.
    """
    try:
        network(torch.zeros(2, *image_size))
    except NotImplementedError:
        # Not all that networks do has a meta form.
        return
    except Exception as error:
        told = ", ".join(f"{key}={value}" for key, value in config.kwargs.items())
        raise UsageError(
            f"model `{config.name}` does not work with {told}: {error}. Leave them out of model.kwargs."
        ) from None


def classifier_of(network: nn.Module) -> nn.Module:
    """The last layer of a model that tells it, as timm's do.

    Raises:
        UsageError: it does not tell, or has several.
    """
    if not hasattr(network, "get_classifier"):
        kind = type(network).__name__
        raise UsageError(f"{kind} does not tell its classifier. Give it: augury.forward(model, batch, model.fc), say.")
    classifier = network.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Module):
        name = type(network).__name__
        raise UsageError(
            f"model {name} has {len(classifier)} classifiers; augury trains models with one. Choose another model."
        )
    return classifier


def features_and_logits(network: nn.Module, images: Tensor, classifier: nn.Module) -> ModelOutput:
    """Both in one pass.

    The features are what enters the classifier, caught there, so that they are right for every family of models.

    Args:
        images: M x ch x H x W float.
        classifier: the network's last layer.
    """
    caught: list[Tensor] = []
    with _catching(classifier, caught):
        logits = network(images)
    return ModelOutput(caught[-1].flatten(1), logits)


def forward(
    network: nn.Module, batch: Batch, classifier: nn.Module | None = None, *, plain: Pass | None = None
) -> ModelOutput:
    """What a network makes of a batch, in one pass: features and logits, rows mixed inside where a method asked for it.

    Args:
        network: images M x ch x H x W -> logits M x C, in any mode.
        batch: after `augment_batch`.
        classifier: its last layer; what its `get_classifier()` names (timm's do) when None.
        plain: makes the pass where nothing is mixed inside, a compiled one say; an ordinary one when None.

    Raises:
        UsageError: the network does not tell its classifier, or a layer cannot be mixed.
    """
    if classifier is None:
        classifier = classifier_of(network)
    if batch.hidden is None:
        return (plain or features_and_logits)(network, batch.images, classifier)
    # Never compiled: a compiled pass does not see the hooks of one batch.
    network = getattr(network, "_orig_mod", network)
    with batch.hidden.applied(network):
        return features_and_logits(network, batch.images, classifier)


@contextlib.contextmanager
def _catching(layer: nn.Module, into: list[Tensor]) -> Iterator[None]:
    handle = layer.register_forward_pre_hook(lambda _, inputs: into.append(inputs[0]))
    try:
        yield
    finally:
        handle.remove()


def _default_cfg(name: str) -> dict[str, Any]:
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name[:80], timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(f'`{n}`' for n in near)}?" if near else ""
        raise UsageError(
            f"unknown model `{name[:80]}`. Known: the {len(timm.list_models())} names of timm.list_models().{hint}"
        )
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise UsageError(
            f"model `{name}`: {error} See `augury backbones`, or leave out what is behind the dot."
        ) from None
    return found.to_dict() if found is not None else {}
