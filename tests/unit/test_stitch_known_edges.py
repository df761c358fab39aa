"""Which code an edge that is kept for the next version depends on."""

from __future__ import annotations

import importlib

import pytest

from stitch import known_edges
from stitch.known_edges import KnownEdges, code_of_edges
from stitch.sim3 import Sim3
from tests.stitch_world import edge


def test_nothing_that_registers_a_pair_is_forgotten() -> None:
    """What the modules hold of one another, once imported, is of modules that count."""
    counted = set(code_of_edges())
    held = {
        str(getattr(value, "__module__", None) or getattr(value, "__name__", ""))
        for name in counted
        for value in vars(importlib.import_module(f"stitch.{name}")).values()
    }
    assert {name.partition(".")[2] for name in held if name.startswith("stitch.")} <= counted
    assert {"pairs", "register", "guided", "raster", "sift", "clouds", "ply"} <= counted
    assert not {"known_edges", "posegraph", "score", "merge"} & counted


def test_with_other_code_an_edge_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    found = edge(1, 0, Sim3.identity())
    before = KnownEdges(0.85)
    before.put(found, "a", "b")
    assert before.get((1, "a"), (0, "b")) is not None
    assert before.get((1, "a"), (0, "c")) is None
    kept = dict(before._edges)
    monkeypatch.setattr(known_edges, "code_of_edges", lambda: code_of_edges() | {"sift": b""})
    after = KnownEdges(0.85)
    after._edges = kept
    assert after.get((1, "a"), (0, "b")) is None
