"""The graph of a stitch as SVG: members where they lie, pairs as lines, refused ones dashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from stitch.sim3 import F64

_WIDE, _HIGH, _RIM = 900.0, 600.0, 60.0


def draw_graph(
    places: Mapping[str, F64], apart: Sequence[str], edges: Sequence[Mapping[str, Any]]
) -> str:
    """`places`: by member of the scene, (2,) seen from above, y northwards; `apart`: members that
    are not in it, drawn in a row below. `edges` as in the report."""
    at = _on_paper(places, apart)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE:g} {_HIGH:g}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDE:g}" height="{_HIGH:g}" fill="white"/>',
    ]
    # What holds goes on top of what does not.
    for edge in sorted(edges, key=lambda one: bool(one["accepted"])):
        (x1, y1), (x2, y2) = at[edge["source"]], at[edge["target"]]
        colour = "#2a7d3f" if edge["accepted"] else "#c0392b"
        dash = "" if edge["accepted"] else ' stroke-dasharray="5 5" opacity="0.6"'
        width = 1.0 + min(4.0, np.log10(1 + edge["inliers"]))
        told = (
            f"{edge['source']} to {edge['target']}: {edge['method']}, {edge['inliers']} inliers; "
            f"{edge['reason']}"
        )
        lines.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width:.1f}"{dash}><title>{escape(told)}</title></line>'
        )
        if edge["accepted"]:
            lines.append(
                f'<text x="{(x1 + x2) / 2:.1f}" y="{(y1 + y2) / 2 - 4:.1f}" fill="#555" '
                f'text-anchor="middle">{edge["inliers"]}</text>'
            )
    for name, (x, y) in at.items():
        fill = "#c0392b" if name in apart else "#1f4e79"
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="{fill}"/>')
        lines.append(
            f'<text x="{x:.1f}" y="{y + 24:.1f}" text-anchor="middle">{escape(name)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _on_paper(places: Mapping[str, F64], apart: Sequence[str]) -> dict[str, tuple[float, float]]:
    below = 90.0 if apart else 0.0
    found: dict[str, tuple[float, float]] = {}
    if places:
        every = np.array([places[name] for name in places], np.float64)
        low, high = every.min(axis=0), every.max(axis=0)
        room = np.array([_WIDE - 2 * _RIM, _HIGH - 2 * _RIM - below])
        step = float((room / np.maximum(high - low, 1e-9)).min())
        middle = (low + high) / 2
        for name, place in zip(places, every, strict=True):
            x, y = (place - middle) * step
            found[name] = (_WIDE / 2 + float(x), (_HIGH - below) / 2 - float(y))
    for number, name in enumerate(apart):
        found[name] = (_WIDE * (number + 1) / (len(apart) + 1), _HIGH - 60.0)
    return found
