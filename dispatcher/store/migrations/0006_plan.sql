-- The rest of a job's plan that needs depend on, and of what the runs were that needs are learned from.

ALTER TABLE jobs ADD COLUMN train_steps INTEGER NOT NULL DEFAULT 0; -- 0: not known
ALTER TABLE jobs ADD COLUMN stride INTEGER NOT NULL DEFAULT 1; -- every n-th frame is used

ALTER TABLE stage_metrics ADD COLUMN train_steps INTEGER NOT NULL DEFAULT 0;
