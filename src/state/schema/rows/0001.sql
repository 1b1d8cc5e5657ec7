-- A node at work with the first schema: at least one row in every table.
INSERT INTO sandboxes (id, name, namespace, uid, attempt, spec, created_at, desired, state, boot_id,
    ready_at) VALUES
    ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'web', 'default', 'uid-1', 0,
     '{}', 1700000000000000000, 'ready', 'ready', 'boot', 1700000000100000000);
INSERT INTO layers (chain_id, diff_id, digest, state, size_bytes, inodes, created_at) VALUES
    ('sha256:01', 'sha256:01', 'sha256:02', 'present', 1000, 10, 1700000000000000000);
INSERT INTO images (id, manifest_digest, top_chain_id, config, size_bytes, created_at) VALUES
    ('sha256:0a', 'sha256:0b', 'sha256:01', '{}', 1000, 1700000000000000000);
INSERT INTO image_references VALUES
    ('docker.io/library/web:1', 'sha256:0a', 'tag', 1700000000000000000),
    ('docker.io/library/web@sha256:0b', 'sha256:0a', 'digest', 1700000000000000000);
INSERT INTO pulls (reference, requested, finished, image_id, updated_at) VALUES
    ('docker.io/library/web:1', 1, 1, 'sha256:0a', 1700000000000000000);
INSERT INTO containers (id, sandbox_id, name, attempt, image_id, image, command, environment,
    namespaces, spec, created_at, desired, state, pid, pid_start, started_at, released) VALUES
    ('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',
     'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'main', 0, 'sha256:0a',
     'docker.io/library/web:1', '["sh"]', '["A=b"]', '["mount"]', '{}', 1700000000200000000,
     'running', 'running', 4711, 99, 1700000000300000000, 0);
INSERT INTO process_monitors VALUES
    ('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 4711, 1700000000300000000,
     1700000000300000000, 'monitoring');
INSERT INTO snapshots VALUES
    ('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'sha256:01',
     1700000000200000000);
INSERT INTO network_allocations VALUES
    ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '10.1.0.2', 167837698, 16,
     '10.1.0.1', 'quilt0', 'qaaaaaaaaaaaa', 'eth0', 1700000000000000000, 1700000000100000000,
     'active');
INSERT INTO network_state VALUES ('last_address', '10.1.0.2', 1700000000000000000);
INSERT INTO jobs (key, attempts, next_attempt_at, created_at, last_error) VALUES
    ('cleanup/1', 3, 1700000009000000000, 1700000000000000000, 'it is busy');
INSERT INTO cleanup_tasks (resource_type, path, owner, status, created_at, completed_at) VALUES
    ('rootfs', '/gone', 'cccc', 'completed', 1700000000000000000, 1700000001000000000);
INSERT INTO events (at, object_kind, object_id, kind, message) VALUES
    (1700000000100000000, 'sandbox',
     'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'ready', ''),
    (1700000000300000000, 'container',
     'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'started', '');
INSERT INTO operations (kind, object_id, started_at, duration_ns, stages) VALUES
    ('run_sandbox', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',
     1700000000000000000, 5000000, '[["queue",1000000],["network",4000000]]');
