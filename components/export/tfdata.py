"""Read a tfrecord export with `tf.data`. This file needs TensorFlow and nothing else: copy it, or import it.

    train = read("export", "train", 64, shuffle=True, image_size=224)
    model.fit(train.map(lambda image, label: (tf.cast(image, tf.float32) / 255, label)))

Shards are read in parallel (interleave), decoded on all cores (map, AUTOTUNE), cached on request, shuffled,
augmented, batched and prefetched, in this order: https://www.tensorflow.org/guide/data_performance. Images stay uint8
until the model, with a quarter of the memory traffic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

SHUFFLE_ROWS = 4096
"""Size of the shuffle buffer in images; the shards are shuffled as well, and their rows lie in random order already."""


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
    """Return a `tf.data.Dataset` of (images uint8 [B, H, W, C], labels int64 [B]) of a split of a tfrecord export.

    The labels of a multi-label dataset are uint8 [B, classes] of zeros and ones.

    Args:
        folder: the export; any path that `tf.io.gfile` opens.
        shuffle: read shards and images in a new order every epoch; otherwise always in the same order.
        seed: of the shuffling.
        repeat: repeat the epochs without end.
        cache: `memory`, or the path of a file, for the decoded images.
        image_size: resize the short side to this number of pixels, antialiased, then crop the center; required if
            images have different sizes.
        augment: `augment(image, label)`, applied to single images anew every epoch.
        with_ids: add image_id, string [B].
        drop_remainder: drop the last batch if it is smaller.
        shuffle_rows: size of the shuffle buffer in images.

    Raises ValueError for a split that does not exist, and if `image_size` is missing.
    """
    import tensorflow as tf

    features = read_features(folder)
    if split not in features["splits"]:
        raise ValueError(f"split: expected one of {', '.join(features['splits'])}, found {split!r}")
    if not features["shape"] and not image_size:
        raise ValueError("image_size: expected a number of pixels, since these images have different sizes")
    auto = tf.data.AUTOTUNE
    paths = [os.path.join(os.fspath(folder), name) for name in features["splits"][split]["shards"]]  # noqa: PTH118
    files = tf.data.Dataset.from_tensor_slices(paths)
    if shuffle:
        files = files.shuffle(len(paths), seed=seed, reshuffle_each_iteration=True)
    records = files.interleave(
        tf.data.TFRecordDataset, cycle_length=min(16, len(paths)), num_parallel_calls=auto, deterministic=True
    )
    images = records.map(_make_parser(features, image_size, with_ids), num_parallel_calls=auto, deterministic=True)
    if cache:
        images = images.cache("" if cache == "memory" else cache)
    if shuffle:
        rows = min(shuffle_rows, features["splits"][split]["rows"])
        images = images.shuffle(rows, seed=seed, reshuffle_each_iteration=True)
    if repeat:
        images = images.repeat()
    if augment is not None:
        images = images.map(_keep_ids(augment), num_parallel_calls=auto, deterministic=True)
    return images.batch(batch_size, drop_remainder=drop_remainder).prefetch(auto)


def read_features(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `features.json`: the features, the classes, the shape if all images have one, the splits' shards."""
    import tensorflow as tf

    with tf.io.gfile.GFile(os.path.join(os.fspath(folder), "features.json")) as file:  # noqa: PTH118
        features: dict[str, Any] = json.load(file)
    return features


def _keep_ids(augment: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[..., tuple[Any, ...]]:
    """Return `augment` as a function of image, label and an optional id, which it passes through."""

    def augment_image(image: Any, label: Any, *ids: Any) -> tuple[Any, ...]:
        return (*augment(image, label), *ids)

    return augment_image


def _make_parser(features: dict[str, Any], image_size: int, with_ids: bool) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function from one serialized Example to an image, its label, and its id if `with_ids`."""
    import tensorflow as tf

    is_raw, is_multi_label = "image/raw" in features["features"], features["task"] == "multi"
    num_classes = len(features["classes"])
    scalar = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("image/height", "image/width", "image/channels")}
    name = "image/raw" if is_raw else "image/encoded"
    spec = {name: tf.io.FixedLenFeature([], tf.string), "image_id": tf.io.FixedLenFeature([], tf.string), **scalar}
    spec["label"] = tf.io.VarLenFeature(tf.int64) if is_multi_label else tf.io.FixedLenFeature([], tf.int64)
    channels = features["shape"][2] if features["shape"] else 3

    def parse(serialized: Any) -> tuple[Any, ...]:
        example = tf.io.parse_single_example(serialized, spec)
        if is_raw:
            shape = [example[f"image/{side}"] for side in ("height", "width", "channels")]
            image = tf.reshape(tf.io.decode_raw(example[name], tf.uint8), shape)
        else:
            # decode_jpeg reads PNG as well, and is the only decoder with a choice of exact arithmetic.
            image = tf.io.decode_jpeg(example[name], channels=channels, dct_method="INTEGER_ACCURATE")
        if features["shape"]:
            image = tf.ensure_shape(image, features["shape"])
        if image_size:
            image = _resize_and_crop(image, image_size)
            image = tf.ensure_shape(image, [image_size, image_size, channels])
        label = example["label"]
        if is_multi_label:
            one_hot = tf.one_hot(tf.sparse.to_dense(label), num_classes, dtype=tf.uint8)
            label = tf.reduce_max(tf.concat([one_hot, tf.zeros([1, num_classes], tf.uint8)], axis=0), axis=0)
        return (image, label, example["image_id"]) if with_ids else (image, label)

    return parse


def _resize_and_crop(image: Any, size: int) -> Any:
    """Resize the short side, antialiased, and crop the center: uint8 [H, W, C] → [size, size, C]."""
    import tensorflow as tf

    height, width = tf.unstack(tf.shape(image)[:2])
    short = tf.minimum(height, width)
    # Cropped first, so that only what is kept is resized.
    square = tf.image.crop_to_bounding_box(image, (height - short) // 2, (width - short) // 2, short, short)
    resized = tf.image.resize(square, [size, size], method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
