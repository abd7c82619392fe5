-- Who did what; `who` outlives its token.
CREATE TABLE audit (
  id TEXT PRIMARY KEY, created REAL NOT NULL, who TEXT, name TEXT, role TEXT NOT NULL, address TEXT NOT NULL,
  action TEXT NOT NULL, object TEXT, status INTEGER NOT NULL, code TEXT
) STRICT;
CREATE INDEX audit_created ON audit (created)
