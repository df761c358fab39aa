-- Since when a job waits on the host it has: what came there first starts first.

ALTER TABLE jobs ADD COLUMN assigned_at REAL NOT NULL DEFAULT 0;
