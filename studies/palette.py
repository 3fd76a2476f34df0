"""Pictures of the documentation take a quarter of the bytes with 64 colours, and look alike."""

from __future__ import annotations

from pathlib import Path


def reduce_colours(path: Path) -> None:
    """Write a PNG file anew with a palette of 64 colours, without dithering, and without metadata.

    So the same picture gives the same bytes, whatever the version of matplotlib that drew it.
    """
    from PIL import Image

    with Image.open(path) as picture:
        picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
