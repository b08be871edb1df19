"""Download: reads any source into raw Parquet shards."""

from ..step.step import Step
from .config import DownloadConfig

STEP = Step(
    "download",
    DownloadConfig,
    "imagemill.components.download.download:download",
    "Read a source (archive, folder, bucket, table, URL) into a raw dataset, or find that it did not change.",
)
