-- name: delete_stray_leases
DELETE FROM leases WHERE NOT EXISTS (
    SELECT 1 FROM reservations AS r WHERE r.job = leases.job AND r.attempt = leases.attempt
);

-- name: upsert_silence
-- The first moment counts, however often the host is tried meanwhile.
INSERT INTO silences (host, since, message) VALUES (:host, :since, :message)
ON CONFLICT (host) DO UPDATE SET message = excluded.message;

-- name: delete_silence
DELETE FROM silences WHERE host = :host;

-- name: select_silences
SELECT * FROM silences ORDER BY host;

-- name: delete_findings
DELETE FROM findings WHERE host = :host;

-- name: insert_finding
INSERT INTO findings (host, kind, job, attempt, message, seen_at)
VALUES (:host, :kind, :job, :attempt, :message, :seen_at)
ON CONFLICT DO NOTHING;

-- name: select_findings
SELECT * FROM findings ORDER BY host, job, attempt, kind;
