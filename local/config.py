"""The configuration that the emulator passes to its server process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Sockets, account, directories, image commands and timing of one server process."""

    fds: list[int]  # listening sockets that the process inherits
    port: int
    directory: Path  # private to this process: logs, S3 objects, containers' directories
    unpacked: Path  # shared by all: Lambda code and layers, unpacked by content
    account: str
    region: str
    images: dict[str, list[str]]  # the command of an image, by the end of its repository name
    update_seconds: float  # the shortest time in which an endpoint is created or updated
    flush_seconds: float  # data capture writes a file after this time …
    flush_records: int  # … or this many records, the first of the two

    def to_json(self) -> str:
        """Return the configuration as JSON."""
        return msgspec.json.encode(self, enc_hook=str).decode()

    @classmethod
    def from_json(cls, text: str) -> ServerConfig:
        """Parse the configuration, or raise msgspec.ValidationError."""
        return msgspec.json.decode(text, type=cls, dec_hook=_path)


def _path(kind: type, value: Any) -> Any:
    return kind(value)
