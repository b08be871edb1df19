"""Scores of classifiers and their calibration."""
