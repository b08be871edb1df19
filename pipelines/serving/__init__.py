"""Model repositories for inference servers: ONNX at a chosen precision, with its measured loss and speed."""
