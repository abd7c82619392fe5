-- Incremental jobs: a job has runs, and when the next one is due.
ALTER TABLE jobs ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN runs_done INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN trigger TEXT NOT NULL DEFAULT 'manual' CHECK (trigger IN ('manual', 'schedule', 'cut_over'));
ALTER TABLE jobs ADD COLUMN last INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN run_ended REAL NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN next_run REAL NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN number INTEGER NOT NULL DEFAULT 1;
ALTER TABLE runs ADD COLUMN trigger TEXT NOT NULL DEFAULT 'manual' CHECK (trigger IN ('manual', 'schedule', 'cut_over'));
ALTER TABLE runs ADD COLUMN image TEXT;
ALTER TABLE runs ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET number = 1 WHERE started > 0;
UPDATE jobs SET runs_done = 1 WHERE finished > 0 OR stage = 'cleaning'
