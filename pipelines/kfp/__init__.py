"""Kubeflow Pipelines: components, pods, the client of its API, and the records of its runs."""
