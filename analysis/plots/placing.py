"""Where labels go, so that none covers another, a point or the frame: pure geometry in pixels."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
Pixel = tuple[float, float]
RADII = (4, 8, 13, 19, 26, 34, 44)
"""Distances in points that are tried between a point and its label; from farther away nobody finds the point."""
NEAR = 6
"""Points up to which a label needs no line to its point."""
ROUNDS = 12
"""How often labels are placed anew, those that found no room first."""
ANGLES = (0, 180, 45, 135, 315, 225, 90, 270, 22, 158, 338, 202, 67, 113, 293, 247)


def overlap(a: Box, b: Box) -> bool:
    """Do two boxes share more than an edge?"""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def place(
    points: Sequence[Pixel], sizes: Sequence[Pixel], frame: Box, taken: Sequence[Box] = (), unit: float = 1.0, marks: Sequence[Box] = ()
) -> list[Box | None]:
    """A box of each size near its point, inside `frame`, clear of the others, of `taken` and of `marks`; None where none was found.

    No line from a box to its point crosses another box, nor a mark in which that point does not lie. Points whose
    neighbours are near are served first; `unit` is the pixels of a typographic point. The same input gives the same boxes.
    """
    order = sorted(range(len(points)), key=lambda i: (_room(i, points), i))
    best: list[Box | None] = []
    for _ in range(ROUNDS):
        found = _placed(order, points, sizes, frame, taken, unit, marks)
        if not best or found.count(None) < best.count(None):
            best = found
        if None not in best:
            break
        order = sorted(order, key=lambda i: found[i] is not None)
    return best


def _placed(
    order: Sequence[int],
    points: Sequence[Pixel],
    sizes: Sequence[Pixel],
    frame: Box,
    taken: Sequence[Box],
    unit: float,
    marks: Sequence[Box],
) -> list[Box | None]:
    """Boxes in one order, each the first place that is free."""
    found: list[Box | None] = [None] * len(points)
    busy, labels = [*taken, *marks], []
    for i in order:
        walls = [mark for mark in marks if not overlap(mark, (*points[i], *points[i]))]
        boxes = (_beside(points[i], sizes[i], radius * unit, angle) for radius in RADII for angle in ANGLES)
        box = next((box for box in boxes if _inside(box, frame) and _free(box, points[i], busy, [*labels, *walls], unit)), None)
        if box:
            found[i] = box
            labels.append(box)
            busy += [box, *leader(box, points[i], unit)]
    return found


def nearest(box: Box, point: tuple[float, float]) -> tuple[float, float]:
    """The point of a box that is nearest to a point."""
    return (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))


def leader(box: Box, point: tuple[float, float], unit: float = 1.0) -> list[Box]:
    """Small boxes along the line from a point to its label; none where the label is near."""
    end = nearest(box, point)
    length = math.dist(point, end)
    if length <= NEAR * unit:
        return []
    steps = max(2, int(length / (3 * unit)))
    along = [(point[0] + (end[0] - point[0]) * i / steps, point[1] + (end[1] - point[1]) * i / steps) for i in range(1, steps)]
    return [(x - 0.5, y - 0.5, x + 0.5, y + 0.5) for x, y in along]


def _free(box: Box, point: Pixel, busy: Sequence[Box], walls: Sequence[Box], unit: float) -> bool:
    """Is the box clear of what is busy, and the line to its point of the walls?"""
    if any(overlap(box, other) for other in busy):
        return False
    return not any(overlap(step, other) for step in leader(box, point, unit) for other in walls)


def spread(middles: Sequence[float], height: float, low: float, high: float) -> list[float]:
    """Middles moved as little as makes intervals of `height` disjoint within [low, high] (least squares, by pooling neighbours).

    Where they do not all fit they are spaced evenly.
    """
    n = len(middles)
    if n * height >= high - low:
        step = (high - low) / max(1, n)
        ranks = sorted(range(n), key=lambda i: middles[i])
        return [low + step * (ranks.index(i) + 0.5) for i in range(n)]
    order = sorted(range(n), key=lambda i: middles[i])
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([middles[i] - rank * height, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            value, count = pools.pop()
            pools[-1] = [(pools[-1][0] * pools[-1][1] + value * count) / (pools[-1][1] + count), pools[-1][1] + count]
    bases = [value for value, count in pools for _ in range(int(count))]
    moved = [0.0] * n
    for rank, i in enumerate(order):
        moved[i] = min(max(bases[rank], low + height / 2), high - height / 2 - (n - 1) * height) + rank * height
    return moved


def _room(i: int, points: Sequence[tuple[float, float]]) -> float:
    return min((math.dist(points[i], other) for j, other in enumerate(points) if j != i), default=math.inf)


def _beside(point: tuple[float, float], size: tuple[float, float], radius: float, angle: float) -> Box:
    """The box whose nearest point lies at `radius` in the direction of `angle` (degrees)."""
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middle = (point[0] + across * (radius + size[0] / 2), point[1] + up * (radius + size[1] / 2))
    return (middle[0] - size[0] / 2, middle[1] - size[1] / 2, middle[0] + size[0] / 2, middle[1] + size[1] / 2)


def _inside(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]
