-- name: insert_event
INSERT INTO events (at, kind, job, attempt, host, payload, stimulus, source)
VALUES (:at, :kind, :job, :attempt, :host, :payload, :stimulus, :source);

-- name: select_events
SELECT * FROM events
WHERE id > :after AND (:kind IS NULL OR kind = :kind) AND (:host IS NULL OR host = :host)
ORDER BY id LIMIT :limit;

-- name: select_job_events
-- Apart from select_events so that it uses the index.
SELECT * FROM events
WHERE job = :job AND id > :after AND (:kind IS NULL OR kind = :kind)
  AND (:host IS NULL OR host = :host)
ORDER BY id LIMIT :limit;

-- name: select_offsets
SELECT host, events_bytes, log_bytes FROM attempts WHERE job = :job AND attempt = :attempt;

-- name: move_offsets
UPDATE attempts SET events_bytes = :events, log_bytes = :log
WHERE job = :job AND attempt = :attempt;

-- name: insert_log
INSERT INTO logs (job, attempt, position, data) VALUES (:job, :attempt, :position, :data);

-- name: select_logs
SELECT position, data FROM logs
WHERE job = :job AND attempt = :attempt AND position + LENGTH(data) > :offset ORDER BY position;

-- name: select_stored_logs
SELECT job, SUM(LENGTH(data)) AS bytes, MAX(COALESCE(ended_at, committed_at)) AS ended_at
FROM logs JOIN attempts USING (job, attempt) GROUP BY job ORDER BY job;

-- name: delete_logs
DELETE FROM logs WHERE job = :job
  AND EXISTS (SELECT 1 FROM jobs WHERE id = :job AND state IN ('done', 'error', 'cancelled'));
