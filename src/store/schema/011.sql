-- Several centers on one database: who has the right to work on what, and what it tells the others of it.
CREATE TABLE leases (
  name TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL,
  stops INTEGER NOT NULL, news INTEGER NOT NULL, view TEXT
) STRICT;
-- Which center heard of a source last, and when by the database's clock.
CREATE TABLE heard (source TEXT PRIMARY KEY, center TEXT NOT NULL, time REAL NOT NULL) STRICT;
-- What an agent told another center than its job's.
CREATE TABLE reports (
  id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, time REAL NOT NULL, body TEXT NOT NULL
) STRICT
