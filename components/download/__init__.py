"""Download: any source into raw Parquet shards."""

from imagemill.components.download.config import DownloadConfig
from imagemill.components.store.step import Step

STEP = Step(
    "download",
    DownloadConfig,
    "imagemill.components.download.raw:download",
    "Read a source (archive, folder, bucket, table, URL) into a raw dataset, or find that it did not change.",
)
