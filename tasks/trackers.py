"""Where a training is drawn: TensorBoard's event files, in the artifact's own folder, on a disk or in a bucket.

    tracker = EventFile(folder, begin=0)
    tracker.scalars(10, {"loss": 2.5})
    tracker.flush()            # tensorboard --logdir FOLDER

Anything with the methods of `Tracker` can stand in its place.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from typing import Any, Protocol

import google_crc32c

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.storage.root import Folder

TRACKED = "tensorboard"


class Tracker(Protocol):
    """What a training tells."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text of a step."""

    def flush(self) -> None:
        """Makes what was told so far seen."""


class EventFile:
    """One event file for each start of a training: TensorBoard draws those of a folder as one run."""

    def __init__(self, folder: Folder, begin: int) -> None:
        self._folder, self._name = folder, f"{TRACKED}/events.out.tfevents.{begin:010d}.thinkdiff"
        self._records: list[bytes] = []
        self._add(file_version="brain.Event:2")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""
        self._add(step=step, summary={"value": [{"tag": tag, "simple_value": value} for tag, value in values.items()]})

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text of a step; TensorBoard shows it as markdown."""
        value = {
            "tag": f"{name}/text_summary",
            "metadata": {"plugin_data": {"plugin_name": "text"}},
            "tensor": {"dtype": "DT_STRING", "string_val": [markdown.encode()], "tensor_shape": {"dim": [{"size": 1}]}},
        }
        self._add(step=step, summary={"value": [value]})

    def flush(self) -> None:
        """Writes the file, whole."""
        self._folder.write(self._name, b"".join(self._records))

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto import event_pb2

        made: Any = event_pb2
        event = made.Event(wall_time=time.time(), **fields)
        data: bytes = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._records.append(length + masked_crc(length) + data + masked_crc(data))


def masked_crc(data: bytes) -> bytes:
    """The checksum of a TFRecord: crc32c, rotated and shifted by a constant."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tracked_files(folder: Folder) -> tuple[FileEntry, ...]:
    """The event files of all starts, which are no content: they hold the times of day."""
    names = sorted(folder.sizes(TRACKED))
    return tuple(folder.hash(name).model_copy(update={"content": False}) for name in names)
