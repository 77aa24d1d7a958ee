"""Several writers of one shard, and writers that stop half-way: one attempt is kept, and it is kept whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3_server import place, s3  # noqa: F401
from small_features import ROWS, SHARD, row, writer_of
from store_artifacts import artifact_of

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.feature_store import FeatureReader, FeatureRow
from thinkdiff.storage.parts import Part
from thinkdiff.storage.root import Folder


def attempts_of(shard: int, writers: int) -> list[list[FeatureRow]]:
    """Rows of a shard as several writers make them: the same keys, but features and texts of their own."""
    rows = [row(index, inputs=True) for index in range(shard * SHARD, min(ROWS, (shard + 1) * SHARD))]
    return [
        [
            replace(one, features=one.features + who, input_features=np.asarray(one.input_features) + who,
                    text=f"by {who}")
            for one in rows
        ]
        for who in range(writers)
    ]  # fmt: skip


def must_be_of_one_writer(reader: FeatureReader, shard: int) -> int:
    """Features, input features and texts of a shard are of the same attempt, which is returned."""
    rows = [reader.row(index) for index in range(shard * SHARD, min(ROWS, (shard + 1) * SHARD))]
    (who,) = {int(found.text.removeprefix("by ")) for found in rows}
    for found, wanted in zip(rows, attempts_of(shard, who + 1)[who], strict=True):
        np.testing.assert_array_equal(found.features, wanted.features)
        np.testing.assert_array_equal(np.asarray(found.input_features), np.asarray(wanted.input_features))
    return who


def test_of_many_writers_of_a_shard_one_wins_whole(place: Folder):  # noqa: F811
    main, writers = writer_of(place, inputs=True), 4
    others = [writer_of(place, inputs=True, prepared=False) for _ in range(writers)]
    for shard in range(main.shards):
        gate, attempts = threading.Barrier(writers), attempts_of(shard, writers)

        def race(who: int, shard: int = shard, gate: Any = gate, attempts: Any = attempts) -> Part:
            gate.wait(30)
            return others[who].commit(shard, attempts[who])

        with ThreadPoolExecutor(writers) as pool:
            parts = list(pool.map(race, range(writers)))
        assert all(part == parts[0] for part in parts)
    artifact = artifact_of(FeatureSet, place, main.files())
    for shard in range(main.shards):
        must_be_of_one_writer(FeatureReader(artifact), shard)
    assert set(place.sizes()) == set(artifact.names(""))  # the losers have taken their things away


@pytest.mark.parametrize("killed_before", ["input_features/", "commits/"])
def test_a_commit_that_its_writer_left_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_before: str
):
    folder = Folder(str(tmp_path))
    first, second = writer_of(folder, inputs=True), writer_of(folder, inputs=True, prepared=False)
    create, (ours, theirs) = Folder.create, attempts_of(0, 2)

    def killed(self: Folder, name: str, data: bytes) -> bool:
        if name.startswith(killed_before):
            raise KeyboardInterrupt
        return create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            first.commit(0, ours)
    assert first.committed() == {}
    second.commit(0, theirs)
    for shard in (1, 2):
        second.commit(shard, attempts_of(shard, 1)[0])
    assert must_be_of_one_writer(FeatureReader(artifact_of(FeatureSet, folder, second.files())), 0) == 0


def test_an_object_that_is_nobodys_or_damaged_is_not_adopted(tmp_path: Path):
    folder, name = Folder(str(tmp_path)), "features/c/0/0/0"
    writer, rows = writer_of(folder, inputs=True), attempts_of(0, 2)
    writer.commit(0, rows[0])
    whole = folder.read(name)
    folder.delete("commits/000000.json")
    with pytest.raises(StoreError, match="none of our writers has left"):
        writer.commit(0, rows[1])  # the winner's input features are gone
    folder.write(name, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match="checksum"):
        writer.commit(0, rows[1])
    assert writer.prepare() == {}
    writer.commit(0, rows[1])
    assert folder.read(name) != whole
