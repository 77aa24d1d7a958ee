"""The attacks of deploy/THREATS.md that need no service: pickles wherever a file is read, hostile records, passwords.

A planted pickle makes a file when it is loaded. Each place is read as its stage reads it, under a record that vouches
for the planted bytes, as one who can write the bucket would leave it: the outcome is one sentence and no such file.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from caption_rows import rows_of
from planted import FORMS, MARKER, Planted, of_numpy, of_torch, one_sentence
from report_artifacts import artifact, stage_folder
from small_features import write, writer_of
from store_artifacts import artifact_of

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Artifact
from thinkdiff.schemas.captions import CaptionSet, Collection, CollectionFormat
from thinkdiff.schemas.errors import RootError, StoreError, ThinkDiffError
from thinkdiff.schemas.features import STATISTICS, FeatureSet
from thinkdiff.schemas.gallery import GalleryInputs, GalleryScores
from thinkdiff.schemas.images import ImageSet
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.storage.caption_sample import CAPTIONS, MALFORMED, read_captions, read_malformed
from thinkdiff.storage.checkpoints import CONFIG, WEIGHTS, CheckpointWriter, load_aligner
from thinkdiff.storage.feature_store import FeatureStore
from thinkdiff.storage.gallery_tables import LIST, SIMILARITIES, read_list, read_similarities
from thinkdiff.storage.image_shards import INDEX, ImageReader
from thinkdiff.storage.judge_answers import JudgeAnswers
from thinkdiff.storage.lease import LEASE, Lease
from thinkdiff.storage.media_files import MediaReader
from thinkdiff.storage.parts import Part
from thinkdiff.storage.records import RECORD, artifact_folder, find_artifacts, read_record, write_record
from thinkdiff.storage.root import Folder, sha256_hex
from thinkdiff.storage.score_tables import (
    PROMPTS,
    READINGS,
    SECOND,
    VERDICTS,
    read_prompts,
    read_readings,
    read_second_verdicts,
    read_verdicts,
)
from thinkdiff.storage.zip_stream import ZipReader
from thinkdiff.tasks.aligner_files import from_pretrained, read_authors_checkpoint
from thinkdiff.tasks.compose import read_picture
from thinkdiff.tasks.gallery_files import listed
from thinkdiff.tasks.report_reader import read_losses, read_scores, read_statistics


def kept(root: Path, kind: type[Artifact], stage: str, name: str, data: bytes) -> Any:
    """An artifact with that one file, for which its record vouches."""
    folder = stage_folder(root, stage, 1)
    return artifact(kind, root, stage, 1, [folder.write(name, data)])


def store_with(root: Path, name: str, data: bytes) -> object:
    """What is read out of a feature store that has those bytes in the place of one of its files."""
    folder = Folder(str(root / "extract_features" / ("0" * 32)))
    whole = write(folder, inputs=True)
    name = next(entry.path for entry in whole.files if entry.path.startswith(name))
    changed = folder.write(name, data)
    files = [changed if entry.path == name else entry for entry in whole.files]
    write_record(artifact_of(FeatureSet, folder, files))
    return FeatureStore.open(folder.uri).rows([5])


def at(root: Path, name: str, data: bytes) -> str:
    """The path of a file of those bytes."""
    Folder(str(root)).write(name, data)
    return str(root / name)


def hub_folder(root: Path, **files: bytes) -> object:
    for name, data in ({"config": b"{}", "model": b""} | files).items():
        at(root, {"config": "config.json", "model": "model.safetensors"}[name], data)
    return from_pretrained(root)


def collection(root: Path, form: CollectionFormat, data: bytes) -> object:
    url = at(root, "file", data)
    captions = url if form == "sbu-txt" else None
    found = rows_of(Collection(name="x", format=form, url=url, captions_url=captions), Folder(str(root)))
    raise AssertionError(f"taken for rows: {found[:2]}")


READS: dict[str, Callable[[Path, bytes], object]] = {
    "scores.json": lambda r, d: read_scores(kept(r, Scorecard, "score_cobsat", "scores.json", d), []),
    "losses.json": lambda r, d: read_losses(kept(r, AlignerCheckpoint, "train_aligner", "losses.json", d)),
    "statistics": lambda r, d: read_statistics(kept(r, FeatureSet, "extract_features", STATISTICS, d)),
    "aligner's configuration": lambda r, d: load_aligner(kept(r, AlignerCheckpoint, "train_aligner", CONFIG, d)),
    "captions": lambda r, d: read_captions(kept(r, CaptionSet, "sample_captions", CAPTIONS, d)),
    "malformed": lambda r, d: read_malformed(kept(r, CaptionSet, "sample_captions", MALFORMED, d)),
    "index of pictures": lambda r, d: ImageReader(kept(r, ImageSet, "fetch_images", INDEX, d)),
    "prompts": lambda r, d: read_prompts(kept(r, MediaSet, "generate_media", PROMPTS, d)),
    "readings": lambda r, d: read_readings(kept(r, MediaSet, "generate_media", READINGS, d)),
    "pictures' tar": lambda r, d: MediaReader(kept(r, MediaSet, "generate_media", "aligned/00000.tar", d)).names("x"),
    "verdicts": lambda r, d: read_verdicts(kept(r, Scorecard, "score_cobsat", VERDICTS, d)),
    "second verdicts": lambda r, d: read_second_verdicts(kept(r, Scorecard, "score_cobsat", SECOND, d)),
    "gallery's prompts": lambda r, d: read_list(kept(r, GalleryInputs, "gather_gallery", LIST, d)),
    "similarities": lambda r, d: read_similarities(kept(r, GalleryScores, "score_gallery", SIMILARITIES, d)),
    "zarr.json": lambda r, d: store_with(r, "features/zarr.json", d),
    "shard": lambda r, d: store_with(r, "features/c/1", d),
    "rows of a shard": lambda r, d: store_with(r, "rows/000001", d),
    "hub folder's configuration": lambda r, d: hub_folder(r, config=d),
    "authors' checkpoint": lambda r, d: read_authors_checkpoint(at(r, "a.pth", d)),
    "zip": lambda r, d: ZipReader(io.BytesIO(d), "a.zip"),
    "picture": lambda r, d: read_picture(at(r, "a.png", d)),
    "given gallery": lambda r, d: listed(d, LIST),
    **{form: lambda r, d, form=form: collection(r, form, d) for form in get_args(CollectionFormat)},
}


def weights_of_an_aligner(root: Path, data: bytes) -> object:
    folder = stage_folder(root, "train_aligner", 1)
    files = [folder.write(WEIGHTS, data), folder.write(CONFIG, b"{}")]
    return load_aligner(artifact(AlignerCheckpoint, root, "train_aligner", 1, files))


def weights_of_a_hub_folder(root: Path, data: bytes) -> object:
    config = {"in_features": 2, "hidden": 3, "out_features": 4, "norm": "t5", "kind": "lvlm"}
    return hub_folder(root, config=json.dumps(config).encode(), model=data)


READS |= {"aligner's weights": weights_of_an_aligner, "hub folder's weights": weights_of_a_hub_folder}


def test_planted_pickles_run_where_pickles_are_loaded(tmp_path: Path) -> None:
    for form in ("pickle", "text pickle"):
        pickle.loads(FORMS[form](Planted(tmp_path))).close()
        (tmp_path / MARKER).unlink()
    torch.load(io.BytesIO(of_torch(Planted(tmp_path))), weights_only=False).close()
    (tmp_path / MARKER).unlink()
    np.load(io.BytesIO(of_numpy(Planted(tmp_path))), allow_pickle=True)
    assert (tmp_path / MARKER).exists()


@pytest.mark.parametrize("place", READS)
def test_what_is_no_data_is_refused_in_a_sentence_and_never_run(tmp_path: Path, place: str) -> None:
    for form, made in FORMS.items():
        root = tmp_path / form.replace(" ", "-")
        with pytest.raises(ThinkDiffError) as caught:
            READS[place](root, made(Planted(tmp_path)))
        one_sentence(caught)
    assert not (tmp_path / MARKER).exists()


def part_record(folder: Folder, data: bytes) -> object:
    write(folder)
    folder.write("commits/000001.json", data)
    return 1 in writer_of(folder, prepared=False).committed()


def checkpoint(folder: Folder, data: bytes) -> object:
    log = CheckpointWriter(folder)
    log.save(3, {"a": np.zeros(2, np.float32)}, {})
    entry = folder.write("checkpoints/00000003.safetensors", data)
    part = Part(number=3, rows=1, files=(entry,))
    folder.write("checkpoints/00000003.json", part.model_dump_json(indent=1).encode())
    return log.latest()


def answers(folder: Folder, data: bytes) -> object:
    folder = Folder(f"{folder.uri}/judge_answers/{sha256_hex(b'judge')[:32]}")
    folder.write(f"{sha256_hex(data)}.json", data)
    return len(JudgeAnswers(folder.uri.rsplit("/", 2)[0], "judge"))


def record(folder: Folder, data: bytes) -> object:
    folder = folder / "extract_features" / ("1" * 32)
    folder.write(RECORD, data)
    return read_record(folder, FeatureSet) or [*find_artifacts(folder.uri.rsplit("/", 2)[0])]


def lease(folder: Folder, data: bytes) -> object:
    folder.write(LEASE, data)
    with Lease(folder, 0.2):
        return json.loads(folder.read(LEASE)).get("a")


@pytest.mark.parametrize("read", [part_record, checkpoint, answers, record, lease])
def test_what_is_no_record_is_left_aside_and_never_run(tmp_path: Path, read: Callable[[Folder, bytes], object]) -> None:
    for form, made in FORMS.items():
        assert not read(Folder(str(tmp_path / form.replace(" ", "-"))), made(Planted(tmp_path)))
    assert not (tmp_path / MARKER).exists()


def test_a_record_whose_parent_lies_in_another_root_is_a_miss(tmp_path: Path) -> None:
    foreign = artifact(FeatureSet, tmp_path / "other", "extract_features", 2)
    media = artifact(MediaSet, tmp_path / "root", "generate_media", 1, parents={"queries": foreign})
    folder = Folder(media.uri)
    assert read_record(folder, MediaSet) == media
    (tmp_path / "root" / "extract_features").mkdir()
    climbing = f"../../other/extract_features/{foreign.fingerprint}"
    assert read_record(
        artifact_folder(str(tmp_path / "root"), "extract_features", climbing), FeatureSet
    )  # so it would be
    folder.write(RECORD, media.model_dump_json().replace(f'"{foreign.fingerprint}"', f'"{climbing}"').encode())
    assert read_record(folder, MediaSet) is None


def test_the_page_of_threats_names_tests_that_exist() -> None:
    here = Path(__file__).parent
    page = (here.parent / "deploy" / "THREATS.md").read_text()
    known = {path.stem for path in here.glob("test_*.py")}
    known |= set(re.findall(r"^def (test_\w+)", (here / "test_e2e_deploy.py").read_text(), re.MULTILINE))
    named = re.findall(r"`(test_\w+)(…|\.py)?`", page)
    assert len(named) > 30
    lost = [name for name, more in named if not any(n == name or (more == "…" and n.startswith(name)) for n in known)]
    assert not lost


def test_a_record_of_a_hundred_megabytes_is_a_miss(tmp_path: Path) -> None:
    assert not record(Folder(str(tmp_path)), b'{"uri": "' + b"x" * 100_000_000)


@pytest.mark.parametrize("shape", [[10**15, 5, 8], [10, 10**12, 8], [10, 5, 10**12], [-1, 5, 8]])
def test_a_store_that_claims_to_be_huge_is_refused_before_memory_is_taken(tmp_path: Path, shape: list[int]) -> None:
    whole = Folder(write(Folder(str(tmp_path / "whole"))).uri).read("features/zarr.json")
    claim = json.loads(whole) | {"shape": shape}
    with pytest.raises(StoreError) as caught:
        store_with(tmp_path, "features/zarr.json", json.dumps(claim).encode())
    one_sentence(caught)


@pytest.mark.parametrize(
    "url", ["s3://user:secret@bucket/x", "postgresql://user:secret@host/x", "https://user:secret@host/x"]
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    for ask in (
        Folder.at,
        Folder.source,
        lambda url: rows_of(Collection(name="x", format="cc3m-tsv", url=url), Folder("/")),
    ):
        with pytest.raises(RootError) as caught:
            ask(url)
        assert "secret" not in one_sentence(caught)
