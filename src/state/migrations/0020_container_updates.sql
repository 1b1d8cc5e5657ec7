-- Limits of containers that change while they live (UpdateContainerResources).

-- The front's: the limits that are wanted, JSON (Resources), and how many updates were asked for.
ALTER TABLE containers ADD COLUMN wanted_resources TEXT;
ALTER TABLE containers ADD COLUMN updates_wanted INTEGER NOT NULL DEFAULT 0;
-- The back's: the limits in force, JSON, NULL as long as they are those of spec; the newest update
-- that has been answered, and why it failed if it did.
ALTER TABLE containers ADD COLUMN resources TEXT;
ALTER TABLE containers ADD COLUMN updates_done INTEGER NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN update_error TEXT;
