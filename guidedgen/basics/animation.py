"""Strips of pictures as animations."""

from __future__ import annotations

import io

from PIL import Image

_SIDE = 320  # px of a frame's longer side at most
_FRAME, _LAST = 500, 2000  # milliseconds that a frame is shown


def animated(strip: Image.Image, width: int) -> bytes:
    """A strip of pictures that are `width` px wide, side by side, as a GIF. OSError and SyntaxError where it cannot be decoded."""
    frames = [strip.convert("RGB").crop((x, 0, x + width, strip.height)) for x in range(0, max(strip.width - width, 0) + 1, width)]
    for frame in frames:
        frame.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer, times = io.BytesIO(), [_FRAME] * (len(frames) - 1) + [_LAST]
    # Frames that look alike are kept: a film has as many as its strip.
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return buffer.getvalue()
