-- Events become what CRI streams to its clients; calls leave a mark when they have been answered.

-- The pod an event belongs to, and how CRI announces it; NULL for what is of interest to people alone.
ALTER TABLE events ADD COLUMN sandbox_id TEXT;
ALTER TABLE events ADD COLUMN announced TEXT
    CHECK (announced IN ('created','started','stopped','deleted'));
-- JSON, EventDetail: the pod and the container as they were, for readers that come when both are gone.
ALTER TABLE events ADD COLUMN detail TEXT;
CREATE INDEX events_announced ON events (sequence) WHERE announced IS NOT NULL;
CREATE INDEX events_at ON events (at);

-- (D) Since when a sandbox waits for its caller to come back; NULL once somebody has come.
ALTER TABLE sandboxes ADD COLUMN unclaimed_since INTEGER;
CREATE INDEX sandboxes_unclaimed ON sandboxes (unclaimed_since) WHERE unclaimed_since IS NOT NULL;

-- (D) Whether a caller has been told how the start ended. Until then a further StartContainer is the
-- retry of one whose answer was lost.
ALTER TABLE containers ADD COLUMN start_answered INTEGER NOT NULL DEFAULT 0;
UPDATE containers SET start_answered = 1 WHERE desired <> 'created';

-- When the newest request was answered; answered pulls are forgotten after a while.
ALTER TABLE pulls ADD COLUMN finished_at INTEGER;
UPDATE pulls SET finished_at = updated_at WHERE finished >= requested;
