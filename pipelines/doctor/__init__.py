"""`imagemill doctor`: is a cluster ready for a run, and if not, how to fix it."""
