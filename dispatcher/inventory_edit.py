"""Edits the text of inventory.yaml, line by line, so that its comments survive."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from dispatcher.errors import InventoryError
from dispatcher.inventory import parse_inventory


def append_host(text: str, host: Mapping[str, object]) -> str:
    """`text` with `host` (keys of the inventory, in this order) as the last entry of `hosts:`.

    Raises InventoryError when `hosts:` is not written as a block list.
    """
    found = re.search(r"^hosts:[^\S\n]*(\[\s*\])?[^\S\n]*(#[^\n]*)?$", text, re.MULTILINE)
    if found is None:
        if re.search(r"^hosts:", text, re.MULTILINE):
            raise _by_hand("`hosts:` is not written as a list of lines that begin with `- `")
        separator = "" if not text or text.endswith("\n") else "\n"
        return f"{text}{separator}hosts:\n{_entry(host, '  ')}"
    if found[1]:
        text = text[: found.start(1)].rstrip() + text[found.end(1) :]
    lines = text.splitlines(keepends=True)
    start = text[: found.start()].count("\n")
    end, indent = start + 1, None
    for number in range(start + 1, len(lines)):
        line = lines[number]
        if re.match(r"[A-Za-z_\"']", line):
            break  # the next key of the top level
        if line.strip() and not line.lstrip().startswith("#"):
            end = number + 1
            if indent is None:
                indent = line[: len(line) - len(line.lstrip())]
    if lines and not lines[end - 1].endswith("\n"):
        lines[end - 1] += "\n"
    return "".join((*lines[:end], _entry(host, "  " if indent is None else indent), *lines[end:]))


def _entry(host: Mapping[str, object], indent: str) -> str:
    dumped = yaml.safe_dump(dict(host), sort_keys=False, width=10_000, allow_unicode=True)
    first, *rest = dumped.splitlines()
    return "".join((f"{indent}- {first}\n", *(f"{indent}  {line}\n" for line in rest)))


def rewrite(path: Path, text: str) -> None:
    """Replace the file by `text`, atomically, once it is proven to be a valid inventory.

    Raises InventoryError and leaves the file as it is when it is not, or cannot be written.
    """
    parse_inventory(text, str(path), os.environ)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except OSError as error:
        raise InventoryError(
            "cannot write the inventory",
            where=str(path),
            why=error.strerror or str(error),
            fix="Check the permissions of its directory",
        ) from None


def _by_hand(why: str) -> InventoryError:
    return InventoryError("cannot edit the inventory", why=why, fix="Edit it by hand")
