-- Images that a container mounts (D). A row holds the layers of its image for as long as the
-- container's writable layer has a row.
CREATE TABLE image_volumes (
    container_id   TEXT NOT NULL
                   REFERENCES snapshots (container_id) ON DELETE CASCADE ON UPDATE CASCADE,
    image_id       TEXT NOT NULL,
    top_chain_id   TEXT REFERENCES layers (chain_id),
    PRIMARY KEY (container_id, image_id)
) STRICT;
CREATE INDEX image_volumes_layer ON image_volumes (top_chain_id);
CREATE INDEX image_volumes_image ON image_volumes (image_id);
