"""Archives: every form is read alike, damage is always the user's error, and nothing hostile costs memory."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.download import archives
from imagemill.components.download.archives import Member, Skipped, read_archive
from imagemill.components.storage.errors import TransientError, UserError

FILES = {"cat/1.jpg": b"\xff\xd8\xff" + b"one" * 700, "dog/2.png": b"\x89PNG\r\n\x1a\n", "empty.jpg": b""}
LIMIT = 10_000


def make_tar(files: dict[str, bytes] = FILES, form: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def make_zip(files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def lz4(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


def read(data: bytes, limit: int = LIMIT) -> list[Member | Skipped]:
    return list(read_archive(io.BytesIO(data), "test.tar", limit))  # type: ignore[arg-type]


def contents(data: bytes) -> dict[str, bytes | None]:
    return {member.path: member.data for member in read(data) if isinstance(member, Member)}


def halves(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: compress(data[:1500]) + compress(data[1500:])


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gz": gzip.compress,
    "gz of two members": halves(gzip.compress),
    "bz2": bz2.compress,
    "bz2 of two streams": halves(bz2.compress),
    "xz": lzma.compress,
    "zstd": zstandard.compress,
    "zstd of two frames": halves(zstandard.compress),
    "lz4": lz4,
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression_of_tar_gives_the_same_files_in_their_order(name: str) -> None:
    members = read(COMPRESSIONS[name](make_tar()))
    assert members == [Member(path, data) for path, data in FILES.items()]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_gives_the_same_files(method: int) -> None:
    assert contents(make_zip(method=method)) == FILES


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_survive(form: int) -> None:
    files = {f"{'folder/' * 40}ü.jpg": b"long", "katze/猫.jpg": b"short"}
    assert contents(make_tar(files, form)) == files


class Pipe(io.RawIOBase):
    """Bytes that can be read once, in small pieces."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        return self._data.readinto(memoryview(buffer)[:777])


@pytest.mark.parametrize("data", [make_zip(), make_tar(), gzip.compress(make_tar())], ids=["zip", "tar", "gz"])
def test_stream_without_seek_is_read(data: bytes) -> None:
    stream = io.BufferedReader(Pipe(data), 4096)  # type: ignore[type-var]
    members = list(read_archive(stream, "pipe", LIMIT))
    assert {m.path: m.data for m in members if isinstance(m, Member)} == FILES


def test_links_devices_and_folders_of_a_tar_are_no_files() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"kind{kind!r}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("real.jpg"), io.BytesIO())
    assert read(target.getvalue()) == [Member("real.jpg", b"")]


def test_links_and_folders_of_a_zip_are_no_files() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.mkdir("folder.jpg")
        archive.writestr("real.jpg", b"x")
    assert read(target.getvalue()) == [Member("real.jpg", b"x")]


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_member_above_the_limit_is_skipped_with_its_size(make: Callable[[dict[str, bytes]], bytes]) -> None:
    huge, just = read(make({"huge.jpg": bytes(LIMIT + 1), "just.jpg": bytes(LIMIT)}))
    assert huge == archives.make_too_large("huge.jpg", LIMIT + 1) and f"{LIMIT + 1:,} bytes" in huge.why
    assert just == Member("just.jpg", bytes(LIMIT))


def set_in_zip(header: dict[int, bytes], table: dict[int, bytes]) -> bytes:
    """A zip of one file with other bytes at offsets of the file's header, and of its entry in the table."""
    data = bytearray(make_zip({"a.jpg": bytes(5000)}))
    for start, values in ((0, header), (data.index(b"PK\x01\x02"), table)):
        for offset, value in values.items():
            data[start + offset : start + offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (set_in_zip({6: b"\1"}, {8: b"\1"}), r"without a password, found a\.jpg"),
        (set_in_zip({8: b"\x09\0"}, {10: b"\x09\0"}), "damaged or none"),
        (set_in_zip({}, {24: struct.pack("<I", 10)}), "damaged or none"),
    ],
    ids=["encrypted", "unknown compression", "wrong size in the table"],
)
def test_a_zip_that_cannot_be_read_is_the_users_error(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(data)


def data_start(data: bytes, path: str) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmember(path).offset_data


@pytest.mark.parametrize("cut", [1, 100, 511, 512, 1500, 2102])
def test_a_tar_cut_inside_a_member_is_the_users_error(cut: int) -> None:
    data = make_tar()
    with pytest.raises(UserError):
        read(data[: data_start(data, "cat/1.jpg") + cut])


def flip_in_header(data: bytes) -> bytes:
    position = data_start(data, "dog/2.png") - 400
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (make_tar({"huge.jpg": bytes(50_000)})[:30_000], "damaged or none"),
        (make_tar()[: data_start(make_tar(), "dog/2.png") - 200], "header is broken"),
        (flip_in_header(make_tar()), "header is broken"),
    ],
    ids=["cut inside a skipped member", "cut inside a header", "broken header in the middle"],
)
def test_a_damaged_tar_is_the_users_error_and_no_silent_end(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(data)


def test_tar_without_an_end_mark_is_read_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    data = make_tar()
    assert read(data[: data_start(data, "empty.jpg")]) == [Member(path, body) for path, body in FILES.items()]
    assert "no end mark" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMPRESSIONS if name != "plain"])
def test_truncated_compressed_tar_is_read_whole_or_raises_a_user_error(name: str) -> None:
    expected = [Member(path, data) for path, data in FILES.items()]
    data = COMPRESSIONS[name](make_tar({**FILES}))
    for cut in [*range(1, len(data) - 1, max(1, len(data) // 40)), len(data) // 2]:
        try:
            assert read(data[:cut]) == expected, f"silent loss after {cut} of {len(data)} bytes"
        except UserError:
            continue


def test_a_zip_cut_anywhere_is_the_users_error() -> None:
    data = make_zip()
    for cut in range(0, len(data), 23):
        with pytest.raises(UserError):
            read(data[:cut])


MAGICS = [b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"BZh9", *archives.DECOMPRESSORS]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MAGICS), st.binary(max_size=2000))
def test_garbage_is_the_users_error_or_an_empty_archive(magic: bytes, garbage: bytes) -> None:
    try:
        assert read(magic + garbage) == []
    except UserError as error:
        assert str(error).startswith("test.tar: ")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([make_tar(), make_tar(form=tarfile.GNU_FORMAT), make_zip()]), st.data())
def test_flipped_bytes_never_crash(archive: bytes, data: st.DataObject) -> None:
    broken = bytearray(archive)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UserError):
        read(bytes(broken))


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_huge_header_is_rejected_before_reading(kind: bytes) -> None:
    class Counted(io.BytesIO):
        taken = 0

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            got = super().readinto(buffer)
            Counted.taken += got
            return got

    stream = Counted(header(kind, 2**30) + bytes(32 * 2**20))
    with pytest.raises(UserError, match="a header of 1,073,741,824 bytes"):
        list(read_archive(stream, "test.tar", LIMIT))  # type: ignore[arg-type]
    assert Counted.taken <= 2 * archives.BUFFER


def test_a_long_chain_of_headers_is_the_users_error() -> None:
    link = header(tarfile.GNUTYPE_LONGNAME, 5) + b"name\0".ljust(512, b"\0")
    with pytest.raises(UserError, match="more than 16 headers"):
        read(link * 3000)


class Broken(io.RawIOBase):
    """A good archive's beginning, then an error that is none of the archive's."""

    def __init__(self, error: Exception, before: bytes = b"") -> None:
        self._error, self._before = error, io.BytesIO(before)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if got := self._before.readinto(buffer):
            return got
        raise self._error


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("error", [TransientError("the network"), OSError(errno.EIO, "I/O error")], ids=["net", "disk"])
def test_a_failing_disk_or_network_is_never_taken_for_damage(name: str, error: Exception) -> None:
    data = COMPRESSIONS[name](make_tar())
    stream = io.BufferedReader(Broken(error, data[: len(data) // 3]), 64)  # type: ignore[type-var]
    with pytest.raises(TransientError):
        list(read_archive(stream, "test.tar", LIMIT))


def test_memory_stays_flat_over_a_400_mb_tar_of_small_members() -> None:
    """32,000 members of 12 kB from a generator; what the process holds at most is measured by the kernel."""
    script = textwrap.dedent("""
        import io, pathlib, tarfile
        from imagemill.components.download.archives import read_archive
        class Endless(io.RawIOBase):
            def __init__(self): self.left, self.number = b"", 0
            def readable(self): return True
            def readinto(self, buffer):
                if not self.left and self.number < 32_000:
                    self.number += 1
                    info = tarfile.TarInfo(f"cat/{self.number}.jpg"); info.size = 12_288
                    self.left = info.tobuf(tarfile.GNU_FORMAT) + bytes(12_288)
                    if self.number == 32_000: self.left += bytes(1024)
                piece, self.left = self.left[:len(buffer)], self.left[len(buffer):]
                buffer[:len(piece)] = piece
                return len(piece)
        held = set()
        opened = tarfile.open
        def spy(*args, **kwargs):
            archive = opened(*args, **kwargs); held.add(archive); return archive
        tarfile.open = spy
        number = most = 0
        for member in read_archive(io.BufferedReader(Endless(), 2**20), "t", 10**6):
            number += 1
            most = max(most, *(len(a.members) for a in held))
        status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
        print(number, most, int(status.partition("VmHWM:")[2].split()[0]) // 1024)
    """)
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    number, members, megabytes = map(int, process.stdout.split())
    assert number == 32_000
    assert members <= 1, "tarfile keeps the headers it has seen"
    assert megabytes < 200
