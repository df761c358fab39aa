"""Edits of inventory.yaml keep every comment and every other line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher.errors import InventoryError
from dispatcher.inventory import parse_inventory
from dispatcher.inventory_edit import append_host, rewrite

TEXTS = {
    "nothing": "",
    "no newline at the end": "# farm",
    "no hosts key": "# farm\ndefaults:\n  user: x\n",
    "empty hosts": "# farm\nhosts: # here\n",
    "empty list": "hosts: [] # none yet\ndefaults: {user: x}\n",
    "one host": "hosts:\n  # first\n  - name: one\n    address: one # near\n  # last words\n",
    "no indent": "hosts:\n- name: one\n  address: one\n\n# end\ndefaults:\n  user: x\n",
    "deep indent": "hosts:\n      - name: one\n        labels:\n        - x\n        address: one",
    "flow hosts": "hosts:\n  - {name: one, address: one}\n",
}
NEW = {"name": "two", "address": "two: #strange", "port": 2222}


def names(text: str) -> list[str]:
    return [host.name for host in parse_inventory(text, "inventory.yaml", {}).hosts]


@pytest.mark.parametrize("case", TEXTS)
def test_a_host_is_appended_and_every_comment_stays(case: str) -> None:
    text = TEXTS[case]
    new = append_host(text, {**NEW, "address": "two"})
    assert names(new) == [*names(text), "two"]
    for line in text.splitlines():
        if "[]" not in line:
            assert line in new.splitlines()
    assert new.count("#") == text.count("#")
    again = append_host(new, {"name": "three", "address": "three"})
    assert names(again)[-2:] == ["two", "three"]


def test_a_list_on_one_line_is_left_to_the_person() -> None:
    with pytest.raises(InventoryError, match="by hand"):
        append_host("hosts: [{name: a, address: a}]\n", NEW)


HOSTS = """\
hosts:
  - name: one # the first
    address: one
    disk:
      min_free_gib: 1
  - address: two
    cordoned: false # for now
    name: two
  - {name: three, address: three, cordoned: true}
"""


def test_a_file_is_only_replaced_by_a_valid_one(tmp_path: Path) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(HOSTS)
    path.chmod(0o640)
    with pytest.raises(InventoryError, match=r"inventory\.yaml:1"):
        rewrite(path, "hosts: 3\n")
    assert path.read_text() == HOSTS
    rewrite(path, append_host(HOSTS, {"name": "four", "address": "four"}))
    assert names(path.read_text())[-1] == "four"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["inventory.yaml"]
