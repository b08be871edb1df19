"""The files that a training leaves: weights, ONNX file and model card."""
