-- A job that is moved takes along what its finished stages made; what it leaves behind is removed
-- once that lies verified on the new host.

ALTER TABLE jobs ADD COLUMN origin TEXT; -- where it lies while it is not yet on the job's host
ALTER TABLE jobs ADD COLUMN leftovers TEXT NOT NULL DEFAULT '[]'; -- JSON list of hosts
