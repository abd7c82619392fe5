-- Sources go at once.
ALTER TABLE sources DROP COLUMN deleting
