"""Pictures of the small tasks in plain NumPy, so that drawing needs no further package.

Every shape is given by its signed distance in world units, negative inside; the distance in pixels at the outline makes
the edges smooth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
Point = tuple[float, float]
Window = tuple[slice, ...]  # of rows and columns of pixels
EVERYWHERE: Window = (slice(None), slice(None))

WHITE: Color = (255, 255, 255)
LIGHT: Color = (225, 228, 232)
GREY: Color = (150, 156, 164)
DARK: Color = (52, 58, 66)
BLUE: Color = (33, 102, 172)
ORANGE: Color = (224, 130, 20)
GREEN: Color = (27, 120, 55)


class Canvas:
    """A picture of a rectangle of the plane, y upwards.

    :param x_range: left and right end, world units
    :param y_range: lower and upper end, world units
    :param width: of the picture in pixels; its height follows, as both axes have the same scale
    """

    def __init__(self, x_range: Point, y_range: Point, width: int = 480):
        self.pixel = (x_range[1] - x_range[0]) / width
        height = round((y_range[1] - y_range[0]) / self.pixel)
        self.x = x_range[0] + (np.arange(width) + 0.5) * self.pixel  # (width,)
        self.y = (y_range[1] - (np.arange(height) + 0.5) * self.pixel)[:, None]  # (height, 1)
        self._image = np.full((height, width, 3), 255.0)

    def fill(self, signed_distance: NDArray[np.floating], color: Color, where: Window = EVERYWHERE) -> None:
        """Paint where the signed distance, broadcastable to the window's (height, width), is negative."""
        coverage = np.clip(0.5 - signed_distance / self.pixel, 0, 1)[..., None]
        self._image[where] += coverage * (np.array(color) - self._image[where])

    def disc(self, center: Point, radius: float, color: Color) -> None:
        self.bar(center, center, radius, color)

    def bar(self, start: Point, end: Point, radius: float, color: Color) -> None:
        """A line with round ends, ``2 * radius`` thick."""
        along = np.subtract(end, start)
        where, x, y = self._around(start, float(np.hypot(*along)) + radius)
        share = np.clip((x * along[0] + y * along[1]) / max(along @ along, 1e-12), 0, 1)
        self.fill(np.hypot(x - share * along[0], y - share * along[1]) - radius, color, where)

    def box(self, center: Point, size: Point, color: Color, angle: float = 0.0) -> None:
        """A rectangle of the given width and height, turned counter-clockwise by ``angle`` (rad)."""
        where, x, y = self._around(center, float(np.hypot(*size)) / 2)
        across = np.abs(np.cos(angle) * x + np.sin(angle) * y) - size[0] / 2
        upwards = np.abs(np.cos(angle) * y - np.sin(angle) * x) - size[1] / 2
        self.fill(np.maximum(across, upwards), color, where)

    def _around(self, center: Point, reach: float) -> tuple[Window, NDArray[np.floating], NDArray[np.floating]]:
        """The window of all pixels within ``reach``, and their coordinates relative to the center."""
        x, y = self.x - center[0], self.y - center[1]
        near_x, near_y = (np.flatnonzero(np.abs(at.ravel()) <= reach + self.pixel) for at in (x, y))
        where = tuple(slice(near[0], near[-1] + 1) if len(near) else slice(0) for near in (near_y, near_x))
        return where, x[where[1]], y[where[0]]

    @property
    def image(self) -> NDArray[np.uint8]:
        """Shape (height, width, 3)."""
        return np.round(self._image).astype(np.uint8)
