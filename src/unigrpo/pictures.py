"""Picture files of users as tensors: one reader for all that comes from outside."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Images
from PIL import ImageOps, UnidentifiedImageError
from PIL.Image import Image as Picture
from torch import Tensor

# What users have; others (EPS runs a program, PSD has layers) are refused by name.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
DEEP_GREY = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_picture(source: Path | bytes) -> Tensor:
    """A picture file (or its bytes) as uint8 RGB [3, H, W], upright (EXIF orientation), transparency laid onto white.

    ValueError names the file if it is missing, damaged, animated, or of a kind that is not read.
    """
    path = source if isinstance(source, Path) else "the picture"
    try:
        with Images.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as picture:
            _refuse_odd(picture)
            return torch.from_numpy(np.array(_upright_rgb(picture))).permute(2, 0, 1).contiguous()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error.strerror}") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise ValueError(f"{path} cannot be read as a picture: it is damaged, or none of {kinds}") from error
    except Exception as error:  # on damaged files Pillow's readers raise nearly everything
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _refuse_odd(picture: Picture) -> None:
    """No animations, and no grey of more than 8 bits (Pillow would clip it to white)."""
    if picture.mode in DEEP_GREY:
        raise ValueError(f"it has more than 8 bits of grey (mode {picture.mode}); save it with 8 bits per channel")
    if picture.format == "MPO":  # a phone's photo with a preview or a depth map after it: the first one is the photo
        return
    try:
        picture.seek(1)
    except EOFError:
        return
    raise ValueError("it holds several pictures (an animation or pages); save the one you mean to a file of its own")


def _upright_rgb(picture: Picture) -> Picture:
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    layer = upright.convert("RGBA")
    white = Images.new("RGB", layer.size, (255, 255, 255))
    white.paste(layer, mask=layer.getchannel("A"))
    return white
