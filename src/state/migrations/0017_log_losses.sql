-- What could not be written to the log of a container, and where that log is.

ALTER TABLE containers ADD COLUMN lost_log_lines INTEGER NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN lost_log_bytes INTEGER NOT NULL DEFAULT 0;

DROP VIEW v_containers;
CREATE VIEW v_containers AS
    SELECT c.id, c.sandbox_id, s.namespace, s.name AS pod, c.name, c.attempt, c.image, c.desired,
           c.state, c.pid, c.exit_code, c.reason, c.created_at, c.started_at, c.exited_at, c.error,
           c.image_id, c.ended_by, c.oom_killed, c.stop_at, c.signalled_at, c.command,
           c.memory_limit_bytes, c.cpu_quota_us, c.cpu_shares,
           rtrim(nullif(json_extract(s.spec, '$.log_directory'), ''), '/') || '/'
               || nullif(json_extract(c.spec, '$.log_path'), '') AS log_path,
           c.lost_log_lines, c.lost_log_bytes
    FROM containers c JOIN sandboxes s ON s.id = c.sandbox_id;
