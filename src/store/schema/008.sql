-- What a code is for, and the nonces of signed requests: each serves once.
ALTER TABLE codes ADD COLUMN description TEXT;
CREATE TABLE nonces (nonce TEXT PRIMARY KEY, expires REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX nonces_expires ON nonces (expires)
