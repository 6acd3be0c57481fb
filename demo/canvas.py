"""A canvas on which signs are drawn in coordinates of -1 to 1, and their colours."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WHITE, BLACK, GREY = (240, 240, 236), (24, 24, 26), (125, 127, 130)
RED, BLUE, YELLOW, GREEN = (193, 28, 38), (22, 88, 172), (243, 178, 22), (20, 132, 70)

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """A square of -1 to 1, y downwards, in an image; `at` returns a smaller, rotated square."""

    def __init__(
        self, image: Image.Image, x: float = 0, y: float = 0, scale: float = 1, degrees: float = 0
    ) -> None:
        self.image, self.x, self.y, self.scale, self.degrees = image, x, y, scale, degrees
        self.pen = ImageDraw.Draw(image)

    def at(self, x: float, y: float, scale: float, degrees: float = 0) -> "Canvas":
        """Return the square around (x, y) with half side `scale`, rotated clockwise."""
        x, y = self._placed(x, y)
        return Canvas(self.image, x, y, self.scale * scale, self.degrees + degrees)

    def polygon(self, colour: Colour, *points: Point) -> None:
        """Fill a polygon."""
        self.pen.polygon(self._pixels(points), colour)

    def box(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        """Fill a rectangle."""
        self.polygon(colour, (left, top), (right, top), (right, bottom), (left, bottom))

    def disc(self, colour: Colour, x: float = 0, y: float = 0, radius: float = 1) -> None:
        """Fill a circle."""
        (px, py), reach = self._pixels([(x, y)])[0], self._length(radius)
        self.pen.ellipse((px - reach, py - reach, px + reach, py + reach), colour)

    def stroke(self, colour: Colour, width: float, *points: Point, round_ends: bool = True) -> None:
        """Draw connected lines, with round ends or only round corners."""
        self.pen.line(self._pixels(points), colour, round(self._length(width)))
        for x, y in points if round_ends else points[1:-1]:
            self.disc(colour, x, y, width / 2)

    def rounded(self, colour: Colour, radius: float, *corners: Point) -> None:
        """Draw a polygon, extended by `radius` with round corners."""
        self.polygon(colour, *corners)
        self.stroke(colour, 2 * radius, *corners, corners[0])

    def arrow(self, colour: Colour, width: float, *points: Point) -> None:
        """Draw a stroke with an arrowhead at the last point."""
        (x0, y0), (x1, y1) = points[-2:]
        length = math.hypot(x1 - x0, y1 - y0)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        reach, half = 1.9 * width, 1.6 * width
        neck = (x1 - ux * reach, y1 - uy * reach)
        self.stroke(colour, width, *points[:-1], (neck[0] + 0.1 * ux, neck[1] + 0.1 * uy), round_ends=False)
        self.polygon(
            colour,
            (x1, y1),
            (neck[0] - uy * half, neck[1] + ux * half),
            (neck[0] + uy * half, neck[1] - ux * half),
        )

    def text(self, colour: Colour, text: str, width: float, height: float) -> None:
        """Draw letters that fill a box of this width and height around the centre."""
        font, mask = ImageFont.load_default(200), Image.new("L", (200 * len(text), 300))
        pen, left = ImageDraw.Draw(mask), 20.0
        for letter in text:
            pen.text((left, 20), letter, 255, font, stroke_width=8)
            left += font.getlength(letter) + 18
        box = [round(self._length(side)) for side in (width, height)]
        (px, py), mask = self._pixels([(0, 0)])[0], mask.crop(mask.getbbox()).resize(box)
        self.image.paste(colour, (round(px - box[0] / 2), round(py - box[1] / 2)), mask)

    def _length(self, length: float) -> float:
        return length * self.scale * self.image.width / 2

    def _placed(self, x: float, y: float) -> Point:
        """Return a point's position in the whole image."""
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        return self.x + self.scale * (cos * x - sin * y), self.y + self.scale * (sin * x + cos * y)

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        half = self.image.width / 2
        return [(half * (1 + x), half * (1 + y)) for x, y in (self._placed(*point) for point in points)]


def arc(x: float, y: float, radius: float, start: float, end: float, points: int = 25) -> list[Point]:
    """Return points of an arc, in degrees clockwise from the right."""
    angles = np.radians(np.linspace(start, end, points))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
