"""Images: the decoder, resampling, operations on pixels, colours, random augmentation policies."""
