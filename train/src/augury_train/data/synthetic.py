"""Images made from noise, for trying a run out without any files."""

from __future__ import annotations

from typing import Literal

import numpy as np
import psutil
from pydantic import Field, ValidationError

from augury.errors import UsageError
from augury.validation import Strict, explain
from augury_train.data.source import ArraySource, Collection, Source

PREFIX = "synthetic:"
LOWEST, HIGHEST, NOISE = 32, 160, 64
"""Levels between which the means of classes lie, before noise of 0 to 64 levels is added."""


class Synthetic(Strict):
    """What follows `synthetic:`."""

    classes: int = Field(10, ge=2)
    size: int = Field(32, ge=1, description="side in pixels")
    channels: Literal[1, 3] = 3
    images: int = Field(1000, ge=1, description="for training; there are a fifth as many for testing")


def open_synthetic(text: str) -> Collection:
    """Make noise whose mean depends on the class, the same at every call, so that a network can learn it.

    Args:
        text: `synthetic:`, or with settings: `synthetic:classes=10,size=32,channels=3,images=1000`.

    Returns:
        the splits `train` and `test`, with every class in turn.

    Raises:
        UsageError: an unknown setting, or one out of range.
    """
    settings = _parse(text)
    generator = np.random.default_rng(0)
    means = generator.integers(LOWEST, HIGHEST, (settings.classes, settings.channels), dtype=np.uint8)
    splits: dict[str, Source] = {}
    for name, count in (("train", settings.images), ("test", max(settings.images // 5, settings.classes))):
        labels = np.arange(count, dtype=np.int64) % settings.classes
        shape = (count, settings.channels, settings.size, settings.size)
        images = generator.integers(0, NOISE, shape, dtype=np.uint8)
        images += means[labels][:, :, None, None]
        splits[name] = ArraySource(images, labels, f"synthetic {name} image")
    classes = [f"class {label}" for label in range(settings.classes)]
    level, spread = (LOWEST + HIGHEST + NOISE) / 2 / 255, (HIGHEST - LOWEST + NOISE) / 4 / 255
    return Collection(
        splits,
        classes,
        mean=[round(level, 4)] * settings.channels,
        std=[round(spread, 4)] * settings.channels,
    )


def _parse(text: str) -> Synthetic:
    values = {}
    for part in filter(None, text.removeprefix(PREFIX).split(",")):
        key, sign, value = part.partition("=")
        if not sign:
            raise UsageError(f"{text}: `{part}` must be key=value. Example: {PREFIX}classes=10,size=32.")
        # A whole number of 20 digits is more than any machine holds, and one of 5,000 no number to Python.
        whole = value.strip().isdecimal() and len(value.strip()) <= 20
        values[key.strip()] = int(value) if whole else value.strip()
    try:
        settings = Synthetic.model_validate(values)
    except ValidationError as error:
        example = f"{PREFIX}{{path}}={{value}}"
        raise UsageError("\n".join(explain(error, Synthetic, PREFIX.rstrip(":"), "key", example))) from None
    if settings.images < settings.classes:
        raise UsageError(
            f"synthetic: images={settings.images} is fewer than classes={settings.classes}. "
            "Ask for one image of each class at least."
        )
    needed, there = 2 * settings.images * settings.channels * settings.size**2, psutil.virtual_memory().available
    if needed > there:
        raise UsageError(
            f"synthetic: {settings.images} images of {settings.size} pixels need {needed / 2**30:,.0f} GiB of memory, "
            f"and {there / 2**30:,.0f} are free. Ask for fewer, or smaller ones."
        )
    return settings
