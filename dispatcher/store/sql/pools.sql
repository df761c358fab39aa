-- name: save_thin_pool
INSERT INTO thin_pools (key, data_percent, metadata_percent, bytes, read_at, shut, message)
VALUES (:key, :data_percent, :metadata_percent, :bytes, :read_at, :shut, :message)
ON CONFLICT (key) DO UPDATE SET
    data_percent = excluded.data_percent, metadata_percent = excluded.metadata_percent,
    bytes = excluded.bytes, read_at = excluded.read_at, shut = excluded.shut,
    message = excluded.message;

-- name: select_thin_pools
SELECT * FROM thin_pools ORDER BY key;
