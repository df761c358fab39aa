"""Thin pools: functions that run inside one transaction."""

from __future__ import annotations

from dispatcher.core.pool import Figures, PoolState
from dispatcher.store.connection import Database


def save_thin_pool(db: Database, state: PoolState) -> None:
    figures = state.figures
    db.change(
        "save_thin_pool",
        key=state.key,
        data_percent=figures.data * 100.0 if figures else None,
        metadata_percent=figures.metadata * 100.0 if figures else None,
        bytes=figures.bytes if figures else None,
        read_at=state.read_at,
        shut=state.shut,
        message=state.message,
    )


def thin_pools(db: Database) -> dict[str, PoolState]:
    found = {}
    for row in db.rows("select_thin_pools"):
        figures = None
        if row["data_percent"] is not None:
            figures = Figures(
                data=row["data_percent"] / 100.0,
                metadata=row["metadata_percent"] / 100.0,
                bytes=row["bytes"],
            )
        found[row["key"]] = PoolState(
            key=row["key"],
            figures=figures,
            read_at=row["read_at"],
            shut=bool(row["shut"]),
            message=row["message"],
        )
    return found
