"""Predict: classify image files with a trained model."""
