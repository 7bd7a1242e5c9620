"""A terminal board: some thirty components on a green circuit board in a fixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from anomaly.data.synthetic.camera import capture
from anomaly.data.synthetic.components import DRAWINGS, Pen
from anomaly.data.synthetic.noise import smooth_noise
from anomaly.data.synthetic.rendered_part import Component, Field, Image, Mask, RenderedPart
from anomaly.errors import UsageError

BOARD = 0.92  # edge of the board in edges of the image
LIGHT = (-0.57, -0.82)  # direction of the light in the image plane (y down): the upper left
SHADOW = 0.55  # length of a shadow per height
PARALLAX = 0.0032  # outward shift of a top per height and distance from the middle
PRINT = (148, 162, 150)  # colour of the white print, thin on the green
MIN_CHANGE = 3  # grey levels; a weaker change is neither drawn nor part of the mask
DESIGN = 20240  # seed of the copper tracks, which are the same on every board
LAYOUT = (
    Component("terminals", 50, 11, 0, 62, 14, ""),
    *(Component("zinc screw", x, y, 0, 8.4, 8.4, "") for x, y in ((7.5, 7.5), (92.5, 7.5), (7.5, 92.5), (92.5, 92.5))),
    Component("capacitor", 15, 33, 90, 14, 14, "220"),
    Component("capacitor", 15, 51, 90, 14, 14, "220"),
    Component("microcontroller", 38, 42, 0, 24, 24, "MX204"),
    Component("crystal", 38, 62.5, 0, 15, 6, "16.0"),
    Component("amplifier", 68, 33, 0, 13, 10.5, "358A"),
    Component("amplifier", 68, 49, 0, 13, 10.5, "358A"),
    Component("inductor", 88, 46, 0, 14, 14, "100"),
    Component("amber lamp", 88, 29, 0, 6, 4, ""),
    Component("diode", 62, 62, 0, 10, 4.2, ""),
    Component("diode", 76, 62, 0, 10, 4.2, ""),
    *(Component("ceramic", 55.5, y, 90, 4.8, 2.8, "") for y in (31, 38, 45, 52)),
    *(Component("resistor", x, 72, 90, 5.2, 3.0, "103") for x in (54, 60, 66, 72, 78)),
    *(Component("resistor", x, 61, 0, 5.2, 3.0, "471") for x in (9.5, 20)),
    Component("ceramic", 89, 60, 0, 4.8, 2.8, ""),
    Component("ceramic", 89, 67, 0, 4.8, 2.8, ""),
    Component("label", 29, 80, 0, 36, 17, ""),
    Component("header", 68, 86, 0, 33, 9, ""),
)
SWAPS = {  # kind -> kind placed by mistake; other kinds are rotated by half a turn
    "resistor": "ceramic",
    "ceramic": "resistor",
    "capacitor": "inductor",
    "inductor": "capacitor",
    "amber lamp": "red lamp",
    "zinc screw": "black screw",
}


def render_assembly(*, size: int, seed: int) -> RenderedPart:
    """Render a good board, `size` pixels square; the board is the foreground."""
    return _render(_place(np.random.default_rng([seed, 1])), size=size, seed=seed)


def draw_component_defect(part: RenderedPart, *, rng: np.random.Generator) -> tuple[Image, Mask]:
    """Render an assembly again with one component missing, swapped or displaced, with equal probability.

    Args:
        part: assembly of `make_part`.
        rng: random generator of all choices.

    Returns:
        The image and its mask (H, W). The mask is True where the image differs from `part.image` by at least three grey
        levels, including the component's shadow. Outside the mask both are equal.

    Raises:
        UsageError: a part without components.
    """
    if not part.components:
        raise UsageError(f"a part of kind {part.kind!r} has no components; use draw_defect")
    alter = COMPONENT_DEFECTS[str(rng.choice(list(COMPONENT_DEFECTS)))]
    altered = _render(alter(part.components, rng), size=len(part.image), seed=part.seed).image
    changed = (cv2.absdiff(altered, part.image).max(axis=2) >= MIN_CHANGE).astype(np.uint8)
    mask: Mask = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
    return np.where(mask[:, :, None], altered, part.image), mask


def remove_component(components: tuple[Component, ...], rng: np.random.Generator) -> tuple[Component, ...]:
    """Remove one component; its pads are bare."""
    pick = int(rng.integers(len(components)))
    return components[:pick] + components[pick + 1 :]


def swap_component(components: tuple[Component, ...], rng: np.random.Generator) -> tuple[Component, ...]:
    """Replace one component by another of the same size, or else rotate it by half a turn."""
    pick = int(rng.integers(len(components)))
    good = components[pick]
    wrong = replace(good, kind=SWAPS[good.kind]) if good.kind in SWAPS else replace(good, angle=good.angle + 180.0)
    return (*components[:pick], wrong, *components[pick + 1 :])


def displace_component(components: tuple[Component, ...], rng: np.random.Generator) -> tuple[Component, ...]:
    """Shift and rotate one component other than a screw; a longer one rotates less."""
    loose = [number for number, component in enumerate(components) if component.kind != "zinc screw"]
    pick = int(rng.choice(loose))
    good = components[pick]
    direction, distance = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.25, 0.6) * min(good.length, good.width)
    turn = rng.choice((-1.0, 1.0)) * rng.uniform(0.3, 1.0) * min(35.0, 400.0 / good.length)
    x, y = good.x + distance * np.cos(direction), good.y + distance * np.sin(direction)
    wrong = replace(good, x=float(x), y=float(y), angle=float(good.angle + turn))
    return (*components[:pick], wrong, *components[pick + 1 :])


COMPONENT_DEFECTS: dict[str, Callable[[tuple[Component, ...], np.random.Generator], tuple[Component, ...]]] = {
    "missing": remove_component,
    "swapped": swap_component,
    "displaced": displace_component,
}


def _place(rng: np.random.Generator) -> tuple[Component, ...]:
    """Place the layout as a machine does: slightly off, screws at any angle, an individual number on every label."""
    placed = []
    for component in LAYOUT:
        x, y = rng.normal((component.x, component.y), 0.15)
        angle = component.angle + (rng.uniform(0.0, 90.0) if component.kind == "zinc screw" else rng.normal(0.0, 0.7))
        number = f"{rng.integers(1000, 10000)}"
        placed.append(
            replace(component, x=float(x), y=float(y), angle=float(angle), marking=component.marking or number)
        )
    return tuple(placed)


def _render(components: tuple[Component, ...], *, size: int, seed: int) -> RenderedPart:
    rng = np.random.default_rng([seed, 2])
    length = size * 3 // 2
    scale = BOARD * length / 100.0
    lean, shift = rng.normal(0.0, 0.35), rng.normal(0.0, 0.003, 2) * length + length / 2
    turn = np.deg2rad(lean)
    pose = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * scale * rng.normal(1.0, 0.003)
    scene = _fixture(length, rng=rng)
    _put(scene, _board(scale), height=1.6, gloss=0.1, angle=lean, foot=shift, top=shift)
    for component in sorted(components, key=lambda item: DRAWINGS[item.kind].height):
        drawing = DRAWINGS[component.kind]
        away = pose @ (component.x - 50.0, component.y - 50.0)
        top = shift + away * (1.0 + PARALLAX * drawing.height)
        sheet = _sheet(replace(component, x=0.0, y=0.0, angle=0.0), scale)
        angle = component.angle + lean
        _put(scene, sheet, height=drawing.height, gloss=drawing.gloss, angle=angle, foot=shift + away, top=top)
    scene *= _sheen(length, rng=rng)
    reduced = cv2.resize(cv2.merge(list(scene)), (size, size), interpolation=cv2.INTER_AREA)
    corners = np.array([(-50.0, -50.0), (50.0, -50.0), (50.0, 50.0), (-50.0, 50.0)]) @ pose.T + shift
    outline = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(outline, np.asarray(np.round(corners * size / length), dtype=np.int32), 1)
    image = capture(np.asarray(reduced, dtype=np.float32), rng=rng)
    return RenderedPart(kind="assembly", image=image, foreground=outline > 0, seed=seed, components=components)


@lru_cache(maxsize=64)
def _sheet(component: Component, scale: float) -> Pen:
    """Draw the component; equal components share one sheet, which must not be changed."""
    pen = Pen(component.length, component.width, scale=scale)
    DRAWINGS[component.kind].draw(pen, component)
    return pen


def _put(
    scene: Field,
    sheet: Pen,
    *,
    height: float,
    gloss: float,
    angle: float,
    foot: npt.NDArray[np.float64],
    top: npt.NDArray[np.float64],
) -> None:
    """Add a drawn sheet to the scene (3, H, W) in place: shadow, side wall, then the top, lit from the upper left."""
    cast = SHADOW * height * sheet.scale
    reach = 0.5 * np.hypot(*sheet.cover.shape) + 2.0 * cast + 4.0
    corner = np.maximum(0, foot - reach).astype(int)
    region = scene[:, corner[1] : int(foot[1] + reach) + 1, corner[0] : int(foot[0] + reach) + 1]
    size = (region.shape[2], region.shape[1])
    rotate = cv2.getRotationMatrix2D((sheet.middle[0] - 0.5, sheet.middle[1] - 0.5), -angle, 1.0)

    def lay(sheet_layer: npt.NDArray[np.uint8], at: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        affine = rotate.copy()
        affine[:, 2] += at - corner - sheet.middle
        return np.asarray(cv2.warpAffine(sheet_layer, affine, size), dtype=np.uint8)

    shadow = lay(sheet.cover, foot - cast * np.asarray(LIGHT)).astype(np.float32)
    region *= 1.0 - cv2.GaussianBlur(shadow, (0, 0), 0.8 + 0.35 * cast) * np.float32(0.68 / 255)
    if np.abs(top - foot).max() > 0.3:
        region *= 1.0 - lay(sheet.cover, foot).astype(np.float32) * np.float32(0.75 / 255)
    cover = lay(sheet.cover, top).astype(np.float32) * np.float32(1 / 255)
    edge = cv2.GaussianBlur(cover, (0, 0), 0.6 + 0.06 * sheet.scale * min(height, 4.0))
    slope = cv2.Sobel(edge, cv2.CV_32F, 1, 0) * LIGHT[0] + cv2.Sobel(edge, cv2.CV_32F, 0, 1) * LIGHT[1]
    y, x = (axis.astype(np.float32) for axis in np.ogrid[: size[1], : size[0]])
    towards = ((x - (top - corner)[0]) * LIGHT[0] + (y - (top - corner)[1]) * LIGHT[1]) / (
        0.35 * sum(sheet.cover.shape)
    )
    glare = gloss * (0.5 * towards + 0.9 * np.exp((towards - 0.42) ** 2 * -16.0) - 0.25)
    light = np.clip(1.0 - 0.22 * min(height, 2.5) * slope + glare, 0.3, 2.2).astype(np.float32) * np.float32(1 / 255)
    region *= 1.0 - cover
    region += np.stack(cv2.split(lay(sheet.colour, top))) * light


def _fixture(length: int, *, rng: np.random.Generator) -> Field:
    """Render the milled aluminium plate under the board, (3, H, W)."""
    milled = 1.0 + 0.06 * smooth_noise((length, length), period=(1.5, 50.0), rng=rng)
    metal = np.asarray((0.25, 0.26, 0.27)) * rng.normal(1.0, 0.02)
    return np.stack([milled * np.float32(colour) for colour in metal])


def _sheen(length: int, *, rng: np.random.Generator) -> Field:
    """Draw the brightness of the lamp's soft reflection and of uneven surfaces, around 1."""
    y, x = (axis.astype(np.float32) / length for axis in np.ogrid[:length, :length])
    lamp = 0.30 * np.exp(-((x - np.float32(0.30)) ** 2 + (y - np.float32(0.18)) ** 2) * 4.0)
    fine = 0.02 * smooth_noise((length, length), period=(2.0, 2.0), rng=rng)
    coarse = 0.03 * smooth_noise((length, length), period=(length / 14, length / 14), rng=rng)
    return np.asarray(0.86 + lamp + fine + coarse, dtype=np.float32)


@lru_cache(maxsize=4)
def _board(scale: float) -> Pen:
    """Draw the bare board: solder mask, copper tracks, pads and white print, the same on every board."""
    design = np.random.default_rng(DESIGN)
    pen = Pen(100, 100, scale=scale)
    pen.box(0, 0, 100, 100, (20, 74, 54))
    ends = [(pad[0], pad[1]) for component in LAYOUT for pad in _pads(component)]
    tracks = []
    for _ in range(70):
        start, stop = (ends[k] for k in design.integers(0, len(ends), 2))
        bend = min(abs(stop[0] - start[0]), abs(stop[1] - start[1])) * design.choice((0.3, 1.0))
        corner = (start[0], stop[1] - np.sign(stop[1] - start[1]) * bend)
        tracks.append([start, corner, (start[0] + np.sign(stop[0] - start[0]) * bend, stop[1]), stop])
    for width, colour in ((1.9, (12, 50, 38)), (0.9, (34, 96, 70))):
        for track in tracks:
            pen.line(track, width, colour)
    for x, y in design.uniform(-47, 47, (60, 2)):
        pen.disc(x, y, 0.75, (60, 118, 90))
        pen.disc(x, y, 0.35, (12, 44, 30))
    for number, component in enumerate(LAYOUT):
        upright = abs(np.sin(np.deg2rad(component.angle))) > 0.5
        length, width = (component.width, component.length) if upright else (component.length, component.width)
        x, y = component.x - 50.0, component.y - 50.0
        right, down = length / 2 + 0.9, width / 2 + 0.9
        if component.kind == "zinc screw":
            pen.disc(x, y, 5.0, (186, 168, 112))
            pen.disc(x, y, 2.3, (20, 21, 22))
            continue
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            pen.line([(x + a * (right - 1.5), y + b * down), (x + a * right, y + b * down)], 0.3, PRINT)
            pen.line([(x + a * right, y + b * (down - 1.5)), (x + a * right, y + b * down)], 0.3, PRINT)
        pen.text(f"{component.kind[0].upper()}{number}", x, y + down + 1.2, 1.7, PRINT)
        for pad_x, pad_y, pad_length, pad_width in _pads(component):
            pen.box(pad_x, pad_y, pad_length + 0.5, pad_width + 0.5, (120, 128, 112))
            pen.box(pad_x, pad_y, pad_length, pad_width, (196, 196, 190))
    return pen


def _pads(component: Component) -> list[tuple[float, float, float, float]]:
    """List x, y, length and width of each solder pad, in units from the middle of the board."""
    length, width = component.length, component.width
    if component.kind in ("label", "zinc screw"):
        return []
    if component.kind == "microcontroller":
        row = [(number - 5) * length / 14.5 for number in range(11)]
        at = [(x, y) for x in row for y in (-0.46 * length, 0.46 * length)]
        at += [(x, y) for y in row for x in (-0.46 * length, 0.46 * length)]
        pad = (0.9, 0.9)
    elif component.kind in ("amplifier", "header", "terminals"):
        count = {"amplifier": 4, "header": 8, "terminals": 6}[component.kind]
        row = [(number - (count - 1) / 2) * length / (count + 0.5) for number in range(count)]
        at = [(x, y) for x in row for y in (-0.40 * width, 0.40 * width)]
        pad = (1.6, 1.8)
    else:
        at = [(-0.40 * length, 0.0), (0.40 * length, 0.0)]
        pad = (0.22 * length, 0.8 * min(width, 6.0))
    cos, sin = round(np.cos(np.deg2rad(component.angle))), round(np.sin(np.deg2rad(component.angle)))
    size = pad if cos else (pad[1], pad[0])
    x, y = component.x - 50.0, component.y - 50.0
    return [(x + cos * u - sin * v, y + sin * u + cos * v, *size) for u, v in at]
