-- The queue's own book-keeping and history, and triggers that refuse what the state machines of
-- src/lifecycle do not have. Staying in a state is no transition. A test walks all pairs of states
-- of each machine against these triggers.

-- What the key names: the part before the slash.
ALTER TABLE jobs ADD COLUMN kind TEXT
    GENERATED ALWAYS AS (substr(key, 1, instr(key, '/') - 1)) VIRTUAL;
-- Which daemon runs it: a random name for each start.
ALTER TABLE jobs ADD COLUMN claimed_by TEXT;
-- How long it had been due when it was claimed.
ALTER TABLE jobs ADD COLUMN queued_ns INTEGER NOT NULL DEFAULT 0;
-- When it was reported as running longer than [jobs] long_running_s.
ALTER TABLE jobs ADD COLUMN overdue_at INTEGER;

DROP INDEX jobs_due;
CREATE INDEX jobs_due ON jobs (kind, status, next_attempt_at);

-- One row for each job that was finished and each look that failed, in the order in which they
-- ended.
CREATE TABLE job_history (
    id             INTEGER PRIMARY KEY,
    key            TEXT NOT NULL,
    kind           TEXT NOT NULL,
    status         TEXT NOT NULL CHECK (status IN ('completed','failed')),
    priority       INTEGER NOT NULL,
    attempts       INTEGER NOT NULL,              -- looks since the last one that did not fail, this one included
    created_at     INTEGER NOT NULL,              -- when the job was first asked for
    started_at     INTEGER NOT NULL,              -- this look
    completed_at   INTEGER NOT NULL,
    queue_ns       INTEGER NOT NULL,              -- due until claimed
    run_ns         INTEGER NOT NULL,              -- claimed until put down
    last_error     TEXT
) STRICT;

CREATE TRIGGER sandboxes_transition BEFORE UPDATE OF state ON sandboxes
WHEN OLD.state <> NEW.state AND NOT (
       (OLD.state = 'preparing' AND NEW.state IN ('ready','stopped','failed'))
    OR (OLD.state = 'ready' AND NEW.state = 'stopped'))
BEGIN SELECT RAISE(ABORT, 'impossible transition of sandboxes.state'); END;

CREATE TRIGGER containers_transition BEFORE UPDATE OF state ON containers
WHEN OLD.state <> NEW.state AND NOT (
       (OLD.state = 'preparing' AND NEW.state IN ('created','error'))
    OR (OLD.state = 'created' AND NEW.state = 'starting')
    OR (OLD.state = 'starting' AND NEW.state IN ('running','exited'))
    OR (OLD.state = 'running' AND NEW.state = 'exited'))
BEGIN SELECT RAISE(ABORT, 'impossible transition of containers.state'); END;

-- Wishes only ever go further.
CREATE TRIGGER sandboxes_wish BEFORE UPDATE OF desired ON sandboxes
WHEN OLD.desired <> NEW.desired AND NOT (
       (OLD.desired = 'ready' AND NEW.desired IN ('stopped','removed'))
    OR (OLD.desired = 'stopped' AND NEW.desired = 'removed'))
BEGIN SELECT RAISE(ABORT, 'impossible transition of sandboxes.desired'); END;

CREATE TRIGGER containers_wish BEFORE UPDATE OF desired ON containers
WHEN OLD.desired <> NEW.desired AND NOT (
       (OLD.desired = 'created' AND NEW.desired IN ('running','stopped','removed'))
    OR (OLD.desired = 'running' AND NEW.desired IN ('stopped','removed'))
    OR (OLD.desired = 'stopped' AND NEW.desired = 'removed'))
BEGIN SELECT RAISE(ABORT, 'impossible transition of containers.desired'); END;

CREATE TRIGGER images_wish BEFORE UPDATE OF desired ON images
WHEN OLD.desired <> NEW.desired AND NOT (OLD.desired = 'present' AND NEW.desired = 'removed')
BEGIN SELECT RAISE(ABORT, 'impossible transition of images.desired'); END;

CREATE TRIGGER layers_transition BEFORE UPDATE OF state ON layers
WHEN OLD.state <> NEW.state AND NOT (
       (OLD.state = 'fetching' AND NEW.state IN ('present','removing'))
    OR (OLD.state = 'present' AND NEW.state = 'removing'))
BEGIN SELECT RAISE(ABORT, 'impossible transition of layers.state'); END;

CREATE TRIGGER network_allocations_transition BEFORE UPDATE OF status ON network_allocations
WHEN OLD.status <> NEW.status AND NOT (
       (OLD.status = 'allocated' AND NEW.status IN ('active','cleanup_pending'))
    OR (OLD.status = 'active' AND NEW.status = 'cleanup_pending')
    OR (OLD.status = 'cleanup_pending' AND NEW.status = 'cleaned'))
BEGIN SELECT RAISE(ABORT, 'impossible transition of network_allocations.status'); END;

CREATE TRIGGER jobs_transition BEFORE UPDATE OF status ON jobs
WHEN OLD.status = 'running' AND NEW.status = 'running'
BEGIN SELECT RAISE(ABORT, 'impossible transition of jobs.status'); END;
