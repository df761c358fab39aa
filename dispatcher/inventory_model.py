"""The hosts of the farm as frozen data. Keys and defaults of `inventory.yaml`; no file access."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from dispatcher.reclaim_policy import ReclaimRules

_KEY = re.compile(r"(ssh-|ecdsa-|sk-)\S+ [A-Za-z0-9+/=]+( .*)?|SHA256:[A-Za-z0-9+/]{43}=?")


def _home(value: Path | None) -> Path | None:
    return value.expanduser() if value is not None else None


Home = Annotated[Path | None, AfterValidator(_home)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MaxParallel(_Frozen):
    """Attempts at once on one host, by what they use."""

    extract: int = Field(default=1, ge=0, le=64)
    sfm: int = Field(default=1, ge=0, le=64)
    train: int = Field(default=1, ge=0, le=64)
    stitch: int = Field(default=1, ge=0, le=64)


LvmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9+_.][A-Za-z0-9+_.-]*$")]  # as lvm(8) has it
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\[:][^\s/]*$")]


class ThinPool(_Frozen):
    """The LVM thin pool behind a virtual host's disk; blocks freed by fstrim go back to it."""

    host: HostName  # one of `hypervisors:` or `hosts:`, else as ~/.ssh/config knows it
    vg: LvmName
    pool: LvmName
    high_watermark: float = Field(default=0.85, gt=0, le=1)


class Disk(_Frozen):
    min_free_gib: float = Field(default=2.0, ge=0)
    reserve_gib: float = Field(default=0.0, ge=0)
    fstrim: Literal["auto", "off", "sudo"] = "auto"
    thin_pool: ThinPool | None = None

    @field_validator("fstrim", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: object) -> object:
        return "off" if value is False else value


class Transfer(_Frozen):
    """How files are brought to a host, and from there to others."""

    # Connections for one large file; None: one where the round trip is short, else four.
    streams: int | None = Field(default=None, ge=1, le=4)
    limit_mib_s: float | None = Field(default=None, gt=0)  # for all of them together
    # Where the key of another host gets its line, for the length of one transfer; None: never.
    authorized_keys: str | None = "~/.ssh/authorized_keys"

    @property
    def bytes_s(self) -> float | None:
        return None if self.limit_mib_s is None else self.limit_mib_s * 2**20

    @field_validator("authorized_keys", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return None if value in (False, "off") else value

    @field_validator("streams", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return None if value == "auto" else value


class HostOptions(_Frozen):
    """What may stand under `defaults:` as well as under a host."""

    port: int | None = Field(default=None, ge=1, le=65535)  # None: ~/.ssh/config, else 22
    user: str | None = None  # None: ~/.ssh/config, else the current user
    identity_file: Home = None  # None: the SSH agent and the default keys
    proxy_jump: str | None = None
    work_dir: str = Field(default="~/cosma", min_length=1)  # `~` is the user's home on the host
    python: str = Field(default="python3", min_length=1)  # runs the agent: 3.11 or newer
    stage_python: str | None = None  # runs the stages; None: the agent looks for one
    # auto: all there are, or the CPU where there is none; []: none, for stages that need none.
    gpus: Literal["auto"] | tuple[Annotated[str, Field(pattern="^(GPU|MIG|CPU)-")], ...] = "auto"
    labels: tuple[str, ...] = ()
    vram_headroom_mib: int = Field(default=512, ge=0)
    # Videos that one GPU decodes at once. The driver sets no limit; beyond a few they only share
    # the decoder's throughput and cost memory each.
    max_decode_sessions: int = Field(default=4, ge=0, le=64)
    max_parallel: MaxParallel = MaxParallel()
    disk: Disk = Disk()
    transfer: Transfer = Transfer()
    reclaim: ReclaimRules = ReclaimRules()  # None: as the job's configuration says
    cordoned: bool = False
    # manual: its attempts have no lease, and only the operator gives them up when it is silent.
    requeue: Literal["auto", "manual"] = "auto"


def _is_a_key(value: str | None) -> str | None:
    if value is not None and not _KEY.fullmatch(value.strip()):
        raise ValueError('expected "ssh-ed25519 AAAA..." or "SHA256:..."')
    return value.strip() if value is not None else None


# None: the key must stand in ~/.ssh/known_hosts. An unknown key is never accepted.
HostKey = Annotated[str | None, AfterValidator(_is_a_key)]


class InventoryHost(HostOptions):
    """One host. Raises pydantic's ValidationError; `load_inventory` turns it into one line."""

    name: HostName
    address: Address
    host_key: HostKey = None


class Hypervisor(_Frozen):
    """Where a thin pool is asked for its usage; no work ever goes there."""

    name: HostName
    address: Address
    port: int | None = Field(default=None, ge=1, le=65535)
    user: str | None = None
    identity_file: Home = None
    host_key: HostKey = None
    proxy_jump: str | None = None


class Inventory(_Frozen):
    hosts: tuple[InventoryHost, ...] = ()
    hypervisors: tuple[Hypervisor, ...] = ()

    def host(self, name: str) -> InventoryHost | None:
        return next((host for host in self.hosts if host.name == name), None)

    def hypervisor(self, name: str) -> InventoryHost | Hypervisor:
        """Of a thin pool; one that is named nowhere is what ~/.ssh says of that name."""
        for one in self.hypervisors:
            if one.name == name:
                return one
        return self.host(name) or Hypervisor(name=name, address=name)


class InventoryDiff(_Frozen):
    """Names of hosts: what a reload has to apply."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


def diff(old: Inventory, new: Inventory) -> InventoryDiff:
    before = {host.name: host for host in old.hosts}
    after = {host.name: host for host in new.hosts}
    return InventoryDiff(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(n for n in after if n in before and before[n] != after[n]),
    )
