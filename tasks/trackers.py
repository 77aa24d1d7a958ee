"""Where a training is drawn: TensorBoard's event files in the artifact's own folder, or Weights & Biases.

    tracker = EventFile(folder, begin=0)
    tracker.scalars(10, {"loss": 2.5})
    tracker.flush()            # tensorboard --logdir FOLDER

Anything with the methods of `Tracker` can stand in its place.
"""

from __future__ import annotations

import html
import struct
import time
from collections.abc import Mapping
from typing import Any, Protocol

import google_crc32c

from thinkdiff.schemas.artifact import Execution, FileEntry
from thinkdiff.schemas.errors import SpecError
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

    def close(self) -> None:
        """Nothing more is told."""


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

    def close(self) -> None:
        """Writes what is not written yet."""
        self.flush()

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto import event_pb2

        made: Any = event_pb2
        event = made.Event(wall_time=time.time(), **fields)
        data: bytes = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._records.append(length + masked_crc(length) + data + masked_crc(data))


class WandbRun:
    """A run of Weights & Biases in the project `thinkdiff`, of the artifact's fingerprint: a resumed training goes on
    in it. What wandb itself reads from the environment (WANDB_MODE, WANDB_DIR, WANDB_ENTITY) holds.

    Raises SpecError when wandb is not installed or lets no run begin, as without a login.
    """

    def __init__(self, folder: Folder, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise SpecError(
                "run.tracker: found no package wandb, expected it. Install it: pip install 'thinkdiff[wandb]'."
            ) from None
        self._html = wandb.Html
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        try:
            self._run = wandb.init(
                project="thinkdiff", id=folder.uri.rsplit("/", 1)[-1], resume="allow", config=dict(config),
                settings=settings, reinit="create_new",
            )  # fmt: skip
        except wandb.Error as error:
            raise SpecError(
                f"run.tracker: found wandb not willing to begin ({error!s:.200}), expected a run. Log in with "
                "`wandb login`, or set WANDB_MODE=offline."
            ) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text of a step, as it is."""
        self._run.log({name: self._html(f"<pre>{html.escape(markdown, quote=False)}</pre>")}, step=step)

    def flush(self) -> None:
        """A process of wandb's own sends what it has."""

    def close(self) -> None:
        """Waits until it has."""
        self._run.finish()


def tracker_of(run: Execution, folder: Folder, config: Mapping[str, Any], begin: int) -> Tracker | None:
    """The tracker that the run asks for, of a training that starts at step `begin`."""
    if run.tracker == "wandb":
        return WandbRun(folder, config)
    return EventFile(folder, begin) if run.tracker == "tensorboard" else None


def masked_crc(data: bytes) -> bytes:
    """The checksum of a TFRecord: crc32c, rotated and shifted by a constant."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tracked_files(folder: Folder) -> tuple[FileEntry, ...]:
    """The event files of all starts, which are no content: they hold the times of day."""
    names = sorted(folder.sizes(TRACKED))
    return tuple(folder.hash(name).model_copy(update={"content": False}) for name in names)
