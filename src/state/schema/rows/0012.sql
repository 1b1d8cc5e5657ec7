-- What the networking migration has brought.
INSERT INTO port_mappings (host_port, protocol, host_ip, container_port, sandbox_id) VALUES
    (8080, 'tcp', '', 80, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa');
INSERT INTO address_quarantine (address_number, released_at) VALUES (167837699, 1700000000000000000);
