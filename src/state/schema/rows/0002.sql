INSERT INTO job_history (key, kind, status, priority, attempts, created_at, started_at,
    completed_at, queue_ns, run_ns, last_error)
VALUES ('sandbox/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'sandbox',
    'failed', 100, 1, 1700000000000000000, 1700000000001000000, 1700000000005000000, 1000000,
    4000000, 'the shim is not connected');
