"""Part records: what is judged, and that nobody's fresh part is taken for a broken one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from store_artifacts import cut

from thinkdiff.storage.parts import Part, PartLog
from thinkdiff.storage.root import Folder


def commit(folder: Folder, number: int) -> None:
    """A part of one file, as a writer leaves it."""
    entry = folder.write(f"data/{number}", b"content")
    PartLog(folder, "commits", Part).commit(Part(number=number, rows=1, files=(entry,)))


@dataclass(frozen=True)
class Walked(Folder):
    """A folder whose listing takes time: `meanwhile` happens once, after the data and before the records are listed."""

    meanwhile: list[Callable[[], None]]

    def sizes(self, prefix: str = "") -> dict[str, int]:
        data = {name: size for name, size in super().sizes(prefix).items() if not name.startswith("commits/")}
        while self.meanwhile:
            self.meanwhile.pop()()
        return data | {name: size for name, size in super().sizes(prefix).items() if name.startswith("commits/")}


def test_part_that_is_committed_while_another_looks_is_not_rejected(tmp_path: Path):
    folder = Folder(str(tmp_path))
    commit(folder, 0)
    looking = PartLog(Walked(folder.uri, [lambda: commit(folder, 1)]), "commits", Part)
    assert set(looking.committed()) == {0, 1}
    assert looking.rejected == {}
    assert set(PartLog(folder, "commits", Part).committed()) == {0, 1}


def test_record_that_goes_while_another_looks_is_no_part_and_is_not_rejected(tmp_path: Path):
    folder = Folder(str(tmp_path))
    commit(folder, 0)

    @dataclass(frozen=True)
    class Late(Folder):
        """A folder whose record is taken away, and made again, between a listing and its reading."""

        def read(self, name: str) -> bytes:
            folder.delete(name)
            try:
                return super().read(name)
            finally:
                commit(folder, 0)

    looking = PartLog(Late(folder.uri), "commits", Part)
    assert (looking.committed(), looking.rejected) == ({}, {})
    assert set(PartLog(folder, "commits", Part).committed()) == {0}


def test_part_whose_file_is_cut_or_lost_is_rejected_and_made_again(tmp_path: Path):
    folder = Folder(str(tmp_path))
    for number in range(3):
        commit(folder, number)
    cut(folder, "data/0", 3)
    folder.delete("data/1")
    log = PartLog(folder, "commits", Part)
    assert set(log.committed()) == {2}
    assert log.rejected == {
        0: "data/0 with 3 bytes instead of 7",
        1: "data/1 missing, with no bytes, instead of 7",
    }
    commit(folder, 0)
    assert set(log.committed()) == {0, 2}
