-- What the image store knows of itself: lists of entries, what a check has shown, what a pull under
-- way holds, and the documents an image was made of.

-- Entries of the tree, its root included; SHA-256 of the list of them. NULL: put there by a version
-- that made none; the first check makes it.
ALTER TABLE layers ADD COLUMN entries INTEGER;
ALTER TABLE layers ADD COLUMN seal TEXT;
-- When it was last compared with its list, and what was wrong; NULL is nothing.
ALTER TABLE layers ADD COLUMN checked_at INTEGER;
ALTER TABLE layers ADD COLUMN damage TEXT;
-- Its pull failed: until then it waits for a retry, although nothing needs it.
ALTER TABLE layers ADD COLUMN kept_until INTEGER;
CREATE INDEX layers_kept ON layers (kept_until) WHERE kept_until IS NOT NULL;

-- What a pull, or an import, needs while it is under way.
CREATE TABLE pull_layers (
    reference      TEXT NOT NULL,                 -- of its row in pulls
    chain_id       TEXT NOT NULL REFERENCES layers (chain_id) ON DELETE CASCADE,
    PRIMARY KEY (reference, chain_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX pull_layers_layer ON pull_layers (chain_id);

-- Annotations of the manifest, JSON object; where the image came from, and how long that took.
ALTER TABLE images ADD COLUMN annotations TEXT;
ALTER TABLE images ADD COLUMN pulled_as TEXT;
ALTER TABLE images ADD COLUMN pull_ns INTEGER;
ALTER TABLE images ADD COLUMN checked_at INTEGER;
ALTER TABLE images ADD COLUMN damage TEXT;

-- The manifest for this machine and the configuration, byte for byte: their digests are
-- images.manifest_digest and images.id. Images of older versions have none until they are pulled again.
CREATE TABLE image_documents (
    image_id       TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    kind           TEXT NOT NULL CHECK (kind IN ('manifest','config')),
    content        BLOB NOT NULL,
    PRIMARY KEY (image_id, kind)
) STRICT;

DROP VIEW v_images;
CREATE VIEW v_images AS
    SELECT i.id,
           (SELECT json_group_array(r.reference) FROM
               (SELECT reference FROM image_references WHERE image_id = i.id AND kind = 'tag'
                ORDER BY reference) r) AS tags,
           (SELECT json_group_array(r.reference) FROM
               (SELECT reference FROM image_references WHERE image_id = i.id AND kind = 'digest'
                ORDER BY reference) r) AS digests,
           i.manifest_digest, i.size_bytes,
           (SELECT count(*) FROM containers c WHERE c.image_id = i.id) AS containers,
           i.pinned, i.desired, i.created_at,
           i.pulled_as, i.pull_ns / 1e6 AS pull_ms, i.annotations, i.top_chain_id, i.checked_at,
           i.damage
    FROM images i;
