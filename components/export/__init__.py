"""Export: a clean or tensors dataset in a form that other programs read."""
