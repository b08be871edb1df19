"""Export: write a clean or tensors dataset in formats that other programs read."""
