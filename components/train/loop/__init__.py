"""The training loop: epochs, validation, checkpoints, several processes."""
