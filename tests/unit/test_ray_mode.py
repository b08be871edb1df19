"""Where a run resizes: by the file, or by the clean dataset's size."""

from __future__ import annotations

from typing import Any

import pytest

from imagemill.components.dataset.manifest import Totals
from imagemill.pipelines.cluster.cluster_file import parse_cluster
from imagemill.pipelines.kuberay.resize_step import choose_mode, estimate_seconds

DEMO = Totals(rows=751, bytes=26_900_000, by_split={"train": 560})
PETS = Totals(rows=7_349, bytes=780_000_000, by_split={"train": 3_680})
LARGE = Totals(rows=1_000_000, bytes=34_000_000_000, by_split={"train": 900_000})


@pytest.mark.parametrize(("totals", "mode"), [(DEMO, "pod"), (PETS, "pod"), (LARGE, "rayjob"), (Totals(), "pod")])
def test_small_data_needs_no_rayjob(totals: Totals, mode: str) -> None:
    assert choose_mode(parse_cluster({}), totals) == mode


@pytest.mark.parametrize(("kilobytes", "measured"), [(34, (1400, 1700)), (231, (420, 433)), (1000, (110, 120))])
def test_the_estimate_is_what_was_measured_on_two_cores(kilobytes: int, measured: tuple[int, int]) -> None:
    pod = parse_cluster({"steps": {"resize": {"cpu": "2"}}}).steps["resize"]
    rate = 10_000 / estimate_seconds(pod, Totals(rows=10_000, bytes=10_000_000 * kilobytes))
    assert measured[0] <= rate <= measured[1]


def test_the_size_is_the_files() -> None:
    """More cores in the pod do more in the same time; 0 seconds are a RayJob for everything."""
    assert choose_mode(parse_cluster({"steps": {"resize": {"cpu": "100m"}}}), PETS) == "rayjob"
    assert choose_mode(parse_cluster({"ray": {"auto_seconds": 0}}), DEMO) == "rayjob"
    assert choose_mode(parse_cluster({"ray": {"auto_seconds": 10_000}}), LARGE) == "pod"


def test_copies_are_work_and_a_gpu_is_with_rays_workers() -> None:
    assert choose_mode(parse_cluster({}), PETS, copies=50) == "rayjob"
    assert choose_mode(parse_cluster({}), DEMO, device="cuda") == "rayjob"


@pytest.mark.parametrize(
    "ray", [{"mode": "pod"}, {"mode": "rayjob"}, {"mode": "address", "address": "http://head:8265"}]
)
def test_a_mode_that_is_said_is_taken(ray: dict[str, Any]) -> None:
    cluster = parse_cluster({"ray": ray})
    assert {choose_mode(cluster, totals) for totals in (DEMO, LARGE)} == {ray["mode"]}
    assert cluster.ray.makes_rayjobs == (ray["mode"] == "rayjob") and parse_cluster({}).ray.makes_rayjobs
