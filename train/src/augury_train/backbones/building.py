"""A network as training starts with it: fresh, or with trained weights."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from augury.errors import UsageError
from augury_train.backbones import starting
from augury_train.backbones.downloads import explain, quietly
from augury_train.backbones.recomputing import checkpoint_gradients
from augury_train.backbones.stages import freeze_stages
from augury_train.config import ModelConfig


def data_config(name: str) -> dict[str, Any]:
    """How a model wants its images, as timm says: `input_size` (channels, height, width), `crop_pct`, `interpolation`,
    `mean` and `std` of each channel on the scale of [0, 1].

    Raises:
        UsageError: timm has no such model.
    """
    return resolve_data_config(pretrained_cfg=default_cfg(name))


def build(
    config: ModelConfig, num_classes: int, image_size: tuple[int, int, int], classes: Sequence[str] | None = None
) -> nn.Module:
    """Build a network: fresh weights are drawn from torch's generator, trained ones read where `config` says so; on the
    meta device there are none to read.

    Args:
        config: the model's section of the settings.
        num_classes: that it tells apart.
        image_size: (channels, height, width).
        classes: their names by label; the classifier of weights that know other ones is not kept.

    Raises:
        UsageError: timm has no such model, or cannot build it for these images, or its weights cannot be had.
    """
    starting.refuse_other_weights(config.kwargs, "config: key `model.kwargs`")
    _refuse_no_weights(config)
    if torch.get_default_device().type == "meta":
        config = untrained(config)
    arguments = _arguments(config, image_size)
    make = partial(timm.create_model, config.name, num_classes=num_classes, **arguments)
    cfg = default_cfg(config.name)
    try:
        if config.init_from is not None:
            network = starting.started(
                starting.find(config), starting.Wanted(config, make, cfg, image_size[0], num_classes, classes)
            )
        else:
            with quietly():
                network = make(pretrained=config.pretrained)
    except UsageError:
        raise
    except Exception as error:
        # That the network can be built at all, the plan has tried on the meta device.
        if config.pretrained:
            raise UsageError(explain(config, cfg, error)) from None
        # Arguments that somebody gives can make a network fail in any way.
        if not config.kwargs and not isinstance(error, TypeError | ValueError | RuntimeError | AssertionError):
            raise
        told = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise UsageError(
            f"model `{config.name}` cannot be built with {told}: {error}. Choose another model or image size."
        ) from None
    freeze_stages(network, config)
    if config.grad_checkpointing:
        checkpoint_gradients(network, config.name)
    return network


def check_start(config: ModelConfig) -> None:
    """See whether there are the trained weights that a network is to start from; whether they fit it, `start_notes`
    sees.

    Raises:
        UsageError: there are none, or those of another network.
    """
    _refuse_no_weights(config)
    if config.init_from is not None:
        starting.find(config)


def start_notes(
    config: ModelConfig, num_classes: int, image_size: tuple[int, int, int], classes: Sequence[str] | None = None
) -> list[str]:
    """What is to be said of the trained weights that `build` would start from, a line each; that they fit, is tried on
    the meta device. Arguments as for `build`.

    Raises:
        UsageError: there are no such weights, or they do not fit.
    """
    cfg = default_cfg(config.name)
    if config.pretrained and cfg.get("num_classes") == num_classes:
        return [
            f"the classifier that timm downloads is kept: it has {num_classes} classes too, in an order of its own. "
            "For a fresh one, give the weights as a file with --init-from."
        ]
    name, _, tag = config.name.partition(".")
    if config.init_from is None and tag and not config.pretrained:
        return [f"starts from fresh weights: `{tag}` of `{name}` is downloaded with --pretrained alone."]
    if config.init_from is None:
        return []
    found = starting.find(config)
    make = partial(timm.create_model, config.name, num_classes=num_classes, **_arguments(config, image_size))
    fitted, own = starting.fitted_to(found, starting.Wanted(config, make, cfg, image_size[0], num_classes, classes))
    told = list(fitted.told)
    size = found.said.input_size
    resized = any(name in own and own[name].shape != tensor.shape for name, tensor in fitted.whole.items())
    if resized and (size is None or size[1:] != image_size[1:]):
        start = f" from {size[1]}" if size is not None else ""
        told.append(f"what in it depends on the image size is resampled{start} to {image_size[1]} pixels")
    of = f", those of a `{found.said.model[:80]}`" if found.said.model else ""
    return [f"starts from the weights in {found.path}{of}: {'; '.join(told)}."]


def _arguments(config: ModelConfig, image_size: tuple[int, int, int]) -> dict[str, Any]:
    """Those of timm.create_model beside the name and the number of classes."""
    arguments: dict[str, Any] = {"in_chans": image_size[0], **config.kwargs}
    if _fixed(config.name):
        arguments.setdefault("img_size", image_size[1:])
    return arguments


def _refuse_no_weights(config: ModelConfig) -> None:
    """Raises: UsageError where settings ask for two sets of trained weights, or for one that there is not."""
    if config.pretrained and config.init_from is not None:
        raise UsageError(
            f"model.pretrained=true and {starting.subject_of(config)} are two sets of weights to start from. "
            "Leave out one of them: --set model.pretrained=false, say."
        )
    cfg = default_cfg(config.name)
    if config.pretrained and not any(cfg.get(source) for source in ("url", "file", "hf_hub_id")):
        raise UsageError(
            f"model `{config.name}`: timm has no weights of it to download. Leave out --pretrained, or start from a "
            "file's or a run's with --init-from. `augury backbones` tells which models have some."
        )


def fixed_size(config: ModelConfig) -> bool:
    """Whether a network takes images of the size alone that it was built for."""
    return _fixed(config.name) and not config.kwargs.get("dynamic_img_size")


def _fixed(name: str) -> bool:
    return bool(default_cfg(name).get("fixed_input_size"))


def untrained(config: ModelConfig) -> ModelConfig:
    """The same network with fresh weights."""
    return config.model_copy(update={"pretrained": False, "init_from": None})


def default_cfg(name: str) -> dict[str, Any]:
    """What timm says of a model and of its pretrained weights.

    Raises:
        UsageError: timm has no such model.
    """
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
