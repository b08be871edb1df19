"""TFRecord files without TensorFlow: `tf.train.Example` by the wire format of Protocol Buffers, and the framing.

Messages: tensorflow/core/example/example.proto and feature.proto; https://protobuf.dev/programming-guides/encoding.
Framing: https://www.tensorflow.org/tutorials/load_data/tfrecord. A map is written in the order of its keys.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

_MASK = 0xA282EAD8
_LENGTH_DELIMITED = 2
_BYTES_LIST, _INT64_LIST = 1, 3


def example(texts: Mapping[str, Sequence[bytes]], numbers: Mapping[str, Sequence[int]]) -> bytes:
    """A serialized `tf.train.Example` of lists of bytes and lists of 64-bit integers, by name; an empty list is one."""
    features = {name: _bytes_list(value) for name, value in texts.items()}
    features |= {name: _int64_list(value) for name, value in numbers.items()}
    entries = (_field(1, _field(1, name.encode()) + _field(2, features[name])) for name in sorted(features))
    return _field(1, b"".join(entries))


def _bytes_list(values: Sequence[bytes]) -> bytes:
    return _field(_BYTES_LIST, b"".join(_field(1, one) for one in values))


def _int64_list(values: Sequence[int]) -> bytes:
    packed = b"".join(_varint(one & 0xFFFFFFFFFFFFFFFF) for one in values)
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
