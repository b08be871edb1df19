"""Predict: image files in, the classes that a trained model sees in them out."""
