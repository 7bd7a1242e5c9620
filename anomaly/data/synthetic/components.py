"""Drawings of the components of a terminal board from above, in board units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from anomaly.data.synthetic.rendered_part import Component

Colour = tuple[int, int, int]

SOLDER: Colour = (176, 178, 180)
GLINT: Colour = (236, 237, 238)
STEEL: Colour = (158, 159, 160)
EPOXY: Colour = (38, 38, 41)
INK: Colour = (150, 150, 148)
GOLD: Colour = (196, 164, 88)
BLACK: Colour = (16, 16, 18)
WHITE: Colour = (226, 226, 220)


class Pen:
    """A sheet of `length` × `width` units for smooth shapes; x is along the length, (0, 0) is the middle.

    `cover` (h, w) / 255 is the share of the pixel under a shape. `colour` (h, w, 3) is uint8 RGB, premultiplied by it.
    """

    def __init__(self, length: float, width: float, *, scale: float) -> None:
        self.scale = scale
        shape = (int(np.ceil(width * scale)) + 2, int(np.ceil(length * scale)) + 2)
        self.colour: npt.NDArray[np.uint8] = np.zeros((*shape, 3), np.uint8)
        self.cover: npt.NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self.middle = (shape[1] / 2, shape[0] / 2)

    def polygon(self, corners: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Draw a filled convex polygon."""
        points = np.asarray(np.round((np.asarray(corners) * self.scale + self.middle) * 16 - 8), dtype=np.int32)
        cv2.fillConvexPoly(self.colour, points, colour, cv2.LINE_AA, 4)
        cv2.fillConvexPoly(self.cover, points, 255, cv2.LINE_AA, 4)

    def box(self, x: float, y: float, length: float, width: float, colour: Colour) -> None:
        """Draw a filled upright rectangle around (x, y)."""
        right, down = length / 2, width / 2
        self.polygon(
            [(x - right, y - down), (x + right, y - down), (x + right, y + down), (x - right, y + down)], colour
        )

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Draw a filled circle around (x, y)."""
        centre = (
            round((x * self.scale + self.middle[0]) * 16 - 8),
            round((y * self.scale + self.middle[1]) * 16 - 8),
        )
        for sheet, value in ((self.colour, colour), (self.cover, (255,))):
            cv2.circle(sheet, centre, round(radius * self.scale * 16), value, -1, cv2.LINE_AA, 4)

    def line(self, corners: Sequence[tuple[float, float]], width: float, colour: Colour) -> None:
        """Draw an open line through the corners."""
        points = np.asarray(np.round((np.asarray(corners) * self.scale + self.middle) * 16 - 8), dtype=np.int32)
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.colour, [points], False, colour, thickness, cv2.LINE_AA, 4)
        cv2.polylines(self.cover, [points], False, 255, thickness, cv2.LINE_AA, 4)

    def text(self, words: str, x: float, y: float, height: float, colour: Colour) -> None:
        """Draw words centred on (x, y)."""
        size = height * self.scale / 22.0
        thickness = max(1, round(size * 2.2))
        (width, ascent), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
        start = (
            round(x * self.scale + self.middle[0] - width / 2),
            round(y * self.scale + self.middle[1] + ascent / 2),
        )
        cv2.putText(self.colour, words, start, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thickness, cv2.LINE_AA)


def _pins(pen: Pen, count: int, *, pitch: float, reach: float, length: float) -> None:
    for number in range(count):
        x = (number - (count - 1) / 2) * pitch
        for y in (-reach, reach):
            pen.box(x, y, 0.52 * pitch, length, SOLDER)
            pen.box(x - 0.1 * pitch, y, 0.16 * pitch, 0.6 * length, GLINT)


def _quad_pins(pen: Pen, component: Component) -> None:
    count, pitch, reach = 11, component.length / 14.5, component.length / 2 - 0.8
    for number in range(count):
        at = (number - (count - 1) / 2) * pitch
        for side in (-reach, reach):
            pen.box(at, side, 0.5 * pitch, 1.6, SOLDER)
            pen.box(side, at, 1.6, 0.5 * pitch, SOLDER)


def _microcontroller(pen: Pen, component: Component) -> None:
    _quad_pins(pen, component)
    body = component.length - 2.8
    pen.box(0, 0, body, body, EPOXY)
    pen.box(0, 0, body - 1.6, body - 1.6, (44, 44, 47))
    pen.disc(-body / 2 + 2.6, -body / 2 + 2.6, 1.0, (26, 26, 28))
    pen.text(component.marking, 0, -1.6, 2.9, INK)
    pen.text("2431 E4", 0, 3.2, 2.3, (112, 112, 110))


def _amplifier(pen: Pen, component: Component) -> None:
    _pins(pen, 4, pitch=component.length / 4.4, reach=component.width / 2 - 0.9, length=1.8)
    pen.box(0, 0, component.length, component.width - 2.6, EPOXY)
    pen.box(0, -0.2, component.length - 0.8, component.width - 4.0, (46, 46, 49))
    pen.disc(-component.length / 2 + 1.7, component.width / 2 - 3.0, 0.7, (22, 22, 24))
    pen.text(component.marking, 0.6, -0.2, 2.2, INK)


def _capacitor(pen: Pen, component: Component) -> None:
    radius = component.length / 2
    pen.disc(0, 0, radius, (30, 34, 48))
    pen.disc(0, 0, radius - 0.7, (184, 186, 190))
    angles = np.deg2rad(np.linspace(-55, 55, 16))
    pen.polygon([((radius - 0.8) * np.cos(a), (radius - 0.8) * np.sin(a)) for a in angles], (36, 40, 58))
    pen.line([(-0.5 * radius, 0), (0.38 * radius, 0)], 0.35, (146, 148, 152))
    pen.line([(0, -0.5 * radius), (0, 0.5 * radius)], 0.35, (146, 148, 152))
    pen.text(component.marking, -0.42 * radius, 0.34 * radius, 1.9, (70, 72, 80))
    pen.disc(-0.42 * radius, -0.46 * radius, 0.15 * radius, (226, 227, 229))


def _inductor(pen: Pen, component: Component) -> None:
    half = component.length / 2
    inner = 0.72 * half
    corners = [(-inner, -half), (inner, -half), (half, -inner), (half, inner)]
    pen.polygon([*corners, *((-x, -y) for x, y in corners)], (58, 58, 60))
    pen.disc(0, 0, 0.80 * half, (74, 74, 75))
    pen.disc(0, 0, 0.72 * half, (54, 54, 56))
    pen.text(component.marking, 0, 0, 3.0, (168, 168, 164))


def _chip(pen: Pen, component: Component, body: Colour) -> None:
    pen.box(0, 0, component.length, component.width, SOLDER)
    for x in (-0.42, 0.42):
        pen.box(x * component.length, -0.15 * component.width, 0.10 * component.length, 0.5 * component.width, GLINT)
    pen.box(0, 0, 0.62 * component.length, component.width, body)


def _resistor(pen: Pen, component: Component) -> None:
    _chip(pen, component, (30, 30, 34))
    pen.text(component.marking, 0, 0, 1.5, (190, 190, 186))


def _ceramic(pen: Pen, component: Component) -> None:
    _chip(pen, component, (158, 122, 88))


def _diode(pen: Pen, component: Component) -> None:
    pen.box(0, 0, component.length, 0.45 * component.width, SOLDER)
    pen.box(0, 0, 0.70 * component.length, component.width, (34, 34, 36))
    pen.box(-0.24 * component.length, 0, 0.11 * component.length, component.width, (186, 186, 182))


def _crystal(pen: Pen, component: Component) -> None:
    radius = component.width / 2
    inner = component.length / 2 - radius
    for shrink, colour in ((0.0, (142, 143, 146)), (0.5, (178, 179, 181)), (0.9, (168, 169, 172))):
        for x in (-inner, inner):
            pen.disc(x, 0, radius - shrink, colour)
        pen.box(0, 0, 2 * inner, 2 * (radius - shrink), colour)
    pen.text(component.marking, 0, 0, 2.1, (84, 85, 88))


def _lamp(pen: Pen, component: Component, lens: Colour) -> None:
    pen.box(0, 0, component.length, component.width, GOLD)
    pen.box(0, 0, 0.74 * component.length, component.width, (228, 226, 214))
    pen.disc(0, 0, 0.36 * component.width, lens)
    pen.disc(-0.12 * component.width, -0.12 * component.width, 0.12 * component.width, (252, 248, 236))


def _amber_lamp(pen: Pen, component: Component) -> None:
    _lamp(pen, component, (232, 190, 96))


def _red_lamp(pen: Pen, component: Component) -> None:
    _lamp(pen, component, (176, 44, 38))


def _screw(pen: Pen, component: Component, head: Colour, rim: Colour) -> None:
    radius = component.length / 2
    pen.disc(0, 0, radius, rim)
    pen.disc(0, 0, 0.84 * radius, head)
    pen.disc(0, 0, 0.60 * radius, tuple(min(255, int(1.10 * value)) for value in head))  # type: ignore[arg-type]
    for length, width in ((1.0, 0.24), (0.24, 1.0)):
        pen.box(0, 0, length * radius, width * radius, (30, 30, 32))
    pen.box(0.04 * radius, 0.04 * radius, 0.2 * radius, 0.2 * radius, BLACK)


def _zinc_screw(pen: Pen, component: Component) -> None:
    _screw(pen, component, STEEL, (120, 121, 122))


def _black_screw(pen: Pen, component: Component) -> None:
    _screw(pen, component, (56, 55, 54), (38, 38, 38))


def _terminals(pen: Pen, component: Component) -> None:
    pen.box(0, 0, component.length, component.width, (46, 104, 142))
    pen.box(0, -0.40 * component.width, component.length, 0.16 * component.width, (36, 86, 120))
    pitch = component.length / 6
    slopes = _random_of(component).uniform(0.0, np.pi, 6)  # each clamp screw has another angle
    for number, slope in enumerate(slopes):
        x = (number - 2.5) * pitch
        pen.box(x + pitch / 2, 0, 0.5, component.width, (34, 80, 112))
        pen.disc(x, 0.4, 0.37 * pitch, (24, 52, 72))
        pen.disc(x, 0.4, 0.32 * pitch, (168, 168, 166))
        pen.disc(x - 0.06 * pitch, 0.1, 0.20 * pitch, (190, 190, 188))
        tip = (0.27 * pitch * np.cos(slope), 0.27 * pitch * np.sin(slope))
        pen.line([(x - tip[0], 0.4 - tip[1]), (x + tip[0], 0.4 + tip[1])], 0.9, (48, 48, 50))
        pen.box(x, 0.43 * component.width, 0.6 * pitch, 0.10 * component.width, (20, 44, 62))


def _random_of(component: Component) -> np.random.Generator:
    """Random generator of the differences between pieces, fixed by the marking."""
    return np.random.default_rng([ord(letter) for letter in component.marking])


def _header(pen: Pen, component: Component) -> None:
    pen.box(0, 0, component.length, component.width, (30, 30, 32))
    pen.box(0, 0, component.length - 1.4, component.width - 1.4, (20, 20, 22))
    pen.box(0, component.width / 2 - 0.4, 4.0, 0.9, (70, 70, 72))
    for number in range(8):
        for y in (-0.20, 0.20):
            x = (number - 3.5) * component.length / 9
            pen.box(x, y * component.width, 1.15, 1.15, GOLD)
            pen.box(x - 0.15, y * component.width - 0.15, 0.5, 0.5, (244, 226, 170))
    pen.polygon(
        [
            (-component.length / 2 + 0.4, -component.width / 2 + 0.4),
            (-component.length / 2 + 2.0, -component.width / 2 + 0.4),
            (-component.length / 2 + 0.4, -component.width / 2 + 2.0),
        ],
        WHITE,
    )


def _label(pen: Pen, component: Component) -> None:
    pen.box(0, 0, component.length, component.width, WHITE)
    bars = _random_of(component).uniform(0.25, 0.85, 34)
    x = -0.44 * component.length
    for number, width in enumerate(bars):
        if number % 2 == 0:
            pen.box(x + width / 2, -0.14 * component.width, width, 0.48 * component.width, (36, 36, 38))
        x += width * 0.86 * component.length / bars.sum()
    pen.text(component.marking, 0, 0.30 * component.width, 2.9, (44, 44, 46))


class Drawing(NamedTuple):
    """Drawing of one kind of component: `height` above the board in units, `gloss` from 0 (matt) to 1 (polished)."""

    height: float
    gloss: float
    draw: Callable[[Pen, Component], None]


DRAWINGS: dict[str, Drawing] = {
    "label": Drawing(0.12, 0.05, _label),
    "resistor": Drawing(0.7, 0.2, _resistor),
    "ceramic": Drawing(1.0, 0.2, _ceramic),
    "amber lamp": Drawing(1.2, 0.2, _amber_lamp),
    "red lamp": Drawing(1.2, 0.2, _red_lamp),
    "microcontroller": Drawing(1.4, 0.35, _microcontroller),
    "amplifier": Drawing(1.5, 0.35, _amplifier),
    "diode": Drawing(1.6, 0.3, _diode),
    "zinc screw": Drawing(2.0, 0.5, _zinc_screw),
    "black screw": Drawing(2.0, 0.5, _black_screw),
    "crystal": Drawing(2.4, 0.5, _crystal),
    "inductor": Drawing(4.0, 0.2, _inductor),
    "header": Drawing(4.5, 0.2, _header),
    "capacitor": Drawing(6.5, 0.45, _capacitor),
    "terminals": Drawing(7.0, 0.2, _terminals),
}
