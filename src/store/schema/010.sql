-- Tokens that see only what has certain tags.
ALTER TABLE tokens ADD COLUMN scope TEXT
