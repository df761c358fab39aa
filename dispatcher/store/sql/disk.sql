-- name: insert_removal
INSERT INTO removals (
    at, host, job, what, removed_bytes, freed_bytes, free_before, free_after
) VALUES (
    :at, :host, :job, :what, :removed_bytes, :freed_bytes, :free_before, :free_after
);

-- name: select_removals
SELECT r.*, t.freed_bytes AS freed_in_all, t.trimmed_bytes
FROM removals AS r LEFT JOIN trims AS t ON t.id = r.trim
WHERE (:job IS NULL OR r.job = :job) ORDER BY r.id;

-- name: select_untrimmed
SELECT host, MAX(id) AS last, SUM(freed_bytes) AS freed FROM removals
WHERE trim IS NULL AND (:host IS NULL OR host = :host) GROUP BY host ORDER BY host;

-- name: insert_trim
INSERT INTO trims (
    at, host, mount, method, trimmed_bytes, freed_bytes, free_before, free_after, note
) VALUES (
    :at, :host, :mount, :method, :trimmed_bytes, :freed_bytes, :free_before, :free_after, :note
);

-- name: mark_trimmed
UPDATE removals SET trim = :trim WHERE host = :host AND trim IS NULL AND id <= :last;

-- name: select_trims
SELECT * FROM trims WHERE (:host IS NULL OR host = :host) ORDER BY id;
