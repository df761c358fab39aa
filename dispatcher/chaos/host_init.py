"""Process 1 of a drill host: own /proc, /run, host name and boot id; sshd; reaps what dies.

Run as a script inside the host's namespaces: `python host_init.py DIRECTORY NAME SSHD`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main(directory: Path, name: str, sshd: str) -> int:
    for command in (
        ["mount", "-t", "proc", "proc", "/proc"],
        # One kernel boots once; a host that was switched off must not look as if it had not.
        ["mount", "--bind", str(directory / "boot_id"), "/proc/sys/kernel/random/boot_id"],
        ["mount", "-t", "tmpfs", "-o", "size=16m", "run", "/run"],
        ["hostname", name],
    ):
        subprocess.run(command, check=True)
    Path("/run/sshd").mkdir(mode=0o755)
    server = subprocess.Popen(
        [sshd, "-D", "-e", "-f", str(directory / "sshd_config")], stdin=subprocess.DEVNULL
    )
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == server.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
