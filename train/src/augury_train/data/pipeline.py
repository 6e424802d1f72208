"""A pipeline: words that are read, chained, and turned into the batched or the single form."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from augury.errors import UsageError, unknown
from augury.validation import Strict, explain
from augury_train.config import read_value
from augury_train.data.geometry import RandomResizedCrop, centre_start
from augury_train.data.transforms import Frame, Single, Transform, Uniforms

WORDS = {
    "crop": "geometry.Crop",
    "reflect_crop": "geometry.ReflectCrop",
    "flip": "geometry.Flip",
    "random_resized_crop": "geometry.RandomResizedCrop",
    "autoaugment": "policies.AutoAugment",
    "randaugment": "policies.RandAugment",
    "trivialaugment": "policies.TrivialAugment",
    "augmix": "policies.AugMix",
    "color_jitter": "policies.ColorJitter",
    "randaugment_ra": "papers.RandAugmentRA",
    "severe": "papers.Severe",
    "lighting": "papers.Lighting",
    "rotate90": "negatives.Rotate90",
    "vertical_flip": "negatives.VerticalFlip",
    "blur": "negatives.Blur",
    "sobel": "negatives.Sobel",
    "jigsaw": "negatives.Jigsaw",
    "cutout": "geometry.Cutout",
    "random_erasing": "geometry.RandomErasing",
}


def parse(words: Sequence[str], key: str, frame: Frame) -> list[Transform]:
    """Read the words of a pipeline.

    Args:
        words: `crop:4`, `flip`, `randaugment:n=2,m=9`, in the order of application.
        key: the setting they come from, for the messages.
        frame: the images they are for.

    Raises:
        UsageError: unknown words, and missing, unknown or wrong arguments, a line each.
    """
    transforms: list[Transform] = []
    problems: list[str] = []
    for word in words:
        try:
            transforms.append(_read(word, key, frame))
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return transforms


def _read(word: str, key: str, frame: Frame) -> Transform:
    name, colon, text = word.partition(":")
    if name not in WORDS:
        raise UsageError(f"{key}: " + unknown("transform", name, WORDS))
    module, _, class_name = WORDS[name].rpartition(".")
    # The policies bring more of torchvision with them than a run without them needs.
    model: type[Strict] = getattr(import_module(f"{__package__}.{module}"), class_name)
    fields = list(model.model_fields)
    if colon and not text:
        raise UsageError(f"{key}: transform `{word}` ends in a colon. {_example(name, fields)}")
    arguments = {}
    for number, part in enumerate(text.split(",") if text else []):
        field, sign, value = part.partition("=")
        if not fields:
            raise UsageError(f"{key}: transform `{name}` has no arguments, got `{text}`. {_example(name, fields)}")
        if not sign and number:
            raise UsageError(f"{key}: transform `{word}`: `{part}` must be argument=value. {_example(name, fields)}")
        field, value = (field, value) if sign else (fields[0], part)
        if field in arguments:
            raise UsageError(f"{key}: transform `{word}` must set `{field}` once. {_example(name, fields)}")
        arguments[field] = read_value(value)
    try:
        transform: Transform = model.model_validate(arguments)  # type: ignore[assignment]
    except ValidationError as error:
        lines = explain(error, model, f"{key}: transform `{name}`", "argument", f"{name}:{{path}}={{value}}")
        raise UsageError(
            "\n".join(line if "Set it with" in line else f"{line} {_example(name, fields)}" for line in lines)
        ) from None
    if fault := transform.fault(frame):
        raise UsageError(f"{key}: transform `{word}` {fault}")
    return transform


def _example(name: str, fields: Sequence[str]) -> str:
    return f"Write {name}:N, N its {fields[0]}." if fields else f"Write {name} alone."


class Pipeline:
    """A chain of transforms with the normalisation at its place: after the last word that works on 8-bit images."""

    def __init__(
        self,
        transforms: Sequence[Transform],
        frame: Frame,
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        """Chain `transforms`; `std` is of each channel on the scale of [0, 1]."""
        after = next((i for i in range(len(transforms), 0, -1) if not transforms[i - 1].last), 0)
        self._bytes, self._floats = list(transforms[:after]), list(transforms[after:])
        self._frame = frame
        self.whole = any(isinstance(t, RandomResizedCrop) for t in transforms)
        """Whether its words want images from before the centre crop."""
        self.draws = sum(t.draws for t in transforms)
        self.last_draws = sum(t.draws for t in self._floats)
        std_ = torch.tensor(std, device=device)[:, None, None]
        self._scale = 1 / (255 * std_)
        self._shift = -torch.tensor(frame.mean, device=device)[:, None, None] / std_

    def __call__(self, images: Tensor, uniforms: Uniforms) -> Tensor:
        """Transform and normalise a batch.

        Args:
            images: N x ch x H x W uint8, of the run's image size or larger.
            uniforms: N x D, D at least `draws`.

        Returns:
            N x ch x H x W float32 of the run's image size.
        """
        at = 0
        if not self.whole:
            images = self._centre(images)
        for transform in self._bytes:
            images = transform(images, uniforms.columns(at, transform.draws), self._frame)
            at += transform.draws
        return self.finish(images, uniforms.columns(at, self.last_draws))

    def finish(self, images: Tensor, uniforms: Uniforms) -> Tensor:
        """Normalise, and apply the words after that; `uniforms` are those words' alone, N x `last_draws`."""
        images, at = self.normalise(images), 0
        for transform in self._floats:
            images = transform(images, uniforms.columns(at, transform.draws), self._frame)
            at += transform.draws
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """Take the centre and normalise: what evaluation sees. N x ch x H x W uint8 -> float32."""
        return self._centre(images).float().mul_(self._scale).add_(self._shift)

    def single(self) -> Chain:
        """All up to the normalisation, for one PIL image; ends in ch x H x W uint8."""
        return Chain([t.single(self._frame) for t in self._bytes], self._frame, self.whole)

    def _centre(self, images: Tensor) -> Tensor:
        (height, width), (h, w) = images.shape[-2:], self._frame.size
        top, left = centre_start(height, h), centre_start(width, w)
        return images[:, :, top : top + h, left : left + w] if (height, width) != (h, w) else images


class Chain:
    """The single form of a pipeline, as it is sent to worker processes: a PIL image -> ch x H x W uint8."""

    def __init__(self, steps: Sequence[Single], frame: Frame, whole: bool) -> None:
        self._steps, self._frame, self.whole = list(steps), frame, whole

    def __call__(self, image: Image.Image) -> Tensor:
        if not self.whole:
            height, width = self._frame.size
            top, left = centre_start(image.height, height), centre_start(image.width, width)
            image = image.crop((left, top, left + width, top + height))
        for step in self._steps:
            image = step(image)
        return pil_to_tensor(image)
