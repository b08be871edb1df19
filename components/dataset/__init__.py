"""The dataset contract: manifest, shards, fingerprints and the workspace."""
