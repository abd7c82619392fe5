-- A removal of an image that was begun is carried on by the next center.
ALTER TABLE images ADD COLUMN deleting INTEGER NOT NULL DEFAULT 0
