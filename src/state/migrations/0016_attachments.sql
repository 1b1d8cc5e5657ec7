-- Pods whose network plugins make (CNI), and all that is needed to disconnect them again.

-- Written in the transaction that makes the sandbox. Like an address, the row outlives its sandbox
-- until DEL has succeeded, so there is no foreign key.
CREATE TABLE network_attachments (
    sandbox_id     TEXT PRIMARY KEY CHECK (length(sandbox_id) = 64),
    state          TEXT NOT NULL DEFAULT 'wanted'
                   CHECK (state IN ('wanted','adding','added','failed','leaving')),
    network        TEXT,                          -- its name, once ADD was called
    config         TEXT,                          -- JSON: the list that ADD was called with
    parameters     TEXT,                          -- JSON: what plugins were told of the pod
    result         TEXT,                          -- JSON: the last plugin's answer
    address        TEXT,                          -- the pod's main address
    more_addresses TEXT NOT NULL DEFAULT '',      -- the others, parted by commas
    error          TEXT,                          -- of the last call that failed
    created_at     INTEGER NOT NULL,
    added_at       INTEGER,
    add_ns         INTEGER,                       -- how long all plugins took
    deletes        INTEGER NOT NULL DEFAULT 0,    -- calls of DEL that have failed since it leaves
    check_asked_at INTEGER,
    checked_at     INTEGER,
    check_error    TEXT,                          -- what the last CHECK has found wrong
    CHECK (state = 'wanted' OR (config IS NOT NULL AND parameters IS NOT NULL)),
    CHECK (state <> 'added' OR (result IS NOT NULL AND address IS NOT NULL)),
    CHECK (state <> 'failed' OR error IS NOT NULL)
) STRICT;

CREATE TRIGGER network_attachments_transition BEFORE UPDATE OF state ON network_attachments
WHEN OLD.state <> NEW.state AND NOT (
       (OLD.state = 'wanted' AND NEW.state = 'adding')
    OR (OLD.state = 'adding' AND NEW.state IN ('wanted','added','failed','leaving'))
    OR (OLD.state = 'added' AND NEW.state IN ('adding','leaving'))
    OR (OLD.state = 'failed' AND NEW.state = 'leaving'))
BEGIN SELECT RAISE(ABORT, 'impossible transition of network_attachments.state'); END;

DROP VIEW v_pods;
CREATE VIEW v_pods AS
    SELECT s.id, s.namespace, s.name, s.uid, s.attempt, s.desired, s.state,
           coalesce(n.address, a.address) AS address,
           (SELECT count(*) FROM containers c WHERE c.sandbox_id = s.id AND c.state = 'running')
               AS running_containers,
           s.created_at, s.error,
           (SELECT count(*) FROM containers c WHERE c.sandbox_id = s.id) AS containers,
           s.ready_at, s.stopped_at
    FROM sandboxes s LEFT JOIN network_allocations n ON n.sandbox_id = s.id
    LEFT JOIN network_attachments a ON a.sandbox_id = s.id AND a.state = 'added';

DROP VIEW v_ports;
CREATE VIEW v_ports AS
    SELECT p.protocol, p.host_ip, p.host_port, p.container_port, p.sandbox_id, s.namespace,
           s.name AS pod, coalesce(n.address, a.address) AS address, n.address6
    FROM port_mappings p JOIN sandboxes s ON s.id = p.sandbox_id
    LEFT JOIN network_allocations n ON n.sandbox_id = p.sandbox_id
    LEFT JOIN network_attachments a ON a.sandbox_id = p.sandbox_id AND a.state = 'added';

CREATE VIEW v_attachments AS
    SELECT a.sandbox_id, s.namespace, s.name AS pod, a.network, a.state, a.address,
           a.more_addresses, a.error, a.deletes, a.created_at, a.added_at, a.add_ns, a.checked_at,
           a.check_error, a.config, a.parameters, a.result
    FROM network_attachments a LEFT JOIN sandboxes s ON s.id = a.sandbox_id;
