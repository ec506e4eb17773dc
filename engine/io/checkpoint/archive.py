"""The zip archive inside a torch file: sizes and checksums of its members, checked before anything is unpickled.

    python -c "from engine.io.checkpoint.archive import check_archive; check_archive('models/stories.pt')"
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib

import numpy as np

from engine.io.checkpoint.contents import CheckpointError
from engine.io.checkpoint.identify import what_it_is

LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, then the lengths of the name and of the extra field
AGAIN = "copy or download it again"


def check_archive(path: str | os.PathLike) -> bytes:
    """The pickle in the archive, unread. Raises CheckpointError unless every member is whole and fits its checksum.

    torch neither checks the CRC-32 that it writes nor refuses a compressed member, which could grow without limit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, struct.error, NotImplementedError):
        raise CheckpointError(f"{path} was not loaded: {what_it_is(path)}") from None
    data = np.memmap(path, dtype=np.uint8, mode="r")
    with_checksums = any(member.CRC for member in members)  # torch can be told to write none
    pickled = b""
    for member in members:
        body = _body(path, member, data)
        if member.filename.endswith("/data.pkl"):
            pickled += body.tobytes()
        if with_checksums and zlib.crc32(body) != member.CRC:
            name = ascii(member.filename.partition("/")[2])[1:60].rstrip("'")
            raise CheckpointError(f"{path} is damaged: the checksum of its part {name} is wrong; {AGAIN}")
    return pickled


def _body(path: str | os.PathLike, member: zipfile.ZipInfo, data: np.ndarray) -> np.ndarray:
    """The bytes of an uncompressed member, (file_size,) uint8."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise CheckpointError(f"{path} was not loaded: {what_it_is(path)}")  # torch compresses none
    header = bytes(data[member.header_offset : member.header_offset + LOCAL_HEADER.size])
    if len(header) == LOCAL_HEADER.size:
        signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = member.header_offset + LOCAL_HEADER.size + name_length + extra_length
        body = data[start : start + member.file_size]
        if signature == b"PK\x03\x04" and len(body) == member.file_size:
            return body
    raise CheckpointError(f"{path} is damaged or cut short: a part of it is missing; {AGAIN}")
