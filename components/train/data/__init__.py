"""Training data: tensor shards read, shuffled, batched and moved to the device."""
