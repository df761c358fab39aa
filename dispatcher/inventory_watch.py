"""Notices that the inventory file was changed while the dispatcher runs."""

from __future__ import annotations

import logging
from pathlib import Path

from dispatcher.errors import InventoryError
from dispatcher.inventory import inventory_path, load_inventory
from dispatcher.inventory_model import Inventory

log = logging.getLogger("cosma")


class InventoryWatch:
    """A file that is broken for a while changes nothing: the last good inventory stays."""

    def __init__(self, given: Path | None) -> None:
        self._path = inventory_path(given)
        self._seen = self._stamp()

    def changed(self) -> Inventory | None:
        """The new inventory, once after each change of the file."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return None
        self._seen = stamp
        try:
            return load_inventory(self._path)
        except InventoryError as error:
            log.warning("inventory not reloaded, the hosts stay as they were: %s", error.line)
            return None

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return (status.st_mtime_ns, status.st_size)
