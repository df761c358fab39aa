"""Many hosts behind one SSH server with OpenSSH's own limits: nothing is refused."""

from __future__ import annotations

import asyncio

from dispatcher.transport.ssh import SshTransport
from tests.sshd import Farm, farm

__all__ = ["farm"]

OPENSSH_DEFAULT = "10:30:100"


async def test_a_default_sshd_drops_none_of_many_connects_at_once(farm: Farm) -> None:
    server = farm.start(max_startups=OPENSSH_DEFAULT)
    links = [SshTransport(server.target(name=f"host-{n}")) for n in range(40)]
    try:
        done = await asyncio.gather(*(link.run(["true"]) for link in links))
    finally:
        await asyncio.gather(*(link.close() for link in links))
    assert {answer.returncode for answer in done} == {0}
    assert "MaxStartups" not in (server.directory / "sshd.log").read_text()
