"""What outlives a version: frozen fingerprints, and stores of other versions of thinkdiff, each read or refused.

The fingerprints below are the names of folders that hold weeks of work. When one of them changes, no cached artifact of
that stage is found any more, and all of them are made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_features import write
from store_artifacts import artifact_of

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import Model, Provenance, Spec, fingerprint
from thinkdiff.schemas.captions import CaptionFilters, CaptionSpec, Collection
from thinkdiff.schemas.cobsat import CobsatPrompts, Family
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import CaptionPrompts, FeatureSet, FeatureSpec, PictureTokens
from thinkdiff.schemas.gallery import GalleryPageSpec, GallerySource, GallerySpec, GivenGallery, SimilaritySpec
from thinkdiff.schemas.images import ImageSpec, Resize, TarSource
from thinkdiff.schemas.media import GivenMedia, MediaSet, MediaSpec
from thinkdiff.schemas.report import ReportSpec
from thinkdiff.schemas.scores import ClassifierJudge, ClipJudge, ScoreSpec, VlmJudge
from thinkdiff.storage.checkpoints import CheckpointWriter, save_aligner
from thinkdiff.storage.feature_reader import FeatureReader
from thinkdiff.storage.housekeeping import garbage, verify_root
from thinkdiff.storage.parts import Part, PartLog
from thinkdiff.storage.records import RECORD, artifact_folder, find_artifacts, read_record, spec_of, write_record
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import PROMPTS, AskedPrompt, read_prompts, schema_of
from thinkdiff.storage.tables import table_bytes
from thinkdiff.tasks.aligner_training import history_of
from thinkdiff.tasks.alignment import loaded

ONE = Model(name="a/model")
OTHER = Model(name="another", revision="0123456789abcdef")
FAMILY = Family(name="color", values=("red", "green", "blue"), things=("star", "cup", "hat"))
BENCHMARK = CobsatPrompts(families=(FAMILY,), images="cobsat", shots=(2,))
COLLECTION = Collection(name="cc3m", format="cc3m-tsv", url="cc3m.tsv")
GOLDEN: dict[str, tuple[Spec, str]] = {
    "captions": (
        CaptionSpec(collections=(COLLECTION,), n=10),
        "096e3af865ee2bce255a8928303aee5e",
    ),
    "captions, filtered": (
        CaptionSpec(
            collections=(
                COLLECTION,
                Collection(name="pairs", format="sbu-txt", url="u.txt", captions_url="c.txt", weight=2.5),
            ),
            n=5, seed=3, filters=CaptionFilters(min_words=3, max_words=40, control_characters=True),
            distinct_captions=True, cleaning="blip",
        ),
        "98425b08a603ecb3e9bebd8cf8115fbb",
    ),
    "images": (
        ImageSpec(tars=(TarSource(collection="cc3m", glob="cc3m/*.tar"),)),
        "2ca9be60ef9d01ee6faa58750aab5c34",
    ),
    "images, by URL": (
        ImageSpec(by_url=True, resize=Resize(longest_side=512), shard_size=100, min_side=32),
        "9e33edfc5a8635a1ab92dc12b110bf23",
    ),
    "features": (
        FeatureSpec(vlm=ONE),
        "1abba6be92de0d3992e12f88faa2d731",
    ),
    "features, sampled": (
        FeatureSpec(
            vlm=OTHER, prompts=CaptionPrompts(texts=("Describe.",)), max_tokens=128, temperature=0.0, top_p=1.0,
            end_policy="stop", seed=7, tokens=("generated", "input"), max_input_tokens=64, dtype="float32",
            shard_size=64,
        ),
        "b1eda10ef2f17264145d73fe6a4ac317",
    ),
    "features, quantised": (
        FeatureSpec(vlm=ONE, codec="int8"),
        "6de017f57bb375f68a6a7e87ff80e4cf",
    ),
    "features, benchmark": (
        FeatureSpec(vlm=ONE, prompts=BENCHMARK),
        "b2c1dc2c4fa6eebd6c5ae5542be3d62e",
    ),
    "features, benchmark of another type": (
        FeatureSpec(vlm=ONE, prompts=BENCHMARK.model_copy(update={"prompt_type": "cot", "shots": (1,)})),
        "f1ca3273d9ae400621e4d7517347a36a",
    ),
    "features, pictures": (
        FeatureSpec(vlm=ONE, prompts=PictureTokens(), tokens=("input",), max_input_tokens=65, max_tokens=1),
        "83c76d498632aff0859bd2f2f1c89b50",
    ),
    "aligner": (
        AlignerSpec(t5=ONE),
        "e27e9c20ac72eb1d2f99a2792a91536c",
    ),
    "aligner, ablated": (
        AlignerSpec(
            t5=ONE, hidden=192, masking="none", norm="default", norm_from=OTHER, tokens=16, steps=1000, batch=32,
            loss_mean="groups", lr=2e-3, schedule="linear", weight_decay=0.0, clip_grad_norm=1.0, precision="float32",
            weights="best", seed=1,
        ),
        "e150ce155ee7d393eccb4a522dde6de1",
    ),
    "aligner, words": (
        AlignerSpec(t5=ONE, features="input", masking="words"),
        "630c247a37602cee8aded37139fc0cad",
    ),
    "media": (
        MediaSpec(decoder=ONE, t5=OTHER),
        "937ffbd407077d25935632173ae27e04",
    ),
    "media, video": (
        MediaSpec(
            decoder=ONE, transformer=OTHER, t5=OTHER, methods=("aligned",), keep_eos=True, padding="zeros", height=480,
            width=720, steps=50, guidance_scale=6.0, true_cfg_scale=2.0, frames=9, fps=16, precision="float32", seed=2,
        ),
        "9301f990c6bc35bf1cac4b4f48c6b2ae",
    ),
    "media, given": (
        GivenMedia(name="a-system", prompts=BENCHMARK, digest="f" * 64),
        "31bf2c742c3a085864ae82faae1be391",
    ),
    "scores": (
        ScoreSpec(judge=ClassifierJudge(model=ONE)),
        "eedeeb70c1cc3595623d5ddf5dc70f97",
    ),
    "scores, asked": (
        ScoreSpec(judge=VlmJudge(model=ONE), second=ClipJudge(model=OTHER), families=(FAMILY,), confidence=0.9),
        "f38f43cbc125e95083c8954903f06f47",
    ),
    "scores, of words": (
        ScoreSpec(judge=VlmJudge(model=ONE, conversation="template", pad=False), mode="text", families=(FAMILY,)),
        "c1d8073a553cad2ef55226e6af10de88",
    ),
    "report": (
        ReportSpec(),
        "2044b3f9a83cc52390a81d8f699da4f8",
    ),
    "report, short": (
        ReportSpec(title="A report", examples=2, answers=0),
        "6507b785c4610c81cc4dbac5ef8c7dae",
    ),
    "gallery": (
        GallerySource(digest="f" * 64, longest_side=512),
        "9795ed599146fae9cc2ac7b6465cfbe1",
    ),
    "gallery, drawn": (
        GallerySpec(tower=ONE, media=MediaSpec(decoder=ONE, t5=OTHER, methods=("aligned",)), reads="text"),
        "68e9cd5cf3a92a81952c3478a947e06c",
    ),
    "gallery, given": (
        GivenGallery(name="a-system", digest="f" * 64),
        "cf3a4b8a77e7e532d4aaaa0ada8ba924",
    ),
    "gallery, scores": (
        SimilaritySpec(clip=ONE, dino=OTHER),
        "a3a5d306e3a9dccf44c0355da51e29de",
    ),
    "gallery, page": (
        GalleryPageSpec(title="A gallery"),
        "8f6de392fd6ca3ac8f80187bfaf0a5a5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_fingerprint_of_a_stage_is_frozen(name: str):
    spec, frozen = GOLDEN[name]
    found = fingerprint(spec, {})
    assert found == frozen, (
        f"{name}: found fingerprint {found}, expected {frozen}. No {spec.stage} would be found in a store any "
        f"more. If its code makes other results now, raise {type(spec).__name__}.version and put the new value here. "
        "If a field was added at whose default all is made as before, name it in `later`. Else undo the change."
    )


def test_fingerprint_of_a_child_is_frozen(tmp_path: Path):
    parent = artifact_of(FeatureSet, Folder(str(tmp_path)), []).model_copy(update={"digest": "a" * 64})
    assert fingerprint(AlignerSpec(t5=ONE), {"features": parent}) == "17d8681af5db3f4e4c0594bce82e6294"


def test_every_stage_has_a_frozen_fingerprint():
    def kinds(kind: type[Spec]) -> set[type[Spec]]:
        ours = {kind} if kind.__module__.startswith("thinkdiff.schemas") and hasattr(kind, "stage") else set()
        return ours.union(*map(kinds, kind.__subclasses__()))

    assert {type(spec) for spec, _ in GOLDEN.values()} == kinds(Spec)


NAME = "0123456789abcdef" * 2
PACKAGES = {"thinkdiff": "9.9.9"}
BY = "written by thinkdiff 9.9.9"


def made(root: Path) -> Folder:
    """An artifact that thinkdiff 9.9.9 made, its record as this version writes it."""
    folder = artifact_folder(str(root), "extract_features", NAME)
    artifact = newer(artifact_of(FeatureSet, folder, [folder.write("data.bin", b"data")]))
    write_record(artifact)
    return folder


def newer(artifact: Any) -> Any:
    """The same artifact, made by thinkdiff 9.9.9."""
    provenance: Provenance = artifact.provenance
    return artifact.model_copy(update={"provenance": provenance.model_copy(update={"packages": PACKAGES})})


PARENT = {"stage": "fetch_images", "fingerprint": "f" * 32, "digest": "d" * 64, "uri": "u"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2, "files": "elsewhere"}, "found a record of layout 2, "),
        ({"schema_version": 0}, "found a record of layout 0, "),
        ({"quality": 0.5}, "found a record with the field quality, "),
        ({"parents": {"images": {**PARENT, "age": 1}}},
         "found a record with the field parents.images.age, "),
    ],
)  # fmt: skip
def test_record_of_another_version_is_refused_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], says: str
):
    folder = made(tmp_path)
    assert read_record(folder, FeatureSet) is not None
    data = json.dumps(json.loads(folder.read(RECORD)) | change).encode()
    folder.write(RECORD, data)
    with pytest.raises(StoreError) as caught:
        read_record(folder, FeatureSet)
    assert f"{RECORD}: {says}{BY}, expected layout 1" in str(caught.value)
    assert "use that version, or another root, or make it again with --refresh" in str(caught.value)
    assert list(find_artifacts(str(tmp_path))) == []
    assert says in caplog.text
    (problem,) = verify_root(str(tmp_path), deep=False)[1]
    assert says in problem
    assert garbage(str(tmp_path)) == {}
    assert folder.read(RECORD) == data


def test_record_with_less_than_this_version_writes_is_read(tmp_path: Path):
    folder = made(tmp_path)
    record = json.loads(folder.read(RECORD))
    for name in ("schema_version", "counts", "stats"):
        del record[name]
    record["files"] = [{name: value for name, value in entry.items() if name != "content"} for entry in record["files"]]
    folder.write(RECORD, json.dumps(record).encode())
    found = read_record(folder, FeatureSet)
    assert found is not None
    assert found.counts == {}


def test_spec_of_an_older_version_is_read_and_of_a_newer_one_refused(tmp_path: Path):
    spec = FeatureSpec(vlm=ONE)
    artifact = newer(artifact_of(FeatureSet, Folder(str(tmp_path)), []))
    older = {name: value for name, value in spec.model_dump(mode="json").items() if name not in FeatureSpec.later}
    assert spec_of(artifact.model_copy(update={"spec": older}), FeatureSpec) == spec
    more = artifact.model_copy(update={"spec": older | {"sharpness": 1}})
    with pytest.raises(StoreError, match=rf"FeatureSpec\.sharpness: found 1.*{BY}; use that version"):
        spec_of(more, FeatureSpec)


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"checked": True}])
def test_part_of_another_version_is_refused_and_not_thrown_away(tmp_path: Path, change: dict[str, Any]):
    folder = Folder(str(tmp_path))
    log = PartLog(folder, "commits", Part)
    log.commit(Part(number=0, rows=1, files=(folder.write("data.bin", b"data"),)))
    assert list(log.committed()) == [0]
    folder.write(log.name(0), json.dumps(json.loads(folder.read(log.name(0))) | change).encode())
    (field,) = change
    for look in (log.committed, lambda: log.find(0)):
        with pytest.raises(StoreError, match=rf"000000\.json: found {field} .* in the record of a part.*it is left as"):
            look()
    assert folder.exists(log.name(0))
    assert log.rejected == {}


def test_store_of_an_unknown_codec_is_refused_with_its_writer(tmp_path: Path):
    folder = Folder(str(tmp_path))
    artifact = write(folder, codec="int8")
    about = json.loads(folder.read("features/zarr.json"))
    about["attributes"]["codec"] = "int3"
    entry = folder.write("features/zarr.json", json.dumps(about).encode())
    files = [entry if entry.path == other.path else other for other in artifact.files]
    with pytest.raises(StoreError, match=f"found the codec 'int3', expected one of none, zstd, int8, fp8.*{BY}"):
        FeatureReader(newer(artifact_of(FeatureSet, folder, files)))


def without(table: pa.Table) -> pa.Table:
    return table.drop_columns(["answer"])


def beside(table: pa.Table) -> pa.Table:
    return table.append_column("mood", pa.array(["good"] * len(table)))


def turned(table: pa.Table) -> pa.Table:
    return table.select(list(reversed(table.column_names)))


@pytest.mark.parametrize(
    ("change", "says"),
    [(without, "no column answer"), (beside, "a column mood"), (turned, "another order of columns")],
)
def test_prompts_with_other_columns_are_refused_with_their_writer(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], says: str
):
    folder, row = Folder(str(tmp_path)), AskedPrompt("2/x", "Color-I", "color", 2, False, "red", "star", "a", "b")
    table = pa.Table.from_pylist([row._asdict()], schema_of(AskedPrompt))

    def artifact(held: pa.Table) -> MediaSet:
        return newer(artifact_of(MediaSet, folder, [folder.write(PROMPTS, table_bytes(held))], "generate_media"))

    assert read_prompts(artifact(table)) == [row]
    with pytest.raises(
        StoreError, match=rf"prompts\.parquet: found {says}, expected name, task.*{BY}; use that version"
    ):
        read_prompts(artifact(change(table)))


def test_checkpoint_of_an_older_version_is_read_and_of_a_newer_one_refused(tmp_path: Path):
    folder = Folder(str(tmp_path))
    writer = CheckpointWriter(folder)
    writer.save(3, {"weights/x": np.zeros(2, np.float32)}, {"training": [1.0], "momentum": [2.0]})
    found = writer.latest()
    assert found is not None
    with pytest.raises(StoreError, match="found a checkpoint with momentum, expected what this version knows"):
        history_of(found[2], folder.uri)
    assert history_of({"training": [1.0]}, folder.uri).training == [1.0]


def test_aligner_with_settings_of_another_version_is_refused_with_its_writer(tmp_path: Path):
    folder = Folder(str(tmp_path))
    config = {"in_features": 2, "hidden": 2, "out_features": 2, "norm": "none", "gate": True}
    files = save_aligner(folder, {"x": np.zeros(2, np.float32)}, config)
    artifact = newer(artifact_of(AlignerCheckpoint, folder, files, "train_aligner"))
    with pytest.raises(StoreError, match=f"found a configuration of gate, hidden, .*{BY}; use that version"):
        loaded(artifact)
