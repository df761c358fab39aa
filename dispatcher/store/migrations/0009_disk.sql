-- What was removed on hosts, and what fstrim gave back to the storage below them.

ALTER TABLE jobs ADD COLUMN reclaimed TEXT NOT NULL DEFAULT '[]'; -- JSON list: what of it is gone

CREATE TABLE trims (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    at            REAL NOT NULL,
    host          TEXT NOT NULL,
    mount         TEXT NOT NULL,    -- '' when that is not known
    method        TEXT NOT NULL,    -- fstrim | helper | sudo; '' when it could not be done
    trimmed_bytes INTEGER,          -- as the kernel counts: all free space that it told the device of
    freed_bytes   INTEGER NOT NULL, -- blocks of what was removed since the trim before
    free_before   INTEGER NOT NULL,
    free_after    INTEGER NOT NULL,
    note          TEXT NOT NULL     -- why it could not be done
) STRICT;
CREATE INDEX trims_by_host ON trims (host, id);

CREATE TABLE removals (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    at            REAL NOT NULL,
    host          TEXT NOT NULL,
    job           TEXT NOT NULL REFERENCES jobs (id),
    what          TEXT NOT NULL,    -- source_videos | frames | features | training | results | copy
    removed_bytes INTEGER NOT NULL, -- length of the files
    freed_bytes   INTEGER NOT NULL, -- blocks that they took
    free_before   INTEGER NOT NULL,
    free_after    INTEGER NOT NULL,
    trim          INTEGER REFERENCES trims (id) -- NULL: not yet trimmed
) STRICT;
CREATE INDEX removals_by_job ON removals (job, id);
CREATE INDEX removals_untrimmed ON removals (host) WHERE trim IS NULL;
