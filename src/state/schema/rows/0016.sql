-- What the migration of attachments has brought.
INSERT INTO network_attachments (sandbox_id, state, network, config, parameters, result, address, created_at, added_at, add_ns)
VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'added', 'pods', '{}', '{}', '{}', '10.1.0.5', 1700000000000000000, 1700000000000000000, 1000000);
