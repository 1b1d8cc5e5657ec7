-- The back's: the limits that the kernel held for a container when they were last set, in the terms
-- of the request (JSON). Without it nobody has read them back.

ALTER TABLE containers ADD COLUMN held_resources TEXT;
