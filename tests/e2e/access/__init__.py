"""The cluster as the tests see it: its API, a current picture of it, and questions that are asked from inside of it."""
