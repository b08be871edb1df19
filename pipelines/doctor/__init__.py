"""`imagemill doctor`: check whether a cluster is ready for a run, and name the remedy of each problem.

Each module checks one subject and returns findings, also for what the user has no right to read. Nothing is changed in
the cluster; only `--probe` creates pods, and deletes them.
"""
