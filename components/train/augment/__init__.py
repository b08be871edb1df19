"""Online augmentation: parameters sampled for each batch, applied in the loader's threads."""
