"""Trained weights to start from: timm's downloads, and files."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from augury.config import ModelConfig
from augury.errors import UsageError


def overlay(checkpoint: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What makes timm start from a file's weights: an overlay of the model's pretrained cfg.

    The classifier is left out by timm where the file's has another number of classes.

    Args:
        checkpoint: safetensors, or a timm checkpoint.
        cfg: timm's pretrained cfg of the model.

    Raises:
        UsageError: the file cannot be read.
    """
    from timm.models import load_state_dict

    path = Path(checkpoint)
    if not path.is_file():
        raise UsageError(f"model.checkpoint={checkpoint}: no such file. Give one of safetensors or a timm checkpoint.")
    try:
        weights = load_state_dict(str(path), device="cpu")
    except Exception as error:
        raise UsageError(
            f"model.checkpoint={checkpoint}: cannot be read ({type(error).__name__}). "
            "Give a file of safetensors or a timm checkpoint."
        ) from None
    found: dict[str, Any] = {"state_dict": weights, "num_classes": -1}
    classifier = _first(cfg.get("classifier"))
    if f"{classifier}.weight" in weights:
        found["num_classes"] = len(weights[f"{classifier}.weight"])
    first = _first(cfg.get("first_conv"))
    if f"{first}.weight" in weights:
        found["input_size"] = (weights[f"{first}.weight"].shape[1], *cfg.get("input_size", (3, 224, 224))[1:])
    return found


def own_input(checkpoint: str | None) -> dict[str, Any] | None:
    """How the network of a file that augury exported wants its images, in the form of timm's data config; None for any
    other file."""
    from safetensors import safe_open

    try:
        with safe_open(str(checkpoint), "pt") as file:
            said = file.metadata() or {}
        found = {key: json.loads(said[key]) for key in ("input_size", "crop_pct", "mean", "std")}
        return found | {"interpolation": said["interpolation"]}
    except (OSError, KeyError, ValueError, SafetensorError):
        return None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the download's own word on each of its tries: what came of them is told in one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first(names: Any) -> str | None:
    return names[0] if isinstance(names, list | tuple) else names


def explain(config: ModelConfig, error: Exception) -> str:
    """Why a network has not got its trained weights, and what to do."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if config.checkpoint is not None:
        return f"model.checkpoint={config.checkpoint}: its weights are not those of `{config.name}`: {why}"
    return (
        f"model `{config.name}`: its pretrained weights cannot be had: {why} "
        "Download them by hand and give the file with --set model.checkpoint=FILE, or leave out --pretrained."
    )
