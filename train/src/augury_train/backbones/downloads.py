"""The weights that timm downloads."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from augury_train.config import ModelConfig


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the download's own word on each of its tries, and timm's on what it adapts: what came of it is told in
    one line."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm.models._builder")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def explain(config: ModelConfig, cfg: Mapping[str, Any], error: Exception) -> str:
    """Why a network has not got the weights that timm downloads, and what to do; `cfg` is what timm says of them."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"model `{config.name}`: its pretrained weights cannot be had: {why} "
        f"Download {cfg.get('hf_hub_id') or cfg.get('url') or 'them'} by hand and give the file with --init-from FILE, "
        "or leave out --pretrained."
    )
