"""Online augmentation: parameters drawn once, applied on CPU or GPU."""
