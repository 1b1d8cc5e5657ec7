-- What the migration of prepared networks has brought.
INSERT INTO network_allocations (sandbox_id, address, address_number, prefix_length, gateway,
    bridge, host_link, pod_link, allocated_at, status) VALUES
    ('dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '10.1.0.9', 167837705, 16,
     '10.1.0.1', 'quilt0', 'qdddddddddddd', 'eth0', 1700000000000000000, 'allocated');
INSERT INTO prepared_networks (id, mtu, boot_id, created_at, ready_at) VALUES
    ('dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', 1500, 'a-boot',
     1700000000000000000, 1700000000100000000);
