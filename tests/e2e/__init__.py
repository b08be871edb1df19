"""Tests on a cluster: submits, schedules, killed pods, missing GPUs; ends with a table of what passed.

`tests/e2e/run --help` says how. It takes the cluster of KUBECONFIG, works in a namespace that is marked for tests, and
touches nothing there but what it made, which carries its label.
"""
