"""Images: the decoder, resampling, operations on pixels, colors, random augmentation policies."""
