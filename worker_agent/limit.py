"""What a key of `grant` may read: one path, until a time; it stands in what sshd runs for it."""

from __future__ import annotations

import base64
import json
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from worker_agent.refusal import RefusedError


def limit(path: str, until: float) -> str:
    """One word that needs no quoting. `until`: seconds since 1970, by this host's clock."""
    facts = json.dumps({"path": path, "until": until})
    return base64.urlsafe_b64encode(facts.encode()).decode()


def allowed(limit: str) -> str:
    """Raises RefusedError (bad_request) once the time is over, and for what is no limit."""
    try:
        facts = json.loads(base64.urlsafe_b64decode(limit))
        path, until = str(facts["path"]), float(facts["until"])
    except (ValueError, KeyError, TypeError):
        raise _refused("no limit of a key") from None
    if time.time() > until:
        raise _refused("the key has expired")
    return path


def _refused(why: str) -> RefusedError:
    from worker_agent.refusal import RefusedError

    return RefusedError("bad_request", why)
