"""The weights of a file, or of a run, that a network starts from: what of them fits, what is replaced, and what is said
of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from augury.errors import UsageError, brief
from augury.outside import oddity
from augury_train.backbones.downloads import quietly
from augury_train.backbones.weights import Description, describe, locate, misfit, other_model, read_weights, short
from augury_train.config import ModelConfig, RunConfig

_NOT_THE_MODELS = {"checkpoint_path", "cache_dir", "features_only", "out_indices", "feature_cfg"} | {
    "model_name",
    "num_classes",
    "in_chans",
    "device",
    "dtype",
}
"""Arguments of timm.create_model that are the run's, or make no classifier."""


@dataclass(frozen=True)
class Found:
    """Weights to start from, as they are found.

    Attributes:
        path: of the file.
        said: what it says of its network.
        weights: by name.
    """

    path: Path
    said: Description
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Wanted:
    """The network that is to start from weights.

    Attributes:
        config: the model's section of the settings.
        make: timm.create_model of it; takes what else timm is to know.
        cfg: timm's pretrained cfg of the model.
        channels: of its images.
        num_classes: that it tells apart.
        classes: their names by label, where they are known.
    """

    config: ModelConfig
    make: Callable[..., nn.Module]
    cfg: Mapping[str, Any]
    channels: int
    num_classes: int
    classes: Sequence[str] | None


@dataclass(frozen=True)
class Fitted:
    """The same, fitted to a network and its images.

    Attributes:
        weights: by name, the classifier's in this network's order of classes.
        fresh: names of the network's tensors that are drawn afresh.
        whole: the shapes of all that the network would be given, on the meta device: `fresh` ones included, and its
            first convolution as it will be.
        changes: what else timm's pretrained cfg of the model is to say.
        told: what was done, in words.
    """

    weights: dict[str, Tensor]
    fresh: list[str]
    whole: dict[str, Tensor]
    changes: dict[str, Any]
    told: list[str]

    def overlay(self, num_classes: int) -> dict[str, Any]:
        """What makes timm start from them: an overlay of the model's pretrained cfg."""
        # timm leaves the classifier out where the number of classes is another one.
        return {**self.changes, "state_dict": self.weights, "num_classes": -1 if self.fresh else num_classes}

    def trial(self, num_classes: int) -> dict[str, Any]:
        """The same on the meta device with all that is fresh, so that nothing else may be missing or left over."""
        weights = {name: tensor.to("meta") for name, tensor in self.weights.items()}
        weights |= {name: self.whole[name] for name in self.fresh}
        return {**self.changes, "state_dict": weights, "num_classes": num_classes}


def subject_of(config: ModelConfig) -> str:
    """What is said before anything that is wrong with weights to start from."""
    return brief(f"model.init_from={config.init_from}")


def find(config: ModelConfig) -> Found:
    """Read the weights that `config` starts from.

    Raises:
        UsageError: they cannot be read, or are those of another model.
    """
    subject = subject_of(config)
    path = locate(str(config.init_from), subject)
    said = describe(path)
    if why := other_model(said, config.name):
        raise UsageError(f"{subject} {why}. Choose it with --model {str(said.model)[:80]}, or give other weights.")
    return Found(path, said, read_weights(path, subject))


def fit(found: Found, wanted: Wanted, own: Mapping[str, Tensor]) -> Fitted:
    """Fit weights to a network, whose own tensors are on the meta device."""
    cfg, channels = wanted.cfg, wanted.channels
    weights = dict(found.weights)
    head = [f"{name}.{part}" for name in _all(cfg.get("classifier")) for part in ("weight", "bias")]
    head = [name for name in head if name in own]
    fresh, told = _fit_head(found.said, weights, head, wanted.num_classes, wanted.classes)
    whole = dict(weights) | {name: own[name] for name in fresh}
    changes: dict[str, Any] = {"label_offset": 0}
    for name in (f"{first}.weight" for first in _all(cfg.get("first_conv"))):
        one, other = weights.get(name), own.get(name)
        if one is None or other is None or one.shape == other.shape or one.ndim != other.ndim or one.ndim < 2:
            continue
        # A stem may see several pixels at once, as channels.
        theirs = one.shape[1] * channels // max(1, other.shape[1])
        if theirs != channels and one.shape[0] == other.shape[0] and one.shape[2:] == other.shape[2:]:
            changes["input_size"] = (theirs, *cfg.get("input_size", (3, 224, 224))[1:])
            whole[name] = other
            # Of what is no convolution, timm makes a fresh one.
            how = "adapted" if one.ndim == 4 else "replaced by a fresh one"
            line = f"what sees the image first is {how}: from {theirs} channels to {channels}"
            # Several branches may see it.
            told += [line] if line not in told else []
    if "input_size" not in changes:
        changes["input_size"] = (channels, *cfg.get("input_size", (3, 224, 224))[1:])
    return Fitted(weights, fresh, whole, changes, told)


def _fit_head(
    said: Description,
    weights: dict[str, Tensor],
    head: Sequence[str],
    num_classes: int,
    classes: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """The names of a classifier's tensors that have to be drawn afresh, and what is to be said; the weights' own are
    put into this network's order of classes."""
    inside = [weights[name] for name in head if name in weights and weights[name].ndim]
    if not inside:
        return list(head), [f"they have no classifier; it is a fresh one of {num_classes} classes"]
    count = len(inside[0])
    theirs = said.classes if said.classes is not None and len(said.classes) == count else None
    if count != num_classes or (theirs and classes is not None and sorted(theirs) != sorted(classes)):
        them, ours = (f" ({short(names)})" if names else "" for names in (theirs, classes))
        fresh_one = f"replaced by a fresh one of {num_classes}{ours}"
        return list(head), [f"the classifier of {count} classes{them} is {fresh_one}"]
    if theirs is None or classes is None:
        return [], [f"the classifier of {count} classes is kept, without a word of which classes they are"]
    if theirs == list(classes):
        return [], [f"the classifier of {count} classes is kept"]
    order = [theirs.index(name) for name in classes]
    for name in head:
        if name in weights and weights[name].shape[:1] == (count,):
            weights[name] = weights[name][order]
    return [], [f"the classifier of {count} classes is kept, in another order"]


def fitted_to(found: Found, wanted: Wanted) -> tuple[Fitted, dict[str, Tensor]]:
    """Fit weights to a network, and try them on the meta device.

    Returns:
        the weights, and the tensors of the network without them, on the meta device.

    Raises:
        UsageError: they do not fit.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        own = wanted.make().state_dict()
        fitted = fit(found, wanted, own)
        try:
            with quietly():
                wanted.make(pretrained=True, pretrained_cfg_overlay=fitted.trial(wanted.num_classes))
                # Names may differ where timm translates them, or where it looks at none, as for DLA.
                if any(name not in fitted.whole for name in own) and _takes_anything(wanted, fitted):
                    raise ValueError("some are missing")
        except NotImplementedError:
            # Not all that timm does to weights has a meta form.
            pass
        except Exception as error:
            raise _refusal(wanted.config, fitted, own, error) from None
    return fitted, own


def _takes_anything(wanted: Wanted, fitted: Fitted) -> bool:
    """Whether timm loads weights into this network that have no place in it."""
    trial = fitted.trial(wanted.num_classes)
    trial["state_dict"]["of.no.network"] = torch.zeros(1)
    try:
        wanted.make(pretrained=True, pretrained_cfg_overlay=trial)
    except Exception:  # whatever timm raises: it looks at them
        return False
    return True


def started(found: Found, wanted: Wanted) -> nn.Module:
    """A network with these weights.

    Raises:
        UsageError: they do not fit.
    """
    fitted, own = fitted_to(found, wanted)
    try:
        with quietly():
            return wanted.make(pretrained=True, pretrained_cfg_overlay=fitted.overlay(wanted.num_classes))
    except Exception as error:
        raise _refusal(wanted.config, fitted, own, error) from None


def _refusal(config: ModelConfig, fitted: Fitted, own: Mapping[str, Tensor], error: Exception) -> UsageError:
    """What is said where weights are not those of the network."""
    fault = misfit(fitted.whole, own) or (str(error).strip() or type(error).__name__).splitlines()[0]
    return UsageError(
        f"{subject_of(config)}: its weights are not those of `{config.name}`: {fault}. "
        "Choose their network with --model and their image size with data.image_size, or give other weights."
    )


def own_input(place: str) -> dict[str, Any] | None:
    """How the network of a file that augury wrote, or of a run, wants its images, in the form of timm's data config;
    None for any other."""
    found = describe(locate(place, place))
    if None in (found.input_size, found.crop_pct, found.mean, found.std, found.interpolation):
        return None
    return found.model_dump(include={"input_size", "crop_pct", "mean", "std", "interpolation"})


def with_own_network(config: RunConfig) -> RunConfig:
    """The settings with the network that the weights to start from are of, as far as the settings name none.

    Raises:
        UsageError: the file names what no network is built with.
    """
    model = config.model
    if model.init_from is None:
        return config
    path, said = Path(model.init_from), Description()
    # Weights that cannot be had are told with all else that is wrong.
    with contextlib.suppress(UsageError):
        path = locate(model.init_from, subject_of(model))
        said = describe(path)
    given, changes = model.model_fields_set, dict[str, Any]()
    if said.model is not None and "name" not in given:
        changes["name"] = said.model
    if said.model == changes.get("name", model.name) and said.model_args:
        changes["kwargs"] = {**said.model_args, **model.kwargs}
    if why := oddity(changes):
        raise UsageError(f"{path}: what it says of its network {why}. Give other weights.")
    refuse_other_weights(changes.get("kwargs", {}), f"{path}: `model_args`")
    return config.model_copy(update={"model": model.model_copy(update=changes)}) if changes else config


def refuse_other_weights(arguments: Mapping[str, Any], subject: str) -> None:
    """Refuse arguments that name files, addresses or code: weights have a setting, and so do images and classes."""
    odd = [key for key in arguments if key in _NOT_THE_MODELS or key.startswith("pretrained")]
    if odd:
        raise UsageError(
            f"{subject} must not have `{odd[0][:80]}`: it is no argument of the network itself. "
            "Weights to start from are model.init_from or model.pretrained; classes and channels are the data's."
        )


def _all(names: Any) -> Sequence[str]:
    if names is None:
        return ()
    return names if isinstance(names, list | tuple) else (names,)
