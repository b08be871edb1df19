"""What a training leaves: weights, ONNX file and model card."""
