"""Many idle hosts: memory and CPU of their connections in the dispatcher, and whether an SSH server
with OpenSSH's own limits refuses any while they are made.

Real sshd processes on loopback; every host is a connection of its own, as in the product.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.results import Result, parser, show
from dispatcher import event_loop
from dispatcher.embedded import EmbeddedHosts
from dispatcher.transport.ssh import KEEPALIVE_S, SshTransport
from dispatcher.transport.target import SshTarget


def pss_kib() -> int:
    """Proportional set size of this process: shared pages count by share."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError("no Pss in smaps_rollup")


async def measure(farm: EmbeddedHosts, count: int, idle_s: float) -> list[Result]:
    servers = farm.hosts
    links = [
        SshTransport(
            SshTarget(
                name=f"host-{n}",
                address="127.0.0.1",
                port=servers[n % len(servers)].port,
                user=servers[n % len(servers)].user,
                identity_file=servers[n % len(servers)].identity_file,
                host_key=servers[n % len(servers)].host_key,
            )
        )
        for n in range(count + 1)
    ]
    await links[-1].run(["true"])  # what the first connection loads is not the price of one more
    before = pss_kib()
    began = time.monotonic()
    answers = await asyncio.gather(
        *(link.run(["true"], timeout_s=600.0) for link in links[:-1]), return_exceptions=True
    )
    connecting = time.monotonic() - began
    refused = sum(isinstance(answer, BaseException) for answer in answers)
    memory = (pss_kib() - before) / max(1, count - refused)
    cpu, wall = time.process_time(), time.monotonic()
    await asyncio.sleep(idle_s)  # the thing measured: doing nothing
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    await asyncio.gather(*(link.close() for link in links))
    throttled = sum("MaxStartups" in host.log.read_text(errors="replace") for host in servers)
    return [
        Result(name="idle_connection_kib", value=memory, unit="KiB", better="lower", target=100.0),
        Result(name="idle_cpu_share", value=100 * share, unit="% core", better="lower", target=1.0),
        Result(name="refused_connects", value=refused, unit="", better="lower", target=0),
        Result(name="servers_that_throttled", value=throttled, unit="", better="lower", target=0),
        Result(name="connects_per_s", value=count / connecting, unit="1/s", better="higher"),
    ]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--hosts", type=int, default=1000)
    options.add_argument("--servers", type=int, default=4)
    options.add_argument("--idle-s", type=float, default=2 * KEEPALIVE_S)  # whole rounds
    given = options.parse_args()
    with (
        tempfile.TemporaryDirectory() as base,
        EmbeddedHosts(given.servers, Path(base)) as farm,
    ):
        results = event_loop.run(measure(farm, given.hosts, given.idle_s))
    return show("idle_hosts", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
