-- The stable interface for reading: docs/database.md describes every column of every view, and a
-- test compares the two. Views may grow columns; none is renamed, removed or given another meaning.

-- Who ended a container's process, decided when the exit is recorded: 'self' it ended by itself,
-- 'client' StopContainer, 'removal' RemoveContainer, 'pod' its pod was stopped or removed, 'oom' the
-- kernel for want of memory, 'start' it never ran, 'reboot' the node went down, 'unknown' nobody saw.
ALTER TABLE containers ADD COLUMN ended_by TEXT CHECK
    (ended_by IN ('self','client','removal','pod','oom','start','reboot','unknown'));

DROP VIEW IF EXISTS v_pods;
CREATE VIEW v_pods AS
    SELECT s.id, s.namespace, s.name, s.uid, s.attempt, s.desired, s.state, n.address,
           (SELECT count(*) FROM containers c WHERE c.sandbox_id = s.id AND c.state = 'running')
               AS running_containers,
           s.created_at, s.error,
           (SELECT count(*) FROM containers c WHERE c.sandbox_id = s.id) AS containers,
           s.ready_at, s.stopped_at
    FROM sandboxes s LEFT JOIN network_allocations n ON n.sandbox_id = s.id;

DROP VIEW IF EXISTS v_containers;
CREATE VIEW v_containers AS
    SELECT c.id, c.sandbox_id, s.namespace, s.name AS pod, c.name, c.attempt, c.image, c.desired,
           c.state, c.pid, c.exit_code, c.reason, c.created_at, c.started_at, c.exited_at, c.error,
           c.image_id, c.ended_by, c.oom_killed, c.stop_at, c.signalled_at, c.command,
           c.memory_limit_bytes, c.cpu_quota_us, c.cpu_shares
    FROM containers c JOIN sandboxes s ON s.id = c.sandbox_id;

CREATE VIEW v_images AS
    SELECT i.id,
           (SELECT json_group_array(r.reference) FROM
               (SELECT reference FROM image_references WHERE image_id = i.id AND kind = 'tag'
                ORDER BY reference) r) AS tags,
           (SELECT json_group_array(r.reference) FROM
               (SELECT reference FROM image_references WHERE image_id = i.id AND kind = 'digest'
                ORDER BY reference) r) AS digests,
           i.manifest_digest, i.size_bytes,
           (SELECT count(*) FROM containers c WHERE c.image_id = i.id) AS containers,
           i.pinned, i.desired, i.created_at
    FROM images i;

CREATE VIEW v_addresses AS
    SELECT n.address, n.prefix_length, n.gateway, n.status, n.sandbox_id, s.namespace,
           s.name AS pod, n.bridge, n.host_link, n.pod_link, n.allocated_at, n.setup_completed_at
    FROM network_allocations n LEFT JOIN sandboxes s ON s.id = n.sandbox_id;

CREATE VIEW v_jobs AS
    SELECT j.key, substr(j.key, 1, instr(j.key, '/') - 1) AS object_kind,
           substr(j.key, instr(j.key, '/') + 1) AS object_id,
           j.status, j.priority, j.attempts, j.created_at, j.claimed_at, j.next_attempt_at,
           j.last_error, j.overdue_at
    FROM jobs j;

CREATE VIEW v_job_history AS
    SELECT h.id, h.key, h.kind AS object_kind, substr(h.key, instr(h.key, '/') + 1) AS object_id,
           h.status, h.priority, h.attempts, h.created_at, h.started_at, h.completed_at,
           h.queue_ns / 1e6 AS queue_ms, h.run_ns / 1e6 AS run_ms, h.last_error
    FROM job_history h;

DROP VIEW IF EXISTS v_operations;
CREATE VIEW v_operations AS
    SELECT id, kind, object_id, started_at, duration_ns / 1e6 AS duration_ms, error, stages
    FROM operations;

CREATE VIEW v_events AS
    SELECT e.sequence, e.at, e.level, e.object_kind, e.object_id, e.kind, e.message,
           coalesce(s.namespace, o.namespace) AS namespace,
           coalesce(s.name, o.name) AS pod, c.name AS container
    FROM events e
    LEFT JOIN sandboxes s ON s.id = e.object_id
    LEFT JOIN containers c ON c.id = e.object_id
    LEFT JOIN sandboxes o ON o.id = c.sandbox_id;

-- What should be gone, or stands for nothing. A row that is here for a moment is work in progress.
CREATE VIEW v_leaks AS
    SELECT l.kind, l.object, l.owner, l.since,
           CAST(unixepoch('subsec') * 1000 AS INTEGER) / 1000.0 - l.since / 1e9 AS age_s,
           l.why, l.error
    FROM (
        SELECT 'cleanup' AS kind, resource_type || ' ' || path AS object, owner,
               created_at AS since, 'waits to be removed: ' || status AS why, error
        FROM cleanup_tasks WHERE status <> 'completed'
        UNION ALL
        SELECT 'address', address, sandbox_id, allocated_at, 'its sandbox is gone', NULL
        FROM network_allocations n
        WHERE NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.id = n.sandbox_id)
        UNION ALL
        SELECT 'snapshot', container_id, container_id, created_at, 'its container is gone', NULL
        FROM snapshots n
        WHERE NOT EXISTS (SELECT 1 FROM containers c WHERE c.id = n.container_id)
        UNION ALL
        SELECT 'layer', chain_id, digest, created_at, 'is being removed', NULL
        FROM layers WHERE state = 'removing'
        UNION ALL
        SELECT 'layer', chain_id, digest, created_at, 'is being fetched, and no pull is under way',
               NULL
        FROM layers WHERE state = 'fetching'
            AND NOT EXISTS (SELECT 1 FROM pulls WHERE finished < requested)
        UNION ALL
        SELECT 'layer', chain_id, digest, created_at,
               'no image, container or other layer stands on it, and no pull is under way', NULL
        FROM layers l WHERE state = 'present'
            AND NOT EXISTS (SELECT 1 FROM images i WHERE i.top_chain_id = l.chain_id)
            AND NOT EXISTS (SELECT 1 FROM snapshots n WHERE n.top_chain_id = l.chain_id)
            AND NOT EXISTS (SELECT 1 FROM layers c WHERE c.parent_chain_id = l.chain_id)
            AND NOT EXISTS (SELECT 1 FROM pulls WHERE finished < requested)
        UNION ALL
        SELECT 'sandbox', id, namespace || '/' || name, created_at,
               'is to be removed, and nothing is queued', error
        FROM sandboxes s WHERE (desired = 'removed' OR state = 'failed')
            AND NOT EXISTS (SELECT 1 FROM jobs WHERE key = 'sandbox/' || s.id)
        UNION ALL
        SELECT 'container', id, sandbox_id, created_at,
               'is to be removed, and nothing is queued', error
        FROM containers c WHERE (desired = 'removed' OR state = 'error')
            AND NOT EXISTS (SELECT 1 FROM jobs WHERE key = 'container/' || c.id)
        UNION ALL
        SELECT 'image', id, id, created_at, 'is to be removed, and nothing is queued', NULL
        FROM images i WHERE desired = 'removed'
            AND NOT EXISTS (SELECT 1 FROM jobs WHERE key = 'image/' || i.id)
        UNION ALL
        SELECT 'cgroup', id, sandbox_id, exited_at,
               'its container has ended, and nothing is queued', NULL
        FROM containers c WHERE state = 'exited' AND released = 0
            AND NOT EXISTS (SELECT 1 FROM jobs WHERE key = 'container/' || c.id)
        UNION ALL
        SELECT 'monitor', CAST(m.pid AS TEXT), m.container_id, m.started_at,
               'watches a container that does not run', NULL
        FROM process_monitors m JOIN containers c ON c.id = m.container_id
        WHERE m.status = 'monitoring' AND c.state <> 'running'
    ) l;
