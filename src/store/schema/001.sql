-- Columns are the fields of the nouns in src/model/model.c under the same names.
CREATE TABLE sources (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT,
  state TEXT NOT NULL CHECK (state IN ('available', 'in_use', 'unavailable', 'deleting')),
  hostname TEXT, machine_id TEXT NOT NULL UNIQUE, agent_version TEXT, boot_id TEXT,
  secret_hash TEXT NOT NULL, deleting INTEGER NOT NULL, created REAL NOT NULL, last_seen REAL NOT NULL, inventory TEXT
) STRICT;

CREATE TABLE regions (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, provider TEXT NOT NULL, created REAL NOT NULL, settings TEXT
) STRICT;

CREATE TABLE jobs (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT, source TEXT NOT NULL,
  region TEXT NOT NULL REFERENCES regions(id), image_name TEXT,
  state TEXT NOT NULL CHECK (state IN ('ready', 'running', 'stopped', 'in_error', 'finished', 'waiting', 'expired', 'deleting')),
  stage TEXT NOT NULL CHECK (stage IN ('', 'preparing', 'syncing', 'processing', 'cleaning')),
  step_name TEXT, step_text TEXT, parameters TEXT NOT NULL, progress TEXT, stages TEXT, error TEXT,
  image TEXT, image_pending TEXT, run TEXT,
  created REAL NOT NULL, started REAL NOT NULL, finished REAL NOT NULL, updated REAL NOT NULL, expires REAL NOT NULL
) STRICT;
-- A source has at most one job that isn't over.
CREATE UNIQUE INDEX jobs_unfinished ON jobs (source) WHERE state NOT IN ('finished', 'deleting');
CREATE INDEX jobs_state ON jobs (state);

CREATE TABLE runs (
  id TEXT PRIMARY KEY, job TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  state TEXT NOT NULL CHECK (state IN ('active', 'done', 'failed', 'cancelled')),
  started REAL NOT NULL, ended REAL NOT NULL, result TEXT, error TEXT
) STRICT;
CREATE INDEX runs_job ON runs (job);

-- An image outlives its job and its source: their ids are history.
CREATE TABLE images (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT, job TEXT NOT NULL, source TEXT NOT NULL,
  region TEXT NOT NULL REFERENCES regions(id), created REAL NOT NULL, manifest TEXT, report TEXT, boot TEXT, screenshot TEXT
) STRICT;

CREATE TABLE codes (
  id TEXT PRIMARY KEY, name TEXT, uses INTEGER NOT NULL, used INTEGER NOT NULL CHECK (used <= uses),
  created REAL NOT NULL, expires REAL NOT NULL, revoked INTEGER NOT NULL, secret_hash TEXT NOT NULL
) STRICT;

CREATE TABLE tokens (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
  created REAL NOT NULL, secret_hash TEXT NOT NULL
) STRICT;

CREATE TABLE exports (
  id TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images(id), disk INTEGER NOT NULL,
  format TEXT NOT NULL CHECK (format IN ('qcow2', 'raw', 'vmdk', 'vhdx')),
  state TEXT NOT NULL CHECK (state IN ('running', 'finished', 'in_error')),
  percent REAL NOT NULL, size INTEGER NOT NULL, created REAL NOT NULL, error TEXT
) STRICT;

CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL
) STRICT;
