-- name: insert_attempt
INSERT INTO attempts (job, attempt, stage, host, gpu, state, epoch, committed_at, stimulus)
VALUES (:job, :attempt, :stage, :host, :gpu, 'starting', :epoch, :committed_at, :stimulus);

-- name: acknowledge_attempt
UPDATE attempts SET state = 'running', started_at = COALESCE(started_at, :at)
WHERE job = :job AND attempt = :attempt AND state = 'starting';

-- name: end_attempt
UPDATE attempts SET state = :state, ended_at = :at, resumed = :resumed, reason = :reason,
    message = :message, evidence = :evidence
WHERE job = :job AND attempt = :attempt;

-- name: select_attempts
SELECT * FROM attempts WHERE job = :job ORDER BY attempt;

-- name: select_attempt
SELECT * FROM attempts WHERE job = :job AND attempt = :attempt;

-- name: keep_exit
UPDATE attempts SET exit = :exit WHERE job = :job AND attempt = :attempt;

-- name: upsert_stage_metrics
INSERT INTO stage_metrics (
    job, attempt, stage, host, gpu, device, frames, pixels, cap, train_steps,
    wall_s, cpu_s, peak_rss_mib, peak_vram_mib, peak_disk_bytes, metrics
) VALUES (
    :job, :attempt, :stage, :host, :gpu, :device, :frames, :pixels, :cap, :train_steps,
    :wall_s, :cpu_s, :peak_rss_mib, :peak_vram_mib, :peak_disk_bytes, :metrics
) ON CONFLICT (job, attempt) DO NOTHING;

-- name: select_stage_metrics
SELECT * FROM stage_metrics WHERE (:job IS NULL OR job = :job) ORDER BY job, attempt;

-- name: select_device
SELECT name FROM gpus WHERE host = :host AND uuid = :gpu;

-- name: select_observations
-- The newest of each stage and device, oldest first. What was resumed did no work, and what failed
-- otherwise than for memory or disk says nothing about how much is needed.
SELECT * FROM (
    SELECT m.*, a.reason AS died_of, a.ended_at AS at, ROW_NUMBER() OVER (
        PARTITION BY m.stage, m.device ORDER BY a.ended_at DESC, m.job DESC, m.attempt DESC
    ) AS age
    FROM stage_metrics AS m JOIN attempts AS a ON a.job = m.job AND a.attempt = m.attempt
    WHERE (a.state = 'succeeded' AND NOT a.resumed)
       OR (a.state = 'failed' AND a.reason IN ('gpu_out_of_memory', 'out_of_memory', 'disk_full'))
) WHERE age <= :newest ORDER BY at, job, attempt;

-- name: select_observation
SELECT m.*, a.reason AS died_of
FROM stage_metrics AS m JOIN attempts AS a ON a.job = m.job AND a.attempt = m.attempt
WHERE m.job = :job AND m.attempt = :attempt
  AND ((a.state = 'succeeded' AND NOT a.resumed)
       OR (a.state = 'failed' AND a.reason IN ('gpu_out_of_memory', 'out_of_memory', 'disk_full')));

-- name: insert_reservation
INSERT INTO reservations (
    job, attempt, host, slot, gpu, mib, disk_bytes, cpu_cores, ram_mib, decode_sessions
) VALUES (
    :job, :attempt, :host, :slot, :gpu, :mib, :disk_bytes, :cpu_cores, :ram_mib, :decode_sessions
);

-- name: select_live_attempt
SELECT attempt FROM reservations WHERE job = :job;

-- name: delete_reservation
DELETE FROM reservations WHERE job = :job;

-- name: insert_lease
INSERT INTO leases (
    job, attempt, host, lease_s, host_boot, renewed_at, renewed_monotonic, clock_boot
) VALUES (
    :job, :attempt, :host, :lease_s, :host_boot, :renewed_at, :renewed_monotonic, :clock_boot
);

-- name: delete_lease
DELETE FROM leases WHERE job = :job AND attempt = :attempt;

-- name: renew_lease
UPDATE leases SET renewed_at = MAX(renewed_at, :at),
    renewed_monotonic = :monotonic, clock_boot = :clock_boot
WHERE job = :job AND attempt = :attempt;

-- name: select_lease
SELECT * FROM leases WHERE job = :job AND attempt = :attempt;

-- name: select_leases
SELECT * FROM leases ORDER BY job, attempt;

-- name: upsert_artifact
INSERT INTO artifacts (job, path, kind, bytes, sha256, host, attempt, local_path, remote_url)
VALUES (:job, :path, :kind, :bytes, :sha256, :host, :attempt, :local_path, :remote_url)
ON CONFLICT (job, path) DO UPDATE SET
    kind = excluded.kind, bytes = excluded.bytes, host = excluded.host,
    attempt = excluded.attempt, sha256 = excluded.sha256,
    -- Other bytes than the ones collected: they have to be collected again.
    local_path = CASE WHEN excluded.local_path IS NOT NULL THEN excluded.local_path
                      WHEN artifacts.sha256 = excluded.sha256 THEN artifacts.local_path END,
    remote_url = CASE WHEN excluded.remote_url IS NOT NULL THEN excluded.remote_url
                      WHEN artifacts.sha256 = excluded.sha256 THEN artifacts.remote_url END;

-- name: select_job_artifacts
-- Apart from select_artifacts so that it uses the key.
SELECT * FROM artifacts WHERE job = :job
  AND (:path IS NULL OR :path IN (path, local_path, remote_url))
  AND (:sha256 IS NULL OR sha256 = :sha256)
ORDER BY path;

-- name: select_artifacts
SELECT artifacts.* FROM artifacts JOIN jobs ON jobs.id = artifacts.job
WHERE (:job IS NULL OR artifacts.job = :job)
  AND (:acquisition IS NULL OR jobs.acquisition = :acquisition)
  AND (:path IS NULL OR :path IN (artifacts.path, artifacts.local_path, artifacts.remote_url))
  AND (:sha256 IS NULL OR artifacts.sha256 = :sha256)
ORDER BY artifacts.job, artifacts.path;
