-- name: insert_stitch
INSERT INTO stitches (
    id, acquisition, level, auv, version, state, job, passthrough, report, decisions, created_at
) VALUES (
    :id, :acquisition, :level, :auv, :version, :state, :job, :passthrough, :report, :decisions,
    :created_at
) ON CONFLICT DO NOTHING;

-- name: insert_stitch_input
INSERT INTO stitch_inputs (stitch, position, member) VALUES (:stitch, :position, :member);

-- name: select_stitches
SELECT * FROM stitches
WHERE (:acquisition IS NULL OR acquisition = :acquisition)
  AND (:key IS NULL OR id = :key OR job = :key)
ORDER BY created_at, id;

-- name: select_stitch_inputs
SELECT member FROM stitch_inputs WHERE stitch = :stitch ORDER BY position;

-- name: update_stitch
UPDATE stitches SET state = COALESCE(:state, state), report = COALESCE(:report, report)
WHERE id = :id;

-- name: mirror_stitch_state
UPDATE stitches SET state = :state WHERE job = :job;

-- name: upsert_host
INSERT INTO hosts (name, state, message, facts, cordoned, probed_at, updated_at)
VALUES (:name, :state, :message, :facts, :cordoned, :probed_at, :updated_at)
ON CONFLICT (name) DO UPDATE SET
    state = excluded.state, message = excluded.message, updated_at = excluded.updated_at,
    facts = COALESCE(excluded.facts, hosts.facts),
    probed_at = COALESCE(excluded.probed_at, hosts.probed_at);

-- name: cordon_host
INSERT INTO hosts (name, state, message, facts, cordoned, draining, probed_at, updated_at)
VALUES (:name, 'unknown', 'not probed yet', NULL, :cordoned, :draining, NULL, :updated_at)
ON CONFLICT (name) DO UPDATE SET cordoned = excluded.cordoned, draining = excluded.draining;

-- name: select_cordons
SELECT name, draining FROM hosts WHERE cordoned ORDER BY name;

-- name: save_breaker
INSERT INTO breakers (
    key, host, gpu, position, why, failures, opened_at, until, trips, failed_tests
) VALUES (
    :key, :host, :gpu, :position, :why, :failures, :opened_at, :until, :trips, :failed_tests
) ON CONFLICT (key) DO UPDATE SET
    host = excluded.host, position = excluded.position, why = excluded.why,
    failures = excluded.failures, opened_at = excluded.opened_at, until = excluded.until,
    trips = excluded.trips, failed_tests = excluded.failed_tests;

-- name: select_breakers
SELECT * FROM breakers ORDER BY key;

-- name: delete_breakers
DELETE FROM breakers WHERE host = :host;

-- name: select_hosts
SELECT * FROM hosts ORDER BY name;

-- name: delete_gpus
DELETE FROM gpus WHERE host = :host AND NOT (:silent AND kind = 'cuda');

-- name: insert_gpu
INSERT OR REPLACE INTO gpus (host, uuid, name, kind, total_mib, free_mib, processes, updated_at)
VALUES (:host, :uuid, :name, :kind, :total_mib, :free_mib, :processes, :updated_at);

-- name: select_gpus
SELECT * FROM gpus WHERE (:host IS NULL OR host = :host) ORDER BY host, uuid;

-- name: insert_request
INSERT INTO requests (kind, job, args, created_at, state, answer)
VALUES (:kind, :job, :args, :created_at, 'pending', '');

-- name: select_requests
SELECT * FROM requests
WHERE (:id IS NULL OR id = :id) AND (:state IS NULL OR state = :state) ORDER BY id;

-- name: select_requests_of
SELECT * FROM requests WHERE kind IN (SELECT value FROM json_each(:kinds)) ORDER BY id;

-- name: finish_request
UPDATE requests SET state = :state, answer = :answer, finished_at = :finished_at WHERE id = :id;

-- name: insert_dispatcher
INSERT INTO dispatchers (epoch, host, pid, started_at)
SELECT MAX(COALESCE(MAX(epoch), 0) + 1, CAST(:started_at * 1000000 AS INTEGER)), :host, :pid, :started_at
FROM dispatchers;

-- name: select_last_epoch
SELECT epoch FROM dispatchers ORDER BY epoch DESC LIMIT 1;
