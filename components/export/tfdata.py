"""How to read a tfrecord export with `tf.data`. This file needs TensorFlow and nothing else: copy it, or import it.

    train = read("export", "train", 64, shuffle=True, image_size=224)
    model.fit(train.map(lambda image, label: (tf.cast(image, tf.float32) / 255, label)))

Shards are read in parallel (interleave), decoded on all cores (map, AUTOTUNE), cached if that is wanted, shuffled,
augmented, batched and prefetched, in this order: https://www.tensorflow.org/guide/data_performance. Images stay uint8
until the model, a quarter of the way for the memory and the bus.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

SHUFFLE_ROWS = 4096
"""How many images are shuffled among one another, besides the shards; rows lie in random order already."""


def read(
    folder: str | os.PathLike[str],
    split: str,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    repeat: bool = False,
    cache: str = "",
    image_size: int = 0,
    augment: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    with_ids: bool = False,
    drop_remainder: bool = False,
    shuffle_rows: int = SHUFFLE_ROWS,
) -> Any:
    """A `tf.data.Dataset` of (images uint8 [B, H, W, C], labels int64 [B]) of a split of a tfrecord export.

    labels: where an image may have several, uint8 [B, classes] of zeros and ones. `with_ids` adds image_id string [B].
    `shuffle`: shards and images in a new order every epoch, by `seed`; otherwise in one order that never changes.
    `cache`: `memory`, or the path of a file, for the decoded images. `image_size`: the short side is resized to it,
    antialiased, then the centre is cut out; needed where images have different sizes. `augment(image, label)` works on
    one image and runs anew every epoch. The folder may be any path that `tf.io.gfile` opens.

    Raises ValueError for a split that is not there, and where `image_size` is needed.
    """
    import tensorflow as tf

    about = features(folder)
    if split not in about["splits"]:
        raise ValueError(f"split: expected one of {', '.join(about['splits'])}, found {split!r}")
    if not about["shape"] and not image_size:
        raise ValueError("image_size: expected a number of pixels, since these images have different sizes")
    auto = tf.data.AUTOTUNE
    paths = [os.path.join(os.fspath(folder), name) for name in about["splits"][split]["shards"]]  # noqa: PTH118
    files = tf.data.Dataset.from_tensor_slices(paths)
    if shuffle:
        files = files.shuffle(len(paths), seed=seed, reshuffle_each_iteration=True)
    records = files.interleave(
        tf.data.TFRecordDataset, cycle_length=min(16, len(paths)), num_parallel_calls=auto, deterministic=True
    )
    images = records.map(_parser(about, image_size, with_ids), num_parallel_calls=auto, deterministic=True)
    if cache:
        images = images.cache("" if cache == "memory" else cache)
    if shuffle:
        rows = min(shuffle_rows, about["splits"][split]["rows"])
        images = images.shuffle(rows, seed=seed, reshuffle_each_iteration=True)
    if repeat:
        images = images.repeat()
    if augment is not None:
        images = images.map(_augmented(augment), num_parallel_calls=auto, deterministic=True)
    return images.batch(batch_size, drop_remainder=drop_remainder).prefetch(auto)


def features(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `features.json` says: the features, the classes, the shape if it is one for all, the splits' shards."""
    import tensorflow as tf

    with tf.io.gfile.GFile(os.path.join(os.fspath(folder), "features.json")) as file:  # noqa: PTH118
        about: dict[str, Any] = json.load(file)
    return about


def _augmented(augment: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[..., tuple[Any, ...]]:
    """`augment` on image and label; an id that follows them stays."""

    def work(image: Any, label: Any, *ids: Any) -> tuple[Any, ...]:
        return (*augment(image, label), *ids)

    return work


def _parser(about: dict[str, Any], image_size: int, with_ids: bool) -> Callable[[Any], tuple[Any, ...]]:
    """From one serialized Example to an image, its label, and its id if that is wanted."""
    import tensorflow as tf

    raw, multi, classes = "image/raw" in about["features"], about["task"] == "multi", len(about["classes"])
    scalar = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("image/height", "image/width", "image/channels")}
    name = "image/raw" if raw else "image/encoded"
    wanted = {name: tf.io.FixedLenFeature([], tf.string), "image_id": tf.io.FixedLenFeature([], tf.string), **scalar}
    wanted["label"] = tf.io.VarLenFeature(tf.int64) if multi else tf.io.FixedLenFeature([], tf.int64)
    channels = about["shape"][2] if about["shape"] else 3

    def parse(serialized: Any) -> tuple[Any, ...]:
        found = tf.io.parse_single_example(serialized, wanted)
        if raw:
            shape = [found[f"image/{side}"] for side in ("height", "width", "channels")]
            image = tf.reshape(tf.io.decode_raw(found[name], tf.uint8), shape)
        else:
            # This operation reads PNG as well, and alone of them can be asked for exact arithmetic.
            image = tf.io.decode_jpeg(found[name], channels=channels, dct_method="INTEGER_ACCURATE")
        if about["shape"]:
            image = tf.ensure_shape(image, about["shape"])
        if image_size:
            image = _fitted(image, image_size)
            image = tf.ensure_shape(image, [image_size, image_size, channels])
        label = found["label"]
        if multi:
            hot = tf.one_hot(tf.sparse.to_dense(label), classes, dtype=tf.uint8)
            label = tf.reduce_max(tf.concat([hot, tf.zeros([1, classes], tf.uint8)], axis=0), axis=0)
        return (image, label, found["image_id"]) if with_ids else (image, label)

    return parse


def _fitted(image: Any, size: int) -> Any:
    """uint8 [H, W, C] → [size, size, C]: the short side resized, antialiased, and the centre of the long one."""
    import tensorflow as tf

    height, width = tf.unstack(tf.shape(image)[:2])
    short = tf.minimum(height, width)
    # The largest centred square first: what would be cut away need not be resized.
    square = tf.image.crop_to_bounding_box(image, (height - short) // 2, (width - short) // 2, short, short)
    resized = tf.image.resize(square, [size, size], method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
