"""The DAG of the steps, the runners that execute it, and the `imagemill` command."""
