-- How far each layer of a pull has come, written about once a second while it runs. What is kept on
-- disk of a blob that is on its way belongs to its row here, and goes when the last one goes.
CREATE TABLE pull_progress (
    reference        TEXT NOT NULL REFERENCES pulls (reference) ON DELETE CASCADE,
    position         INTEGER NOT NULL,             -- 0 is the bottom layer
    digest           TEXT NOT NULL,                -- of the blob
    size_bytes       INTEGER NOT NULL,
    received_bytes   INTEGER NOT NULL DEFAULT 0,
    kept_bytes       INTEGER NOT NULL DEFAULT 0,   -- of those, left here by an earlier try
    bytes_per_second INTEGER NOT NULL DEFAULT 0,
    state            TEXT NOT NULL CHECK (state IN ('waiting','fetching','fetched','present')),
    updated_at       INTEGER NOT NULL,
    PRIMARY KEY (reference, position)
) STRICT;
CREATE INDEX pull_progress_digest ON pull_progress (digest);

CREATE VIEW v_pulls AS
    SELECT substr(p.reference, 1, instr(p.reference || '#', '#') - 1) AS reference,
           CASE WHEN p.finished >= p.requested AND p.image_id IS NOT NULL THEN 'pulled'
                WHEN p.finished >= p.requested THEN 'failed'
                WHEN l.layers IS NULL THEN 'asked'
                WHEN l.fetched < l.layers THEN 'fetching'
                ELSE 'storing' END AS state,
           coalesce(l.layers, 0) AS layers, coalesce(l.fetched, 0) AS layers_fetched,
           coalesce(l.received, 0) AS received_bytes, coalesce(l.kept, 0) AS kept_bytes,
           coalesce(l.size, 0) AS size_bytes, coalesce(l.speed, 0) AS bytes_per_second,
           p.updated_at AS asked_at, p.finished_at, l.updated_at, p.image_id, p.error,
           p.reference AS key
    FROM pulls p LEFT JOIN (
        SELECT reference, count(*) AS layers, sum(state IN ('fetched','present')) AS fetched,
               sum(received_bytes) AS received, sum(kept_bytes) AS kept, sum(size_bytes) AS size,
               sum(bytes_per_second) AS speed, max(updated_at) AS updated_at
        FROM pull_progress GROUP BY reference
    ) l ON l.reference = p.reference;

CREATE VIEW v_pull_layers AS
    SELECT substr(reference, 1, instr(reference || '#', '#') - 1) AS reference, position, digest,
           state, received_bytes, kept_bytes, size_bytes, bytes_per_second, updated_at,
           reference AS key
    FROM pull_progress;
