"""`imagemill doctor`: is a cluster ready for a run, and if not, what mends it?

Each module looks at one subject and returns findings. Nothing is changed in the cluster; `--probe` alone makes
pods, and deletes them. What may not be looked at is said.
"""
