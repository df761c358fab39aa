"""Named SQL: `-- name: x` blocks of sql/*.sql, and the numbered migrations."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_MIGRATION = re.compile(r"^(\d{4})_\w+\.sql$")


@cache
def queries() -> dict[str, str]:
    """All statements by name. Raises ValueError when a name is given twice."""
    found: dict[str, str] = {}
    for file in sorted((resources.files(__package__) / "sql").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".sql"):
            continue
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, statement in zip(parts[1::2], parts[2::2], strict=True):
            if name in found:
                raise ValueError(f"{file.name}: the query {name} exists already")
            found[name] = statement.strip()
    return found


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """(version, script) in order, from version 1 without a gap."""
    found = []
    for file in (resources.files(__package__) / "migrations").iterdir():
        if match := _MIGRATION.match(file.name):
            found.append((int(match[1]), file.read_text(encoding="utf-8")))
    found.sort()
    if [version for version, _ in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations are not numbered 1..n: {[v for v, _ in found]}")
    return tuple(found)
