"""An executor with a host behind a real sshd, and the fixtures that make both."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from dispatcher import agent_bundle
from dispatcher.executors.ssh import SshExecutor
from tests.sshd import Farm, Sshd, farm

__all__ = ["bundle", "executor", "farm", "run_dir", "server"]


@pytest.fixture(scope="module")
def bundle() -> agent_bundle.AgentBundle:
    return agent_bundle.build()


@pytest.fixture
def server(farm: Farm) -> Sshd:
    return farm.start()


@pytest_asyncio.fixture
async def executor(server: Sshd, bundle: agent_bundle.AgentBundle) -> AsyncIterator[SshExecutor]:
    made = SshExecutor.connect_to(server.inventory_host(python=sys.executable), bundle)
    yield made
    await made.close()


@pytest.fixture
def run_dir(server: Sshd) -> str:
    return str(server.work_dir / "survey" / "job-1")
