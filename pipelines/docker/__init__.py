"""The three images, and the local run whose steps are containers."""
