"""`imagemill inspect` from the command line: what it prints of every kind, and what it says of what is no dataset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mill
import pytest
from cleaned import NONE_FOUND, Row, cleaned, reject

from imagemill.components.dataset.kinds import EXTRAS, ImageSpec
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit
from imagemill.components.dataset.shards import publish_bytes
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.report.terminal import WIDTH, count_columns
from imagemill.pipelines.cli.main import main


def toy(workspace: str) -> Dataset:
    rows = [Row(f"{n}.jpg", ["cat", "dog"][n % 2], ["train", "test"][n % 4 == 3]) for n in range(12)]
    return cleaned(f"{workspace}/clean/0123456789abcdef", rows, [reject("bad.jpg", "corrupt")])


def commit_dataset(workspace: Path, kind: str, **fields: Any) -> Dataset:
    uri = str(workspace / kind / "00000000000000aa")
    files = (publish_bytes(uri, b"bytes", "file-", ".bin"),)
    defaults: dict[str, Any] = {"classes": ("cat", "dog"), "files": files}
    if "extra" in fields:
        fields["extra"] = EXTRAS[kind].from_dict(fields["extra"], "test")
    return commit(uri, Manifest(kind, "00000000000000aa", **(defaults | fields)))


def printed(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    assert main(["inspect", *line]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    if "--json" not in line:  # all but the line that says where it is, for that is copied
        assert [line for line in out.split("\n")[2:] if count_columns(line) > WIDTH or not line.isprintable()] == []
    return out


def refused(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    assert main(["inspect", *line]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    return error


def test_a_clean_dataset_by_its_folder_its_manifest_and_a_relative_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = toy(str(tmp_path)).uri
    monkeypatch.chdir(tmp_path)
    texts = {
        printed(capsys, path)
        for path in (uri, f"{uri}/", f"{uri}/_manifest.json", f"file://{uri}", "clean/0123456789abcdef")
    }
    (text,) = texts
    assert text.startswith(f"toy · clean · 0123456789abcdef\n{uri}\n12 rows, 2 classes, 3 files of ")
    for line in (
        "✓ 13 rows in = 12 kept + 1 rejected", "Kept: train 9 · val 0 · test 3", "corrupt  bad.jpg  broken",
        "No val image of 2 classes: cat, dog", "all at their defaults", "Near-duplicates (within 3 of 64 bits",
    ):  # fmt: skip
        assert line in text


def test_the_facts_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = toy(str(tmp_path))
    out = printed(capsys, dataset.uri, "--json")
    facts = json.loads(out)
    assert out.count("\n") == 1 and (facts["kind"], facts["uri"]) == ("clean", dataset.uri)
    assert facts["manifest_sha256"] == dataset.manifest_sha256
    assert facts["ledger"]["rows_in"] == 13 and facts["ledger"]["problems"] == []
    assert facts["ledger"]["reasons"] == [
        {
            "name": "corrupt",
            "count": 1,
            "examples": [{"image_id": "bad.jpg", "note": "broken", "label": "", "split": ""}],
        }
    ]
    assert facts["balance"]["classes"]["dog"] == {"train": 3, "val": 0, "test": 3}
    assert facts["measured"]["measures"]["brightness"]["quantiles"]["50"] == 0.5
    assert facts["provenance"]["created"] == dataset.manifest.created and facts["pages"] == []


def test_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = {"count": 12, "files": [{"path": f"notes-{n}\x1b.txt", "why": "no image"} for n in range(12)]}
    labels = {f"label-{n:02d}": 50 - n for n in range(40)} | {"": 3}
    dataset = commit_dataset(
        tmp_path, "raw",
        totals=Totals(rows=100, bytes=5_000_000, by_split={"train": 90, "undeclared": 10}, by_class=labels),
        extra={"source": "s3://pictures", "dataset_name": "zoo", "skipped": skipped,
               "missing_masks": {"count": 1, "files": [{"mask": "a.png", "why": "not there"}]},
               "planted": [{"path": "a", "kind": "broken", "detail": "", "reason": "corrupt"}] * 9},
    )  # fmt: skip
    text = printed(capsys, dataset.uri)
    for line in ("s3://pictures", "splits as declared  train 90, undeclared 10", "without a label     3", "label-39",
                  "files that are no images: 12, 8 of them shown", "notes-0\\x1b.txt",
                  "masks that are not there: 1", "Planted faults", "broken  9  100.0%"):  # fmt: skip
        assert line in text
    facts = json.loads(printed(capsys, dataset.uri, "--json"))
    assert facts["totals"]["rows"] == 100 and facts["skipped"]["count"] == 12 and facts["source"] == "s3://pictures"
    assert facts["files"] == [{"role": "data", "split": "", "files": 1, "rows": 0, "bytes": 5}]


def test_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = {"shape": [64, 64, 3], "color": "rgb", "mode": "crop", "edges": [], "mean": [0.485, 0.456, 0.406],
             "std": [0.229, 0.224, 0.225], "dtype": "uint8", "encoding": "raw"}  # fmt: skip
    totals = Totals(rows=12, bytes=147_456, by_split={"train": 9, "val": 1, "test": 2}, by_class={"cat": 7, "dog": 5})
    text = printed(
        capsys, commit_dataset(tmp_path, "tensors", image=ImageSpec.from_dict(image, "test"), totals=totals).uri
    )
    for line in ("64, 64, 3", "0.485, 0.456, 0.406", "0.229, 0.224, 0.225", "147.5 kB", "train  9  75.0%", "cat  7"):
        assert line in text
    assert "edges" not in text


def test_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = [{"epoch": n, "train_loss": 1 / n, "blocks": 7, "val_macro_f1": n / 50} for n in range(1, 41)]
    recipe = ["recipe small: 40 epochs", "regularization: none"]
    extra = {"backbone": "resnet18", "weights": "", "recipe": recipe, "best_epoch": 3,
             "metrics": {"top1": 0.9375, "macro_f1": 0.9}, "epochs": 40, "history": history,
             "seconds": 125.0}  # fmt: skip
    dataset = commit_dataset(tmp_path, "model", extra=extra, image=ImageSpec((64, 64, 3)))
    text = printed(capsys, dataset.uri)
    for line in ("backbone    resnet18", "2 min 5 s", "top1      0.938", "macro F1", "0.800",
                  "── Recipe", "  recipe small: 40 epochs\n  regularization: none\n",
                  "cat, dog", "64, 64, 3"):  # fmt: skip
        assert line in text
    empty = commit_dataset(tmp_path / "other", "model", extra={"backbone": "resnet18", "metrics": {}, "history": []})
    assert "none: there were no validation images" in printed(capsys, empty.uri)


def test_an_evaluation_names_the_hardest_classes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    per_class = [
        {"class": f"class-{n:02d}", "precision": 0.5, "recall": 0.25, "f1": n / 40, "support": n and 5}
        for n in range(40)
    ]
    extra = {"metrics": {"top1": 0.75, "macro_f1": 0.5, "loss": 1.25}, "per_class": per_class}
    text = printed(capsys, commit_dataset(tmp_path, "evaluation", extra=extra, totals=Totals(rows=195)).uri)
    assert text.index("class-01") < text.index("class-02") < text.index("class-39")
    for line in ("macro f1  0.500", "without a test image: class-00", "0.250"):
        assert line in text


@pytest.mark.parametrize("kind", ["raw", "tensors", "features", "model", "evaluation"])
def test_minimal_manifest_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    extra = {"extra": {"found": NONE_FOUND}} if kind == "clean" else {}
    dataset = commit_dataset(tmp_path, kind, classes=(), files=(), **extra)
    assert f"dataset · {kind} · 00000000000000aa" in printed(capsys, dataset.uri)
    assert json.loads(printed(capsys, dataset.uri, "--json"))["kind"] == kind


def test_paths_without_a_dataset_are_user_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "_manifest.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "_manifest.json").write_text('{"format": "another"}')
    expected = "dataset: expected a folder with _manifest.json, found "
    assert expected in refused(capsys, str(tmp_path / "nowhere")) and expected in refused(capsys, str(tmp_path))
    assert "file.txt" in refused(capsys, str(tmp_path / "file.txt"))
    assert "expected JSON" in refused(capsys, str(tmp_path / "broken"))
    assert "(format): expected 'imagemill'" in refused(capsys, str(tmp_path / "other")).replace(
        "imagemill,", "'imagemill',"
    )
    assert "a folder or s3://bucket/prefix" in refused(capsys, "https://example.org/clean/01")
    assert "dataset: expected" in refused(capsys, " ")
    assert "y: expected nothing more, or a flag (--…) before it (see imagemill inspect --help)" in refused(
        capsys, "x", "y"
    )
    assert "DATASET (see imagemill inspect --help)" in refused(capsys) and "--jsn" in refused(capsys, "x", "--jsn")


def test_workspace_is_distinguished_from_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.open(str(tmp_path))
    assert "(this is a workspace, with none in it)" in refused(capsys, str(tmp_path))
    dataset = toy(str(tmp_path))
    workspace.note_latest("toy", dataset, "run")
    assert f"(this is a workspace; in it: {dataset.uri})" in refused(capsys, str(tmp_path))


def test_lost_file_is_reported_and_no_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = toy(str(tmp_path))
    Path(dataset.locate(dataset.files("rejected")[0])).unlink()
    assert main(["inspect", dataset.uri]) == 1
    assert "expected a file that the manifest lists, found none" in capsys.readouterr().err


def test_terminal_without_block_characters_gets_ascii(tmp_path: Path) -> None:
    uri = toy(str(tmp_path)).uri
    process = subprocess.run(
        [sys.executable, "-m", "imagemill.pipelines.cli", "inspect", uri],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert process.returncode == 0 and b"13 rows in = 12 kept" in process.stdout and process.stderr == b""


def test_inspect_is_among_the_commands_and_help_stays_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", "--help"])
    assert "--json" in capsys.readouterr().out
    loaded = "import sys; from imagemill.pipelines.cli import main; print({'pyarrow', 'jinja2'} & set(sys.modules))"
    assert mill.COMMAND[0] == sys.executable
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "set()\n"
