-- Ports of the node that lead to pods, and pods' second address.

-- A port is a pod's from the transaction that makes the pod until nothing leads to it any more.
CREATE TABLE port_mappings (
    host_port      INTEGER NOT NULL CHECK (host_port BETWEEN 1 AND 65535),
    protocol       TEXT NOT NULL CHECK (protocol IN ('tcp','udp','sctp')),
    host_ip        TEXT NOT NULL,                 -- empty is every address of the node
    container_port INTEGER NOT NULL CHECK (container_port BETWEEN 1 AND 65535),
    sandbox_id     TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    PRIMARY KEY (host_port, protocol, host_ip)
) STRICT, WITHOUT ROWID;
CREATE INDEX port_mappings_sandbox ON port_mappings (sandbox_id);

-- Addresses that have come back, and rest for a while before they are given out again.
CREATE TABLE address_quarantine (
    address_number INTEGER PRIMARY KEY,
    released_at    INTEGER NOT NULL               -- ns since 1970
) STRICT;

ALTER TABLE network_allocations ADD COLUMN address6 TEXT;
ALTER TABLE network_allocations ADD COLUMN prefix6_length INTEGER;
ALTER TABLE network_allocations ADD COLUMN gateway6 TEXT;
CREATE UNIQUE INDEX network_allocations_address6 ON network_allocations (address6);

CREATE VIEW v_ports AS
    SELECT p.protocol, p.host_ip, p.host_port, p.container_port, p.sandbox_id, s.namespace,
           s.name AS pod, n.address, n.address6
    FROM port_mappings p JOIN sandboxes s ON s.id = p.sandbox_id
    LEFT JOIN network_allocations n ON n.sandbox_id = p.sandbox_id;

DROP VIEW v_addresses;
CREATE VIEW v_addresses AS
    SELECT n.address, n.prefix_length, n.gateway, n.status, n.sandbox_id, s.namespace,
           s.name AS pod, n.bridge, n.host_link, n.pod_link, n.allocated_at, n.setup_completed_at,
           n.address6, n.prefix6_length, n.gateway6
    FROM network_allocations n LEFT JOIN sandboxes s ON s.id = n.sandbox_id;
