-- What the image store knows of itself: lists of entries, what a check has shown, what a pull under
-- way holds, and the documents an image was made of.

-- Entries of the tree, its root included; SHA-256 of the list of them. NULL: put there by a version
-- that made none; the first check makes it.
ALTER TABLE layers ADD COLUMN entries INTEGER;
ALTER TABLE layers ADD COLUMN seal TEXT;
-- When it was last compared with its list, and what was wrong; NULL is nothing.
ALTER TABLE layers ADD COLUMN checked_at INTEGER;
ALTER TABLE layers ADD COLUMN damage TEXT;
-- Its pull failed: until then it waits for a retry, although nothing needs it.
ALTER TABLE layers ADD COLUMN kept_until INTEGER;
CREATE INDEX layers_kept ON layers (kept_until) WHERE kept_until IS NOT NULL;

-- What a pull, or an import, needs while it is under way.
CREATE TABLE pull_layers (
    reference      TEXT NOT NULL,                 -- of its row in pulls
    chain_id       TEXT NOT NULL REFERENCES layers (chain_id) ON DELETE CASCADE,
    PRIMARY KEY (reference, chain_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX pull_layers_layer ON pull_layers (chain_id);

-- Annotations of the manifest, JSON object; where the image came from, and how long that took.
ALTER TABLE images ADD COLUMN annotations TEXT;
ALTER TABLE images ADD COLUMN pulled_as TEXT;
ALTER TABLE images ADD COLUMN pull_ns INTEGER;
ALTER TABLE images ADD COLUMN checked_at INTEGER;
ALTER TABLE images ADD COLUMN damage TEXT;

-- The manifest for this machine and the configuration, byte for byte: their digests are
-- images.manifest_digest and images.id. Images of older versions have none until they are pulled again.
CREATE TABLE image_documents (
    image_id       TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    kind           TEXT NOT NULL CHECK (kind IN ('manifest','config')),
    content        BLOB NOT NULL,
    PRIMARY KEY (image_id, kind)
) STRICT;

DROP VIEW v_images;
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
           i.pinned, i.desired, i.created_at,
           i.pulled_as, i.pull_ns / 1e6 AS pull_ms, i.annotations, i.top_chain_id, i.checked_at,
           i.damage
    FROM images i;

CREATE VIEW v_layers AS
    WITH RECURSIVE chain (top, chain_id) AS (
        SELECT top_chain_id, top_chain_id FROM
            (SELECT top_chain_id FROM images UNION SELECT top_chain_id FROM snapshots)
            WHERE top_chain_id IS NOT NULL
        UNION SELECT chain.top, l.parent_chain_id FROM layers l JOIN chain USING (chain_id)
            WHERE l.parent_chain_id IS NOT NULL
    )
    SELECT l.chain_id, l.parent_chain_id, l.diff_id, l.digest, l.state, l.size_bytes, l.inodes,
           l.entries,
           (SELECT count(*) FROM images i JOIN chain c ON c.top = i.top_chain_id
               WHERE c.chain_id = l.chain_id) AS images,
           (SELECT count(*) FROM snapshots s JOIN chain c ON c.top = s.top_chain_id
               WHERE c.chain_id = l.chain_id) AS containers,
           (SELECT count(*) FROM pull_layers h WHERE h.chain_id = l.chain_id) AS pulls,
           l.kept_until, l.created_at, l.checked_at, l.damage
    FROM layers l;

DROP VIEW v_leaks;
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
        SELECT 'layer', chain_id, digest, created_at,
               CASE state WHEN 'fetching' THEN 'is being fetched, and no pull is under way'
               ELSE 'no image, container or other layer stands on it, and no pull is under way' END,
               NULL
        FROM layers l WHERE state <> 'removing'
            AND NOT EXISTS (SELECT 1 FROM images i WHERE i.top_chain_id = l.chain_id)
            AND NOT EXISTS (SELECT 1 FROM snapshots n WHERE n.top_chain_id = l.chain_id)
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
