"""One image file, of whatever kind, as 8-bit RGB the right way up."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from augury.errors import UsageError
from augury_train.open_files import too_many_open_files

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".heic", ".heif")
)
"""What counts as an image by its name. Those that Pillow cannot read are named, rather than passed over."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LAST = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
"""How files end that are whole."""
_RUN_PROGRAMS = {"EPS"}
"""What Pillow has Ghostscript draw, whatever the file is called."""
_EXIF_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Where Pillow finds an orientation."""
_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}


class UnreadableError(Exception):
    """An image that cannot be decoded; the message is the reason."""


class UnreadableImage(UsageError):
    """The image `name` cannot be read, for the `reason`; the message names both, and a way out at the start of a
    run."""

    name = reason = ""


def unreadable(name: str, reason: object) -> UnreadableImage:
    """The error that names an image which cannot be read."""
    error = UnreadableImage(
        f"{name}: not a readable image ({reason}). Remove or replace it, or leave such images out: --skip-bad-images."
    )
    error.name, error.reason = name, str(reason)
    return error


def decode_rgb(file: Path | BinaryIO) -> Image.Image:
    """Decode an image: the first frame, turned as its EXIF orientation says, in mode RGB.

    Transparent images are laid on white, as a viewer shows them (a plain conversion, torchvision's and timm's, shows
    whatever colour is stored beneath, mostly black). 16-bit grey is divided by 257. 32-bit grey has no scale of its
    own: floats in [0, 1] are multiplied by 255; integers up to 65535 are taken as 16-bit; what lies in [0, 255]
    stays; anything else is stretched from its least to its greatest value.

    Args:
        file: a path, or a file open for reading.

    Raises:
        UnreadableError: it is no image, is damaged, or is far too large to be one.
    """
    with _opened(file) as image:
        image.load()
        return _turned(to_rgb(image), _orientation(image))


def upright_size(file: Path | BinaryIO) -> tuple[int, int]:
    """(width, height) of what `decode_rgb` would return, from the header alone.

    The end of the file is looked at, too, so that one which was cut short is found before a training that wants it
    only when it is over. What is damaged in between shows when it is decoded.

    Raises:
        UnreadableError: the header is not an image's, or the file ends too early.
    """
    with _opened(file) as image:
        if image.format in _LAST and not _ends_well(image):
            # Something may lie behind the picture; decoding tells.
            image.load()
        if image.format == "TIFF" and ExifTags.Base.Orientation in image.getexif():
            # Some versions of Pillow tell the size of these before they are turned, some after.
            image.load()
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


@contextmanager
def _opened(file: Path | BinaryIO) -> Iterator[ImageFile.ImageFile]:
    """An open image; whatever goes wrong with it while it is open makes it unreadable."""
    try:
        # Opening a named pipe waits until somebody writes to it.
        if isinstance(file, Path) and not stat.S_ISREG(os.stat(file).st_mode):
            raise UnreadableError("no file, but a folder, a named pipe or a device")
        with _QUIET, Image.open(file) as image:
            if image.format in _RUN_PROGRAMS:
                raise UnreadableError(f"its content is {image.format}, a program to draw a picture")
            yield image
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError("no image format that Pillow knows") from None
    except Exception as error:  # Damaged bytes make decoders raise nearly anything.
        if (too_many := too_many_open_files(error)) is not None:
            raise too_many from None
        if isinstance(error, OSError):
            raise UnreadableError(error.strerror or error) from None
        raise UnreadableError(f"{type(error).__name__}: {error}") from None


def _ends_well(image: ImageFile.ImageFile) -> bool:
    """Whether a file that was just opened ends as its format does."""
    file, last = image.fp, _LAST[str(image.format)]
    assert file is not None
    place = file.tell()
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - len(last)))
    found = file.read(len(last))
    file.seek(place)
    return found == last


class _Quiet:
    """Holds back Pillow's warnings, about damaged EXIF and large images say, in any number of threads at once.

    `warnings.catch_warnings` by itself is not for threads: one that leaves would restore the filters of another.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()


def _orientation(image: Image.Image) -> int:
    """How an image is still to be turned: EXIF's 1 to 8, 1 where there is none."""
    # Pillow turns a TIFF itself when it decodes it. Asking a PNG without EXIF for it would decode it whole.
    if image.format == "TIFF" or _EXIF_KEYS.isdisjoint(image.info):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # A picture with damaged EXIF is still a picture.
        return 1
    return value if value in _UPRIGHT else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, by the rules of `decode_rgb`."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Deep grey, H x W."""
    levels = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(levels.min()), float(levels.max())
    # Older versions of Pillow open a PNG of 16 bits as 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        levels = levels / 257
    elif image.mode == "F" and low >= 0 and high <= 1:
        levels = levels * 255
    elif low < 0 or high > 255:
        whole = image.mode == "I" and low >= 0 and high <= 65535
        levels = levels / 257 if whole else (levels - low) * (255 / (high - low) if high > low else 0.0)
    return np.rint(levels).clip(0, 255).astype(np.uint8)
