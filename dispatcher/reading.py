"""Reading a file of a store that is no host of the farm, by this machine's own ssh."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import tempfile
from collections.abc import AsyncGenerator
from typing import cast

from dispatcher.core.model import Reason
from dispatcher.errors import TransferError

_AT_ONCE = 1 << 20
_OPTIONS = (
    "-aTx",
    "-oCiphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com",  # as in a push
    "-oBatchMode=yes",
    "-oStrictHostKeyChecking=yes",
    "-oClearAllForwardings=yes",
    "-oConnectTimeout=15",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=3",
)


async def read_remote(host: str, path: str) -> AsyncGenerator[bytes, None]:
    """The bytes of `host:path`. Raises TransferError with ssh's last words."""
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            "ssh", *_OPTIONS, "--", host, shlex.join(["cat", "--", path]),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=said,
            limit=_AT_ONCE,
        )  # fmt: skip
        try:
            stream = cast(asyncio.StreamReader, process.stdout)
            while part := await stream.read(_AT_ONCE):
                yield part
            code = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if code:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise TransferError(
                Reason.TRANSFER_FAILED, f"{host}:{path} cannot be read from here either",
                where=host, why=lines[-1].strip() if lines else f"ssh ended with {code}",
                fix=f"see that `ssh {host} true` works here, or on the host, without a question",
            )  # fmt: skip
