-- Limits of a pod as a whole that a client sets while it is up (UpdatePodSandboxResources).

-- The front's: the limits that are wanted, JSON (Resources), and how many updates were asked for.
ALTER TABLE sandboxes ADD COLUMN wanted_resources TEXT;
ALTER TABLE sandboxes ADD COLUMN updates_wanted INTEGER NOT NULL DEFAULT 0;
-- The back's: the limits in force, JSON, NULL before the first update; the newest update that has
-- been answered, and why it failed if it did.
ALTER TABLE sandboxes ADD COLUMN resources TEXT;
ALTER TABLE sandboxes ADD COLUMN updates_done INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN update_error TEXT;
