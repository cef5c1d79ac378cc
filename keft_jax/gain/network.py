"""A subgraph as a picture: stress layout, labels that keep out of each other's way, inline SVG."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

import numpy as np

_SIZES = ((5, (430, 250)), (9, (540, 340)), (99, (640, 430)))  # up to so many nodes, in pixels
MAX_NODES, MAX_EDGES = 16, 26
_FONT, _EDGE_FONT = 13.0, 11.0
_MARGIN_X, _MARGIN_Y = 16, 18

Node = tuple[str, float, str]
Edge = tuple[int, int, str, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


def draw_network(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    """Nodes (name, importance 0..1, role) and edges (from, to, relation, importance) -> <svg>.

    The MAX_NODES most important are drawn, mentions and answers before others. An edge whose label
    finds no room shows the number that `list_edges` gives it.
    """
    kept = _choose_nodes(nodes)
    number = {edge: i + 1 for i, (edge, _) in enumerate(list_edges(nodes, edges))}
    names = [shorten(nodes[i][0], 28) for i in kept]
    place = {node: i for i, node in enumerate(kept)}
    pairs = _join_pairs(edges, place, number)
    size = next(size for most, size in _SIZES if len(kept) <= most)
    position = _lay_out(names, list(pairs), size)
    parts = [
        f'<svg viewBox="0 0 {size[0]} {size[1]}" class="network" role="img" '
        f'style="min-width:{0.8 * size[0]:.0f}px;max-width:{1.15 * size[0]:.0f}px" '
        f'aria-label="Subgraph of {len(kept)} entities and {len(pairs)} connections">'
    ]
    taken = [box for i in range(len(kept)) for box in _node_boxes(position[i], names[i])]
    labels = []
    for (a, b), joined in pairs.items():
        importance = max(edges[e][3] for e in joined)
        (x1, y1), (x2, y2) = position[a], position[b]
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke-width="{1 + 4 * importance:.2f}" opacity="{0.3 + 0.7 * importance:.2f}"/>'
        )
        labels.append((importance, position[a], position[b], joined))
    for importance, start, end, joined in sorted(labels, key=lambda item: -item[0]):
        parts.append(_label_edge(importance, start, end, joined, edges, number, taken, size[0]))
    for i, node in enumerate(kept):
        name, importance, role = nodes[node]
        x, y = position[i]
        kind = role if role in ("mention", "answer") else "other"
        faint = 0.45 + 0.55 * importance if kind == "other" else 1
        parts.append(
            f'<g class="node {kind}"><title>{escape(name)}: importance {importance:.2f}</title>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_radius(importance):.1f}" '
            f'style="fill-opacity:{faint:.2f}"/><text x="{x:.1f}" y="{y + 23:.1f}">'
            f"{escape(names[i])}</text></g>"
        )
    return "".join(parts) + "</svg>"


def list_edges(nodes: Sequence[Node], edges: Sequence[Edge]) -> list[tuple[int, Edge]]:
    """Edges between drawn nodes, the most important first, with their index."""
    kept = set(_choose_nodes(nodes))
    shown = [(i, e) for i, e in enumerate(edges) if e[0] in kept and e[1] in kept and e[0] != e[1]]
    return sorted(shown, key=lambda item: (-item[1][3], item[0]))[:MAX_EDGES]


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def measure(text: str, size: float) -> float:
    """Estimated width in pixels of a sans-serif line."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (0.56 * (len(text) - wide) + 1.0 * wide)


def _choose_nodes(nodes: Sequence[Node]) -> list[int]:
    def rank(i: int) -> tuple[bool, float, int]:
        return nodes[i][2] not in ("mention", "answer"), -nodes[i][1], i

    return sorted(sorted(range(len(nodes)), key=rank)[:MAX_NODES])


def _join_pairs(
    edges: Sequence[Edge], place: dict[int, int], number: dict[int, int]
) -> dict[tuple[int, int], list[int]]:
    """(a, b) with a < b -> its edges; one line is drawn for all of them."""
    pairs: dict[tuple[int, int], list[int]] = {}
    for e in number:
        a, b = sorted((place[edges[e][0]], place[edges[e][1]]))
        pairs.setdefault((a, b), []).append(e)
    return pairs


def _lay_out(
    names: Sequence[str], pairs: Sequence[tuple[int, int]], size: tuple[int, int]
) -> np.ndarray:
    """xy[n, 2] in pixels: stress majorisation (Gansner et al. 2004) over graph distances, then
    boxes of node and name are pushed apart inside the frame."""
    n, (width, height) = len(names), size
    if n == 1:
        return np.array([[width / 2, height / 2]])
    distance = np.full((n, n), 3.0)
    np.fill_diagonal(distance, 0)
    for a, b in pairs:
        distance[a, b] = distance[b, a] = 1
    for k in range(n):
        distance = np.minimum(distance, distance[:, k, None] + distance[None, k])
    angle = np.arange(n) * 2.399963  # the golden angle keeps the start free of symmetries
    xy = np.c_[np.cos(angle), np.sin(angle)] * np.sqrt(np.arange(n) + 1)[:, None]
    weight = 1 / np.maximum(distance, 0.5) ** 2
    np.fill_diagonal(weight, 0)
    for _ in range(200):
        gap = xy[:, None] - xy[None]
        length = np.maximum(np.linalg.norm(gap, axis=2), 1e-6)
        pull = weight * (distance / length)
        target = (weight[..., None] * xy[None] + pull[..., None] * gap).sum(1)
        xy = target / weight.sum(1)[:, None]
    # The longest direction lies flat, and the drawing fills its frame.
    centred = xy - xy.mean(0)
    xy = centred @ np.linalg.svd(centred, full_matrices=False)[2].T
    half = np.array([max(measure(name, _FONT) / 2, 12) for name in names])
    low = np.c_[half + _MARGIN_X, np.full(n, _MARGIN_Y)]
    high = np.c_[width - half - _MARGIN_X, np.full(n, height - 32 - _MARGIN_Y / 2)]
    span = np.maximum(np.ptp(xy, axis=0), 1e-6)
    frame = np.array([width - 170.0, height - 90.0])
    flat = np.ptp(xy[:, 1]) < 1e-3 * np.ptp(xy[:, 0])
    xy = (xy - xy.min(0)) / span * frame + (85, 35)
    if flat:
        xy[:, 1] = height / 2
    return _push_apart(xy, half, low, high)


def _push_apart(xy: np.ndarray, half: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    n, tall = len(xy), 46.0
    for _ in range(300):
        xy = np.clip(xy, low, high)
        moved = False
        for a in range(n):
            for b in range(a + 1, n):
                over_x = half[a] + half[b] + 14 - abs(xy[a, 0] - xy[b, 0])
                over_y = tall - abs(xy[a, 1] - xy[b, 1])
                if over_x <= 0 or over_y <= 0:
                    continue
                moved = True
                # Names are wide and low: part them along the cheaper way, mostly up and down.
                axis, over = (1, over_y) if over_y < over_x else (0, over_x)
                sign = 1.0 if xy[a, axis] >= xy[b, axis] else -1.0
                xy[a, axis] += sign * over * 0.35
                xy[b, axis] -= sign * over * 0.35
        if not moved:
            break
    return np.clip(xy, low, high)


def _node_boxes(at: np.ndarray, name: str) -> list[Box]:
    x, y = float(at[0]), float(at[1])
    half = measure(name, _FONT) / 2
    return [(x - 11, y - 11, x + 11, y + 11), (x - half, y + 11, x + half, y + 28)]


def _label_edge(
    importance: float,
    start: np.ndarray,
    end: np.ndarray,
    joined: Sequence[int],
    edges: Sequence[Edge],
    number: dict[int, int],
    taken: list[Box],
    width: int,
) -> str:
    first = max(joined, key=lambda e: edges[e][3])
    extra = f" +{len(joined) - 1}" if len(joined) > 1 else ""
    full = shorten(edges[first][2], 26) + extra
    title = escape("; ".join(edges[e][2] for e in joined))
    for text in (full, str(number[first])):
        half = measure(text, _EDGE_FONT) / 2
        for t in (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73):
            x, y = (1 - t) * start + t * end
            box = (x - half - 2, y - 8, x + half + 2, y + 6)
            inside = box[0] >= 2 and box[2] <= width - 2
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                return (
                    f'<rect x="{box[0]:.1f}" y="{box[1]:.1f}" width="{box[2] - box[0]:.1f}" '
                    f'height="{box[3] - box[1]:.1f}" rx="2"/>'
                    f'<text class="edge" x="{x:.1f}" y="{y + 3.5:.1f}" '
                    f'style="opacity:{0.8 + 0.2 * importance:.2f}"><title>{title}</title>'
                    f"{escape(text)}</text>"
                )
    return ""


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _radius(importance: float) -> float:
    return 5.5 + 4.5 * min(max(importance, 0.0), 1.0)
