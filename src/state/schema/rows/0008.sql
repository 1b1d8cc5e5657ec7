INSERT INTO pull_progress (reference, position, digest, size_bytes, received_bytes, kept_bytes,
    bytes_per_second, state, updated_at)
SELECT reference, 0, 'sha256:' || hex(zeroblob(32)), 1000, 400, 100, 50, 'fetching',
    1700000000000000000 FROM pulls;
