-- name: insert_acquisition
INSERT INTO acquisitions (id, name, created_at) VALUES (:id, :name, :created_at)
ON CONFLICT DO NOTHING;

-- name: select_acquisitions
SELECT * FROM acquisitions ORDER BY created_at, id;

-- name: insert_segment
INSERT INTO segments (id, acquisition, auv, gopro_serial, label, job, clips, created_at)
VALUES (:id, :acquisition, :auv, :gopro_serial, :label, :job, :clips, :created_at);

-- name: select_segments
SELECT * FROM segments
WHERE (:acquisition IS NULL OR acquisition = :acquisition) AND (:job IS NULL OR job = :job)
ORDER BY auv, gopro_serial, label, id;

-- name: select_segment_views
SELECT segments.job, segments.auv, segments.label, segments.created_at, jobs.state
FROM segments JOIN jobs ON jobs.id = segments.job
WHERE segments.acquisition = :acquisition
ORDER BY segments.auv, segments.gopro_serial, segments.label, segments.id;

-- name: update_clips
UPDATE segments SET clips = :clips WHERE id = :id;

-- name: insert_run
INSERT INTO runs (job, config, sha256, provenance, created_at)
VALUES (:job, :config, :sha256, :provenance, :created_at)
ON CONFLICT DO NOTHING;

-- name: select_run
SELECT * FROM runs WHERE job = :job;

-- name: insert_job
INSERT INTO jobs (
    id, kind, acquisition, name, auv, created_at, state, step, stage, priority, host, attempt,
    inputs_on_host, need_mib, input_bytes, retries, not_before, reason, message, advice,
    avoid_hosts, shrink, frames, pixels, cap, train_steps, stride, need_ram_mib, origin, leftovers,
    reclaimed, assigned_at, revision
) VALUES (
    :id, :kind, :acquisition, :name, :auv, :created_at, :state, :step, :stage, :priority, :host,
    :attempt, :inputs_on_host, :need_mib, :input_bytes, :retries, :not_before, :reason, :message,
    :advice, :avoid_hosts, :shrink, :frames, :pixels, :cap, :train_steps, :stride,
    :need_ram_mib, :origin, :leftovers, :reclaimed, :assigned_at, :revision
) ON CONFLICT DO NOTHING;

-- name: select_jobs
SELECT jobs.*, r.attempt AS r_attempt, r.host AS r_host, r.slot AS r_slot, r.gpu AS r_gpu,
       r.mib AS r_mib, r.disk_bytes AS r_disk_bytes, r.cpu_cores AS r_cpu_cores,
       r.ram_mib AS r_ram_mib, r.decode_sessions AS r_decode_sessions
FROM jobs LEFT JOIN reservations AS r ON r.job = jobs.id
WHERE (:acquisition IS NULL OR jobs.acquisition = :acquisition)
  AND (NOT :active_only OR jobs.state NOT IN ('done', 'error', 'held', 'cancelled'))
ORDER BY jobs.created_at, jobs.id;

-- name: select_job
-- Apart from select_jobs so that it uses the key.
SELECT jobs.*, r.attempt AS r_attempt, r.host AS r_host, r.slot AS r_slot, r.gpu AS r_gpu,
       r.mib AS r_mib, r.disk_bytes AS r_disk_bytes, r.cpu_cores AS r_cpu_cores,
       r.ram_mib AS r_ram_mib, r.decode_sessions AS r_decode_sessions
FROM jobs LEFT JOIN reservations AS r ON r.job = jobs.id
WHERE jobs.id = :job;

-- name: select_new_jobs
SELECT rowid AS position, id FROM jobs WHERE rowid > :after ORDER BY rowid;

-- name: update_job
-- The fence: no row changes when another writer came first.
UPDATE jobs SET
    state = :state, step = :step, stage = :stage, priority = :priority, host = :host,
    attempt = :attempt, inputs_on_host = :inputs_on_host, need_mib = :need_mib,
    input_bytes = :input_bytes, retries = :retries, not_before = :not_before, reason = :reason,
    message = :message, advice = :advice, avoid_hosts = :avoid_hosts, shrink = :shrink,
    frames = :frames, pixels = :pixels, cap = :cap, train_steps = :train_steps, stride = :stride,
    need_ram_mib = :need_ram_mib,
    origin = :origin, leftovers = :leftovers, reclaimed = :reclaimed, assigned_at = :assigned_at,
    revision = revision + 1
WHERE id = :id AND revision = :revision;

-- name: upsert_progress
INSERT INTO progress (job, fraction, message, numbers, updated_at)
VALUES (:job, :fraction, :message, :numbers, :updated_at)
ON CONFLICT (job) DO UPDATE SET
    fraction = excluded.fraction, message = excluded.message, numbers = excluded.numbers,
    updated_at = excluded.updated_at;

-- name: delete_progress
DELETE FROM progress WHERE job = :job;

-- name: select_progress
SELECT * FROM progress;

-- name: upsert_waiting
INSERT INTO waiting (job, reason, message, per_host) VALUES (:job, :reason, :message, :per_host)
ON CONFLICT (job) DO UPDATE SET
    reason = excluded.reason, message = excluded.message, per_host = excluded.per_host;

-- name: delete_waiting
DELETE FROM waiting WHERE job = :job;

-- name: select_waiting
SELECT * FROM waiting;
