"""What a judge has said, kept under the root for every later scoring: `judge_answers/<judge>/<digest>.json`.

In: a judge's identity, and answers by what was judged and asked. Out: the same answers. Files are added and never
changed, each named by the sha256 of its bytes, so that runs may add at once; one that was altered is left aside with a
warning, and its questions are asked again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from thinkdiff.storage.root import Folder, sha256_hex

FOLDER, ABOUT = "judge_answers", "judge.json"
LARGEST = 1 << 27  # bytes of a file; a batch makes some kilobytes
KEY = 16  # bytes of a key that are held
log = logging.getLogger(__name__)


def answer_key(subject: bytes, question: str) -> str:
    """What an answer is kept under: a digest of the picture's bytes, or of the text's, and of the question."""
    return sha256_hex(f"{sha256_hex(subject)}\n{question}".encode())


class JudgeAnswers:
    """The answers of one judge, all in memory. identity: JSON of all that its answers depend on."""

    def __init__(self, root: str, identity: str) -> None:
        self.folder = Folder.at(root) / FOLDER / sha256_hex(identity.encode())[:32]
        self._held: dict[bytes, str] = {}
        sizes = self.folder.sizes("")
        for name in sorted(sizes):
            if name.endswith(".json") and name != ABOUT:
                self._held |= self._read(name, sizes[name])
        if ABOUT not in sizes:
            self.folder.write(ABOUT, identity.encode())

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: str) -> str | None:
        """The answer of that key, if it is known."""
        return self._held.get(bytes.fromhex(key)[:KEY])

    def add(self, answers: Mapping[str, str]) -> None:
        """Keeps answers; they are there for other runs when this returns."""
        if answers:
            data = json.dumps(dict(sorted(answers.items()))).encode()
            self.folder.write(f"{sha256_hex(data)}.json", data)
            self._held |= held(answers)

    def _read(self, name: str, size: int) -> dict[bytes, str]:
        try:
            if size > LARGEST:
                raise ValueError(f"{size} bytes")
            data = self.folder.read(name)
            found = json.loads(data)
            if name != f"{sha256_hex(data)}.json":
                raise ValueError("other bytes than its name tells")
            if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
                raise ValueError("no answers by key")
            return held(found)
        except (ValueError, RecursionError, FileNotFoundError) as error:
            log.warning(
                "%s/%s: found %s, expected a judge's answers. It is left aside; what it held is asked again.",
                self.folder.uri, name, str(error)[:80],
            )  # fmt: skip
            return {}


def held(answers: Mapping[str, str]) -> dict[bytes, str]:
    """Answers by the part of their keys that is held in memory. Raises ValueError for a key that is none."""
    return {bytes.fromhex(key)[:KEY]: answer for key, answer in answers.items()}
