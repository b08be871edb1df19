"""TFRecord files without TensorFlow: `tf.train.Example` by the wire format of Protocol Buffers, and the framing.

Messages: tensorflow/core/example/example.proto and feature.proto; https://protobuf.dev/programming-guides/encoding.
Framing: https://www.tensorflow.org/tutorials/load_data/tfrecord. A map is written in the order of its keys.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

Value = bytes | Sequence[bytes] | Sequence[int]

_MASK = 0xA282EAD8
_LENGTH_DELIMITED = 2
_BYTES_LIST, _INT64_LIST = 1, 3


def example(features: Mapping[str, Value]) -> bytes:
    """A serialized `tf.train.Example`. A bytes value is a list of one; an empty list of integers stays one."""
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _feature(features[name]))) for name in sorted(features)
    )
    return _field(1, entries)


def _feature(value: Value) -> bytes:
    if isinstance(value, bytes):
        return _field(_BYTES_LIST, _field(1, value))
    if value and isinstance(value[0], bytes):
        return _field(_BYTES_LIST, b"".join(_field(1, one) for one in value if isinstance(one, bytes)))
    packed = b"".join(_varint(one & 0xFFFFFFFFFFFFFFFF) for one in value if isinstance(one, int))
    return _field(_INT64_LIST, _field(1, packed) if packed else b"")


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def record(data: bytes, crc32c: Callable[[bytes], int]) -> tuple[bytes, bytes]:
    """What stands before and after `data` in a TFRecord file: its length and the masked checksum of that; its own."""
    length = struct.pack("<Q", len(data))
    return length + _masked(crc32c(length)), _masked(crc32c(data))


def _masked(crc: int) -> bytes:
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)
