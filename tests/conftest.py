"""Fixtures of all tests: a real S3 server, small photographs, the command, and a workspace that is finished."""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import json
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mill
import pytest
from hypothesis import settings
from rgw import CephRGW

from imagemill.components.dataset.workspace import Workspace

LONGEST = ("test_demo_results", "test_promotion", "test_killed", "test_changed_sources", "test_source_kinds",
           "test_pixels", "test_splits_and_labels", "test_ray_cluster", "test_ray_kill", "test_training_stopped",
           "test_compare_run", "test_warm_start", "test_s3", "test_export")  # fmt: skip
"""Modules that take half a minute and more, in the order in which they begin."""

# How long an example takes depends on how busy the machine is. CI takes `--hypothesis-profile=same`: the same examples
# each time, so that no change is refused for what it has nothing to do with. By hand every run looks for new ones.
settings.register_profile("new", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.load_profile("new")

# Which weights `--weights auto` finds depends on the machine; tests find none unless they put them there.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nonexistent/hub", "TORCH_HOME": "/nonexistent/torch"}

# A shell starts what goes to the background with Ctrl-C ignored, which children inherit: tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The collected tests and what they import are millions of objects that live to the end; without the garbage collector's
# walks over them collecting takes 18 CPU seconds instead of 23, and tests that make many objects are spared them, too.
gc.disable()


def pytest_collection_finish() -> None:
    """Exempt what collection made from garbage collection."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first: with several workers none of them is alone with a long one at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def no_fsync() -> Iterator[None]:
    """What tests write need not survive a power cut, and on a busy disk each fsync takes 3 to 10 ms. Commands that they
    start as processes do all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def rgw() -> Iterator[CephRGW]:
    """Start a Ceph RGW. Where it can't run the test is skipped, but not in CI, which could have installed it."""
    if missing := CephRGW.missing():
        reason = f"no S3 server here, missing: {', '.join(missing)}; run tests/install-system"
        if os.environ.get("CI") == "true" and shutil.which("apt-get"):
            pytest.fail(reason)
        pytest.skip(reason)
    with CephRGW() as server:
        yield server


def forget_s3_clients() -> None:
    """Clients are cached in the process and keep the environment they were made in."""
    from imagemill.components.storage import s3

    s3.shared_s3.cache_clear()
    s3._pyarrow_s3.cache_clear()


@pytest.fixture
def s3_environment(rgw: CephRGW, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The server's variables, set here and for every command that is started."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = rgw.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    forget_s3_clients()
    yield environment
    forget_s3_clients()


@pytest.fixture
def s3_workspace(rgw: CephRGW, s3_environment: dict[str, str]) -> str:
    """A fresh bucket and prefix: `s3://<bucket>/work`."""
    bucket = f"mill-{secrets.token_hex(6)}"
    rgw.make_bucket(bucket)
    return f"s3://{bucket}/work"


@pytest.fixture
def small_photos(tmp_path: Path) -> Path:
    """A folder source: 60 tiny photographs of 3 classes, the same ones for every test, free to be changed."""
    return mill.make_photos(tmp_path / "photos")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace on disk."""
    return Workspace.open(str(tmp_path / "mill"))


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread for torch's arithmetic, in this process and in those that it starts: on a busy machine threads that
    wait for one another are far slower."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Finished:
    """A run that succeeded on the small photographs with `mill.QUICK`, into a folder; its model is champion."""

    photos: Path
    workspace: Path
    result: mill.Result

    def copy(self, folder: Path) -> Finished:
        """The same to change at will. The copied photographs keep their times, as a source that did not change."""
        shutil.copytree(self.photos, folder / "photos")
        shutil.copytree(self.workspace, folder / "finished")
        return Finished(folder / "photos", folder / "finished", self.result)

    @property
    def arguments(self) -> list[str]:
        """The command line of the run, on this copy's source and workspace."""
        source = ["--dataset", "folder", "--source", str(self.photos), "--name", "photos"]
        return ["run", "--json", *source, "--workspace", str(self.workspace), *mill.QUICK, *mill.CROWN]


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run to read and to compare with; tests that write take `finished`. The workers of xdist share one."""
    base_folder = tmp_path_factory.getbasetemp()
    base_folder = base_folder.parent if "PYTEST_XDIST_WORKER" in os.environ else base_folder
    folder, result_path = base_folder / "finished", base_folder / "finished.json"
    with (base_folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not result_path.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of another worker, which failed to make it
            no_result = mill.Result(1, "", "", 0)
            result = mill.run(*Finished(mill.make_photos(folder / "photos"), folder / "workspace", no_result).arguments)
            assert result.rc == 0, result.stderr
            result_path.write_text(json.dumps(dataclasses.asdict(result)))
    return Finished(folder / "photos", folder / "workspace", mill.Result(**json.loads(result_path.read_text())))


@pytest.fixture
def finished(finished_once: Finished, tmp_path: Path) -> Finished:
    """A copy of a finished run's source and workspace."""
    return finished_once.copy(tmp_path)


@pytest.fixture(autouse=True)
def fresh_retries() -> None:
    """Reset the retry state, so that one test's lost store does not shorten the next one's retries."""
    from imagemill.components.storage import errors

    errors._given_up_at.clear()


@pytest.fixture(autouse=True)
def fresh_logs() -> Iterator[None]:
    """A command run in this process logs to the stderr of its test; on a closed one each later line is a traceback."""
    yield
    for handler in [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]:
        logging.getLogger().removeHandler(handler)
