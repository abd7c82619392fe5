-- Instances: machines that run in a region, and what their disks held at moments.
CREATE TABLE instances (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, description TEXT, region TEXT NOT NULL REFERENCES regions(id), ref TEXT,
  state TEXT NOT NULL CHECK (state IN ('off', 'running', 'paused', 'crashed', 'missing')),
  settings TEXT, seen TEXT, error TEXT, image TEXT, job TEXT, disks TEXT, switching TEXT,
  deleting INTEGER NOT NULL, created REAL NOT NULL, updated REAL NOT NULL, tags TEXT
) STRICT;
CREATE UNIQUE INDEX instances_ref ON instances (region, ref);
CREATE TABLE snapshots (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, instance TEXT NOT NULL REFERENCES instances(id) ON DELETE CASCADE,
  disks TEXT NOT NULL, job TEXT, created REAL NOT NULL
) STRICT;
CREATE INDEX snapshots_instance ON snapshots (instance, created);
-- Where a job goes, and whether its run is a test.
ALTER TABLE jobs ADD COLUMN destination TEXT NOT NULL DEFAULT 'image' CHECK (destination IN ('image', 'instance'));
ALTER TABLE jobs ADD COLUMN instance TEXT;
ALTER TABLE jobs ADD COLUMN testing TEXT NOT NULL DEFAULT '' CHECK (testing IN ('', 'test_only', 'test_and_migrate'));
ALTER TABLE jobs ADD COLUMN test TEXT;
-- Two migrations onto one instance would take the way back from each other.
CREATE UNIQUE INDEX jobs_instance ON jobs (instance) WHERE instance IS NOT NULL AND state NOT IN ('finished', 'deleting');
-- Of an image that was repaired: which one it stands on; and what its last check found.
ALTER TABLE images ADD COLUMN base TEXT;
ALTER TABLE images ADD COLUMN checked TEXT
