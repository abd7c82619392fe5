-- Tags, a job's time, and the request that made it.
ALTER TABLE sources ADD COLUMN tags TEXT;
ALTER TABLE images ADD COLUMN tags TEXT;
ALTER TABLE jobs ADD COLUMN tags TEXT;
ALTER TABLE jobs ADD COLUMN valid_days INTEGER NOT NULL DEFAULT 30;
ALTER TABLE jobs ADD COLUMN client_token TEXT;
ALTER TABLE jobs ADD COLUMN client_digest TEXT;
CREATE UNIQUE INDEX jobs_client_token ON jobs (client_token)
