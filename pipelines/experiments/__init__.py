"""Experiments: several trainings of configurations of one dataset, compared or searched."""
