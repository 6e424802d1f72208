"""What random ops cost: `randaugment_ra` for a whole batch against PIL for one image after the other."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from augury_train.data.pipeline import parse
from augury_train.data.transforms import Frame, Uniforms

IMAGES, SIDE, N, M = 256, 32, 2, 28
PASSES = 43


def either(value: float) -> float:
    return -value if random.random() > 0.5 else value


def moved(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


OPS: list[tuple[Callable[[Image.Image, float], Image.Image], float, float]] = [
    (lambda image, v: image, 0, 1),
    (lambda image, v: moved(image, 1, either(v), 0, 0, 1, 0), 0, 0.3),
    (lambda image, v: moved(image, 1, 0, 0, either(v), 1, 0), 0, 0.3),
    (lambda image, v: moved(image, 1, 0, either(v) * image.size[0], 0, 1, 0), 0, 0.45),
    (lambda image, v: moved(image, 1, 0, 0, 0, 1, either(v) * image.size[1]), 0, 0.45),
    (lambda image, v: image.rotate(either(v)), 0, 30),
    (lambda image, v: ImageOps.autocontrast(image), 0, 1),
    (lambda image, v: ImageOps.invert(image), 0, 1),
    (lambda image, v: ImageOps.equalize(image), 0, 1),
    (lambda image, v: ImageOps.solarize(image, v), 0, 256),  # type: ignore[arg-type]
    (lambda image, v: ImageOps.posterize(image, int(v)), 4, 8),
    (lambda image, v: ImageEnhance.Color(image).enhance(v), 0.1, 1.9),
    (lambda image, v: ImageEnhance.Brightness(image).enhance(v), 0.1, 1.9),
    (lambda image, v: ImageEnhance.Sharpness(image).enhance(v), 0.1, 1.9),
]


def by_pil(pixels: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """As the papers' programs do it, from arrays, which is what data sets keep, to arrays."""
    made = []
    for array in pixels:
        image = Image.fromarray(array)
        for op, low, high in random.choices(OPS, k=N):
            image = op(image, M / 30 * (high - low) + low)
        made.append(np.asarray(image))
    return made


def seconds(images: torch.Tensor, pixels: np.ndarray[Any, Any]) -> list[tuple[float, float]]:
    """Of passes in turn: the word's, and PIL's."""
    frame = Frame((SIDE, SIDE), (0.5,) * 3)
    word = parse([f"randaugment_ra:n={N},m={M}"], "bench", frame)[0]

    def batched() -> None:
        drawn = torch.rand(IMAGES, word.draws)
        word(images, Uniforms(drawn, drawn.to(images.device, non_blocking=True)), frame)
        if images.device.type == "cuda":
            torch.cuda.synchronize()

    passes = []
    for _ in range(PASSES):
        started = time.perf_counter()
        batched()
        between = time.perf_counter()
        by_pil(pixels)
        passes.append((between - started, time.perf_counter() - between))
    # The first ones start what is started once.
    return passes[3:]


def bench() -> list[dict[str, Any]]:
    """All rows."""
    random.seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    # As many as PIL has.
    torch.set_num_threads(1)
    passes = seconds(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device), pixels)
    torch.set_num_threads(threads)
    ours, pil = (IMAGES / statistics.median(times) for times in zip(*passes, strict=True))
    ratios = [other / mine for mine, other in passes]
    low, _, high = statistics.quantiles(ratios)
    return [
        {
            "what": f"images/s of RandAugment({N}, {M}) on a batch of {IMAGES} × 3 × {SIDE} × {SIDE} ({device.type}, "
            "1 thread) against PIL image by image",
            "ratio": statistics.median(ratios),
            "unit": "× as fast",
            "at_least": 5,
            "detail": f"{ours:,.0f} against {pil:,.0f} images/s; half of the passes {low:.1f} to {high:.1f}",
        }
    ]
