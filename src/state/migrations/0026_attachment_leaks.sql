-- What plugins still hold of a pod that is gone is a leak as well, if it stays.

DROP VIEW v_leaks;
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
            AND NOT EXISTS (SELECT 1 FROM prepared_networks p WHERE p.id = n.sandbox_id)
        UNION ALL
        SELECT 'attachment', coalesce(network, 'no network yet'), sandbox_id, created_at,
               'its sandbox is gone, and plugins have not let go of it', error
        FROM network_attachments a
        WHERE NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.id = a.sandbox_id)
        UNION ALL
        SELECT 'snapshot', container_id, container_id, created_at, 'its container is gone', NULL
        FROM snapshots n
        WHERE NOT EXISTS (SELECT 1 FROM containers c WHERE c.id = n.container_id)
        UNION ALL
        SELECT 'layer', chain_id, digest, created_at, 'is being removed', NULL
        FROM layers WHERE state = 'removing'
        UNION ALL
        SELECT 'layer', chain_id, digest, created_at,
               CASE state WHEN 'fetching' THEN 'is being fetched, and no pull is under way'
               ELSE 'no image, container or other layer stands on it, and no pull is under way' END,
               NULL
        FROM layers l WHERE state <> 'removing'
            AND NOT EXISTS (SELECT 1 FROM images i WHERE i.top_chain_id = l.chain_id)
            AND NOT EXISTS (SELECT 1 FROM snapshots n WHERE n.top_chain_id = l.chain_id)
            AND NOT EXISTS (SELECT 1 FROM image_volumes v WHERE v.top_chain_id = l.chain_id)
            AND NOT EXISTS (SELECT 1 FROM layers c WHERE c.parent_chain_id = l.chain_id)
            AND NOT EXISTS (SELECT 1 FROM pull_layers h WHERE h.chain_id = l.chain_id)
            AND coalesce(kept_until, 0) / 1000000000 < unixepoch()
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
