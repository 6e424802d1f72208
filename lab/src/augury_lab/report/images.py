"""Pictures of a folder as data that stands in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

LARGEST = 600_000
"""Bytes; a larger file is drawn smaller."""
WIDEST = 1400
"""Pixels of a picture that was drawn smaller."""


@dataclass(frozen=True)
class Picture:
    """An image in the page: its caption, its bytes as a data URI, and its size in pixels."""

    title: str
    uri: str
    width: int
    height: int


def picture(path: Path, title: str, problems: list[str]) -> Picture | None:
    """Read a PNG; one that is damaged is left out, which a line in `problems` tells."""
    from PIL import Image

    kind = "png"
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            if len(content) > LARGEST:
                image.thumbnail((WIDEST, 4 * WIDEST))
                smaller = io.BytesIO()
                # What is large is photographs.
                image.convert("RGB").save(smaller, "JPEG", quality=88)
                content, kind = smaller.getvalue(), "jpeg"
            size = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problems.append(f"{path} cannot be shown: {error}.")
        return None
    return Picture(title, f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}", *size)
