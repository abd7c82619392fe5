-- Whom to tell of what, and what each of them is to be told, was told, or couldn't be.
CREATE TABLE subscriptions (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, target TEXT NOT NULL, events TEXT NOT NULL, active INTEGER NOT NULL,
  created REAL NOT NULL, delivered REAL NOT NULL, failed REAL NOT NULL, error TEXT
) STRICT;
CREATE TABLE notices (
  id TEXT PRIMARY KEY, subscription TEXT NOT NULL REFERENCES subscriptions(id) ON DELETE CASCADE, event TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'given_up')), attempts INTEGER NOT NULL,
  created REAL NOT NULL, next_try REAL NOT NULL, ended REAL NOT NULL, error TEXT, body TEXT NOT NULL
) STRICT;
CREATE INDEX notices_subscription ON notices (subscription, state, created);
-- Which end of the job has been told of beforehand.
ALTER TABLE jobs ADD COLUMN expiry_told REAL NOT NULL DEFAULT 0
