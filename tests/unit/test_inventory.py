"""inventory.yaml: what is read, and the one line each mistake ends in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import ExitCode, InventoryError
from dispatcher.inventory import (
    Inventory,
    diff,
    find_inventory,
    from_workers,
    load_inventory,
    parse_inventory,
)

FULL = """\
defaults:
  user: survey
  vram_headroom_mib: 256
  disk: {min_free_gib: 5, fstrim: off}
hosts:
  - name: reef-1
    address: 10.0.0.11
    port: 2222
    identity_file: ~/keys/id
    host_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9uzYkSZVVYyzZF0HLdWSkB0kTAuoLlGr9KRSLhmVPe
    work_dir: ${SCRATCH}/cosma
    gpus: [GPU-1111, GPU-2222]
    labels: [vessel]
    max_parallel: {train: 2}
    disk: {reserve_gib: 1.5, thin_pool: {host: hv1, vg: vg0, pool: thin}}
  - name: reef-2
    address: reef-two
    cordoned: true
"""


def parse(text: str, **environment: str) -> Inventory:
    return parse_inventory(text, "inventory.yaml", environment)


def test_every_key_is_read_and_defaults_are_merged_deeply() -> None:
    first, second = parse(FULL, SCRATCH="/scratch").hosts
    assert (first.name, first.address, first.port, first.user) == (
        "reef-1",
        "10.0.0.11",
        2222,
        "survey",
    )
    assert first.identity_file == Path.home() / "keys" / "id"
    assert first.work_dir == "/scratch/cosma"
    assert first.gpus == ("GPU-1111", "GPU-2222")
    assert first.max_parallel.model_dump() == {"extract": 1, "sfm": 1, "train": 2, "stitch": 1}
    assert (first.disk.min_free_gib, first.disk.reserve_gib, first.disk.fstrim) == (5, 1.5, "off")
    assert first.disk.thin_pool is not None and first.disk.thin_pool.high_watermark == 0.85
    assert (second.work_dir, second.port, second.gpus, second.cordoned) == (
        "~/cosma",
        None,
        "auto",
        True,
    )
    assert second.vram_headroom_mib == 256


@pytest.mark.parametrize("text", ["", "hosts:\n", "hosts: []\n", "defaults:\nhosts:\n"])
def test_an_inventory_without_hosts_is_valid(text: str) -> None:
    assert parse(text).hosts == ()


def test_the_example_of_the_repository_is_valid() -> None:
    path = Path(__file__).resolve().parents[2] / "inventory.yaml"
    assert load_inventory(path).hosts == ()
    commented = path.read_text().replace("hosts:\n", "", 1)
    lines = [line for line in path.read_text().splitlines() if line.startswith("#  ")]
    host = "\n".join(line[1:] for line in lines)
    example = parse(
        commented.split("# A host with")[0]
        + "hosts:\n"
        + host.replace(
            "AAAA...", "AAAAC3NzaC1lZDI1NTE5AAAAIB9uzYkSZVVYyzZF0HLdWSkB0kTAuoLlGr9KRSLhmVPe"
        )
    )
    assert example.hosts[0].gpus == "auto" and example.hosts[0].max_parallel.train == 2


HOST = "hosts:\n  - name: a\n    address: b\n"

MISTAKES = {
    "unknown key of a host": (
        "hosts:\n  - name: a\n    adress: b\n",
        "inventory.yaml:3: hosts[0].adress: unknown key. Did you mean `address`?",
    ),
    "unknown key of defaults": (
        f"defaults:\n  usr: x\n{HOST}",
        "inventory.yaml:2: defaults.usr: unknown key. Did you mean `user`?",
    ),
    "unknown key at the top": (
        f"{HOST}slrum: []\n",
        "inventory.yaml:4: slrum: unknown key",
    ),
    "unknown key inside": (
        f"{HOST}    disk:\n      min_fre_gib: 3\n",
        "inventory.yaml:5: hosts[0].disk.min_fre_gib: unknown key. Did you mean `min_free_gib`?",
    ),
    "unknown key two deep": (
        f"{HOST}    disk: {{thin_pool: {{host: h, vg: v, poool: p}}}}\n",
        "inventory.yaml:4: hosts[0].disk.thin_pool.poool: unknown key. Did you mean `pool`?",
    ),
    "missing address": (
        "hosts:\n  - name: a\n",
        "inventory.yaml:2: hosts[0].address: missing. Add `address:`",
    ),
    "wrong type": (f"{HOST}    port: http\n", "inventory.yaml:4: hosts[0].port: "),
    "out of range": (f"{HOST}    port: 70000\n", "inventory.yaml:4: hosts[0].port: "),
    "wrong default": (
        f"defaults:\n  disk:\n    min_free_gib: lots\n{HOST}",
        "inventory.yaml:3: defaults.disk.min_free_gib: ",
    ),
    "wrong choice": (
        f"{HOST}    disk: {{fstrim: yes}}\n",
        "inventory.yaml:4: hosts[0].disk.fstrim: ",
    ),
    "not a GPU": (f"{HOST}    gpus: [0]\n", "inventory.yaml:4: hosts[0].gpus"),
    "not a key": (f"{HOST}    host_key: abc\n", "inventory.yaml:4: hosts[0].host_key: expected"),
    "same name": (
        f"{HOST}  - name: a\n    address: c\n",
        "inventory.yaml:4: hosts[1].name: 'a' names two hosts",
    ),
    "same place": (
        f"{HOST}  - name: z\n    address: b\n",
        "inventory.yaml:5: hosts[1].address: 'z' and 'a' are the same directory",
    ),
    "key given twice": (
        f"{HOST}    address: c\n",
        "inventory.yaml:4: hosts[0].address: given twice (first on line 3)",
    ),
    "unset variable": (
        f"{HOST}    work_dir: ${{NOPE}}/x\n",
        "inventory.yaml:4: hosts[0].work_dir: environment variable NOPE is not set",
    ),
    "not YAML": ("hosts:\n  - name: [a\n", "inventory.yaml:"),
    "tab": ("hosts:\n\t- name: a\n", "inventory.yaml:2: not valid YAML"),
    "not a mapping": ("- name: a\n", "inventory.yaml:1: inventory: expected `hosts:`"),
    "hosts not a list": ("hosts: {a: 1}\n", "inventory.yaml:1: hosts: expected a list"),
    "host not a mapping": ("hosts: [a]\n", "inventory.yaml:1: hosts[0]: expected keys"),
    "leading dash": ("hosts:\n  - name: a\n    address: -oProxy\n", "inventory.yaml:3: hosts[0]"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_names_file_line_key_and_fix(case: str) -> None:
    text, expected = MISTAKES[case]
    with pytest.raises(InventoryError) as caught:
        parse(text)
    assert caught.value.line.startswith(expected)
    assert "\n" not in caught.value.line
    assert caught.value.fix
    assert caught.value.exit_code is ExitCode.INVENTORY == 10


def test_a_missing_file_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="cosma worker add"):
        load_inventory(tmp_path / "inventory.yaml")
    with pytest.raises(InventoryError):
        load_inventory(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InventoryError):
        load_inventory(tmp_path / "binary")


@given(st.text(max_size=200))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    try:
        parse(text)
    except InventoryError as error:
        assert "\n" not in error.line


KEYS = st.sampled_from(["name", "address", "port", "disk", "gpus", "fstrim", "host", "hosts"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates()
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(st.dictionaries(st.sampled_from(["defaults", "hosts", 3, None]), TREES))
def test_no_tree_ends_in_a_traceback(tree: dict[object, object]) -> None:
    try:
        parse(yaml.safe_dump(tree))
    except InventoryError as error:
        assert error.line.startswith("inventory.yaml:") and "\n" not in error.line


@pytest.mark.parametrize("text", ["hosts: &a [*a]\n", "hosts: " + "[" * 3000, "a: 2020-99-99\n"])
def test_texts_that_break_parsers_are_one_line(text: str) -> None:
    with pytest.raises(InventoryError, match="not valid YAML"):
        parse(text)


def test_the_older_environment_variable_gives_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMA_INVENTORY", raising=False)
    monkeypatch.setenv(
        "COSMA_QC_WORKERS",
        '[{"host": "w1", "ssh_alias": "gpu-box", "gpu": "RTX 3060", "vram_mib": 12288,'
        ' "frames_dir": "/data/frames"}, {"host": "w2", "gpu": "GPU-aa"}]',
    )
    first, second = find_inventory(None).hosts
    assert (first.name, first.address, first.work_dir) == ("w1", "gpu-box", "/data/frames")
    assert first.labels == ("gpu=RTX 3060", "vram_mib=12288") and first.gpus == "auto"
    assert second.address == "w2" and second.gpus == ("GPU-aa",)
    (tmp_path / "inventory.yaml").write_text(HOST)
    assert [host.name for host in find_inventory(None).hosts] == ["a"]


@pytest.mark.parametrize("text", ["{", "{}", '["a"]', '[{"ssh_alias": "a"}]', '[{"hots": "a"}]'])
def test_a_bad_environment_variable_is_one_line(text: str) -> None:
    with pytest.raises(InventoryError, match="COSMA_QC_WORKERS"):
        from_workers(text)


def test_a_reload_is_a_difference() -> None:
    old = parse("hosts:\n- {name: a, address: a}\n- {name: b, address: b}\n")
    new = parse("hosts:\n- {name: b, address: b, cordoned: true}\n- {name: c, address: c}\n")
    changes = diff(old, new)
    assert (changes.added, changes.removed, changes.changed) == (("c",), ("a",), ("b",))
    assert diff(new, new).changed == ()


HYPERVISOR = "hypervisors:\n  - name: hv1\n    address: 10.0.0.2\n"


def test_a_pool_is_asked_where_the_inventory_says() -> None:
    known = parse(f"{HOST}{HYPERVISOR}    user: watch\n")
    assert known.hypervisor("hv1").user == "watch"
    assert known.hypervisor("a").address == "b"  # a host of the farm
    assert known.hypervisor("hv2").address == "hv2"  # as ~/.ssh/config knows it


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{HOST}hypervisors: hv1\n", "inventory.yaml:4: hypervisors: expected a list"),
        (f"{HOST}{HYPERVISOR}    usr: x\n",
         "inventory.yaml:7: hypervisors[0].usr: unknown key. Did you mean `user`?"),
        (f"{HOST}{HYPERVISOR}    host_key: abc\n",
         "inventory.yaml:7: hypervisors[0].host_key: expected"),
        (f"{HOST}hypervisors:\n  - {{name: a, address: c}}\n",
         "inventory.yaml:5: hypervisors[0].name: 'a' names two hosts"),
        (f"{HOST}    disk: {{thin_pool: {{host: h, vg: v, pool: --config}}}}\n",
         "inventory.yaml:4: hosts[0].disk.thin_pool.pool: "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_hypervisor_is_one_line(text: str, line: str) -> None:
    with pytest.raises(InventoryError) as error:
        parse(text)
    assert error.value.line.startswith(line)
