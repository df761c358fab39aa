"""An S3 server as a process of its own (moto's), for the tests of the object store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dispatcher.embedded import free_port

READY_S = 60.0
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def s3_environment(base: Path) -> Iterator[None]:
    """A server for the length of the block, in which S3 clients of this process reach it."""
    before = dict(os.environ)
    with _server(base) as endpoint:
        os.environ.update({**_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _server(base: Path) -> Iterator[str]:
    port = free_port()
    with (base / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            _wait(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5.0).close()
            return
        except OSError:
            time.sleep(0.05)  # nothing to await: it tells nobody that it listens
    raise RuntimeError(f"the S3 server does not answer on port {port}")
