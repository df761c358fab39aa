-- The public tables. JSON columns hold objects or lists; times are wall-clock Unix seconds.

CREATE TABLE acquisitions (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;

CREATE TABLE jobs (
    id             TEXT PRIMARY KEY,
    kind           TEXT NOT NULL,
    acquisition    TEXT NOT NULL REFERENCES acquisitions (id),
    name           TEXT NOT NULL,
    auv            TEXT,
    created_at     REAL NOT NULL,
    state          TEXT NOT NULL,
    step           TEXT NOT NULL,
    stage          TEXT NOT NULL,
    priority       INTEGER NOT NULL,
    host           TEXT,
    attempt        INTEGER NOT NULL,
    inputs_on_host INTEGER NOT NULL,
    need_mib       INTEGER,
    input_bytes    INTEGER NOT NULL,
    retries        TEXT NOT NULL, -- JSON: layer -> retries used
    not_before     REAL NOT NULL,
    reason         TEXT,
    message        TEXT NOT NULL,
    advice         TEXT NOT NULL,
    avoid_hosts    TEXT NOT NULL, -- JSON list
    revision       INTEGER NOT NULL -- the fence of every update
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, created_at);
CREATE INDEX jobs_by_acquisition ON jobs (acquisition, created_at);

CREATE TABLE segments (
    id           TEXT PRIMARY KEY,
    acquisition  TEXT NOT NULL REFERENCES acquisitions (id),
    auv          TEXT NOT NULL,
    gopro_serial TEXT NOT NULL,
    label        TEXT NOT NULL,
    job          TEXT NOT NULL UNIQUE REFERENCES jobs (id),
    clips        TEXT NOT NULL, -- JSON list of {name, source, bytes, order, sha256, recorded_at}
    created_at   REAL NOT NULL,
    UNIQUE (acquisition, auv, gopro_serial, label)
) STRICT;

CREATE TABLE runs (
    job        TEXT PRIMARY KEY REFERENCES jobs (id),
    config     TEXT NOT NULL, -- JSON
    sha256     TEXT NOT NULL, -- of the canonical JSON
    provenance TEXT NOT NULL, -- JSON
    created_at REAL NOT NULL
) STRICT;

CREATE TABLE attempts (
    job          TEXT NOT NULL REFERENCES jobs (id),
    attempt      INTEGER NOT NULL,
    stage        TEXT NOT NULL,
    host         TEXT NOT NULL,
    gpu          TEXT,
    state        TEXT NOT NULL, -- starting | running | succeeded | failed | cancelled
    epoch        INTEGER NOT NULL,
    committed_at REAL NOT NULL,
    started_at   REAL,
    ended_at     REAL,
    resumed      INTEGER NOT NULL DEFAULT 0,
    reason       TEXT,
    message      TEXT NOT NULL DEFAULT '',
    evidence     TEXT NOT NULL DEFAULT '{}', -- JSON
    exit         TEXT, -- JSON: the host's exit record
    events_bytes INTEGER NOT NULL DEFAULT 0,
    log_bytes    INTEGER NOT NULL DEFAULT 0,
    stimulus     TEXT NOT NULL,
    PRIMARY KEY (job, attempt)
) STRICT;

-- One row at most for a job: exactly while it holds a reservation.
CREATE TABLE reservations (
    job        TEXT PRIMARY KEY REFERENCES jobs (id),
    attempt    INTEGER NOT NULL,
    host       TEXT NOT NULL,
    slot       TEXT NOT NULL,
    gpu        TEXT,
    mib        INTEGER NOT NULL,
    disk_bytes INTEGER NOT NULL,
    FOREIGN KEY (job, attempt) REFERENCES attempts (job, attempt)
) STRICT;

CREATE TABLE leases (
    job        TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    host       TEXT NOT NULL,
    lease_s    REAL NOT NULL,
    renewed_at REAL NOT NULL, -- the last renewal that was attempted
    PRIMARY KEY (job, attempt),
    FOREIGN KEY (job, attempt) REFERENCES attempts (job, attempt)
) STRICT;

CREATE TABLE stage_metrics (
    job           TEXT NOT NULL,
    attempt       INTEGER NOT NULL,
    stage         TEXT NOT NULL,
    host          TEXT NOT NULL,
    gpu           TEXT,
    wall_s        REAL NOT NULL,
    cpu_s         REAL NOT NULL,
    peak_rss_mib  REAL NOT NULL,
    peak_vram_mib REAL,
    metrics       TEXT NOT NULL, -- JSON: what the stage says of its own work
    PRIMARY KEY (job, attempt),
    FOREIGN KEY (job, attempt) REFERENCES attempts (job, attempt)
) STRICT;

CREATE TABLE progress (
    job        TEXT PRIMARY KEY REFERENCES jobs (id),
    fraction   REAL NOT NULL,
    message    TEXT NOT NULL,
    numbers    TEXT NOT NULL, -- JSON
    updated_at REAL NOT NULL
) STRICT;

CREATE TABLE waiting (
    job      TEXT PRIMARY KEY REFERENCES jobs (id),
    reason   TEXT NOT NULL,
    message  TEXT NOT NULL,
    per_host TEXT NOT NULL -- JSON: host -> the first test it failed, with numbers
) STRICT;

CREATE TABLE artifacts (
    job        TEXT NOT NULL REFERENCES jobs (id),
    path       TEXT NOT NULL, -- relative to the run directory
    kind       TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    sha256     TEXT NOT NULL,
    host       TEXT,
    attempt    INTEGER,
    local_path TEXT, -- in the artifact store, once collected
    PRIMARY KEY (job, path)
) STRICT;
CREATE INDEX artifacts_by_path ON artifacts (path);
CREATE INDEX artifacts_by_local_path ON artifacts (local_path);

CREATE TABLE stitches (
    id          TEXT PRIMARY KEY,
    acquisition TEXT NOT NULL REFERENCES acquisitions (id),
    level       TEXT NOT NULL, -- per_auv | cross_auv
    auv         TEXT,
    version     INTEGER NOT NULL,
    state       TEXT NOT NULL,
    job         TEXT UNIQUE REFERENCES jobs (id), -- none for a pass-through
    passthrough INTEGER NOT NULL,
    report      TEXT NOT NULL, -- JSON
    created_at  REAL NOT NULL
) STRICT;

CREATE TABLE stitch_inputs (
    stitch   TEXT NOT NULL REFERENCES stitches (id),
    position INTEGER NOT NULL,
    member   TEXT NOT NULL, -- a job (per_auv) or a stitch (cross_auv)
    PRIMARY KEY (stitch, position)
) STRICT;

CREATE TABLE hosts (
    name       TEXT PRIMARY KEY,
    state      TEXT NOT NULL,
    message    TEXT NOT NULL,
    facts      TEXT, -- JSON: the last facts that arrived
    cordoned   INTEGER NOT NULL,
    probed_at  REAL,
    updated_at REAL NOT NULL
) STRICT;

CREATE TABLE gpus (
    host       TEXT NOT NULL REFERENCES hosts (name),
    uuid       TEXT NOT NULL,
    name       TEXT NOT NULL,
    kind       TEXT NOT NULL,
    total_mib  INTEGER NOT NULL,
    free_mib   INTEGER NOT NULL,
    processes  TEXT NOT NULL, -- JSON list
    updated_at REAL NOT NULL,
    PRIMARY KEY (host, uuid)
) STRICT;

CREATE TABLE events (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       REAL NOT NULL,
    kind     TEXT NOT NULL,
    job      TEXT,
    attempt  INTEGER,
    host     TEXT,
    payload  TEXT NOT NULL, -- JSON
    stimulus TEXT NOT NULL, -- id of the event that caused it
    source   TEXT NOT NULL  -- dispatcher | agent
) STRICT;
CREATE INDEX events_by_job ON events (job, id);
CREATE INDEX events_by_kind ON events (kind, id);

CREATE TABLE logs (
    job      TEXT NOT NULL,
    attempt  INTEGER NOT NULL,
    position INTEGER NOT NULL, -- byte offset of the piece in the attempt's log
    data     BLOB NOT NULL,
    PRIMARY KEY (job, attempt, position),
    FOREIGN KEY (job, attempt) REFERENCES attempts (job, attempt)
) STRICT;

CREATE TABLE requests (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    kind        TEXT NOT NULL,
    job         TEXT,
    args        TEXT NOT NULL, -- JSON
    created_at  REAL NOT NULL,
    state       TEXT NOT NULL, -- pending | done | refused
    answer      TEXT NOT NULL,
    finished_at REAL
) STRICT;

CREATE TABLE dispatchers (
    epoch      INTEGER PRIMARY KEY AUTOINCREMENT,
    host       TEXT NOT NULL,
    pid        INTEGER NOT NULL,
    started_at REAL NOT NULL
) STRICT;
