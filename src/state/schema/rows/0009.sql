-- A pull under way holds a layer; an image has its documents.
INSERT INTO pull_layers VALUES ('docker.io/library/web:1', 'sha256:01');
INSERT INTO image_documents VALUES ('sha256:0a', 'manifest', x'7b7d'), ('sha256:0a', 'config', x'7b7d');
UPDATE layers SET entries = 5, seal = 'sha256:0d', checked_at = 1700000000000000000;
