"""For farms whose stages really reconstruct: what they need not do anew in every test."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import yaml

from dispatcher.embedded import EmbeddedHosts

_WITH_KERNELS = """\
#!/bin/sh
export PYTHONPATH="$PYTHONPATH:"{folder} NUMBA_CACHE_LOCATOR_CLASSES=kernel_cache.OfThisTree
exec {python} "$@"
"""


def spare(farm: EmbeddedHosts) -> None:
    """Kernels that are compiled once for all hosts, and no trimming. The inventory says so."""
    python = farm.base / "stage-python"
    folder = Path(__file__).with_name("stage_python")
    python.write_text(
        _WITH_KERNELS.format(folder=shlex.quote(str(folder)), python=shlex.quote(sys.executable))
    )
    python.chmod(0o755)
    inventory = yaml.safe_load(farm.inventory.read_text())
    # The hosts' disk is this machine's: trimming all of it takes seconds, after every job.
    inventory["defaults"] |= {"stage_python": str(python), "disk": {"fstrim": "off"}}
    farm.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
