"""The 43 German traffic signs of GTSRB: names and drawings, in the order of their classes."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from demo.canvas import BLACK, BLUE, GREEN, GREY, RED, WHITE, YELLOW, Canvas, Colour, arc

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
    c.arrow(BLACK, 0.3, (-0.35, 1), (-0.35, 0.25), *arc(0.15, 0.25, 0.5, 180, 262), (0.85, -0.35))


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
    c.arrow(WHITE, 0.24, (-0.28, 0.62), (-0.28, 0.05), *arc(0.02, 0.05, 0.3, 180, 268), (0.68, -0.25))


def _ahead(c: Canvas) -> None:
    c.arrow(WHITE, 0.26, (0, 0.74), (0, -0.74))


def _ahead_or_right(c: Canvas) -> None:
    c.arrow(WHITE, 0.2, (-0.22, 0.7), (-0.22, -0.74))
    c.arrow(WHITE, 0.2, (-0.22, 0.5), (-0.22, 0.35), *arc(0.0, 0.32, 0.22, 180, 268), (0.7, 0.1))


def _keep_right(c: Canvas) -> None:
    c.arrow(WHITE, 0.27, (-0.5, -0.5), (0.55, 0.55))


def _roundabout(c: Canvas) -> None:
    for turn in (0, 120, 240):
        c.at(0, 0, 0.95, turn).arrow(WHITE, 0.18, *arc(0, 0, 0.55, 20, -52), (0.06, -0.65))


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
    """Cross out a pictogram with five lines."""

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
        c.polygon(colour, *arc(0, 0, radius, 22.5, 382.5, points=9))
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
