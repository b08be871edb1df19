"""Write TFRecord files without TensorFlow: `tf.train.Example` in Protocol Buffers' wire format, and the framing.

Messages: tensorflow/core/example/example.proto and feature.proto; https://protobuf.dev/programming-guides/encoding.
Framing: https://www.tensorflow.org/tutorials/load_data/tfrecord. A map is written in the order of its keys.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

_MASK = 0xA282EAD8
_LENGTH_DELIMITED = 2
_BYTES_LIST, _INT64_LIST = 1, 3


def serialize_example(texts: Mapping[str, Sequence[bytes]], numbers: Mapping[str, Sequence[int]]) -> bytes:
    """Serialize a `tf.train.Example` of lists of bytes and lists of 64-bit integers, by name; lists may be empty."""
    features = {name: _encode_bytes_list(value) for name, value in texts.items()}
    features |= {name: _encode_int64_list(value) for name, value in numbers.items()}
    entries = (
        _encode_field(1, _encode_field(1, name.encode()) + _encode_field(2, features[name]))
        for name in sorted(features)
    )
    return _encode_field(1, b"".join(entries))


def _encode_bytes_list(values: Sequence[bytes]) -> bytes:
    return _encode_field(_BYTES_LIST, b"".join(_encode_field(1, value) for value in values))


def _encode_int64_list(values: Sequence[int]) -> bytes:
    packed = b"".join(_encode_varint(value & 0xFFFFFFFFFFFFFFFF) for value in values)
    return _encode_field(_INT64_LIST, _encode_field(1, packed) if packed else b"")


def _encode_field(number: int, payload: bytes) -> bytes:
    return _encode_varint(number << 3 | _LENGTH_DELIMITED) + _encode_varint(len(payload)) + payload


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def frame_record(data: bytes, crc32c: Callable[[bytes], int]) -> tuple[bytes, bytes]:
    """Return header and footer of `data` in a TFRecord file: its length with a masked CRC, and its own masked CRC."""
    length = struct.pack("<Q", len(data))
    return length + _mask_crc(crc32c(length)), _mask_crc(crc32c(data))


def _mask_crc(crc: int) -> bytes:
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)
