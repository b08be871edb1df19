"""Networks: backbones by name, their presets, the model artifact, preprocessing as in training."""
