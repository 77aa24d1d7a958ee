"""Pictures from answers: each method against its models called by hand, resuming to the byte, what is refused."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from meters import Killed, Meter
from store_artifacts import artifact_of
from tiny_decoders import FRAMES, make_tiny_cogvideox, make_tiny_sigma
from tiny_diffusion import SIDE, WIDTH, make_tiny_flux, make_tiny_t5

import thinkdiff.tasks.generate_media as stage
from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model, content_digest
from thinkdiff.schemas.cobsat import CobsatPrompts, Family
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.features import FeatureSet, FeatureSpec
from thinkdiff.schemas.media import MediaSet, MediaSpec
from thinkdiff.storage.checkpoints import save_aligner
from thinkdiff.storage.feature_store import FeatureRow, FeatureWriter
from thinkdiff.storage.media_files import MediaReader
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import READINGS, read_prompts, read_readings
from thinkdiff.tasks import cobsat
from thinkdiff.tasks.diffusion import noise_seed
from thinkdiff.tasks.step import Work

HIDDEN, TOKENS, PROMPT_TOKENS = 12, 8, 6
FAMILY = Family(
    name="color", values=("red", "blue", "green"), things=("star", "ring", "moon"), caption="a {value} {thing}"
)
BENCHMARK = CobsatPrompts(families=(FAMILY,), images="x", shots=(2,), per_task=6, held_out=(("color", "red", "star"),))
PROMPTS = cobsat.prompts(BENCHMARK)
SPEC = MediaSpec(
    decoder=Model(name="flux"), t5=Model(name="t5"), height=SIDE, width=SIDE, steps=2, true_cfg_scale=2.0,
    precision="float32", prompt_rows=9,
)  # fmt: skip
VIDEO = SPEC.but(
    decoder=Model(name="cogvideox"), true_cfg_scale=1.0, frames=FRAMES, methods=("aligned", "true_caption")
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_flux(folder / "flux")
    make_tiny_cogvideox(folder / "cogvideox")
    make_tiny_sigma(folder / "sigma")
    make_tiny_t5(folder / "t5")
    return folder


@pytest.fixture
def make(models, tmp_path, monkeypatch):
    """Runs the stage with parts of 5 pictures; returns what it made, the folder as an artifact, and the meter."""
    monkeypatch.setattr(stage, "PART", 5)

    def run(spec: MediaSpec, queries: FeatureSet, aligner=None, name: str = "media", die_at: int | None = None):
        folder, meter = Folder.at(str(tmp_path / name)), Meter(die_at)
        execution = Execution(device="cpu", threads=1, model_dirs=(str(models),))
        work = Work(folder, execution, SimpleNamespace(), logging.getLogger("test"))  # pyright: ignore[reportArgumentType]
        object.__setattr__(work, "progress", lambda total, unit: meter)
        made = stage.generate_media.body(work, spec, queries, aligner)
        return made, artifact_of(MediaSet, folder, made.files, "generate_media"), meter

    return run


def answers() -> list[FeatureRow]:
    """Row 0 ends at once, row 1 says its true caption, every third row never ends, all others say other words."""
    rng, rows = np.random.default_rng(0), []
    for i, prompt in enumerate(PROMPTS):
        n = int(rng.integers(3, TOKENS + 1))
        eos = 0 if i == 0 else -1 if i % 3 == 0 else n - 1 if i % 2 else n - 2  # tokens after the end happen too
        text = "" if i == 0 else "a red ring" if i > 1 else cobsat.true_caption(BENCHMARK, prompt)
        features, inputs = (rng.normal(size=(size, HIDDEN)).astype(np.float32) for size in (n, PROMPT_TOKENS - i % 2))
        rows.append(FeatureRow(prompt.name, "asked", tuple(range(n)), eos, text, features, inputs))
    return rows


ANSWERS = answers()


def feature_set(folder: Folder, rows: list[FeatureRow], spec: FeatureSpec) -> FeatureSet:
    writer = FeatureWriter(
        folder, rows=len(rows), tokens=TOKENS, width=HIDDEN, dtype="float32", shard_size=7, input_tokens=PROMPT_TOKENS
    )
    writer.prepare()
    for shard in range(writer.shards):
        writer.commit(shard, [rows[i] for i in writer.span(shard)])
    found = artifact_of(FeatureSet, folder, writer.files())
    return found.model_copy(update={"spec": spec.model_dump(mode="json")})


@pytest.fixture(scope="module")
def queries(tmp_path_factory) -> FeatureSet:
    spec = FeatureSpec(vlm=Model(name="vlm"), prompts=BENCHMARK)
    return feature_set(Folder.at(str(tmp_path_factory.mktemp("queries"))), ANSWERS, spec)


def trained(folder: Path, width: int = WIDTH, **changes) -> AlignerCheckpoint:
    import torch

    from thinkdiff.tasks.aligner import Aligner, AlignerConfig

    torch.manual_seed(3)
    config = AlignerConfig(HIDDEN, 16, width)
    state = {name: value.numpy() for name, value in Aligner(config).state_dict().items()}
    stored = Folder.at(str(folder))
    found = artifact_of(AlignerCheckpoint, stored, save_aligner(stored, state, config.as_dict()), "train_aligner")
    spec = AlignerSpec(t5=Model(name="t5")).but(**changes)
    return found.model_copy(update={"spec": spec.model_dump(mode="json")})


@pytest.fixture(scope="module")
def aligner(tmp_path_factory) -> AlignerCheckpoint:
    return trained(tmp_path_factory.mktemp("aligner"))


def pixels(media: MediaSet, method: str, name: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(MediaReader(media).read(method, name))))


def by_hand(models: Path, embeddings: list[np.ndarray], null: np.ndarray | None = None) -> list[np.ndarray]:
    """The decoder called for one prompt at a time, against the empty text or what is given in its place."""
    from thinkdiff.tasks.diffusion import Settings
    from thinkdiff.tasks.flux import FluxDecoder
    from thinkdiff.tasks.t5_encoder import T5Encoder

    decoder = FluxDecoder(str(models / "flux"), precision="float32")
    empty = T5Encoder(str(models / "t5")).empty() if null is None else null
    seeds = [noise_seed(SPEC.seed, prompt.name) for prompt in PROMPTS]
    return [
        next(decoder.generate([x_LD], [s], empty, Settings.of(SPEC)))[1]
        for x_LD, s in zip(embeddings, seeds, strict=True)
    ]


def aligned_by_hand(aligner: AlignerCheckpoint, rows: list[np.ndarray]) -> list[np.ndarray]:
    from thinkdiff.tasks.alignment import TrainedAligner

    return [TrainedAligner(aligner, "cpu")(x_LQ) for x_LQ in rows]


def assert_same_pictures(media: MediaSet, method: str, expected: list[np.ndarray]) -> None:
    for prompt, picture in zip(PROMPTS, expected, strict=True):
        found = pixels(media, method, prompt.name).astype(int)
        assert np.abs(found - picture).max() <= 1, prompt.name


def test_each_method_draws_its_own_embeddings_of_every_prompt(make, models, queries, aligner):
    from thinkdiff.tasks.t5_encoder import T5Encoder

    made, media, _ = make(SPEC, queries, aligner)
    encoder, reader = T5Encoder(str(models / "t5")), MediaReader(media)
    cut = [row.features[: max(row.eos, 1) if row.eos >= 0 else None] for row in ANSWERS]
    texts = {
        "text_bridge": [row.text for row in ANSWERS],
        "true_caption": [cobsat.true_caption(BENCHMARK, prompt) for prompt in PROMPTS],
    }
    assert_same_pictures(media, "aligned", by_hand(models, aligned_by_hand(aligner, cut)))
    padded, null = encoder.padded(texts["text_bridge"], 9, mask=False), encoder.empty(9, mask=False)
    assert_same_pictures(media, "text_prompt", by_hand(models, padded, null=null))
    for method, said in texts.items():
        assert_same_pictures(media, method, by_hand(models, encoder.encode(said, eos=False)))
    for method in SPEC.methods:
        assert sorted(reader.names(method)) == sorted(prompt.name for prompt in PROMPTS)
    assert made.counts == {"prompts": 12, "pictures": 48}
    first = PROMPTS[1].name
    assert (pixels(media, "text_bridge", first) == pixels(media, "true_caption", first)).all()
    assert (pixels(media, "aligned", first) != pixels(media, "true_caption", first)).any()


def test_prompts_table_tells_what_was_asked_and_answered(make, queries, aligner):
    _, media, _ = make(SPEC.but(methods=("text_bridge",)), queries)
    asked = read_prompts(media)
    assert [row.name for row in asked] == [prompt.name for prompt in PROMPTS]
    assert [row.answer for row in asked] == [row.text for row in ANSWERS]
    for row, prompt in zip(asked, PROMPTS, strict=True):
        assert (row.task, row.shots, row.target_value, row.target_thing, row.held_out) == (
            prompt.task, prompt.shots, prompt.target_value, prompt.target_thing, prompt.held_out,
        )  # fmt: skip
        assert row.true_caption == f"a {prompt.target_value} {prompt.target_thing}"


def test_end_rows_are_drawn_on_request(make, models, queries, aligner):
    from thinkdiff.tasks.t5_encoder import T5Encoder

    _, media, _ = make(SPEC.but(keep_eos=True), queries, aligner)
    whole = [row.features for row in ANSWERS]
    assert_same_pictures(media, "aligned", by_hand(models, aligned_by_hand(aligner, whole)))
    said = T5Encoder(str(models / "t5")).encode([row.text for row in ANSWERS])
    assert_same_pictures(media, "text_bridge", by_hand(models, said))


def test_aligner_of_input_tokens_is_given_the_prompts_states(make, models, queries, tmp_path):
    aligner = trained(tmp_path / "aligner", features="input", masking="none")
    _, media, _ = make(SPEC.but(methods=("aligned",)), queries, aligner)
    inputs = [row.input_features for row in ANSWERS if row.input_features is not None]
    assert_same_pictures(media, "aligned", by_hand(models, aligned_by_hand(aligner, inputs)))


def test_aligned_rows_are_read_back_once_by_the_aligners_own_t5(make, models, queries, tmp_path):
    import torch
    from transformers import AutoTokenizer, T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    aligner, spec = trained(tmp_path / "aligner", precision="float32"), SPEC.but(methods=("aligned",), read_back=True)
    calm, media, meter = make(spec, queries, aligner)
    cut = [row.features[: max(row.eos, 1) if row.eos >= 0 else None] for row in ANSWERS]
    model: Any = T5ForConditionalGeneration.from_pretrained(models / "t5").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(models / "t5")
    captions = [f"a {value} {thing}" for value in FAMILY.values for thing in FAMILY.things]
    labels = [tokenizer(caption, return_tensors="pt").input_ids for caption in captions]
    expected = {}
    for prompt, x_LD in zip(PROMPTS, aligned_by_hand(aligner, cut), strict=True):
        x_1LD: Any = torch.from_numpy(x_LD)[None]
        rows = BaseModelOutput(last_hidden_state=x_1LD)
        nats = [model(encoder_outputs=rows, labels=ids).loss.item() * ids.shape[1] for ids in labels]
        expected[prompt.name] = captions[int(np.argmin(nats))]
    assert len(set(expected.values())) > 1
    assert read_readings(media) == expected
    assert (meter.resumed, meter.done) == (0, 12 + 12)
    with pytest.raises(Killed):
        make(spec, queries, aligner, "rough", die_at=12 + 5)
    rough, _, meter = make(spec, queries, aligner, "rough")
    assert (meter.resumed, meter.done) == (5, 7)
    cut_short = Folder.at(str(tmp_path / "rough"))
    cut_short.write(READINGS, cut_short.read(READINGS)[:-1])
    again, _, meter = make(spec, queries, aligner, "rough")
    assert (meter.resumed, meter.done) == (12, 12)
    assert content_digest(again.files) == content_digest(rough.files) == content_digest(calm.files)
    _, silent, _ = make(spec.but(read_back=False), queries, aligner, "silent")
    assert read_readings(silent) == {}


def test_run_resumed_after_kills_ends_in_the_same_bytes_and_repeats_no_part(make, queries, aligner):
    calm, _, meter = make(SPEC, queries, aligner)
    assert (meter.resumed, meter.done) == (0, 48)
    for die_at in (5, 10, 7):  # in the first method, at its end, in the second
        with pytest.raises(Killed):
            make(SPEC, queries, aligner, "rough", die_at)
    rough, _, meter = make(SPEC, queries, aligner, "rough")
    assert meter.resumed + meter.done == 48
    assert meter.resumed == 24
    assert content_digest(rough.files) == content_digest(calm.files)


def test_half_written_part_is_made_again(make, queries, tmp_path):
    spec = SPEC.but(methods=("true_caption",))
    calm, media, _ = make(spec, queries)
    folder = Folder(media.uri)
    tars = [entry.path for entry in calm.files if entry.path.endswith(".tar")]
    folder.write(tars[0], folder.read(tars[0])[:1000])
    folder.delete(tars[1])
    again, _, meter = make(spec, queries)
    assert (meter.resumed, meter.done) == (2, 10)
    assert content_digest(again.files) == content_digest(calm.files)


def test_other_seed_draws_other_pictures_of_the_same_prompts(make, queries):
    spec = SPEC.but(methods=("true_caption",))
    (_, one, _), (_, other, _) = make(spec, queries), make(spec.but(seed=7), queries, name="other")
    for prompt in PROMPTS:
        found = pixels(one, "true_caption", prompt.name), pixels(other, "true_caption", prompt.name)
        assert (found[0] != found[1]).any()
    assert len({noise_seed(1, prompt.name) for prompt in PROMPTS}) == len(PROMPTS)


def test_texts_are_cut_and_drawn_as_the_decoders_own_pipeline_takes_them(make, models, queries, aligner):
    from thinkdiff.tasks.decoders import open_decoder
    from thinkdiff.tasks.diffusion import Settings
    from thinkdiff.tasks.t5_encoder import T5Encoder

    spec = SPEC.but(decoder=Model(name="sigma"), true_cfg_scale=1.0, keep_eos=True)
    _, media, _ = make(spec, queries, aligner)
    decoder, encoder = open_decoder(str(models / "sigma"), precision="float32"), T5Encoder(str(models / "t5"))
    said = encoder.encode([cobsat.true_caption(BENCHMARK, prompt) for prompt in PROMPTS])
    seeds = [noise_seed(spec.seed, prompt.name) for prompt in PROMPTS]
    made = dict(decoder.generate(said, seeds, encoder.empty(), Settings.of(spec)))
    assert_same_pictures(media, "true_caption", [made[i] for i in range(len(PROMPTS))])
    assert len(MediaReader(media).names("aligned")) == len(PROMPTS)


def frames_of(data: bytes, path: Path) -> np.ndarray:
    import cv2

    path.write_bytes(data)
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    return np.stack(frames)


def test_video_decoder_leaves_videos_and_the_frames_in_their_middle(make, models, queries, aligner, tmp_path):
    from thinkdiff.tasks.decoders import open_decoder
    from thinkdiff.tasks.diffusion import Settings
    from thinkdiff.tasks.t5_encoder import T5Encoder

    made, media, _ = make(VIDEO, queries, aligner)
    assert made.counts == {"prompts": 12, "pictures": 24, "videos": 24}
    decoder, encoder = open_decoder(str(models / "cogvideox"), precision="float32"), T5Encoder(str(models / "t5"))
    reads, reader = decoder.text, MediaReader(media)
    said = encoder.padded(["a red ring"], reads.longest or 0, mask=False)
    name = next(p.name for p in PROMPTS if cobsat.true_caption(BENCHMARK, p) == "a red ring")
    empty, seed = encoder.empty(reads.null, mask=False), noise_seed(VIDEO.seed, name)
    ((_, expected),) = decoder.generate(said, [seed], empty, Settings.of(VIDEO))
    assert np.abs(pixels(media, "true_caption", name).astype(int) - expected[FRAMES // 2]).max() <= 1
    for method in VIDEO.methods:
        assert reader.names(f"videos/{method}") == reader.names(method)
        assert len(reader.names(method)) == len(PROMPTS)
    video = frames_of(reader.read("videos/true_caption", name), tmp_path / "video.mp4")
    assert video.shape == (FRAMES, SIDE, SIDE, 3)
    rough = np.abs(video.astype(float) - expected).mean()
    assert rough < np.abs(video[::-1].astype(float) - expected).mean()


def test_videos_resumed_after_a_kill_or_a_loss_end_in_the_same_bytes(make, queries, aligner):
    calm, _, _ = make(VIDEO, queries, aligner)
    with pytest.raises(Killed):
        make(VIDEO, queries, aligner, "rough", die_at=8)
    folder = Folder.at(make(VIDEO, queries, aligner, "rough")[1].uri)
    folder.delete("videos/aligned/00000.tar")
    folder.delete("true_caption/00001.tar")
    again, _, meter = make(VIDEO, queries, aligner, "rough")
    assert (meter.resumed, meter.done) == (24 - 2 * stage.VIDEO_PART, 2 * stage.VIDEO_PART)
    assert content_digest(again.files) == content_digest(calm.files)


def test_aligner_of_another_width_is_refused_before_anything_is_drawn(make, queries, tmp_path):
    with pytest.raises(SpecError, match=r"aligner: found rows of width 16, expected 32, which FluxPipeline in"):
        make(SPEC, queries, trained(tmp_path / "narrow", width=16))


def test_methods_that_need_an_aligner_are_refused_without_one(make, queries):
    with pytest.raises(InputError, match="found no aligner"):
        make(SPEC, queries)


def test_features_of_captioning_prompts_are_refused(make, tmp_path, aligner):
    folder = Folder.at(str(tmp_path / "captions"))
    captions = feature_set(folder, ANSWERS, FeatureSpec(vlm=Model(name="vlm")))
    with pytest.raises(InputError, match="found features of captioning prompts"):
        make(SPEC, captions, aligner)


def test_answers_to_other_prompts_than_the_specs_are_refused(make, tmp_path, aligner):
    spec = FeatureSpec(vlm=Model(name="vlm"), prompts=BENCHMARK.model_copy(update={"seed": 5}))
    other = feature_set(Folder.at(str(tmp_path / "other")), ANSWERS, spec)
    with pytest.raises(InputError, match="found the answers to other prompts"):
        make(SPEC, other, aligner)
