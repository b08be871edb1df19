"""All scenarios, registered in the order of the table: first what the others need of the cluster."""

from __future__ import annotations

from . import kills, leftovers, measured, pages, policies, preflight, refusals, retries, sdk, weekly, whole_runs
from .common import REGISTRY

for _module in (whole_runs, weekly, kills, refusals, retries, policies, sdk, pages, leftovers, measured):
    _module.register()
retries.register_other()

__all__ = ["REGISTRY", "preflight"]
