"""An export from beginning to end: found as it is, or made and marked as finished."""

from __future__ import annotations

from typing import Any

from ..store import uri as uris
from ..store.errors import wrong
from ..store.progress import Progress, format_size, say
from .config import ExportConfig
from .place import Place, Written
from .samples import Source
from .shards import Form, Work, export_shards

_PICTURES = ("imagefolder", "huggingface")
RAN, CACHED = "ran", "cached"


def export(config: ExportConfig) -> dict[str, Any]:
    """Make the export that `config` asks for, unless it is there; what `--json` prints.

    Memory is bounded by what `order` and `shards` hold (measured: 0.6 GB resident, all imports among it), and
    16 bytes an image more for imagefolder; scratch space by three shards and, for a clean dataset that is larger than
    a window, 8 GB.
    """
    config.check()
    dataset = config.source()
    source = Source(dataset)
    place = Place(config.place(dataset), config.identity(dataset))
    _check_pictures(config, source)
    about, state = place.finished(), CACHED
    if about is not None and not place.whole(about):
        say("export", f"files are missing or damaged in {place.uri}: made again")
        about = None
    if about is None:
        about, state = _make(config, source, place), RAN
    found = {key: about[key] for key in ("totals", "by_split", "notes")}
    _tell(place.uri, found, state)
    return {"status": "ok", "state": state, "format": config.format, "output": place.uri, **about["source"], **found}


def _check_pictures(config: ExportConfig, source: Source) -> None:
    if config.format in _PICTURES and not source.are_pictures:
        shape, color = source.image["shape"], source.image.get("color", "rgb")
        raise wrong(
            "--format", "tfrecord or webdataset (as arrays) for pixels that no picture file holds",
            f"{config.format} of {shape[2]} channels ({color}{' and edges' if source.image.get('edges') else ''})",
        )  # fmt: skip


def _make(config: ExportConfig, source: Source, place: Place) -> dict[str, Any]:
    place.claim()
    rows = sum(source.rows.values())
    say("export", f"{rows:,} images of {source.dataset.manifest.kind} {source.dataset.fingerprint} as {config.format}")
    with place.scratch() as scratch:
        work = Work(source, place, scratch, config.shard_bytes, Progress("export", total=rows))
        written, loose = _written(config, work)
    files = sorted(written, key=lambda one: one.path)
    manifest = source.dataset.manifest
    return place.finish(
        {
            "source": {
                "kind": manifest.kind, "fingerprint": manifest.fingerprint, "dataset": uris.redact(source.dataset.uri),
            },
            "task": manifest.task, "classes": list(manifest.classes), "image": manifest.image,
            "files": [vars(one) for one in files],
            "loose": {"files": loose["files"], "bytes": loose["bytes"]},
            "totals": {
                "rows": rows, "files": len(files) + loose["files"],
                "bytes": sum(one.bytes for one in files) + loose["bytes"],
            },
            "by_split": _by_split(source, files, loose["by_split"]),
            "notes": work.notes,
        }
    )  # fmt: skip


def _written(config: ExportConfig, work: Work) -> tuple[list[Written], dict[str, Any]]:
    """The files to list, and what is only counted, since its table lists it."""
    if config.format == "imagefolder":
        from .imagefolder import ImageFolder

        folder = ImageFolder(work)
        tables = folder.export()
        return tables, {"files": folder.files, "bytes": folder.bytes, "by_split": folder.by_split}
    return export_shards(work, _form(config.format, work)), {"files": 0, "bytes": 0, "by_split": {}}


def _form(name: str, work: Work) -> Form:
    if name == "tfrecord":
        from .tfrecord import TFRecordForm

        return TFRecordForm(work)
    if name == "webdataset":
        from .webdataset import WebDatasetForm

        return WebDatasetForm(work)
    from .huggingface import HuggingFaceForm

    return HuggingFaceForm(work)


def _by_split(source: Source, files: list[Written], loose: dict[str, int]) -> dict[str, Any]:
    return {
        split: {
            "rows": rows,
            "files": [one.path for one in files if one.split == split],
            "bytes": loose.get(split, 0) + sum(one.bytes for one in files if one.split == split),
        }
        for split, rows in source.rows.items()
    }


def _tell(uri: str, found: dict[str, Any], state: str) -> None:
    totals, notes = found["totals"], found["notes"]
    if again := notes.get("reencoded"):
        counts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(again.items()))
        say("export", f"encoded again as PNG, since TensorFlow reads them not at all or not alike: {counts}")
    if notes.get("gif"):
        say("export", f"GIF files, which torchvision's ImageFolder passes over: {notes['gif']:,}")
    if notes.get("other_class_ids"):
        say(
            "export",
            "who numbers the folders of a split gets other class ids than the dataset's, which labels.csv has",
        )
    by_split = ", ".join(f"{split} {one['rows']:,}" for split, one in found["by_split"].items())
    word = "there already" if state == CACHED else "done"
    say(
        "export",
        f"{word}: {totals['rows']:,} images ({by_split}) in {totals['files']:,} files, "
        f"{format_size(totals['bytes'])}: {uri}",
    )
