"""One drawn dog in front of a cluttered scene: a Breed and a seed in, an image out.

A dog stands in its own coordinates: the body's centre is (0, 0), x grows towards the head, y towards the sky, and a
middle-sized body is 2 long. A pose turns, scales, mirrors and shifts it onto a canvas of twice the final size.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = NDArray[np.float64]
"""(n, 2): x, y."""

Pattern = Literal["solid", "spots", "patches", "saddle", "points", "brindle", "belly"]
Ear = Literal["pricked", "drop", "button", "bat"]
Tail = Literal["curl", "straight", "docked", "plume"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
EARS: tuple[Ear, ...] = get_args(Ear)
TAILS: tuple[Tail, ...] = get_args(Tail)

_OVERSAMPLE = 2
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 28)), np.sin(np.linspace(0, 2 * np.pi, 28))], axis=1)


@dataclass(frozen=True)
class Breed:
    """What the dogs of one breed have in common; every dog differs a little."""

    name: str
    coat: Colour
    marking: Colour
    pattern: Pattern
    ear: Ear
    tail: Tail
    leg: float
    """Leg length in body units, 0.4 (low) to 1.2 (high)."""
    length: float
    """Body length, 0.8 to 1.35."""
    bulk: float
    """Body depth, 0.42 to 0.72."""
    head: float
    """Head radius, 0.3 to 0.46."""
    muzzle: float
    """Muzzle length, 0.15 (flat) to 0.75 (long)."""
    shag: float
    """Length of the hair that breaks the outline, 0 (smooth) to 0.16."""


class _Easel:
    """A dog's coat and the mask of where it is, drawn together in the dog's coordinates."""

    def __init__(self, size: tuple[int, int], to_canvas: NDArray[np.float64], *, unit: float):
        self.coat = Image.new("RGB", size)
        self.mask = Image.new("L", size)
        self._on_coat, self._on_mask = ImageDraw.Draw(self.coat), ImageDraw.Draw(self.mask)
        self._to_canvas = to_canvas
        self._unit = unit

    def _place(self, points: Points) -> list[tuple[float, float]]:
        placed = points @ self._to_canvas[:, :2].T + self._to_canvas[:, 2]
        return [(x, y) for x, y in placed.tolist()]

    def fill(self, points: Points, colour: Colour, *, on_dog: bool = False) -> None:
        """Fills a polygon; with on_dog it is a marking that shows only where the dog is already."""
        placed = self._place(points)
        self._on_coat.polygon(placed, fill=colour)
        if not on_dog:
            self._on_mask.polygon(placed, fill=255)

    def stroke(self, points: Points, colour: Colour, *, width: float, on_dog: bool = False) -> None:
        """Draws a line of `width` body units with round joints."""
        placed, pixels = self._place(points), max(1, round(width * self._unit))
        self._on_coat.line(placed, fill=colour, width=pixels, joint="curve")
        if not on_dog:
            self._on_mask.line(placed, fill=255, width=pixels, joint="curve")

    def comb(self, points: Points, colour: Colour, *, shag: float, rng: np.random.Generator) -> None:
        """Draws tufts of hair across an outline."""
        if shag < 0.02:
            return
        centre = points.mean(axis=0)
        for root in points[rng.integers(0, len(points), 36)] + rng.normal(0, 0.05, (36, 2)):
            out = (root - centre) / max(1e-6, float(np.hypot(*(root - centre))))
            tip = root + shag * (0.5 + rng.random()) * (out + np.array([-0.3, -0.8]))
            self.stroke(np.stack([root, tip]), _shade(colour, rng.uniform(0.8, 1.15)), width=0.035)


def draw_dog(breed: Breed, rng: np.random.Generator) -> Image.Image:
    """One photograph-like picture of a dog of this breed, RGB, 224 to 288 pixels a side."""
    width, height = int(rng.integers(224, 289)), int(rng.integers(224, 289))
    scene = _draw_scene(width, height, rng)
    canvas = (width * _OVERSAMPLE, height * _OVERSAMPLE)
    dog = _vary(breed, rng)
    unit = min(canvas) * rng.uniform(0.21, 0.29)
    angle, mirrored = rng.normal(0, 0.14), rng.random() < 0.5
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = np.diag([-1.0 if mirrored else 1.0, -1.0]) @ turn * unit
    # From the side, or turned a little towards the camera, which foreshortens the body.
    turn[:, 0] *= rng.uniform(0.72, 1.0)
    centre = np.array(canvas) * (rng.uniform(0.38, 0.62), rng.uniform(0.42, 0.6))
    easel = _Easel(canvas, np.column_stack([turn, centre]), unit=unit)
    _draw_body(easel, dog, rng)
    _draw_head(easel, dog, rng)
    scene.paste(easel.coat.reduce(_OVERSAMPLE), (0, 0), easel.mask.reduce(_OVERSAMPLE))
    if rng.random() < 0.45:
        _draw_occluder(scene, rng)
    return _photograph(scene, rng)


def _vary(breed: Breed, rng: np.random.Generator) -> Breed:
    """One dog of the breed: proportions differ by some 8 %, colours by age, dirt and blood."""
    factor = np.exp(rng.normal(0, 0.08, 6))
    return replace(
        breed,
        coat=_tint(breed.coat, rng),
        marking=_tint(breed.marking, rng),
        leg=breed.leg * factor[0],
        length=breed.length * factor[1],
        bulk=breed.bulk * factor[2],
        head=breed.head * factor[3],
        muzzle=breed.muzzle * factor[4],
        shag=breed.shag * factor[5],
    )


def _draw_body(easel: _Easel, dog: Breed, rng: np.random.Generator) -> None:
    half, depth = dog.length, dog.bulk
    near, far = dog.coat, _shade(dog.coat, 0.72)
    _draw_tail(easel, dog, rng)
    for colour, shift in ((far, 0.12), (near, -0.04)):
        for x, bend in ((half * 0.68, 0.05), (-half * 0.7, -0.16)):
            step = rng.normal(0, 0.2)
            knee = (x + shift + bend + step * 0.5, -depth * 0.6 - dog.leg * 0.45)
            foot = (x + shift + step, -depth * 0.6 - dog.leg)
            easel.stroke(np.array([(x + shift, -depth * 0.3), knee, foot]), colour, width=0.2 + 0.1 * depth)
            easel.fill(_CIRCLE * (0.17, 0.09) + (foot[0] + 0.07, foot[1]), _shade(colour, 0.92))
    trunk = np.concatenate(
        [_CIRCLE * (half, depth * 0.86), _CIRCLE * (half * 0.5, depth) + (half * 0.45, 0.02)], axis=0
    )
    for outline in (trunk[: len(_CIRCLE)], trunk[len(_CIRCLE) :]):
        easel.fill(outline, near)
    easel.comb(trunk, near, shag=dog.shag, rng=rng)
    _draw_pattern(easel, dog, rng)


def _draw_tail(easel: _Easel, dog: Breed, rng: np.random.Generator) -> None:
    root, wag = np.array([-dog.length * 0.93, dog.bulk * 0.3]), rng.normal(0, 0.25)
    along = np.linspace(0, 1, 9)
    if dog.tail == "docked":
        points, width = root + np.stack([-0.2 * along, 0.14 * along], axis=1), 0.2
    elif dog.tail == "curl":
        turn = 0.6 + 5.2 * along
        points, width = (
            root + np.stack([-0.3 * np.sin(turn) + 0.1, 0.32 - 0.3 * np.cos(turn) + wag * 0.2], axis=1),
            0.15,
        )
    else:
        rise = 0.25 + wag if dog.tail == "straight" else -0.5 + wag
        points = root + np.stack([-0.85 * along, rise * along + 0.3 * along**2], axis=1)
        width = 0.11 if dog.tail == "straight" else 0.22
    easel.stroke(points, _shade(dog.coat, 0.85), width=width)
    easel.comb(points[3:], dog.coat, shag=dog.shag + (0.12 if dog.tail == "plume" else 0.0), rng=rng)


def _draw_pattern(easel: _Easel, dog: Breed, rng: np.random.Generator) -> None:
    half, depth, colour = dog.length, dog.bulk, dog.marking
    if dog.pattern == "spots":
        for x, y, size in rng.uniform((-half, -depth * 2, 0.04), (half, depth, 0.1), (42, 3)):
            easel.fill(_CIRCLE * (size, size * 0.9) + (x, y), colour, on_dog=True)
    elif dog.pattern == "patches":
        for x, y, size in rng.uniform((-half, -depth * 0.7, 0.2), (half, depth, 0.42), (5, 3)):
            blob = _CIRCLE * size * rng.uniform(0.7, 1.2, (len(_CIRCLE), 1)) + (x, y)
            easel.fill(blob, colour, on_dog=True)
    elif dog.pattern == "saddle":
        x = rng.normal(-0.08, 0.08)
        easel.fill(_CIRCLE * (half * 0.72, depth * 0.8) + (x, depth * 0.55), colour, on_dog=True)
    elif dog.pattern == "points":
        bottom = -depth * 0.55 - dog.leg * rng.uniform(0.35, 0.55)
        easel.fill(np.array([(-9.0, bottom), (9.0, bottom), (9.0, -9.0), (-9.0, -9.0)]), colour, on_dog=True)
    elif dog.pattern == "belly":
        easel.fill(_CIRCLE * (half * 0.95, depth * 0.6) + (0.15, -depth * 0.68), colour, on_dog=True)
    elif dog.pattern == "brindle":
        for x in np.linspace(-half, half, 17) + rng.normal(0, 0.05, 17):
            wave = np.array([(x, depth), (x + rng.normal(0.05, 0.06), 0.0), (x + rng.normal(0, 0.06), -depth * 1.3)])
            easel.stroke(wave, colour, width=rng.uniform(0.03, 0.07), on_dog=True)


def _draw_head(easel: _Easel, dog: Breed, rng: np.random.Generator) -> None:
    nod = rng.normal(0, 0.16)
    centre = np.array([dog.length * 0.98 + 0.22, dog.bulk * 0.75 + 0.28 + nod])
    size = dog.head
    mask_colour = dog.marking if dog.pattern in ("saddle", "points", "patches") else dog.coat
    easel.stroke(np.array([(dog.length * 0.62, dog.bulk * 0.2), centre]), dog.coat, width=size * 1.25)
    _draw_ear(easel, dog, np.add(centre, (0.1, 0.02)), _shade(dog.coat, 0.7), rng)
    skull = _CIRCLE * (size, size * 0.92) + centre
    easel.fill(skull, dog.coat)
    easel.comb(skull, dog.coat, shag=dog.shag, rng=rng)
    tip = centre + np.array([size * 0.75 + dog.muzzle, -size * 0.35 + 0.25 * nod])
    easel.stroke(
        np.stack([np.add(centre, (size * 0.4, -size * 0.2)), tip]), _shade(mask_colour, 1.08), width=size * 0.72
    )
    easel.fill(_CIRCLE * (0.09, 0.08) + tip + (0.04, 0.07), (24, 20, 20))
    easel.fill(_CIRCLE * 0.055 + centre + (size * 0.45, size * 0.22), (18, 14, 12))
    _draw_ear(easel, dog, np.add(centre, (-0.1, 0.0)), _shade(dog.coat, 0.86), rng)


def _draw_ear(easel: _Easel, dog: Breed, centre: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> None:
    size, sway = dog.head, rng.normal(0, 0.05)
    if dog.ear == "drop":
        shape = _CIRCLE * (size * 0.34, size * 0.8) + (-size * 0.4 + sway, -size * 0.3)
    elif dog.ear == "pricked":
        shape = np.array([(-0.62, 0.45), (-0.3 + sway, 1.65), (0.22, 0.7)]) * size
    elif dog.ear == "bat":
        shape = _CIRCLE * (size * 0.36, size * 0.72) + (-size * 0.35 + sway, size * 0.98)
    else:
        shape = np.array([(-0.7, 0.55), (-0.35, 1.15), (0.35 + sway, 0.5), (-0.05, 0.35)]) * size
    easel.fill(shape + centre, colour)
    easel.comb(shape + centre, colour, shag=dog.shag, rng=rng)


def _draw_scene(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Ground, sky or wall with texture, and things of all colours, coat colours among them."""
    far, near = _muted(rng), _muted(rng)
    rows = np.linspace(0, 1, 24)[:, None, None]
    horizon = 1 / (1 + np.exp(-(rows - rng.uniform(0.3, 0.75)) * rng.uniform(4, 40)))
    field = np.array(far) * (1 - horizon) + np.array(near) * horizon + rng.normal(0, rng.uniform(3, 12), (24, 24, 1))
    scene = Image.fromarray(field.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(3, 12))):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.05, 0.28) * width
        colour = _muted(rng)
        if rng.random() < 0.5:
            draw.ellipse((x - size, y - size * 0.6, x + size, y + size * 0.6), fill=colour)
        else:
            draw.polygon(
                [(x + size * dx, y + size * dy) for dx, dy in rng.uniform(-1, 1, (4, 2)).tolist()], fill=colour
            )
    return scene.filter(ImageFilter.BoxBlur(2)) if rng.random() < 0.5 else scene


def _draw_occluder(scene: Image.Image, rng: np.random.Generator) -> None:
    """Grass, a pole, or a ball in front of the dog."""
    draw, (width, height) = ImageDraw.Draw(scene), scene.size
    colour = _muted(rng)
    kind = rng.integers(0, 3)
    if kind == 0:
        top = height * rng.uniform(0.62, 0.85)
        for x in rng.uniform(0, width, 70).tolist():
            blade = [(x, height), (x + rng.normal(0, 8), top + rng.normal(0, 12))]
            draw.line(blade, fill=_shade(colour, rng.uniform(0.7, 1.2)), width=3)
    elif kind == 1:
        x, thick = rng.uniform(0.15, 0.85) * width, rng.uniform(6, 26)
        draw.polygon([(x, 0), (x + thick, 0), (x + thick * 1.2, height), (x - 4, height)], fill=colour)
    else:
        x, y, size = rng.uniform(0.2, 0.8) * width, rng.uniform(0.4, 0.9) * height, rng.uniform(12, 42)
        draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)


def _photograph(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from one side, exposure, a colour cast, blur and grain."""
    if rng.random() < 0.35:
        scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.8)))
    width, height = scene.size
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    slope = rng.normal(0, 0.16, 2).astype(np.float32)
    light = np.float32(rng.uniform(0.75, 1.15)) * (1 + slope[0] * across[None, :] + slope[1] * down[:, None])
    pixels = np.asarray(scene, dtype=np.float32) * light[:, :, None] * rng.normal(1, 0.03, 3).astype(np.float32)
    pixels += rng.normal(0, rng.uniform(1, 6), (height, width, 1)).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _shade(colour: Colour, factor: float) -> Colour:
    return _colour(np.array(colour) * factor)


def _muted(rng: np.random.Generator) -> Colour:
    """A colour of walls, lawns and furniture."""
    grey = rng.uniform(45, 215)
    return _colour(grey + rng.normal(0, 26, 3))


def _tint(colour: Colour, rng: np.random.Generator) -> Colour:
    """The same colour, some 12 % lighter or darker and a little off in hue."""
    return _colour(np.array(colour) * math.exp(rng.normal(0, 0.12)) + rng.normal(0, 5, 3))


def _colour(values: NDArray[np.float64]) -> Colour:
    red, green, blue = values.clip(0, 255).astype(int).tolist()
    return red, green, blue
