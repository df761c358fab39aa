-- What a stage's need depends on, what an attempt was promised beside device memory, and what the
-- runs that needs are learned from were of.

ALTER TABLE jobs ADD COLUMN frames INTEGER NOT NULL DEFAULT 0; -- 0: not known yet
ALTER TABLE jobs ADD COLUMN pixels INTEGER NOT NULL DEFAULT 0; -- of one frame
ALTER TABLE jobs ADD COLUMN cap INTEGER NOT NULL DEFAULT 0; -- gaussians the training may make
ALTER TABLE jobs ADD COLUMN need_ram_mib INTEGER; -- raised after running out of memory

ALTER TABLE reservations ADD COLUMN cpu_cores REAL NOT NULL DEFAULT 0;
ALTER TABLE reservations ADD COLUMN ram_mib INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reservations ADD COLUMN decode_sessions INTEGER NOT NULL DEFAULT 0;

ALTER TABLE stage_metrics ADD COLUMN device TEXT NOT NULL DEFAULT ''; -- GPU model; '' for none
ALTER TABLE stage_metrics ADD COLUMN frames INTEGER NOT NULL DEFAULT 0;
ALTER TABLE stage_metrics ADD COLUMN pixels INTEGER NOT NULL DEFAULT 0;
ALTER TABLE stage_metrics ADD COLUMN cap INTEGER NOT NULL DEFAULT 0;
ALTER TABLE stage_metrics ADD COLUMN peak_disk_bytes INTEGER; -- of the run directory's growth
CREATE INDEX stage_metrics_by_stage ON stage_metrics (stage, device);
