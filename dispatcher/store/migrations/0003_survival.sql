-- What a restarted dispatcher counts a lease from, and what an operator sees of a silent host.

ALTER TABLE leases ADD COLUMN renewed_monotonic REAL; -- no later renewal than this can have arrived
ALTER TABLE leases ADD COLUMN clock_boot TEXT; -- boot of the dispatcher's machine that clock is of
ALTER TABLE leases ADD COLUMN host_boot TEXT; -- boot of the host when the attempt was sent there

CREATE TABLE silences (
    host    TEXT PRIMARY KEY,
    since   REAL NOT NULL, -- last heard of
    message TEXT NOT NULL
) STRICT;

-- What the last comparison of a host with the database found and left alone.
CREATE TABLE findings (
    host    TEXT NOT NULL,
    kind    TEXT NOT NULL,
    job     TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    message TEXT NOT NULL,
    seen_at REAL NOT NULL,
    PRIMARY KEY (host, kind, job, attempt, message)
) STRICT;
