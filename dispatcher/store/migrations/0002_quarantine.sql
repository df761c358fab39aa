-- What keeps new work from a host: the operator's drain, and the breakers of hosts and GPUs.

ALTER TABLE jobs ADD COLUMN shrink INTEGER NOT NULL DEFAULT 0; -- steps down to a smaller plan
ALTER TABLE hosts ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;

CREATE TABLE breakers (
    key          TEXT PRIMARY KEY, -- the host's name, or the GPU's UUID
    host         TEXT NOT NULL,
    gpu          TEXT,
    position     TEXT NOT NULL, -- closed | open | testing
    why          TEXT NOT NULL,
    failures     TEXT NOT NULL, -- JSON list of {job, at, line}
    opened_at    REAL NOT NULL,
    until        REAL NOT NULL, -- the next self-test is not before this
    trips        INTEGER NOT NULL,
    failed_tests INTEGER NOT NULL
) STRICT;
