-- The schema of the first pod. Of objects, columns marked (D) are written by the front (what a client
-- wants), all others by the back (what is so); the queue, addresses and snapshots are written by both
-- in the same transaction as the object they belong to. Times are nanoseconds since 1970 UTC; ids are 64 hex digits.

CREATE TABLE sandboxes (
    id             TEXT PRIMARY KEY CHECK (length(id) = 64),             -- (D)
    name           TEXT NOT NULL,                                        -- (D)
    namespace      TEXT NOT NULL,                                        -- (D)
    uid            TEXT NOT NULL,                                        -- (D)
    attempt        INTEGER NOT NULL,                                     -- (D)
    spec           TEXT NOT NULL,                                        -- (D) JSON, SandboxSpec
    created_at     INTEGER NOT NULL,                                     -- (D)
    desired        TEXT NOT NULL CHECK (desired IN ('ready','stopped','removed')), -- (D)
    state          TEXT NOT NULL DEFAULT 'preparing'
                   CHECK (state IN ('preparing','ready','stopped','failed')),
    boot_id        TEXT NOT NULL DEFAULT '',
    init_pid       INTEGER,
    init_start     INTEGER,
    ready_at       INTEGER,
    stopped_at     INTEGER,
    error          TEXT,
    CHECK (state <> 'ready' OR ready_at IS NOT NULL),
    CHECK (state <> 'failed' OR error IS NOT NULL)
) STRICT;
-- A retry of the same pod joins the row that is there; a failed or leaving one does not stand in the way.
CREATE UNIQUE INDEX sandboxes_identity ON sandboxes (uid, namespace, name, attempt)
    WHERE desired <> 'removed' AND state <> 'failed';

CREATE TABLE containers (
    id             TEXT PRIMARY KEY CHECK (length(id) = 64),             -- (D)
    sandbox_id     TEXT NOT NULL REFERENCES sandboxes (id),              -- (D)
    name           TEXT NOT NULL,                                        -- (D)
    attempt        INTEGER NOT NULL,                                     -- (D)
    image_id       TEXT NOT NULL,                                        -- (D)
    image          TEXT NOT NULL,                                        -- (D) as the client named it
    command        TEXT NOT NULL,                                        -- (D) JSON array: the process' argv
    environment    TEXT NOT NULL,                                        -- (D) JSON array of NAME=value
    memory_limit_bytes INTEGER,                                          -- (D)
    cpu_quota_us   INTEGER,                                              -- (D)
    cpu_shares     INTEGER,                                              -- (D)
    namespaces     TEXT NOT NULL,                                        -- (D) JSON: which are its own
    spec           TEXT NOT NULL,                                        -- (D) JSON, ContainerSpec
    created_at     INTEGER NOT NULL,                                     -- (D)
    desired        TEXT NOT NULL CHECK (desired IN ('created','running','stopped','removed')), -- (D)
    stop_at        INTEGER,                       -- (D) when the grace of a stop ends
    state          TEXT NOT NULL DEFAULT 'preparing'
                   CHECK (state IN ('preparing','created','starting','running','exited','error')),
    rootfs         TEXT,                          -- the upper directory of its snapshot
    pid            INTEGER,
    pid_start      INTEGER,                       -- clock ticks since boot: pid and this name a process
    runs_as        TEXT,                          -- JSON, UserIds: who the names turned out to be
    started_at     INTEGER,
    exited_at      INTEGER,
    exit_code      INTEGER,
    reason         TEXT NOT NULL DEFAULT '',
    error          TEXT,
    oom_killed     INTEGER NOT NULL DEFAULT 0,
    signalled_at   INTEGER,                       -- when the stop signal was sent
    released       INTEGER NOT NULL DEFAULT 1,    -- 0 while a cgroup of it may exist
    CHECK (state <> 'running' OR (pid IS NOT NULL AND started_at IS NOT NULL)),
    CHECK (state <> 'exited' OR (exit_code IS NOT NULL AND exited_at IS NOT NULL)),
    CHECK (state <> 'error' OR error IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX containers_identity ON containers (sandbox_id, name, attempt)
    WHERE desired <> 'removed' AND state <> 'error';
CREATE INDEX containers_sandbox ON containers (sandbox_id);
CREATE INDEX containers_image ON containers (image_id);

-- The pidfd monitor's book: one row per process it watches or has watched.
CREATE TABLE process_monitors (
    container_id   TEXT PRIMARY KEY REFERENCES containers (id) ON DELETE CASCADE,
    pid            INTEGER NOT NULL,
    started_at     INTEGER NOT NULL,
    last_check_at  INTEGER NOT NULL,
    status         TEXT NOT NULL CHECK (status IN ('monitoring','completed','failed','aborted'))
) STRICT;

-- One address per sandbox; written in the transaction that makes the sandbox. The row outlives its
-- sandbox when the kernel is slower than the client, so there is no foreign key: it goes when the
-- link is gone.
CREATE TABLE network_allocations (
    sandbox_id     TEXT PRIMARY KEY,
    address        TEXT NOT NULL UNIQUE,          -- dotted quad
    address_number INTEGER NOT NULL UNIQUE,       -- the same, for ordered search
    prefix_length  INTEGER NOT NULL,
    gateway        TEXT NOT NULL,
    bridge         TEXT NOT NULL,
    host_link      TEXT NOT NULL UNIQUE,
    pod_link       TEXT NOT NULL,
    allocated_at   INTEGER NOT NULL,
    setup_completed_at INTEGER,
    status         TEXT NOT NULL
                   CHECK (status IN ('allocated','active','cleanup_pending','cleaned'))
) STRICT;

-- Small facts of the node: the last address given out, the pod range kubelet told us.
CREATE TABLE network_state (
    key            TEXT PRIMARY KEY,
    value          TEXT NOT NULL,
    updated_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE layers (
    chain_id       TEXT PRIMARY KEY,
    parent_chain_id TEXT REFERENCES layers (chain_id) ON DELETE SET NULL,
    diff_id        TEXT NOT NULL,
    digest         TEXT NOT NULL,                 -- of the compressed blob it came from
    state          TEXT NOT NULL CHECK (state IN ('fetching','present','removing')),
    size_bytes     INTEGER NOT NULL DEFAULT 0,
    inodes         INTEGER NOT NULL DEFAULT 0,
    created_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE images (
    id             TEXT PRIMARY KEY,              -- sha256:<64 hex> of the config
    manifest_digest TEXT NOT NULL,
    top_chain_id   TEXT REFERENCES layers (chain_id),
    config         TEXT NOT NULL,                 -- JSON, ImageSpec
    size_bytes     INTEGER NOT NULL,
    pinned         INTEGER NOT NULL DEFAULT 0,
    created_at     INTEGER NOT NULL,
    desired        TEXT NOT NULL DEFAULT 'present' CHECK (desired IN ('present','removed')) -- (D)
) STRICT;

CREATE TABLE image_references (
    reference      TEXT PRIMARY KEY,              -- normalised; host/repo:tag or host/repo@digest
    image_id       TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    kind           TEXT NOT NULL CHECK (kind IN ('tag','digest')),
    updated_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX image_references_image ON image_references (image_id);

-- A pull is asked for by raising `requested` and answered by raising `finished`: equal pulls are one.
CREATE TABLE pulls (
    reference      TEXT PRIMARY KEY,              -- (D)
    requested      INTEGER NOT NULL,              -- (D)
    finished       INTEGER NOT NULL DEFAULT 0,
    image_id       TEXT,
    error          TEXT,
    error_kind     TEXT,
    updated_at     INTEGER NOT NULL               -- (D)
) STRICT;

CREATE TABLE snapshots (
    container_id   TEXT PRIMARY KEY,
    top_chain_id   TEXT REFERENCES layers (chain_id),
    created_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshots_layer ON snapshots (top_chain_id);

-- The queue: keys of objects to look at, never verbs. `generation` counts requests, so that one
-- that comes while the object is being looked at is not lost.
CREATE TABLE jobs (
    key            TEXT PRIMARY KEY,
    priority       INTEGER NOT NULL DEFAULT 0,
    status         TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending','running')),
    generation     INTEGER NOT NULL DEFAULT 1,
    claimed_generation INTEGER NOT NULL DEFAULT 0,
    attempts       INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    claimed_at     INTEGER,
    last_error     TEXT
) STRICT;
CREATE INDEX jobs_due ON jobs (status, next_attempt_at);

CREATE TABLE cleanup_tasks (
    id             INTEGER PRIMARY KEY,
    resource_type  TEXT NOT NULL CHECK (resource_type IN ('rootfs','network','cgroup','mounts','layer')),
    path           TEXT NOT NULL,                 -- what to remove: a directory, a link, a chain id
    owner          TEXT NOT NULL,                 -- the sandbox, container or layer it belonged to
    status         TEXT NOT NULL
                   CHECK (status IN ('pending','in_progress','completed','failed')),
    created_at     INTEGER NOT NULL,
    completed_at   INTEGER,
    error          TEXT,
    UNIQUE (resource_type, path)
) STRICT;

CREATE TABLE events (
    sequence       INTEGER PRIMARY KEY AUTOINCREMENT,
    at             INTEGER NOT NULL,
    level          TEXT NOT NULL DEFAULT 'info' CHECK (level IN ('info','warn','error')),
    object_kind    TEXT NOT NULL CHECK (object_kind IN ('sandbox','container','image','node')),
    object_id      TEXT NOT NULL,
    kind           TEXT NOT NULL,
    message        TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX events_object ON events (object_id, sequence);

CREATE TABLE operations (
    id             INTEGER PRIMARY KEY,
    kind           TEXT NOT NULL,                 -- run_sandbox, start_container, …
    object_id      TEXT NOT NULL,
    started_at     INTEGER NOT NULL,
    duration_ns    INTEGER NOT NULL,
    error          TEXT,
    stages         TEXT NOT NULL                  -- JSON array of [name, ns]
) STRICT;
CREATE INDEX operations_object ON operations (object_id, id);

-- What happened to a container, not what it printed.
CREATE VIEW container_logs AS
    SELECT sequence AS id, object_id AS container_id, at, level, kind || ': ' || message AS message
    FROM events WHERE object_kind = 'container';

CREATE VIEW v_pods AS
    SELECT s.id, s.namespace, s.name, s.uid, s.attempt, s.desired, s.state, n.address,
           (SELECT count(*) FROM containers c WHERE c.sandbox_id = s.id AND c.state = 'running')
               AS running_containers, s.created_at, s.error
    FROM sandboxes s LEFT JOIN network_allocations n ON n.sandbox_id = s.id;

CREATE VIEW v_containers AS
    SELECT c.id, c.sandbox_id, s.namespace, s.name AS pod, c.name, c.attempt, c.image, c.desired,
           c.state, c.pid, c.exit_code, c.reason, c.created_at, c.started_at, c.exited_at, c.error
    FROM containers c JOIN sandboxes s ON s.id = c.sandbox_id;

CREATE VIEW v_operations AS
    SELECT id, kind, object_id, started_at, duration_ns / 1e6 AS duration_ms, error, stages
    FROM operations;
