"""Draws textured patches: linear blend of their motions, one light, a z-buffer at twice the size."""

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from fiag_dist.types import Label

SUPERSAMPLE = 2
LIGHT = np.array([-0.35, 0.55, 0.76])
AMBIENT = 0.62


@dataclass(eq=False)
class Patch:
    """A grid of points with a texture: `rest` [rows, cols, 3] metres, `colours` [h, w, 3] 0..1, `labels` [h, w] uint8.

    `moves` [motions, rows, cols, 3]; a patch without it is rigid. `fixed`: stands still while the head turns. `shade` 0..1: how much light matters.
    `cuts`: rows after which no cell lies, where the skin opens.
    """

    rest: np.ndarray
    colours: np.ndarray
    labels: np.ndarray
    moves: np.ndarray | None = None
    fixed: bool = False
    shade: float = 1.0
    cuts: tuple[int, ...] = ()
    rows_at: np.ndarray | None = None


class Painter:
    """Renders a person at SUPERSAMPLE x `size`."""

    def __init__(self, patches: list[Patch], wall: np.ndarray, size: int) -> None:
        self._patches, self._size = patches, size
        self._wall = cv2.resize(wall, (size * SUPERSAMPLE,) * 2, interpolation=cv2.INTER_LINEAR).reshape(-1, 3)
        cells, uv, normals, starts = [], [], [], [0]
        offset = 0
        for patch in patches:
            rows, cols = patch.rest.shape[:2]
            cells.append(_cells(rows, cols, patch.cuts) + starts[-1])
            h, w = patch.labels.shape
            at = patch.rows_at if patch.rows_at is not None else np.linspace(0, 1, rows)
            v, u = np.meshgrid(at * (h - 1), np.linspace(0, w - 1, cols), indexing="ij")
            uv.append(np.stack([np.full_like(u, offset), np.full_like(u, w), u, v], -1).reshape(-1, 4))
            normals.append(_normals(patch.rest).reshape(-1, 3) * patch.shade)
            starts.append(starts[-1] + rows * cols)
            offset += h * w
        self._starts = starts
        self._cells = np.concatenate(cells).astype(np.int32)
        self._uv = np.concatenate(uv).astype(np.float32)
        self._normals = np.concatenate(normals)
        self._fixed = np.repeat([p.fixed for p in patches], np.diff(starts))
        self._colours = np.concatenate([p.colours.reshape(-1, 3) for p in patches]).astype(np.float32)
        self._labels = np.concatenate([p.labels.reshape(-1) for p in patches])

    def __call__(self, motion: np.ndarray, viewmat: np.ndarray, still: np.ndarray, K: np.ndarray):
        """Image uint8 [size, size, 3], alpha uint8 and labels uint8 [size, size]. `still`: world-to-camera of what does not turn."""
        points = np.concatenate([self._posed(p, motion).reshape(-1, 3) for p in self._patches])
        camera = np.where(
            self._fixed[:, None], points @ still[:3, :3].T + still[:3, 3], points @ viewmat[:3, :3].T + viewmat[:3, 3]
        )
        normals = np.where(self._fixed[:, None], self._normals, self._normals @ _turn(viewmat, still).T)
        # a patch that takes less light has shorter normals; what the light misses is ambient
        light = (
            AMBIENT
            + (1 - AMBIENT) * np.clip(normals @ LIGHT, 0, 1) * 1.25
            + 0.33 * (1 - np.linalg.norm(normals, axis=1))
        ).astype(np.float32)
        pixels = (camera[:, :2] * np.array([K[0, 0], K[1, 1]]) / camera[:, 2:] + K[:2, 2]) * SUPERSAMPLE
        side = self._size * SUPERSAMPLE
        colours, labels = _rasterise(
            np.concatenate([pixels, camera[:, 2:]], 1).astype(np.float32),
            self._cells,
            self._uv,
            light,
            self._colours,
            self._labels,
            self._wall,
            side,
        )
        image = cv2.resize(colours.reshape(side, side, 3), (self._size,) * 2, interpolation=cv2.INTER_AREA)
        fine = labels.reshape(side, side)
        parts = [fine[a::SUPERSAMPLE, b::SUPERSAMPLE] for a in range(SUPERSAMPLE) for b in range(SUPERSAMPLE)]
        counts = np.stack([sum((part == label).astype(np.uint8) for part in parts) for label in Label])
        alpha = counts[Label.HAIR :].sum(0) * (255 / SUPERSAMPLE**2)
        return (
            np.round(image * 255).clip(0, 255).astype(np.uint8),
            alpha.astype(np.uint8),
            counts.argmax(0).astype(np.uint8),
        )

    @staticmethod
    def _posed(patch: Patch, motion: np.ndarray) -> np.ndarray:
        return patch.rest if patch.moves is None else patch.rest + np.tensordot(motion, patch.moves, 1)


def _cells(rows: int, cols: int, cuts: tuple[int, ...]) -> np.ndarray:
    """Two triangles for each cell of a grid [n, 3]."""
    row = np.array([r for r in range(rows - 1) if r not in cuts])[:, None]
    a = (row * cols + np.arange(cols - 1)[None]).reshape(-1)
    return np.concatenate([np.stack([a, a + 1, a + cols], 1), np.stack([a + 1, a + cols + 1, a + cols], 1)])


def _normals(points: np.ndarray) -> np.ndarray:
    """Unit normals of a grid, pointing away from its middle."""
    normal = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-12
    outward = ((points - points.mean((0, 1))) * normal).sum(-1).mean()
    return normal * np.sign(outward + 1e-12)


def _turn(viewmat: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Rotation of the head from the pose in which it would stand still."""
    return still[:3, :3].T @ viewmat[:3, :3]


@njit(cache=True, nogil=True)
def _rasterise(points, cells, uv, light, texture, texture_labels, wall, side):
    depth = np.full(side * side, np.float32(1e9))
    colours = wall.copy()
    labels = np.zeros(side * side, np.uint8)
    for n in range(cells.shape[0]):
        a, b, c = cells[n, 0], cells[n, 1], cells[n, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        inverse = 1 / area
        x0, x1 = max(0, int(np.ceil(min(ax, bx, cx) - 0.5))), min(side - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        y0, y1 = max(0, int(np.ceil(min(ay, by, cy) - 0.5))), min(side - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5, y + 0.5
                wa = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * inverse
                wb = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * inverse
                wc = 1 - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                z = wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2]
                pixel = y * side + x
                if z >= depth[pixel]:
                    continue
                depth[pixel] = z
                width = int(uv[a, 1])
                u = wa * uv[a, 2] + wb * uv[b, 2] + wc * uv[c, 2]
                v = wa * uv[a, 3] + wb * uv[b, 3] + wc * uv[c, 3]
                texel = int(uv[a, 0]) + int(v + 0.5) * width + int(u + 0.5)
                shine = wa * light[a] + wb * light[b] + wc * light[c]
                labels[pixel] = texture_labels[texel]
                for k in range(3):
                    colours[pixel, k] = min(1.0, texture[texel, k] * shine)
    return colours, labels
