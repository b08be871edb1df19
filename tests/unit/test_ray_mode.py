"""Executor of clean and resize in a run: as the cluster file says, else by the size of the work."""

from __future__ import annotations

from typing import Any

import pytest

from imagemill.components.clean.clean import estimate_core_seconds as estimate_clean
from imagemill.components.dataset.manifest import Part
from imagemill.components.resize.target import estimate_core_seconds
from imagemill.pipelines.cluster.cluster_file import parse_cluster
from imagemill.pipelines.kuberay.ray_step import choose_mode


def part_of(rows: int, size: int) -> Part:
    return Part("", rows, size, "")


DEMO = part_of(751, 26_900_000)
PETS = part_of(7_349, 780_000_000)
LARGE = part_of(1_000_000, 34_000_000_000)


def choose(cluster: dict[str, Any], part: Part, copies: int = 0, device: str = "cpu") -> str:
    return choose_mode(parse_cluster(cluster), "resize", estimate_core_seconds([part], copies), device)


def choose_for_clean(cluster: dict[str, Any], part: Part) -> str:
    return choose_mode(parse_cluster(cluster), "clean", estimate_clean([part]))


@pytest.mark.parametrize(("part", "mode"), [(DEMO, "pod"), (PETS, "pod"), (LARGE, "rayjob"), (part_of(0, 0), "pod")])
def test_small_data_is_processed_in_the_pod(part: Part, mode: str) -> None:
    assert choose({}, part) == mode == choose_for_clean({}, part)


@pytest.mark.parametrize(("kilobytes", "measured"), [(34, (1400, 1700)), (231, (420, 433)), (1000, (110, 120))])
def test_estimate_of_resize_matches_measurements(kilobytes: int, measured: tuple[int, int]) -> None:
    rate = 2 * 10_000 / estimate_core_seconds([part_of(10_000, 10_000_000 * kilobytes)])
    assert measured[0] <= rate <= measured[1]


@pytest.mark.parametrize(("kilobytes", "milliseconds"), [(39, 1.7), (272, 10.2), (1000, 64)])
def test_estimate_of_clean_matches_measurements(kilobytes: int, milliseconds: float) -> None:
    assert estimate_clean([part_of(1, 1000 * kilobytes)]) * 1000 == pytest.approx(milliseconds, rel=0.3)


def test_threshold_depends_on_the_cluster_file() -> None:
    """More cores in the pod do more in the same time; 0 seconds are a RayJob for everything."""
    assert choose({"steps": {"resize": {"cpu": "100m"}}}, PETS) == "rayjob"
    assert choose_for_clean({"steps": {"clean": {"cpu": "100m"}}}, PETS) == "rayjob"
    for ray, part, mode in (({"auto_seconds": 0}, DEMO, "rayjob"), ({"auto_seconds": 20_000}, LARGE, "pod")):
        assert choose({"ray": ray}, part) == mode == choose_for_clean({"ray": ray}, part)


def test_documented_numbers_equal_the_estimates() -> None:
    """Images in 60 s on 4 cores, in the cluster file's help and in k8s/README.md."""
    for kilobytes, cleaned, resized in ((34, 140_000, 190_000), (231, 22_000, 52_000)):
        size = 1000 * kilobytes
        assert estimate_clean([part_of(cleaned, cleaned * size)]) / 4 == pytest.approx(60, rel=0.04)
        assert estimate_core_seconds([part_of(resized, resized * size)]) / 4 == pytest.approx(60, rel=0.04)


def test_copies_and_gpus_are_processed_on_ray() -> None:
    assert choose({}, PETS, copies=50) == "rayjob"
    assert choose({}, DEMO, device="cuda") == "rayjob"


@pytest.mark.parametrize(
    "ray", [{"mode": "pod"}, {"mode": "rayjob"}, {"mode": "address", "address": "http://head:8265"}]
)
def test_explicit_mode_is_used(ray: dict[str, Any]) -> None:
    assert {choose({"ray": ray}, part) for part in (DEMO, LARGE)} == {ray["mode"]}
    assert parse_cluster({"ray": ray}).ray.makes_rayjobs == (ray["mode"] == "rayjob")
    assert parse_cluster({}).ray.makes_rayjobs
