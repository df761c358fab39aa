"""What lies on a drill host: its stage interpreter, its GPU, its SSH server's configuration."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dispatcher.errors import CosmaError

GPU_MIB = 24_576
HANGING = "hang"

_STAGE_PYTHON = """\
#!/bin/sh
# In the place of the stages' interpreter: rehearses a stage, and needs no library for it.
case "$1 $2" in
"-m worker_agent.stages")
    shift 2
    COSMA_RUN_LOG={run_log} exec {python} -S -m worker_agent.rehearse "$@" ;;
"-c "*) echo '[]' ;;
*) exec {python} "$@" ;;
esac
"""

# The wall clock of a host is the kernel's, which all of them share: the agent, which asks it by
# `time.time` only, is given one that is wrong by as many seconds as a file says, at every call.
_PYTHON = """\
#!{python} -I
import os, runpy, sys, time

right = time.time

def wrong():
    with open({control!r}) as stream:
        return right() + float(stream.read())

time.time = wrong
words = [word for word in sys.argv[1:] if word not in ("-I", "-S")]
if words[0] == "-c":
    sys.argv = ["-c", *words[2:]]
    exec(compile(words[1], "<string>", "exec"), {{"__name__": "__main__"}})
else:
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
"""

_NVIDIA_SMI = """\
#!/bin/sh
# The GPU of a drill host. Its control file says how much memory others use, or "{hanging}".
read -r foreign < {control} || foreign=0
[ "$foreign" = {hanging} ] && exec sleep 600
case "$1" in
--query-gpu=*)
    line=
    IFS=,
    for field in ${{1#*=}}; do
        case $field in
        uuid|gpu_uuid) value={uuid} ;;
        name) value="Drill GPU" ;;
        index) value=0 ;;
        memory.total) value={total} ;;
        memory.used) value=$foreign ;;
        memory.free) value=$(({total} - foreign)) ;;
        *) value="[N/A]" ;;
        esac
        line="$line${{line:+, }}$value"
    done
    echo "$line" ;;
--query-compute-apps=*) [ "$foreign" = 0 ] || echo "{uuid}, 4000001, $foreign" ;;
esac
"""

# SHLVL: see dispatcher.embedded; a drill host has no business in this machine's ~/.bashrc, nor
# with its driver: the GPU of a drill host is what its own nvidia-smi says.
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SSHD = """\
Port 22
ListenAddress 0.0.0.0
HostKey "{directory}/host_key"
AuthorizedKeysFile "{directory}/authorized_keys"
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
ClientAliveInterval 5
ClientAliveCountMax 3
Subsystem sftp internal-sftp
SetEnv SHLVL=1 COSMA_NVML_LIBRARY={directory}/absent PATH={directory}/bin:{system_path}
LogLevel INFO
"""


@dataclass(frozen=True, slots=True)
class HostFiles:
    """One host's directory, outside its own disk: it survives a power cut and a full disk."""

    directory: Path

    @property
    def run_log(self) -> Path:
        return self.directory / "runs.jsonl"

    @property
    def stage_python(self) -> Path:
        return self.directory / "bin" / "stage-python"

    @property
    def boot_id(self) -> Path:
        return self.directory / "boot_id"

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    @property
    def public_key(self) -> str:
        text = (self.directory / "host_key.pub").read_text()
        return " ".join(text.split()[:2])

    def set_gpu(self, state: str) -> None:
        """MiB used by others, or HANGING. Readers never see half of it."""
        temporary = self.directory / "gpu.new"
        temporary.write_text(f"{state}\n")
        temporary.replace(self.directory / "gpu")

    def set_clock(self, offset_s: float) -> None:
        """How wrong the wall clock of the host is."""
        temporary = self.directory / "clock.new"
        temporary.write_text(f"{offset_s}\n")
        temporary.replace(self.directory / "clock")

    @property
    def python(self) -> Path:
        """Runs the agent, by the host's own clock."""
        return self.directory / "bin" / "python3"

    def prepare(self, name: str, identity: Path) -> None:
        """Make everything a host needs to boot for the first time."""
        self.disk.mkdir(parents=True)
        self.set_gpu("0")
        self.prepare_programs()
        make_key(self.directory / "host_key")
        keys = self.directory / "authorized_keys"
        keys.write_text(identity.with_name(f"{identity.name}.pub").read_text())
        keys.chmod(0o600)
        (self.directory / "sshd_config").write_text(
            _SSHD.format(directory=self.directory, system_path=_SYSTEM_PATH)
        )
        text = _NVIDIA_SMI.format(
            control=shlex.quote(str(self.directory / "gpu")),
            hanging=HANGING,
            uuid=f"GPU-drill-{name}",
            total=GPU_MIB,
        )
        _script(self.directory / "bin" / "nvidia-smi", text)

    def prepare_programs(self) -> None:
        """The interpreters of agent and stages, the clock, the run log."""
        self.python.parent.mkdir(parents=True, exist_ok=True)
        self.run_log.touch()
        self.set_clock(0.0)
        clock = str(self.directory / "clock")
        _script(self.python, _PYTHON.format(python=sys.executable, control=clock))
        text = _STAGE_PYTHON.format(
            run_log=shlex.quote(str(self.run_log)), python=shlex.quote(sys.executable)
        )
        _script(self.stage_python, text)


def make_key(path: Path) -> None:
    """An ed25519 key pair without a passphrase. Raises CosmaError."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        why = "ssh-keygen is not installed"
    else:
        why = done.stderr.strip()
        if done.returncode == 0:
            return
    raise CosmaError(
        "cannot make a key", where=str(path), why=why, fix="`make setup` installs openssh"
    )


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
