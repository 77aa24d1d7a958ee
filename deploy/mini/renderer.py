"""Draws the world: attribute arrays to 32x32 RGB pictures, whole batches at a time in numpy.

Everything is drawn at 64x64 and averaged down, so edges are smooth. Size and place jitter by a few percent; nothing
else is random but the grains of `grainy`. Same attributes and same generator state, same bytes.

Legend: N pictures, S = 64 drawn pixels a side, H = 32 final pixels a side, C = 3 channels. Grid coordinates run over
(-1, 1), x to the right and y downwards.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from thinkdiff.mini.world import FAMILIES, FAMILY_NAMES, OBJECTS, Attributes

SIDE = 32
_S = 2 * SIDE
_CHUNK = 512
Floats = npt.NDArray[np.floating]
Masks = npt.NDArray[np.bool_]
Pictures = npt.NDArray[np.uint8]

GRAY = (135, 135, 135)
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 225),
    "yellow": (240, 205, 30),
    "purple": (150, 50, 190),
    "orange": (245, 130, 25),
}
# above and below the horizon
BACKGROUNDS = {
    "sky": ((175, 215, 250), (175, 215, 250)),
    "meadow": ((205, 235, 250), (150, 215, 130)),
    "desert": ((250, 240, 205), (225, 195, 140)),
    "night": ((35, 35, 75), (35, 35, 75)),
    "sunset": ((250, 185, 190), (250, 215, 160)),
    "sea": ((215, 240, 250), (110, 180, 225)),
}
STARS = ((6, 8), (10, 50), (54, 12), (50, 56), (28, 4), (8, 30), (58, 36))

_axis = (np.arange(_S, dtype=np.float32) + 0.5) / _S * 2 - 1
_Y_SS, _X_SS = np.meshgrid(_axis, _axis, indexing="ij")
_ROW_S1, _COLUMN_1S = np.arange(_S)[:, None], np.arange(_S)[None, :]


def render(attributes_N6: Attributes, rng: np.random.Generator) -> Pictures:
    """Draw every row; `(N, 32, 32, 3)` uint8. Deterministic in the attributes and the generator's state."""
    chunks = [_render(attributes_N6[i : i + _CHUNK], rng) for i in range(0, len(attributes_N6), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def encode_jpeg(picture: Pictures) -> bytes:
    """The one coding of the miniature's picture files: quality 95, no chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def through_jpeg(pictures_NHHC: Pictures) -> Pictures:
    """The pictures as a reader of their files gets them."""
    decoded = [np.asarray(Image.open(io.BytesIO(encode_jpeg(p))).convert("RGB")) for p in pictures_NHHC]
    return np.stack(decoded) if decoded else pictures_NHHC


@dataclass(frozen=True)
class _Placed:
    """Where the object stands: drawing coordinates, object coordinates and its mask."""

    inside_NSS: Masks
    centre_x_N: Floats
    centre_y_N: Floats


def _render(attributes: Attributes, rng: np.random.Generator) -> Pictures:
    look = {family: attributes[:, 1 + i] for i, family in enumerate(FAMILY_NAMES)}
    placed = _place(attributes[:, 0], look["action"], rng)
    color_NC = np.array([GRAY, *COLORS.values()], np.float32)[look["color"]]
    canvas = _backgrounds(look["background"])
    _draw_action_traces(canvas, look["action"], placed)
    fill = _fills(color_NC, look["texture"], placed, rng)
    drawn = _compose(canvas, fill, color_NC, look["style"], placed.inside_NSS)
    small = drawn.reshape(-1, SIDE, 2, SIDE, 2, 3).mean((2, 4))
    return np.clip(_filters(small, look["style"]), 0, 255).astype(np.uint8)


def _where(values_N: npt.NDArray[np.int64], family: str, word: str) -> npt.NDArray[np.intp]:
    return np.flatnonzero(values_N == 1 + FAMILIES[family].index(word))


def _over(values_N: Floats) -> Floats:
    return values_N.astype(np.float32)[:, None, None]


def _place(objects: npt.NDArray[np.int64], action: npt.NDArray[np.int64], rng: np.random.Generator) -> _Placed:
    """Jitter size and centre, let the action move and bend the object, and fill the mask."""
    count = len(objects)
    radius = rng.uniform(0.58, 0.66, count)
    x, y = rng.uniform(-0.06, 0.06, count), rng.uniform(-0.06, 0.06, count)
    wide, tall, shear = np.ones(count), np.ones(count), np.zeros(count)
    jumping, lying, stretching, running, leaning = (_where(action, "action", w) for w in FAMILIES["action"])
    y[jumping] -= 0.26
    y[lying] += 0.42
    tall[lying], wide[lying] = 0.48, 1.2
    tall[stretching], wide[stretching] = 1.4, 0.55
    x[running] += 0.26
    wide[running] = 0.85
    shear[leaning] = 0.6
    v_NSS = (_Y_SS - _over(y)) / _over(radius)
    u_NSS = ((_X_SS - _over(x)) / _over(radius) + _over(shear) * v_NSS) / _over(wide)
    v_NSS = v_NSS / _over(tall)
    inside = np.zeros((count, _S, _S), bool)
    for index, name in enumerate(OBJECTS):
        if len(rows := np.flatnonzero(objects == index)):
            inside[rows] = _SHAPES[name](u_NSS[rows], v_NSS[rows])
    return _Placed(inside, x, y)


def _backgrounds(values: npt.NDArray[np.int64]) -> Floats:
    canvas = np.full((len(values), _S, _S, 3), 250, np.float32)
    below = (_Y_SS > 0.25)[..., None]
    left_cloud = (_X_SS + 0.6) ** 2 / 0.08 + (_Y_SS + 0.7) ** 2 / 0.03 < 1
    right_cloud = (_X_SS - 0.6) ** 2 / 0.07 + (_Y_SS + 0.55) ** 2 / 0.025 < 1
    for word, (top, bottom) in BACKGROUNDS.items():
        scene = np.where(below, np.array(bottom, np.float32), np.array(top, np.float32))
        if word == "sky":
            scene[left_cloud | right_cloud] = 255
        if word == "night":
            for row, column in STARS:
                scene[row : row + 2, column : column + 2] = (255, 255, 200)
        canvas[_where(values, "background", word)] = scene
    return canvas


def _draw_action_traces(canvas: Floats, action: npt.NDArray[np.int64], placed: _Placed) -> None:
    """A shadow on the ground under what jumps, speed lines behind what runs."""
    rows = _where(action, "action", "jumping")
    ground = ((_X_SS - _over(placed.centre_x_N[rows])) / 0.4) ** 2 + ((_Y_SS - 0.8) / 0.1) ** 2 < 1
    canvas[rows] = np.where(ground[..., None], canvas[rows] * 0.55, canvas[rows])
    lines = np.min([np.abs(_Y_SS - at) for at in (-0.4, 0.0, 0.4)], axis=0) < 0.05
    lines &= (_X_SS < -0.45) & (_X_SS > -0.92)
    rows = _where(action, "action", "running")
    canvas[rows] = np.where(lines[..., None], np.float32(40), canvas[rows])


def _fills(color_NC: Floats, texture: npt.NDArray[np.int64], placed: _Placed, rng: np.random.Generator) -> Floats:
    fill = np.broadcast_to(color_NC[:, None, None, :], (len(color_NC), _S, _S, 3)).copy()
    patterns = {
        "striped": np.broadcast_to((_ROW_S1 // 6) % 2 == 0, (_S, _S)),
        "checkered": (_ROW_S1 // 7 + _COLUMN_1S // 7) % 2 == 0,
        "dotted": (_ROW_S1 % 10 - 5) ** 2 + (_COLUMN_1S % 10 - 5) ** 2 < 10,
    }
    for word, pattern in patterns.items():
        rows = _where(texture, "texture", word)
        fill[rows] = np.where(pattern[..., None], _lighter(fill[rows]), fill[rows])
    rows = _where(texture, "texture", "grainy")
    grains = (rng.random((len(rows), SIDE, SIDE)) < 0.4).repeat(2, 1).repeat(2, 2)
    fill[rows] = np.where(grains[..., None], _darker(fill[rows]), fill[rows])
    rows = _where(texture, "texture", "halved")
    right = _X_SS > _over(placed.centre_x_N[rows])
    fill[rows] = np.where(right[..., None], _darker(fill[rows]), fill[rows])
    return fill


def _compose(canvas: Floats, fill: Floats, color_NC: Floats, style: npt.NDArray[np.int64], inside: Masks) -> Floats:
    """Put the filled object with its dark edge on the canvas, in its style."""
    core = _window(inside, 3, np.logical_and)
    edge_NC = _darker(color_NC)
    rows = _where(style, "style", "shadowed")
    shadow = np.roll(inside[rows], (7, 7), (1, 2))
    canvas[rows] = np.where(shadow[..., None], canvas[rows] * 0.45, canvas[rows])
    rows = _where(style, "style", "neon")
    glow = color_NC[rows] * 0.5 + np.array((127.5, 127.5, 76.5), np.float32)
    around = _window(inside[rows], 7, np.logical_or)
    canvas[rows] = np.where(around[..., None], glow[:, None, None, :], canvas[rows])
    fill[rows] = np.where(core[rows][..., None], fill[rows] * 0.4 + 255 * 0.6, fill[rows])
    edge_NC[rows] = color_NC[rows] * 0.9
    out = np.where(inside[..., None], fill, canvas)
    out = np.where((inside & ~core)[..., None], edge_NC[:, None, None, :], out)
    rows = _where(style, "style", "outlined")
    rim = inside[rows] & ~_window(inside[rows], 7, np.logical_and)
    out[rows] = np.where(rim[..., None], fill[rows], canvas[rows])
    return out


def _filters(small_NHHC: Floats, style: npt.NDArray[np.int64]) -> Floats:
    rows = _where(style, "style", "pixelated")
    blocks = small_NHHC[rows].reshape(-1, SIDE // 4, 4, SIDE // 4, 4, 3).mean((2, 4))
    small_NHHC[rows] = blocks.repeat(4, 1).repeat(4, 2)
    rows = _where(style, "style", "blurry")
    small_NHHC[rows] = _window(_window(small_NHHC[rows], 5, np.add) / 25, 3, np.add) / 9
    return small_NHHC


def _window(values: npt.NDArray, size: int, combine: Callable) -> npt.NDArray:
    """Combine every pixel with its `size` x `size` neighbourhood, edges repeated; axes 1 and 2."""
    half = size // 2
    for axis in (1, 2):
        pad = [(half, half) if a == axis else (0, 0) for a in range(values.ndim)]
        padded, length = np.pad(values, pad, mode="edge"), values.shape[axis]
        moved = [np.take(padded, np.arange(i, i + length), axis) for i in range(size)]
        values = moved[0]
        for other in moved[1:]:
            values = combine(values, other)
    return values


def _lighter(color: Floats) -> Floats:
    return color * 0.25 + 255 * 0.75


def _darker(color: Floats) -> Floats:
    return color * 0.35


def _star(x: Floats, y: Floats) -> Masks:
    turn, inner = np.pi / 5, 0.42
    angle = np.abs((np.arctan2(x, -y) + turn) % (2 * turn) - turn)  # 0 at a tip, pi/5 in a notch
    reach = inner * np.sin(turn) * np.cos(angle) + (1 - inner * np.cos(turn)) * np.sin(angle)
    return np.hypot(x, y) * reach < inner * np.sin(turn)


def _heart(x: Floats, y: Floats) -> Masks:
    a, b = x * 1.2, 0.05 - y * 1.25
    return (a * a + b * b - 1) ** 3 - a * a * b**3 < 0


_SHAPES: dict[str, Callable[[Floats, Floats], Masks]] = {
    "circle": lambda x, y: x * x + y * y < 0.81,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.78,
    "triangle": lambda x, y: (y > -0.9) & (y < 0.8) & (np.abs(x) < (y + 0.9) / 1.7 * 0.98),
    "star": _star,
    "heart": _heart,
    "cross": lambda x, y: ((np.abs(x) < 0.3) & (np.abs(y) < 0.9)) | ((np.abs(y) < 0.3) & (np.abs(x) < 0.9)),
    "ring": lambda x, y: (x * x + y * y < 0.9) & (x * x + y * y > 0.3),
    "moon": lambda x, y: (x * x + y * y < 0.9) & ((x - 0.5) ** 2 + (y + 0.1) ** 2 > 0.52),
}
