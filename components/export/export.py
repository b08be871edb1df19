"""Export a dataset: find the finished export, or write it and mark it as finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..step.progress import Progress, format_size, say
from ..storage import uri as uris
from ..storage.errors import wrong
from .config import ExportConfig
from .huggingface import HuggingFaceFormat
from .imagefolder import ImageFolderExport
from .output_folder import ExportMarker, ExportTotals, OutputFolder, SplitFiles
from .samples import ExportSource
from .shards import ExportContext, ShardFormat, export_shards
from .tfrecord import TFRecordFormat
from .webdataset import WebDatasetFormat

_SHARD_FORMATS: dict[str, Callable[[ExportContext], ShardFormat]] = {
    "tfrecord": TFRecordFormat,
    "webdataset": WebDatasetFormat,
    "huggingface": HuggingFaceFormat,
}
_IMAGE_FILE_FORMATS = ("imagefolder", "huggingface")
RAN, CACHED = "ran", "cached"


def export(config: ExportConfig) -> dict[str, Any]:
    """Make the export that `config` asks for unless it is finished; return what `--json` prints.

    Memory is bounded by what `samples` and `shards` hold (measured: 0.6 GB resident with all imports), and 16 bytes an
    image more for imagefolder; scratch space by three shards.
    """
    config.check()
    dataset = config.open_dataset()
    source = ExportSource(dataset)
    output = OutputFolder(config.output_uri(dataset), config.identity(dataset))
    _check_format(config, source)
    marker, state = output.read_marker(), CACHED
    if marker is not None and not output.is_complete(marker):
        say("export", f"files are missing or damaged in {output.uri}: made again")
        marker = None
    if marker is None:
        marker, state = _write(config, source, output), RAN
    _report(output.uri, marker, state)
    identity, body = marker.identity, marker.to_dict()
    status = {"status": "ok", "state": state, "format": config.format, "output": output.uri}
    source_values = {"kind": identity.kind, "fingerprint": identity.fingerprint}
    return {**status, **source_values, **{key: body[key] for key in ("dataset", "totals", "by_split", "notes")}}


def _check_format(config: ExportConfig, source: ExportSource) -> None:
    if config.format in _IMAGE_FILE_FORMATS and not source.fits_image_files:
        image = source.image
        raise wrong(
            "--format", "tfrecord or webdataset (as arrays) for pixels that no picture file holds",
            f"{config.format} of {image.shape[2]} channels ({image.color}{' and edges' if image.edges else ''})",
        )  # fmt: skip


def _write(config: ExportConfig, source: ExportSource, output: OutputFolder) -> ExportMarker:
    """Write all files and the marker; return the marker."""
    output.claim()
    rows = sum(source.rows.values())
    say("export", f"{rows:,} images of {source.dataset.manifest.kind} {source.dataset.fingerprint} as {config.format}")
    with output.scratch() as scratch:
        context = ExportContext(source, output, scratch, config.shard_bytes, Progress("export", total=rows))
        if config.format == "imagefolder":
            folder = ImageFolderExport(context)
            files, num_images, image_bytes = folder.export(), folder.files, folder.bytes
        else:
            files, num_images, image_bytes = export_shards(context, _SHARD_FORMATS[config.format](context)), 0, 0
    files = sorted(files, key=lambda file: file.path)
    manifest = source.dataset.manifest
    marker = ExportMarker(
        identity=config.identity(source.dataset),
        dataset=uris.redact(source.dataset.uri),
        task=manifest.task,
        classes=manifest.classes,
        image=manifest.image.to_dict() if manifest.image else {},
        files=tuple(files),
        totals=ExportTotals(rows, len(files) + num_images, sum(file.bytes for file in files) + image_bytes),
        by_split={
            split: SplitFiles(count, [file.path for file in files if file.split == split])
            for split, count in source.rows.items()
        },
        notes=context.notes,
    )
    output.finish(marker)
    return marker


def _report(uri: str, marker: ExportMarker, state: str) -> None:
    totals, notes = marker.totals, marker.notes
    if reencoded := notes.get("reencoded"):
        counts = ", ".join(f"{count:,} {format_name}" for format_name, count in sorted(reencoded.items()))
        say("export", f"encoded again as PNG, since TensorFlow reads them not at all or not alike: {counts}")
    if notes.get("gif"):
        say("export", f"GIF files, which torchvision's ImageFolder passes over: {notes['gif']:,}")
    if notes.get("other_class_ids"):
        say(
            "export",
            "who numbers the folders of a split gets other class ids than the dataset's, which labels.csv has",
        )
    by_split = ", ".join(f"{split} {counts.rows:,}" for split, counts in marker.by_split.items())
    files = f"{totals.files:,} files, {format_size(totals.bytes)}"
    prefix = "there already" if state == CACHED else "done"
    say("export", f"{prefix}: {totals.rows:,} images ({by_split}) in {files}: {uri}")
