-- What thin pools last said, and where artifacts lie beside the artifact directory.

CREATE TABLE thin_pools (
    key              TEXT PRIMARY KEY, -- host:vg/pool
    data_percent     REAL, -- NULL: never read
    metadata_percent REAL,
    bytes            INTEGER, -- of the whole pool
    read_at          REAL, -- when these figures were read
    shut             INTEGER NOT NULL, -- no new work on the hosts whose disks lie in it
    message          TEXT NOT NULL -- why it could not be read; '' when it was
) STRICT;

ALTER TABLE artifacts ADD COLUMN remote_url TEXT; -- of the verified copy in the object store
CREATE INDEX artifacts_by_sha256 ON artifacts (sha256);
