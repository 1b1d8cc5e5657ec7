-- The death of a pod's init, and cleanup tasks of every kind of thing that can be left over.

-- When PID 1 of the pod's shared PID namespace ended by itself: the pod is brought down.
ALTER TABLE sandboxes ADD COLUMN init_ended_at INTEGER;

CREATE TABLE cleanup_tasks_of_any_kind (
    id             INTEGER PRIMARY KEY,
    resource_type  TEXT NOT NULL CHECK (resource_type IN ('rootfs','network','bridge','cgroup',
                       'mounts','layer','sandbox_files','container_files')),
    path           TEXT NOT NULL,                 -- what to remove: a path, a link, an id, a chain id
    owner          TEXT NOT NULL,                 -- whose it was; empty when nobody knows
    status         TEXT NOT NULL
                   CHECK (status IN ('pending','in_progress','completed','failed')),
    attempts       INTEGER NOT NULL DEFAULT 0,
    created_at     INTEGER NOT NULL,
    started_at     INTEGER,                       -- of the newest attempt
    completed_at   INTEGER,
    error          TEXT,
    UNIQUE (resource_type, path),
    CHECK (status <> 'failed' OR error IS NOT NULL),
    CHECK ((status = 'completed') = (completed_at IS NOT NULL))
) STRICT;
INSERT INTO cleanup_tasks_of_any_kind
        (id, resource_type, path, owner, status, attempts, created_at, completed_at, error)
    SELECT id, resource_type, path, owner, CASE status WHEN 'in_progress' THEN 'pending'
               WHEN 'failed' THEN 'pending' ELSE status END, 0, created_at,
           CASE status WHEN 'completed' THEN coalesce(completed_at, created_at) END, error
    FROM cleanup_tasks;
DROP TABLE cleanup_tasks;
ALTER TABLE cleanup_tasks_of_any_kind RENAME TO cleanup_tasks;
CREATE INDEX cleanup_tasks_open ON cleanup_tasks (status) WHERE status <> 'completed';

-- A layer that is gone from the disk is not there any more: the next pull brings it back.
DROP TRIGGER layers_transition;
CREATE TRIGGER layers_transition BEFORE UPDATE OF state ON layers
WHEN OLD.state <> NEW.state AND NOT (
       (OLD.state = 'fetching' AND NEW.state IN ('present','removing'))
    OR (OLD.state = 'present' AND NEW.state IN ('removing','fetching')))
BEGIN SELECT RAISE(ABORT, 'impossible transition of layers.state'); END;
