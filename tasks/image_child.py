"""The decoding process: `python -m thinkdiff.tasks.image_child LIMITS`, driven by `image_pool`.

In:  LIMITS as JSON; on standard input any number of pictures, each after its length (4 bytes, big-endian).
Out: on standard output an empty head when it is ready, then for each picture a head (status, width, height, length) and
     a body: the extension of a picture that is kept as it is, the new bytes of one that was made anew, or the reason
     for one that is refused.

It exits when its input ends. A bad picture may crash it, hang it or fill its memory: that is what it is for. It holds
no secret, opens no file, and the kernel ends it at its limits of memory and processor time.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import time
from typing import IO

from thinkdiff.tasks.pictures import FORMATS, Demands, PictureRefused, prepare_image

LENGTH, HEAD = struct.Struct(">I"), struct.Struct(">BIII")
KEPT, MADE, REFUSED = range(3)


def limit(memory: int) -> None:
    """Sets the limits that hold for the whole process: address space, no file written, no core file."""
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))


def allow_seconds(seconds: float) -> None:
    """Gives the process that much more processor time, and one second to hear of its end."""
    end = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def answer(data: bytes, demands: Demands) -> bytes:
    """The answer to one picture."""
    try:
        picture = prepare_image(data, demands)
    except (PictureRefused, MemoryError) as error:
        reason = (str(error) or "needs too much memory to decode").encode()
        return HEAD.pack(REFUSED, 0, 0, len(reason)) + reason
    made = picture.data is not data
    body = picture.data if made else picture.kind.encode()
    return HEAD.pack(MADE if made else KEPT, picture.width, picture.height, len(body)) + body


def serve(source: IO[bytes], sink: int, demands: Demands, seconds: float) -> None:
    """Answers picture after picture until the input ends."""
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        data = source.read(LENGTH.unpack(head)[0])
        allow_seconds(seconds)
        send(sink, answer(data, demands))


def send(sink: int, data: bytes) -> None:
    """Writes all of it."""
    left = memoryview(data)
    while left:
        left = left[os.write(sink, left) :]


def main() -> None:
    """Reads the limits, loads the decoders, obeys the limits from there on."""
    from PIL import Image, ImageFile, MpoImagePlugin, WebPImagePlugin

    limits = json.loads(sys.argv[1])
    demands = Demands(**limits["demands"])
    Image.preinit()
    assert MpoImagePlugin.MpoImageFile.format in FORMATS
    assert WebPImagePlugin.WebPImageFile.format in FORMATS
    Image.MAX_IMAGE_PIXELS = None  # the demands have their own, and it is looked at as early
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    limit(limits["memory"])
    send(sys.stdout.fileno(), HEAD.pack(KEPT, 0, 0, 0))
    serve(sys.stdin.buffer, sys.stdout.fileno(), demands, limits["seconds"])


if __name__ == "__main__":
    main()
