"""The agent on a host: `python3 agent.pyz VERB`, one JSON request on stdin, JSON on stdout.
Where another host asks, `give` and `pack` have an argument: what its key may read.

Exit codes: 0 done, 1 failed, 2 usage, 3 refused; unless 0, stdout holds one `Refusal`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable

if sys.version_info < (3, 11):  # noqa: UP036 - a host's own python3 is whatever it is
    # Before any import of ours: the messages themselves need 3.11.
    text = f"{sys.executable} is Python {sys.version.split()[0]}, the agent needs 3.11 or later"
    print(json.dumps({"error": "tool_missing", "message": f"{text}: name one in the inventory"}))
    sys.exit(1)

from worker_agent.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from worker_agent.messages import Message

# Each verb imports what it needs when it is called: a status must not pay for a transfer, nor a
# transfer, which starts an interpreter of its own, for the making of all messages.


def _probe(line: bytes) -> int:
    from worker_agent.probe import probe
    from worker_agent.protocol import ProbeRequest

    return _reply([probe(ProbeRequest.from_json(line))])


def _start(line: bytes) -> int:
    from worker_agent.launch import start
    from worker_agent.messages import AttemptSpec

    return _reply([start(AttemptSpec.from_json(line))])


def _status(line: bytes) -> int:
    from worker_agent import attempts
    from worker_agent.protocol import StatusRequest

    request = StatusRequest.from_json(line)
    return _reply(attempts.status(attempts.of_reference(r)) for r in request.attempts)


def _session(_: bytes) -> int:
    from worker_agent.session import session

    session(0, 1, _run_one, _load_all)
    return EXIT_OK


def _load_all() -> None:
    """All that a call may need, so that it need not be read for every one again."""
    from worker_agent import (  # noqa: F401
        blocks,
        control,
        disk,
        fetch,
        grants,
        launch,
        pack,
        probe,
        selftest,
        transfer,
        trim,
        unpack,
    )
    from worker_agent.messages import know_all

    know_all()


def _renew(line: bytes) -> int:
    from worker_agent.control import renew
    from worker_agent.protocol import RenewRequest

    return _reply(renew(RenewRequest.from_json(line)))


def _cancel(line: bytes) -> int:
    from worker_agent.control import cancel
    from worker_agent.protocol import CancelRequest

    return _reply([cancel(CancelRequest.from_json(line))])


def _fetch(line: bytes) -> int:
    from worker_agent.fetch import fetch
    from worker_agent.protocol import FetchRequest

    return _reply([fetch(FetchRequest.from_json(line))])


def _grant(line: bytes) -> int:
    from worker_agent.grants import grant
    from worker_agent.protocol import GrantRequest

    return _reply([grant(GrantRequest.from_json(line))])


def _revoke(line: bytes) -> int:
    from worker_agent.grants import revoke
    from worker_agent.protocol import RevokeRequest

    return _reply([revoke(RevokeRequest.from_json(line))])


def _give(line: bytes) -> int:
    from worker_agent.give import give

    give(line, sys.stdout.buffer, _limit())
    return EXIT_OK


def _limit() -> str | None:
    return sys.argv[2] if len(sys.argv) > 2 else None


def _arrived(line: bytes) -> int:
    from worker_agent.block_messages import ArrivedRequest
    from worker_agent.blocks import arrived

    return _reply([arrived(ArrivedRequest.from_json(line))])


def _take(line: bytes) -> int:
    from worker_agent.block_messages import TakeRequest
    from worker_agent.blocks import take

    return _reply(take(TakeRequest.from_json(line), sys.stdin.buffer))


def _receive(line: bytes) -> int:
    from worker_agent.protocol import ReceiveRequest
    from worker_agent.transfer import receive

    return _reply([receive(ReceiveRequest.from_json(line), sys.stdin.buffer)])


def _send(line: bytes) -> int:
    from worker_agent.protocol import SendRequest
    from worker_agent.transfer import send

    send(SendRequest.from_json(line), sys.stdout.buffer)
    return EXIT_OK


def _digest(line: bytes) -> int:
    from worker_agent.protocol import DigestRequest
    from worker_agent.transfer import digest

    return _reply([digest(DigestRequest.from_json(line))])


def _pack(line: bytes) -> int:
    from worker_agent.pack import pack
    from worker_agent.protocol import PackRequest

    pack(PackRequest.from_json(line), sys.stdout.buffer, _limit())
    return EXIT_OK


def _unpack(line: bytes) -> int:
    from worker_agent.protocol import UnpackRequest
    from worker_agent.unpack import unpack

    return _reply(unpack(UnpackRequest.from_json(line), sys.stdin.buffer))


def _reclaim(line: bytes) -> int:
    from worker_agent.disk import reclaim
    from worker_agent.protocol import ReclaimRequest

    return _reply([reclaim(ReclaimRequest.from_json(line))])


def _prune(line: bytes) -> int:
    from worker_agent.protocol import PruneRequest
    from worker_agent.prune import prune

    return _reply([prune(PruneRequest.from_json(line))])


def _trim(line: bytes) -> int:
    from worker_agent.protocol import TrimRequest
    from worker_agent.trim import trim

    return _reply([trim(TrimRequest.from_json(line))])


def _list(line: bytes) -> int:
    from pathlib import Path

    from worker_agent.attempts import list_attempts
    from worker_agent.protocol import ListRequest

    return _reply(list_attempts(Path(ListRequest.from_json(line).work_dir)))


def _selftest(line: bytes) -> int:
    from worker_agent.protocol import SelftestRequest
    from worker_agent.selftest import selftest

    report = selftest(SelftestRequest.from_json(line))
    _reply([report])
    return EXIT_OK if report.ok else EXIT_FAILED


VERBS: dict[str, Callable[[bytes], int]] = {
    "probe": _probe,
    "start": _start,
    "status": _status,
    "session": _session,
    "renew": _renew,
    "cancel": _cancel,
    "fetch": _fetch,
    "grant": _grant,
    "revoke": _revoke,
    "give": _give,
    "arrived": _arrived,
    "take": _take,
    "receive": _receive,
    "send": _send,
    "digest": _digest,
    "pack": _pack,
    "unpack": _unpack,
    "reclaim": _reclaim,
    "prune": _prune,
    "trim": _trim,
    "list": _list,
    "selftest": _selftest,
}

_LIMITED = ("give", "pack")
_USAGE = f"usage: {' | '.join(VERBS)}, with one JSON request on stdin"


def _reply(messages: Iterable[Message]) -> int:
    for message in messages:
        sys.stdout.write(message.to_json() + "\n")
        sys.stdout.flush()  # whoever asked may act on the first before there is a second
    return EXIT_OK


def _refuse(error: str, message: str, exit_code: int) -> int:
    from worker_agent.messages import Refusal

    sys.stdout.write(Refusal(error=error, message=message).to_json() + "\n")
    return exit_code


def _refuse_by(verb: str, error: Exception) -> int:
    from worker_agent.messages import ProtocolError
    from worker_agent.refusal import RefusedError, from_os_error

    if isinstance(error, ProtocolError):
        return _refuse("bad_request", str(error), EXIT_USAGE)
    if isinstance(error, OSError):
        error = from_os_error(error)
    if isinstance(error, RefusedError):
        return _refuse(error.refusal.error, error.refusal.message, error.exit_code)
    text = " ".join(f"{verb}: {type(error).__name__}: {error}".split())
    return _refuse("agent_failed", text, EXIT_FAILED)


def _run(arguments: list[str]) -> int:
    if len(arguments) != 1 and not (len(arguments) == 2 and arguments[0] in _LIMITED):
        return _refuse("bad_request", _USAGE, EXIT_USAGE)
    return _run_one(arguments[0])


def _run_one(verb: str) -> int:
    if verb not in VERBS:
        return _refuse("bad_request", _USAGE, EXIT_USAGE)
    try:
        # `session` reads all of stdin itself, as it comes.
        line = b"" if verb == "session" else sys.stdin.buffer.readline()
        return VERBS[verb](line)
    except BrokenPipeError:
        raise
    except Exception as error:
        return _refuse_by(verb, error)


def main() -> int:
    """Run one verb; returns its exit code and never raises."""
    os.umask(os.umask(0o022) & 0o077 | 0o022)  # never writable by others, always by ourselves
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        # Whoever asked is gone. The interpreter must not find the broken pipe at exit again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    return code


if __name__ == "__main__":
    sys.exit(main())
