"""The 43 German traffic signs of GTSRB, drawn: pictures for the demo and the tests that nobody has to download.

The classes, their order and their names are those of the German Traffic Sign Recognition Benchmark (Stallkamp et
al. 2012, doi:10.1016/j.neunet.2012.02.016). Every picture is drawn from scratch, as a camera may see the sign:
turned and tilted, near or far, before sky, leaves or houses, in sun, shade or haze, blurred and noisy.

The same seed gives the same pixels, for the pinned numpy and Pillow.
"""

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WHITE, BLACK, GREY = (240, 240, 236), (24, 24, 26), (125, 127, 130)
RED, BLUE, YELLOW, GREEN = (193, 28, 38), (22, 88, 172), (243, 178, 22), (20, 132, 70)

Colour = tuple[int, int, int]
Point = tuple[float, float]


def draw(class_id: int, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """One sign of the class as a camera may see it: (size, size, 3) uint8, RGB.

    Raises:
        IndexError: there is no such class.
    """
    if not 0 <= class_id < len(LABELS):
        raise IndexError(f"no class {class_id}: there are 0 to {len(LABELS) - 1}")
    scene = _background(rng, size) * _exposure(rng)
    sign, alpha = _posed(class_id, rng, size)
    sign = _weathered(sign, rng) * _exposure(rng) * _shade(rng, size)
    return _photographed(scene + (sign - scene) * alpha, rng)


def dataset(count: int, seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, size, size, 3) uint8 and classes (count,) int64, in random order, every class as often
    as the count allows."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(LABELS))
    images = np.empty((count, size, size, 3), np.uint8)
    for index, class_id in enumerate(labels):
        images[index] = draw(class_id, rng, size)
    return images, labels


@functools.cache
def clean(class_id: int, size: int = 64) -> Image.Image:
    """The sign itself, upright and filling the picture: RGBA, transparent around it."""
    image = Image.new("RGBA", (4 * size, 4 * size))
    _, sign = SIGNS[class_id]
    sign(Canvas(image))
    return image.resize((size, size), Image.Resampling.BOX)


class Canvas:
    """Draws in a square whose sides are at -1 and 1, y downwards; `at` gives a smaller, turned square in it."""

    def __init__(
        self, image: Image.Image, x: float = 0, y: float = 0, scale: float = 1, degrees: float = 0
    ) -> None:
        self.image, self.x, self.y, self.scale, self.degrees = image, x, y, scale, degrees
        self.pen = ImageDraw.Draw(image)

    def at(self, x: float, y: float, scale: float, degrees: float = 0) -> "Canvas":
        """The square around (x, y) with half its side `scale`, turned clockwise."""
        x, y = self._placed(x, y)
        return Canvas(self.image, x, y, self.scale * scale, self.degrees + degrees)

    def polygon(self, colour: Colour, *points: Point) -> None:
        self.pen.polygon(self._pixels(points), colour)

    def box(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        self.polygon(colour, (left, top), (right, top), (right, bottom), (left, bottom))

    def disc(self, colour: Colour, x: float = 0, y: float = 0, radius: float = 1) -> None:
        (px, py), reach = self._pixels([(x, y)])[0], self._length(radius)
        self.pen.ellipse((px - reach, py - reach, px + reach, py + reach), colour)

    def stroke(self, colour: Colour, width: float, *points: Point, round_ends: bool = True) -> None:
        self.pen.line(self._pixels(points), colour, round(self._length(width)))
        for x, y in points if round_ends else points[1:-1]:
            self.disc(colour, x, y, width / 2)

    def rounded(self, colour: Colour, radius: float, *corners: Point) -> None:
        """A polygon grown by `radius`, so that its corners are round."""
        self.polygon(colour, *corners)
        self.stroke(colour, 2 * radius, *corners, corners[0])

    def arrow(self, colour: Colour, width: float, *points: Point) -> None:
        """A stroke with a head, whose tip is the last point."""
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
        """Letters that fill the box of this width and height around the middle."""
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
        """Where a point lies in the whole picture."""
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        return self.x + self.scale * (cos * x - sin * y), self.y + self.scale * (sin * x + cos * y)

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        half = self.image.width / 2
        return [(half * (1 + x), half * (1 + y)) for x, y in (self._placed(*point) for point in points)]


def _arc(x: float, y: float, radius: float, start: float, end: float, points: int = 25) -> list[Point]:
    """Points of an arc; degrees clockwise from the right."""
    angles = np.radians(np.linspace(start, end, points))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


Drawing = Callable[[Canvas], None]


# Pictograms ----------------------------------------------------------------------------------------------------


def _car(c: Canvas, colour: Colour) -> None:
    """A car from behind."""
    for side in (-1, 1):
        c.box(colour, side * 0.76 - 0.17, 0.3, side * 0.76 + 0.17, 0.85)
    c.rounded(colour, 0.1, (-0.6, -0.6), (0.6, -0.6), (0.88, 0), (0.88, 0.45), (-0.88, 0.45), (-0.88, 0))
    c.polygon(WHITE, (-0.52, -0.47), (0.52, -0.47), (0.7, -0.03), (-0.7, -0.03))
    for side in (-1, 1):
        c.disc(WHITE, side * 0.68, 0.25, 0.12)


def _lorry_behind(c: Canvas, colour: Colour) -> None:
    for side in (-1, 1):
        c.box(colour, side * 0.68 - 0.2, 0.5, side * 0.68 + 0.2, 0.95)
    c.box(colour, -0.95, -1.05, 0.95, 0.55)
    c.box(WHITE, -0.75, 0.3, 0.75, 0.42)


def _lorry(c: Canvas) -> None:
    c = c.at(0, 0, 0.56)
    c.box(BLACK, -0.28, -0.55, 1, 0.28)
    c.polygon(
        BLACK,
        (-0.36, -0.22),
        (-0.68, -0.22),
        (-0.78, 0.02),
        (-1, 0.06),
        (-1, 0.36),
        (0.95, 0.36),
        (0.95, 0.2),
        (-0.36, 0.2),
    )
    c.polygon(WHITE, (-0.44, -0.13), (-0.63, -0.13), (-0.7, 0.03), (-0.44, 0.03))
    for x in (-0.68, 0.58):
        c.disc(WHITE, x, 0.38, 0.24)
        c.disc(BLACK, x, 0.38, 0.19)


def _passing(c: Canvas, left: Colour = RED, right: Colour = BLACK) -> None:
    _car(c.at(-0.33, 0.02, 0.29), left)
    _car(c.at(0.33, 0.02, 0.29), right)


def _lorry_passing(c: Canvas, left: Colour = RED, right: Colour = BLACK) -> None:
    _lorry_behind(c.at(-0.32, 0, 0.32), left)
    _car(c.at(0.36, 0.08, 0.26), right)


def _caution(c: Canvas) -> None:
    c.rounded(BLACK, 0.05, (-0.17, -1.05), (0.17, -1.05), (0.08, 0.3), (-0.08, 0.3))
    c.disc(BLACK, 0, 0.78, 0.2)


def _crossing(c: Canvas) -> None:
    c.box(BLACK, -0.8, 0.15, 0.8, 0.36)
    c.box(BLACK, -0.3, -0.4, 0.3, 0.95)
    c.polygon(BLACK, (0, -1.1), (0.52, -0.35), (-0.52, -0.35))


def _curve(c: Canvas) -> None:
    c.arrow(BLACK, 0.3, (-0.35, 1), (-0.35, 0.25), *_arc(0.15, 0.25, 0.5, 180, 262), (0.85, -0.35))


def _double_curve(c: Canvas) -> None:
    c.arrow(BLACK, 0.34, (0.3, 0.95), (0.3, 0.12), (-0.26, 0), (-0.26, -1.05))


def _bumps(c: Canvas) -> None:
    x = np.linspace(-1.1, 1.1, 60)
    y = 0.62 - 0.5 * np.sin(np.pi * (x + 1.1) / 1.1) ** 2
    c.polygon(BLACK, (-1.3, 0.85), (-1.3, 0.68), *zip(x, y, strict=True), (1.3, 0.68), (1.3, 0.85))


def _skid(c: Canvas) -> None:
    _car(c.at(0.05, -0.3, 0.58, 12), BLACK)
    y = np.linspace(0.35, 1, 30)
    for x0 in (-0.25, 0.45):
        x = x0 - 0.5 * (y - 0.35) + 0.26 * np.sin(2 * np.pi * (y - 0.35) / 0.65)
        c.stroke(BLACK, 0.12, *zip(x, y, strict=True))


def _narrowing(c: Canvas) -> None:
    c.stroke(BLACK, 0.26, (-0.4, 1), (-0.4, -0.75), round_ends=False)
    c.stroke(BLACK, 0.26, (0.7, 1), (0.7, 0.55), (0.25, -0.05), (0.25, -0.75), round_ends=False)


def _digger(c: Canvas) -> None:
    c.disc(BLACK, -0.02, -0.88, 0.2)
    c.stroke(BLACK, 0.36, (-0.2, -0.5), (-0.42, 0))
    c.stroke(BLACK, 0.2, (-0.4, 0.05), (-0.15, 0.42), (-0.28, 0.95))
    c.stroke(BLACK, 0.2, (-0.45, 0.05), (-0.6, 0.5), (-0.85, 0.95))
    c.stroke(BLACK, 0.15, (-0.12, -0.5), (0.15, -0.05), (-0.15, 0.1))
    c.stroke(BLACK, 0.09, (-0.25, -0.05), (0.62, 0.62))
    c.polygon(BLACK, (0.1, 1.02), (0.5, 0.5), (0.75, 0.42), (1.2, 1.02))


def _lights(c: Canvas) -> None:
    for y, colour in ((-0.7, RED), (0.08, YELLOW), (0.86, GREEN)):
        c.disc(BLACK, 0, y, 0.36)
        c.disc(colour, 0, y, 0.31)


def _walker(c: Canvas) -> None:
    c.disc(BLACK, 0.02, -1.0, 0.2)
    c.stroke(BLACK, 0.36, (0.02, -0.6), (0.02, 0.02))
    c.stroke(BLACK, 0.2, (0, 0.05), (-0.22, 0.5), (-0.42, 1.02))
    c.stroke(BLACK, 0.2, (0.04, 0.05), (0.22, 0.5), (0.5, 0.98))
    c.stroke(BLACK, 0.14, (-0.06, -0.62), (-0.32, -0.25), (-0.5, 0))
    c.stroke(BLACK, 0.14, (0.1, -0.62), (0.34, -0.28), (0.42, 0.02))


def _runner(c: Canvas) -> None:
    c.disc(BLACK, -0.12, -1.0, 0.24)
    c.stroke(BLACK, 0.36, (0, -0.58), (0.1, 0.02))
    c.stroke(BLACK, 0.2, (0.08, 0.05), (-0.35, 0.3), (-0.45, 0.85))
    c.stroke(BLACK, 0.2, (0.12, 0.05), (0.3, 0.55), (0.78, 0.75))
    c.stroke(BLACK, 0.15, (0, -0.55), (-0.5, -0.28))
    c.stroke(BLACK, 0.15, (0.05, -0.55), (0.5, -0.25))


def _children(c: Canvas) -> None:
    _runner(c.at(0.36, 0.1, 0.88))
    _runner(c.at(-0.55, 0.32, 0.68))


def _bicycle(c: Canvas) -> None:
    c = c.at(0, 0.05, 0.92)
    for x in (-0.65, 0.65):
        c.disc(BLACK, x, 0.42, 0.5)
        c.disc(WHITE, x, 0.42, 0.39)
    crank, seat, head, rear, front = (-0.05, 0.42), (-0.3, -0.3), (0.42, -0.3), (-0.65, 0.42), (0.65, 0.42)
    c.stroke(BLACK, 0.11, rear, seat, head, crank, rear)
    c.stroke(BLACK, 0.11, crank, seat, (-0.33, -0.45))
    c.stroke(BLACK, 0.11, front, (0.36, -0.55), (0.6, -0.65))
    c.stroke(BLACK, 0.14, (-0.5, -0.45), (-0.15, -0.45))


def _snowflake(c: Canvas) -> None:
    for turn in range(6):
        ray = c.at(0, 0.1, 0.76, 60 * turn)
        ray.stroke(BLACK, 0.22, (0, 0), (0, -0.98))
        ray.stroke(BLACK, 0.2, (-0.28, -0.88), (0, -0.6), (0.28, -0.88))


def _deer(c: Canvas) -> None:
    c = c.at(0, 0.1, 0.92, 20)
    c.polygon(
        BLACK,
        (-0.62, -0.3),
        (-0.3, -0.28),
        (0.55, -0.1),
        (0.7, 0.15),
        (0.45, 0.28),
        (-0.3, 0.2),
        (-0.55, 0.05),
    )
    c.stroke(BLACK, 0.22, (-0.5, -0.12), (-0.72, -0.5))
    c.stroke(BLACK, 0.19, (-0.72, -0.52), (-0.98, -0.36))
    c.stroke(BLACK, 0.08, (-0.68, -0.6), (-0.58, -0.9), (-0.4, -1.0))
    c.stroke(BLACK, 0.13, (-0.45, 0.1), (-0.95, 0.22), (-0.85, 0.42))
    c.stroke(BLACK, 0.13, (-0.35, 0.15), (-0.75, 0.4), (-0.6, 0.58))
    c.stroke(BLACK, 0.16, (0.58, 0.1), (0.85, 0.35), (1.2, 0.5))
    c.stroke(BLACK, 0.14, (0.5, 0.18), (0.7, 0.5), (1.05, 0.75))
    c.stroke(BLACK, 0.1, (0.6, -0.05), (0.78, -0.16))


def _turn(c: Canvas) -> None:
    c.arrow(WHITE, 0.24, (-0.28, 0.62), (-0.28, 0.05), *_arc(0.02, 0.05, 0.3, 180, 268), (0.68, -0.25))


def _ahead(c: Canvas) -> None:
    c.arrow(WHITE, 0.26, (0, 0.74), (0, -0.74))


def _ahead_or_right(c: Canvas) -> None:
    c.arrow(WHITE, 0.2, (-0.22, 0.7), (-0.22, -0.74))
    c.arrow(WHITE, 0.2, (-0.22, 0.5), (-0.22, 0.35), *_arc(0.0, 0.32, 0.22, 180, 268), (0.7, 0.1))


def _keep_right(c: Canvas) -> None:
    c.arrow(WHITE, 0.27, (-0.5, -0.5), (0.55, 0.55))


def _roundabout(c: Canvas) -> None:
    for turn in (0, 120, 240):
        c.at(0, 0, 0.95, turn).arrow(WHITE, 0.18, *_arc(0, 0, 0.55, 20, -52), (0.06, -0.65))


def _number(digits: str, colour: Colour = BLACK) -> Drawing:
    return lambda c: c.text(colour, digits, 1.04 if len(digits) == 2 else 1.24, 0.76)


def _nothing(c: Canvas) -> None:
    pass


# Signs ---------------------------------------------------------------------------------------------------------


def _forbids(pictogram: Drawing) -> Drawing:
    def sign(c: Canvas) -> None:
        c.disc(WHITE)
        c.disc(RED, radius=0.97)
        c.disc(WHITE, radius=0.75)
        pictogram(c)

    return sign


def _warns(pictogram: Drawing) -> Drawing:
    def sign(c: Canvas) -> None:
        _triangle(c.at(0, 0.25, 1))
        pictogram(c.at(0, 0.22, 0.45))

    return sign


def _orders(pictogram: Drawing) -> Drawing:
    def sign(c: Canvas) -> None:
        c.disc(WHITE)
        c.disc(BLUE, radius=0.96)
        pictogram(c)

    return sign


def _ends(pictogram: Drawing) -> Drawing:
    """Five lines strike out what ends."""

    def sign(c: Canvas) -> None:
        c.disc(BLACK)
        c.disc(WHITE, radius=0.96)
        pictogram(c)
        stripes = c.at(0, 0, 1, -45)
        for y in (-0.2, -0.1, 0, 0.1, 0.2):
            stripes.stroke(BLACK, 0.045, (-0.92, y), (0.92, y), round_ends=False)

    return sign


def _triangle(c: Canvas) -> None:
    for colour, scale in ((WHITE, 1), (RED, 0.95), (WHITE, 0.67)):
        c.at(0, 0, scale).rounded(colour, 0.1, (0, -1.03), (0.9, 0.515), (-0.9, 0.515))


def _mirrored(sign: Drawing) -> Drawing:
    def mirrored(c: Canvas) -> None:
        sign(c)
        c.image.paste(c.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))

    return mirrored


def _priority(c: Canvas) -> None:
    for colour, reach in ((WHITE, 0.93), (BLACK, 0.9), (WHITE, 0.86), (YELLOW, 0.56)):
        c.rounded(colour, 0.05, (0, -reach), (reach, 0), (0, reach), (-reach, 0))


def _yield(c: Canvas) -> None:
    _triangle(c.at(0, -0.25, 1, 180))


def _stop(c: Canvas) -> None:
    for colour, radius in ((WHITE, 1.06), (RED, 1.0)):
        c.polygon(colour, *_arc(0, 0, radius, 22.5, 382.5, points=9))
    c.text(WHITE, "STOP", 1.55, 0.66)


def _no_entry(c: Canvas) -> None:
    c.disc(WHITE)
    c.disc(RED, radius=0.97)
    c.box(WHITE, -0.72, -0.19, 0.72, 0.19)


SIGNS: tuple[tuple[str, Drawing], ...] = (
    ("Speed limit (20km/h)", _forbids(_number("20"))),
    ("Speed limit (30km/h)", _forbids(_number("30"))),
    ("Speed limit (50km/h)", _forbids(_number("50"))),
    ("Speed limit (60km/h)", _forbids(_number("60"))),
    ("Speed limit (70km/h)", _forbids(_number("70"))),
    ("Speed limit (80km/h)", _forbids(_number("80"))),
    ("End of speed limit (80km/h)", _ends(_number("80", GREY))),
    ("Speed limit (100km/h)", _forbids(_number("100"))),
    ("Speed limit (120km/h)", _forbids(_number("120"))),
    ("No passing", _forbids(_passing)),
    ("No passing for vehicles over 3.5 metric tons", _forbids(_lorry_passing)),
    ("Right-of-way at the next intersection", _warns(_crossing)),
    ("Priority road", _priority),
    ("Yield", _yield),
    ("Stop", _stop),
    ("No vehicles", _forbids(_nothing)),
    ("Vehicles over 3.5 metric tons prohibited", _forbids(_lorry)),
    ("No entry", _no_entry),
    ("General caution", _warns(_caution)),
    ("Dangerous curve to the left", _mirrored(_warns(_curve))),
    ("Dangerous curve to the right", _warns(_curve)),
    ("Double curve", _warns(_double_curve)),
    ("Bumpy road", _warns(_bumps)),
    ("Slippery road", _warns(_skid)),
    ("Road narrows on the right", _warns(_narrowing)),
    ("Road work", _warns(_digger)),
    ("Traffic signals", _warns(_lights)),
    ("Pedestrians", _warns(_walker)),
    ("Children crossing", _warns(_children)),
    ("Bicycles crossing", _warns(_bicycle)),
    ("Beware of ice/snow", _warns(_snowflake)),
    ("Wild animals crossing", _warns(_deer)),
    ("End of all speed and passing limits", _ends(_nothing)),
    ("Turn right ahead", _orders(_turn)),
    ("Turn left ahead", _mirrored(_orders(_turn))),
    ("Ahead only", _orders(_ahead)),
    ("Go straight or right", _orders(_ahead_or_right)),
    ("Go straight or left", _mirrored(_orders(_ahead_or_right))),
    ("Keep right", _orders(_keep_right)),
    ("Keep left", _mirrored(_orders(_keep_right))),
    ("Roundabout mandatory", _orders(_roundabout)),
    ("End of no passing", _ends(lambda c: _passing(c, GREY, GREY))),
    ("End of no passing by vehicles over 3.5 metric tons", _ends(lambda c: _lorry_passing(c, GREY, GREY))),
)
LABELS: tuple[str, ...] = tuple(label for label, _ in SIGNS)


# The camera ----------------------------------------------------------------------------------------------------

# What may be behind a sign: the colours of its darkest and lightest parts, and the sizes of its patches, in
# patches per picture.
SCENES = (
    ((120, 160, 205), (235, 242, 250), (2,)),  # sky
    ((200, 205, 210), (250, 250, 250), (2, 3)),  # clouds
    ((12, 20, 10), (110, 135, 70), (4, 9, 19)),  # leaves
    ((30, 25, 20), (215, 220, 225), (6, 13, 27)),  # branches
    ((90, 50, 35), (205, 170, 140), (3, 12)),  # bricks
    ((60, 62, 66), (170, 168, 165), (2, 5)),  # road
)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """One of the scenes, or two with a horizon between them, and often the sign's post."""
    scene = _scene(rng, size)
    if rng.random() < 0.5:
        horizon = rng.integers(size // 4, size)
        scene[horizon:] = _scene(rng, size)[horizon:]
    if rng.random() < 0.5:
        left, width = rng.integers(3 * size // 8, 5 * size // 8), rng.integers(size // 20 + 1, size // 9 + 2)
        scene[size // 2 :, left : left + width] = rng.uniform(50, 200)
    return scene


def _scene(rng: np.random.Generator, size: int) -> np.ndarray:
    dark, light, patches = SCENES[rng.integers(len(SCENES))]
    field = np.mean([_field(rng, size, n) for n in patches], axis=0)
    return np.float32(dark) + np.float32(np.subtract(light, dark)) * field


def _field(rng: np.random.Generator, size: int, patches: int) -> np.ndarray:
    """Smooth noise (size, size, 1) float32 in 0..1 with this many patches along a side."""
    coarse = Image.fromarray(rng.random((patches, patches), np.float32))
    field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return field.clip(0, 1)[..., None]


def _posed(class_id: int, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The sign turned, tilted and shifted: its colours (size, size, 3), 0..255, and opacity (size, size, 1), 0..1."""
    sign = clean(class_id, 3 * size // 2)
    angle, stretch, reach = math.radians(rng.normal(0, 5)), rng.uniform(0.88, 1.12), rng.uniform(0.68, 0.98)
    cos, sin, half = math.cos(angle) / reach, math.sin(angle) / reach, sign.width / 2
    (dx, dy), (tilt_x, tilt_y) = rng.uniform(-0.08, 0.08, 2), rng.uniform(-0.15, 0.15, 2)
    # from a pixel of the picture to -1..1, to the point of the sign that is seen there, to its pixel
    scaled = np.array([[2 / size, 0, -1 - dx], [0, 2 / size, -1 - dy], [0, 0, 1]])
    turned = np.array([[cos * stretch, -sin, 0], [sin, cos, 0], [tilt_x, tilt_y, 1]])
    matrix = np.array([[half, 0, half], [0, half, half], [0, 0, 1]]) @ turned @ scaled
    coefficients = (matrix / matrix[2, 2]).ravel()[:8]
    posed = sign.transform((size, size), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    pixels = np.asarray(posed, np.float32)
    return pixels[..., :3], pixels[..., 3:] / 255


def _weathered(sign: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Faded towards grey, and dirty in places."""
    faded = sign + rng.uniform(0, 0.3) * (rng.uniform(90, 160) - sign)
    return faded * (1 - rng.uniform(0, 0.35) * _field(rng, sign.shape[0], 4))


def _exposure(rng: np.random.Generator) -> np.ndarray:
    """Light on a surface, per colour (3,): seldom very dark or overexposed, slightly tinted."""
    light = np.exp(np.clip(rng.normal(-0.15, 0.5), -1.6, 0.4))
    return np.float32(light * np.exp(rng.normal(0, 0.1, 3)))


def _shade(rng: np.random.Generator, size: int) -> np.ndarray:
    """Light across the sign (size, size, 1): it fades to one side, or half of the sign lies in a shadow."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    across = (math.cos(angle) * x + math.sin(angle) * y)[..., None]
    if rng.random() < 0.3:
        shadow = ((across - rng.uniform(-0.5, 0.5)) / 0.1).clip(0, 1)
        return 1 - rng.uniform(0.2, 0.6) * shadow
    return 1 + rng.uniform(0, 0.3) * across


def _photographed(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Through haze and a lens, from far or near, onto a noisy sensor."""
    size = scene.shape[0]
    haze = rng.uniform(0, 0.35) * (rng.random() < 0.4)
    scene = scene + haze * (rng.uniform(120, 230) - scene)
    picture = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        far = picture.resize(tuple(rng.integers(size // 3, size + 1, 2)), Image.Resampling.BILINEAR)
        picture = far.resize((size, size), Image.Resampling.BICUBIC)
    picture = picture.filter(ImageFilter.GaussianBlur(abs(rng.normal(0, size / 100))))
    noise = rng.standard_normal(scene.shape, np.float32) * np.float32(rng.uniform(0, 10))
    return (np.asarray(picture, np.float32) + noise).round().clip(0, 255).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write an image folder, laid out as GTSRB's: <class>/<number>.png."""
    parser = argparse.ArgumentParser(prog="python -m demo.signs", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--per-class", type=int, default=20, help="pictures of each of the 43 signs (default: 20)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same pictures (default: 0)"
    )
    parser.add_argument("--size", type=int, default=64, help="side of a picture in pixels (default: 64)")
    options = parser.parse_args(arguments)
    for class_id in range(len(LABELS)):
        rng = np.random.default_rng((options.seed, class_id))
        folder = options.out / f"{class_id:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(options.per_class):
            Image.fromarray(draw(class_id, rng, options.size)).save(folder / f"{number:04d}.png")
    print(f"{len(LABELS) * options.per_class} pictures of {len(LABELS)} signs in {options.out}")


if __name__ == "__main__":
    main()
