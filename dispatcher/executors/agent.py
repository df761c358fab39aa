"""The agent on a host: put there by content hash, called over one session that stays open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar, Unpack

from dispatcher.agent_bundle import AgentBundle
from dispatcher.core.model import Reason
from dispatcher.errors import AgentBroken, AgentRefusal, HostError, TakenOver, TransportError
from dispatcher.executors.agent_session import AgentSession
from dispatcher.transport.base import BulkTransport, Completed, Feed, Stream
from worker_agent.protocol import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_USAGE,
    STALE_EPOCH,
    Message,
    ProtocolError,
    Refusal,
    TransferReport,
)

AGENT_PYTHON = (3, 11)

# The agent is heard every 5 s while it is asked something; silent for so long, its session hangs.
SILENT_S = 15.0
SLOW_CALLS = 4  # on one host, of those that take long

# Runs on any python3: resolves `~`, looks whether the agent's very bytes are there, and says so in
# one line of JSON. For the verb `install` they come on stdin (temp, fsync, rename); any other verb
# is run at once by the agent that is there, as one interpreter and one round trip are saved.
_BEGIN = """
import hashlib, json, os, sys, zipimport
path = os.path.abspath(os.path.expanduser(sys.argv[1]))
wanted, verb = sys.argv[2:]
content = sys.stdin.buffer.read() if verb == "install" else b""
found = error = None
try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if content:
        temporary = "%s.%d.tmp" % (path, os.getpid())
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    if os.path.exists(path):
        with open(path, "rb") as stream:
            found = hashlib.sha256(stream.read()).hexdigest()
except OSError as e:
    error = str(e)
print(json.dumps({"python": list(sys.version_info[:3]), "path": path, "found": found,
                  "work_dir": os.path.dirname(os.path.dirname(path)), "error": error}), flush=True)
if found == wanted and verb != "install":
    sys.path.insert(0, path)
    sys.argv = [path, verb]
    exec(zipimport.zipimporter(path).get_code("__main__"))
"""
_INSTALL = "install"
BEGIN_S = 120.0

M = TypeVar("M", bound=Message)


class CallOptions(TypedDict, total=False):
    """What `AgentLink.call` takes by name."""

    body: bytes
    timeout_s: float
    slow: bool
    answers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Installed:
    work_dir: str  # absolute
    path: str  # of the agent's zipapp, absolute


class AgentGone(AgentBroken):
    """The agent's file is not on the host any more."""


class AgentLink:
    """Calls verbs of the agent on one host; installs the agent before the first."""

    def __init__(
        self, name: str, transport: BulkTransport, python: str, work_dir: str, bundle: AgentBundle
    ) -> None:
        self.name = name
        self._transport = transport
        self._python = python
        self._work_dir = work_dir
        self._bundle = bundle
        self._installed: Installed | None = None
        self._lock = asyncio.Lock()
        self._session: AgentSession | None = None
        self._opening = asyncio.Lock()
        self._slow = asyncio.Semaphore(SLOW_CALLS)

    async def ensure(self) -> Installed:
        """Put the agent there unless its very bytes are; then its session stands, too. Raises
        TransportError, AgentBroken."""
        if self._installed is not None:
            return self._installed
        async with self._lock:
            if self._installed is None:
                wanted = self._bundle.sha256
                found, installed = await self._look()
                if found != wanted:
                    found, installed = await self._install()
                if found != wanted:
                    raise AgentBroken(
                        "the agent did not arrive whole",
                        where=self.name,
                        why=f"{installed.path} has sha256 {found}, expected {wanted}",
                        fix="Check the disk of the host",
                    )
                self._installed = installed
            return self._installed

    async def _look(self) -> tuple[str | None, Installed]:
        """Begin the session if the agent is there."""
        stream = None
        try:
            async with asyncio.timeout(BEGIN_S):
                stream = await self._transport.stream(self._begin("session"))
                line = await stream.read_line()
                try:
                    found, installed = self._read(line)
                except ValueError:
                    done = await stream.finish()
                    said = Completed(done.returncode, line + done.stdout, done.stderr)
                    raise self._no_python(said) from None
                if found == self._bundle.sha256:
                    self._session = AgentSession(self.name, stream, self._why_ended)
                    stream = None
                return found, installed
        except TimeoutError:
            raise TransportError(
                Reason.HOST_UNREACHABLE,
                "host cannot be reached",
                where=self.name,
                why=f"the agent does not begin within {BEGIN_S:g} s",
                fix=f"Check that the host is up: `cosma worker probe {self.name}`",
            ) from None
        finally:
            if stream is not None:
                await stream.close()

    async def _install(self) -> tuple[str | None, Installed]:
        done = await self._transport.run(
            self._begin(_INSTALL), input=self._bundle.data, timeout_s=BEGIN_S
        )
        try:
            if done.returncode != 0:
                raise ValueError
            return self._read(done.stdout)
        except ValueError:
            raise self._no_python(done) from None

    def _begin(self, verb: str) -> list[str]:
        path = f"{self._work_dir}/.cosma/agent-{self._bundle.sha256[:12]}.pyz"
        return [self._python, "-I", "-c", _BEGIN, path, self._bundle.sha256, verb]

    def _no_python(self, done: Completed) -> AgentBroken:
        return AgentBroken(
            f"{self._python} does not run",
            where=self.name,
            why=_tail(done),
            fix="Set `python:` of this host to a Python 3.11 or newer",
        )

    def _read(self, line: bytes) -> tuple[str | None, Installed]:
        """What _BEGIN says. Raises ValueError for anything else, AgentBroken."""
        try:
            reply = json.loads(line)
            version, error = tuple(reply["python"]), reply["error"]
            installed = Installed(str(reply["work_dir"]), str(reply["path"]))
            found = reply["found"]
        except (KeyError, TypeError):
            raise ValueError("not what the agent's first line is") from None
        if version < AGENT_PYTHON:
            raise AgentBroken(
                f"{self._python} is too old",
                where=self.name,
                why=f"the agent needs Python 3.11, this is {'.'.join(map(str, version))}",
                fix="Set `python:` of this host to a Python 3.11 or newer",
            )
        if error:
            raise AgentBroken(
                "the work directory cannot be used",
                where=self.name,
                why=error,
                fix="Set `work_dir:` of this host to a directory its user can write",
            )
        return found, installed

    async def open(self, verb: str) -> Stream:
        """Start a verb in a process of its own, on the connection for bulk copies."""
        return await self._transport.stream(await self._argv(verb), bulk=True)

    async def feed(self, verb: str, request: Message) -> Feed:
        """As `open`, for a large file that goes there once the verb has replied. Raises also
        what `check` raises."""
        feed = await self._transport.feed(
            await self._argv(verb), request.to_json().encode() + b"\n"
        )
        try:
            TransferReport.from_json(feed.reply)
        except ProtocolError:
            try:
                done = await feed.finish()
            finally:
                await feed.close()
            self.check(verb, Completed(done.returncode, feed.reply + done.stdout, done.stderr))
            raise self._broken(verb, f"unexpected reply {feed.reply[:100]!r}") from None
        return feed

    async def host_key(self) -> str:
        return await self._transport.host_key()

    async def round_trip_s(self) -> float | None:
        return await self._transport.round_trip_s()

    async def session(self) -> AgentSession:
        """The one that stands, else a new one. Raises TransportError, AgentBroken."""
        if self._session is not None and not self._session.ended:
            return self._session
        async with self._opening:
            argv = await self._argv("session")
            if self._session is None or self._session.ended:
                stream = await self._transport.stream(argv)
                self._session = AgentSession(self.name, stream, self._why_ended)
            return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _argv(self, verb: str) -> list[str]:
        return [self._python, "-I", (await self.ensure()).path, verb]

    async def ask(
        self, verb: str, request: Message, *, body: bytes = b"", timeout_s: float = 60.0
    ) -> Completed:
        """One request line, and `body` after it, to a verb; what it says and its exit code."""
        said = request.to_json().encode() + b"\n" + body
        try:
            return await self._ask(verb, said, timeout_s)
        except AgentGone:
            # Somebody removed the work directory since: every verb can be repeated.
            self._installed = None
            return await self._ask(verb, said, timeout_s)

    async def _ask(self, verb: str, said: bytes, timeout_s: float) -> Completed:
        session = None
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    session = await self.session()
                except TransportError as error:
                    error.sent = False
                    raise
                return await session.call(verb, said)
        except TimeoutError:
            if session is not None and time.monotonic() > session.heard_at + SILENT_S:
                await session.close()
            late = TransportError(
                Reason.HOST_UNREACHABLE,
                "host cannot be reached",
                where=self.name,
                why=f"no answer to `{verb}` within {timeout_s:g} s",
                fix=f"Check that the host is up: `cosma worker probe {self.name}`",
            )
            late.sent = session is not None
            raise late from None

    def _why_ended(self, done: Completed) -> HostError:
        if done.returncode == EXIT_USAGE and b"can't open file" in done.stderr + done.stdout:
            return AgentGone("the agent is gone", where=self.name)
        try:
            self.check("session", done)
        except HostError as error:
            return error
        return self._broken("session", _tail(done))

    async def call(
        self,
        verb: str,
        request: Message,
        reply: type[M],
        *,
        body: bytes = b"",
        timeout_s: float = 60.0,
        slow: bool = False,
        answers: Sequence[int] = (EXIT_OK,),
    ) -> list[M]:
        """One request in, any number of `reply` lines out. `slow` for verbs that take long and
        load the host; `answers` are the exit codes with which the verb replies."""
        async with self._slow if slow else contextlib.nullcontext():
            done = await self.ask(verb, request, body=body, timeout_s=timeout_s)
        lines = [text for text in done.stdout.splitlines() if text.strip()]
        if done.returncode in answers and done.returncode != EXIT_OK:
            try:
                return [reply.from_json(text) for text in lines]
            except ProtocolError:
                pass  # it could not do it: a refusal
        self.check(verb, done)
        return [self.decode(verb, text, reply) for text in lines]

    async def call_one(
        self, verb: str, request: Message, reply: type[M], **options: Unpack[CallOptions]
    ) -> M:
        """As `call`, where exactly one line is the answer."""
        replies = await self.call(verb, request, reply, **options)
        if len(replies) != 1:
            raise self._broken(verb, f"{len(replies)} replies, expected one")
        return replies[0]

    async def first_reply(self, verb: str, stream: Stream, reply: type[M]) -> M:
        """The reply line of a verb whose output goes on after it."""
        line = await stream.read_line()
        try:
            return reply.from_json(line)
        except ProtocolError:
            done = await stream.finish()
        self.check(verb, Completed(done.returncode, line + done.stdout, done.stderr))
        raise self._broken(verb, f"unexpected reply {line[:100]!r}")

    async def next_reply(self, verb: str, feed: Feed, reply: type[M]) -> M:
        """One more line of a verb that has said that it is ready."""
        line = await feed.read_line()
        if not line.endswith(b"\n"):
            self.check(verb, await feed.finish())
        return self.decode(verb, line, reply)

    def check(self, verb: str, done: Completed) -> None:
        """Raises AgentRefusal, AgentBroken or TakenOver unless the verb ended well."""
        if done.returncode == EXIT_OK:
            return
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        if done.returncode in (EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED) and lines:
            try:
                refusal = Refusal.from_json(lines[-1])
            except ProtocolError:
                pass
            else:
                if refusal.error == STALE_EPOCH:
                    raise TakenOver(
                        "another dispatcher took over", where=self.name, why=refusal.message,
                        fix="Leave the work to that one",
                    )  # fmt: skip
                raise AgentRefusal(refusal, where=self.name)
        raise self._broken(verb, _tail(done))

    def decode(self, verb: str, text: bytes, reply: type[M]) -> M:
        """Raises AgentBroken for a line that is not a `reply`."""
        try:
            return reply.from_json(text)
        except ProtocolError as error:
            raise self._broken(verb, str(error)) from None

    def _broken(self, verb: str, why: str) -> AgentBroken:
        return AgentBroken(
            f"the agent's `{verb}` did not work",
            where=self.name,
            why=why,
            fix=f"Look at the host: `cosma worker probe {self.name}`",
        )


def _tail(done: Completed) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    said = lines[-1] if lines else "no output"
    return f"exit {done.returncode}: {said[:300]}"
