"""Argo Workflows: the workflow, its templates, and the commands of its pods."""
