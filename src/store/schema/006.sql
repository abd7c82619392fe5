-- Presets of jobs, and sources that move together.
CREATE TABLE templates (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, description TEXT, created REAL NOT NULL, job TEXT NOT NULL
) STRICT;
CREATE TABLE workgroups (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, description TEXT, created REAL NOT NULL, tags TEXT
) STRICT;
ALTER TABLE jobs ADD COLUMN template TEXT;
ALTER TABLE sources ADD COLUMN workgroup TEXT REFERENCES workgroups(id);
CREATE INDEX sources_workgroup ON sources (workgroup);
CREATE INDEX jobs_source ON jobs (source, created)
