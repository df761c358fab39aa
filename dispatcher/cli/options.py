"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Inventory = Annotated[
    Path | None,
    typer.Option("--inventory", "-i", help="Inventory file (default: ./inventory.yaml).",
                 envvar="COSMA_INVENTORY"),
]  # fmt: skip
Database = Annotated[
    Path | None,
    typer.Option("--db", help="Database file (default: ./cosma.db, or COSMA_QC_DB)."),
]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        "--artifacts", help="Where results go (default: ./cosma-artifacts, or OUTPUT_PATH)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
