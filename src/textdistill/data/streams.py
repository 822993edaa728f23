"""Opens data files as streams of UTF-8: plain, compressed or in a zip archive, and in any encoding."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

# Bytes that are read at a time. A row must fit into them.
BLOCK_BYTES = 2**24
# Bytes that are decoded at a time.
DECODED_BYTES = 2**20

_OPENERS: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
# A UTF-32 mark begins with the bytes of a UTF-16 mark, so it comes first.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BROKEN = (
    *(pa.ArrowException, ValueError, OverflowError, RecursionError, RuntimeError, EOFError, zlib.error, lzma.LZMAError),
    *(zipfile.BadZipFile, OSError),
)


@dataclass(frozen=True)
class DataFile:
    """A file on disk, or a member of a zip archive.

    Attributes:
        path: the file, or the archive.
        member: the name of the member; empty for a file of its own.

    """

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.member})" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The name of the file without folders, and without the suffix of its compression."""
        name = PurePosixPath(self.member).name or self.path.name
        return name[: -len(self._compression)] if self._compression else name

    @property
    def stem(self) -> str:
        """The name without the suffix of its format, in lower case."""
        return self.name[: len(self.name) - len(self.suffix)].lower()

    @property
    def suffix(self) -> str:
        """The suffix of its format, such as ``.csv``, in lower case."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def compressed(self) -> bool:
        """Whether the file cannot be read at any position."""
        return bool(self.member or self._compression)

    @property
    def _compression(self) -> str:
        suffix = self.path.suffix.lower()
        return self.path.suffix if suffix in _OPENERS and not self.member else ""

    def open(self) -> IO[bytes]:
        """Opens the file, decompressed."""
        if self.member:
            return zipfile.ZipFile(self.path).open(self.member)
        stream: IO[bytes] = _OPENERS[self._compression.lower()](self.path)
        return stream


def data_files(path: Path) -> list[DataFile]:
    """Returns the file at ``path``, or the members of a zip archive.

    Raises:
        ValueError: the archive is broken.

    """
    if path.suffix.lower() != ".zip":
        return [DataFile(path)]
    with file_errors(DataFile(path)), zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(info.filename) for info in archive.infolist() if not info.is_dir()]
        return [DataFile(path, str(name)) for name in names if not _hidden(name)]


def _hidden(name: PurePosixPath) -> bool:
    """Whether a member is one of the files that macOS and others add to archives."""
    return any(part.startswith((".", "__MACOSX")) for part in name.parts)


@contextmanager
def file_errors(file: DataFile) -> Iterator[None]:
    """Turns the errors of parsers and decompressors into one that names the file."""
    try:
        yield
    except RefusedFileError:
        raise
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        if "straddling" in reason or "out of sync" in reason:
            reason = f"a row must fit into {BLOCK_BYTES:,} bytes, but one is longer; shorten its text"
        raise ValueError(f"data.path: {file} is empty or broken: {reason}") from error


class RefusedFileError(ValueError):
    """A file that can be read but not used. The message names the file, the rule and the remedy."""


def open_utf8(file: DataFile, encoding: str | None) -> IO[bytes]:
    """Opens a file as UTF-8 without a byte-order mark.

    Args:
        file: the file.
        encoding: its encoding. With None, a byte-order mark states it; otherwise it is UTF-8.

    Returns:
        A stream. ``read(n)`` returns n bytes, except at the end of the file. Reading raises ``RefusedFileError`` at a
        byte that the encoding does not know.

    """
    with file.open() as stream:
        head = stream.read(4)
    mark = next((mark for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), b"")
    if b"\0" in head and not mark and encoding is None:
        raise RefusedFileError(
            f"data.encoding: {file} must be UTF-8, but holds zero bytes; if it is a text in UTF-16, give "
            "data.encoding=utf-16-le or data.encoding=utf-16-be"
        )
    stream = file.open()
    if mark == codecs.BOM_UTF8:
        stream.read(len(mark))
    utf8: Any = _Utf8(stream, file, _BYTE_ORDER_MARKS.get(mark) or encoding or "utf-8")
    return io.BufferedReader(utf8, 2**16)


class _Utf8(io.RawIOBase):
    """Decodes a stream block by block, and gives its text as UTF-8."""

    def __init__(self, stream: IO[bytes], file: DataFile, encoding: str) -> None:
        self._stream, self._file, self._encoding = stream, file, encoding
        self._is_utf8 = codecs.lookup(encoding).name == "utf-8"
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._lines = 1
        self._block, self._start = memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if self._start == len(self._block):
            self._block, self._start = memoryview(self._next_block()), 0
        size = min(len(buffer), len(self._block) - self._start)
        buffer[:size] = self._block[self._start : self._start + size]
        self._start += size
        return size

    def _next_block(self) -> bytes:
        raw = self._stream.read(DECODED_BYTES)
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise self._refusal(error) from error
        block = raw if self._is_utf8 else text.encode()
        # A block of UTF-16 may hold half a character only.
        if not block and raw:
            return self._next_block()
        self._lines += block.count(b"\n")
        return block

    def _refusal(self, error: UnicodeDecodeError) -> RefusedFileError:
        before = error.object[: error.start].decode(self._encoding, "replace")
        line = self._lines + before.count("\n")
        suggestion = "cp1252 or data.encoding=latin-1" if self._is_utf8 else "utf-8"
        return RefusedFileError(
            f"data.encoding: {self._file} must be {self._encoding}, but byte 0x{error.object[error.start]:02x} in line "
            f"{line:,} is not; give its encoding, for example data.encoding={suggestion}"
        )

    def close(self) -> None:
        self._stream.close()
        super().close()
