"""What orders the steps: the DAG, the runners and the `imagemill` command."""
