"""Uploaded pictures: read once, carefully, and handed on as a plain PNG of bounded size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps, UnidentifiedImageError

from egobench.errors import InvalidInput, Mistake

MAX_UPLOAD_BYTES: Final = 20 * 2**20
MAX_MEGAPIXELS: Final = 50
"""Decoded, a picture takes three or four bytes a pixel."""
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded: fewer decoders, fewer surprises. An EPS would start a program."""
KEPT_PX: Final = 1024
"""Longer sides are scaled down: models see squares of a few hundred pixels."""


def uploaded_path(payload: Any, uploads: Path) -> Path:
    """Return where an upload lies; the browser says so, hence only below the folder of uploads.

    Raises:
        InvalidInput: there is no picture, or it is said to lie elsewhere.
    """
    named = payload.get("path") if isinstance(payload, dict) else payload
    if not named:
        raise InvalidInput([Mistake("picture", "there is none", todo="choose one, or take an example below")])
    path = Path(str(named)).resolve()
    if not path.is_relative_to(uploads.resolve()):
        raise InvalidInput([Mistake("picture", "does not lie where uploads do")])
    return path


def checked_picture(source: Path, into: Path) -> Path:
    """Decode a picture and write it as PNG, upright and in RGB.

    Raises:
        InvalidInput: too large a file, too many pixels, or no picture that can be read.
    """
    if source.stat().st_size > MAX_UPLOAD_BYTES:
        raise InvalidInput([Mistake("picture", f"is larger than {MAX_UPLOAD_BYTES >> 20} MiB")])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            with Image.open(source, formats=FORMATS) as picture:
                _check_size(picture.size)
                upright = ImageOps.exif_transpose(picture).convert("RGB")
    except UnidentifiedImageError as error:
        raise InvalidInput([_unreadable(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")]) from error
    except Image.DecompressionBombError as error:
        raise InvalidInput([_too_many()]) from error
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow's decoders raise on broken files
        raise InvalidInput([_unreadable(str(error) or "it is broken")]) from error
    upright.thumbnail((KEPT_PX, KEPT_PX))
    upright.save(into)
    return into


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_MEGAPIXELS * 10**6:
        raise InvalidInput([_too_many(f"{size[0]} x {size[1]} pixels")])


def _too_many(what: str = "it has too many pixels") -> Mistake:
    return Mistake("picture", what, f"allowed: at most {MAX_MEGAPIXELS} megapixels", "make it smaller")


def _unreadable(why: str) -> Mistake:
    return Mistake("picture", f"cannot be read: {why}", todo="choose another file")
