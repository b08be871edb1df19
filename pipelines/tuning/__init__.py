"""Tuning: a search for better training parameters, here one trial after the other, or on a cluster in parallel."""
