"""The miniature: its world and data repeat, held-out pairs stay out, its tokenizers and weights fit together."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from thinkdiff.mini import dataset, renderer, vlm_prompts, words, world
from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.cobsat import PAPER_INSTRUCTION
from thinkdiff.schemas.features import PAPER_PROMPTS
from thinkdiff.schemas.pipeline import World
from thinkdiff.storage.pixels import png
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.gallery_files import gallery_files
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.similarity import Clip

FOLDERS = (
    "mini-qwen2-vl", "mini-eva-clip", "mini-t5", "mini-flux", "mini-flux-less-robust", "mini-judge", "mini-openai-clip"
)  # fmt: skip
MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    dataset.ensure_world(World(folder="w", seed=3, rows=600, benchmark_seed=4), str(root))
    return root / "w"


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_renderer_same_seed_same_pictures():
    rows = world.sample_attributes(700, np.random.default_rng(0), all_pairs=True)
    first, again = (renderer.render(rows, np.random.default_rng(1)) for _ in range(2))
    assert first.shape == (700, 32, 32, 3)
    assert (first == again).all()


def test_renderer_every_single_attribute_looks_different_from_every_other():
    rows = world.single_attribute_pictures(all_pairs=True)
    pictures = renderer.render(rows, np.random.default_rng(0)).reshape(len(rows), -1).astype(np.int64)
    distance = np.abs(pictures[:, None, ::7] - pictures[None, :, ::7]).sum(-1)
    assert (distance + np.eye(len(rows), dtype=np.int64) > 0).all()


def test_held_out_pairs_are_about_a_sixth_and_spare_every_word():
    pairs = world.held_out_pairs()
    assert 0.14 < len(pairs) / len(world.single_attribute_pictures(all_pairs=True)) < 0.19
    for family, values in world.FAMILIES.items():
        for value in values:
            assert sum(p[:2] == (family, value) for p in pairs) <= 2
    assert all(sum(p[2] == noun for p in pairs) <= 6 for noun in world.OBJECTS)


def test_training_samples_never_show_a_held_out_pair():
    rng = np.random.default_rng(0)
    held_out = set(world.held_out_pairs())
    rows = [*world.sample_attributes(4000, rng), *world.single_attribute_pictures()]
    for shots in (1, 2, 3, 4):
        tasks = [vlm_prompts.draw_task(rng, shots, distractors=True) for _ in range(400)]
        rows += [np.array(row) for task in tasks for row in (*task.demos, task.answer)]
    for row in rows:
        shown = {(f, world.value_word(row, f), world.OBJECTS[row[0]]) for f in world.FAMILY_NAMES}
        assert not shown & held_out


def test_evaluation_tasks_show_held_out_pairs():
    rng = np.random.default_rng(0)
    answers = np.array([vlm_prompts.draw_task(rng, 2, True, all_pairs=True).answer for _ in range(300)])
    assert 0.05 < world.has_held_out(answers).mean() < 0.35


def test_collections_same_seed_same_bytes_other_seed_others(written: Path, tmp_path: Path):
    spec = World(folder="w", seed=3, rows=600, benchmark_seed=4)
    dataset.ensure_world(spec, str(tmp_path))
    assert all_bytes(tmp_path / "w") == all_bytes(written)
    dataset.ensure_world(spec.model_copy(update={"folder": "v", "seed": 4}), str(tmp_path))
    assert (tmp_path / "v" / "cc3m.tsv").read_bytes() != (written / "cc3m.tsv").read_bytes()


def test_collections_have_native_formats_and_no_held_out_pair(written: Path):
    cc3m = [line.split("\t") for line in (written / "cc3m.tsv").read_text().splitlines()]
    cc12m = [line.split("\t")[::-1] for line in (written / "cc12m.tsv").read_text().splitlines()]
    sbu = json.loads((written / "sbu-captions-all.json").read_text())
    assert len(sbu["image_urls"]) == len(sbu["captions"]) == len(sbu["user_ids"])
    rows = [*cc3m, *cc12m, *map(list, zip(sbu["captions"], sbu["image_urls"], strict=True))]
    assert len(rows) == 600
    assert 0 < len(rows) - len({tuple(row) for row in rows}) < 20
    for caption, url in rows:
        assert url.startswith("https://")
        said = set(caption.replace(",", "").split())
        for _, value, noun in world.held_out_pairs():
            named = value in said or world.BACKGROUND_PHRASES.get(value, "-") in caption
            assert not (noun in said and named), caption


def test_tars_are_as_img2dataset_leaves_them(written: Path):
    urls = {line.split("\t")[1] for line in (written / "cc3m.tsv").read_text().splitlines()}
    with tarfile.open(fileobj=io.BytesIO((written / "cc3m" / "00000.tar").read_bytes())) as tar:
        names = tar.getnames()
        records = [json.loads(member.read()) for n in names if n.endswith(".json") and (member := tar.extractfile(n))]
    assert {Path(name).suffix for name in names} == {".jpg", ".txt", ".json"}
    assert all(r["status"] == "success" and r["url"] in urls for r in records)
    assert len({r["url"] for r in records}) < len(urls), "some downloads are meant to be missing"


def test_benchmark_has_every_pair_where_the_pipeline_looks(written: Path):
    from thinkdiff.tasks.cobsat import image_path

    for family, values in world.FAMILIES.items():
        for value in values:
            for noun in world.OBJECTS:
                assert (written / "cobsat" / image_path(family, value, noun)).exists()
    listed = {tuple(pair) for pair in json.loads((written / "cobsat" / "heldout.json").read_text())}
    assert listed == set(world.held_out_pairs())


def test_vocabulary_covers_all_that_is_said_to_a_model():
    unknown = words.vlm_tokenizer().unk_token_id
    texts = [*PAPER_PROMPTS, PAPER_INSTRUCTION, vlm_prompts.MINI_INSTRUCTION, "You are a helpful assistant."]
    texts += [f"\n\nWord {n}: star, Picture {n}: " for n in range(1, 10)]
    rows = world.sample_attributes(500, np.random.default_rng(0), all_pairs=True)
    texts += [" ".join(world.answer_caption(row, i % 16)) for i, row in enumerate(rows)]
    for text in texts:
        assert unknown not in words.vlm_tokenizer()(text).input_ids, text


def test_tokenizers_read_each_others_text_to_the_same_words():
    vlm, t5 = words.vlm_tokenizer(), words.t5_tokenizer()
    for row in world.sample_attributes(200, np.random.default_rng(1), all_pairs=True):
        said = " ".join(world.caption(row, world.LEAD_CREATE))
        text = vlm.decode(vlm(said + "<|im_end|>").input_ids, skip_special_tokens=True)
        ids = t5(text).input_ids
        assert ids[-1] == t5.eos_token_id
        assert t5.decode(ids, skip_special_tokens=True) == text == said
    assert t5("").input_ids == [t5.eos_token_id]


def test_caption_template_says_what_the_true_caption_says():
    for row in world.single_attribute_pictures(all_pairs=True):
        family = world.FAMILY_NAMES[int(row[1:].argmax())]
        value = world.value_word(row, family)
        assert value is not None
        template = world.caption_template(family, value)
        assert template.format(thing=world.OBJECTS[row[0]]).split() == world.caption(row, world.LEAD_CREATE)


def test_training_prompts_equal_those_of_the_released_processor():
    prepare_torchvision()
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(weights_folder() / "mini-qwen2-vl")
    chats, rng = vlm_prompts.ChatIds(words.vlm_tokenizer()), np.random.default_rng(0)
    task = vlm_prompts.draw_task(rng, 4, distractors=True)
    cases = [
        (vlm_prompts.caption_chat(PAPER_PROMPTS[3]), False, 1, chats.caption(PAPER_PROMPTS[3])),
        (vlm_prompts.in_context_chat(task.words, task.query), True, 4, chats.in_context(task)),
    ]
    for chat, vision_ids, shown, expected in cases:
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, add_vision_id=vision_ids)
        pictures = list(np.zeros((shown, 32, 32, 3), np.uint8))
        assert processor(text=[text], images=pictures).input_ids == [expected]
        assert ("Picture 1: " in text) == vision_ids


def test_weights_load_by_their_stock_classes_and_compute_in_float32():
    prepare_torchvision()
    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import (
        Blip2VisionModel,
        CLIPModel,
        Qwen2VLForConditionalGeneration,
        ResNetForImageClassification,
        T5ForConditionalGeneration,
    )

    folder = weights_folder()
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = FluxPipeline.from_pretrained(folder / "mini-flux", torch_dtype=torch.float32, **none)
    models = [
        Qwen2VLForConditionalGeneration.from_pretrained(folder / "mini-qwen2-vl"),
        T5ForConditionalGeneration.from_pretrained(folder / "mini-t5"),
        ResNetForImageClassification.from_pretrained(folder / "mini-judge"),
        FluxTransformer2DModel.from_pretrained(folder / "mini-flux-less-robust", torch_dtype=torch.float32),
        pipeline.transformer,
        pipeline.vae,
        Blip2VisionModel.from_pretrained(folder / "mini-eva-clip"),
        CLIPModel.from_pretrained(folder / "mini-openai-clip"),
    ]
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32}
    labels = models[2].config.id2label.values()
    assert {"object/star", "color/red", "color/none", "texture/dotted"} <= set(labels)


def test_weights_are_small_and_the_card_names_every_folder():
    folder = weights_folder()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(FOLDERS)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    card = (folder / "README.md").read_text()
    for name in FOLDERS:
        report = folder / name / "training.json"
        assert f"`{name}`" in card
        assert f"{json.loads(report.read_text())['parameters']:,}" in card


def test_judge_reads_fresh_pictures_of_every_pair():
    prepare_torchvision()
    from transformers import ResNetForImageClassification

    from thinkdiff.mini import train_judge

    rows = world.single_attribute_pictures(all_pairs=True)
    pictures = renderer.through_jpeg(renderer.render(rows, np.random.default_rng(9)))
    judge = ResNetForImageClassification.from_pretrained(weights_folder() / "mini-judge").eval()
    right = train_judge.read(judge, train_judge.to_tensor(pictures)).numpy() == rows
    assert right.all(1).mean() > 0.95


def test_clip_tells_what_a_fresh_picture_shows():
    rows = world.single_attribute_pictures(all_pairs=True)
    pictures = renderer.render(rows, np.random.default_rng(9))
    clip = Clip(str(weights_folder() / "mini-openai-clip"))
    seen_ND = clip.images([png(picture) for picture in pictures])
    said_ND = clip.texts([" ".join(world.noun_phrase(row)) for row in rows])
    nearest = rows[(seen_ND @ said_ND.T).argmax(1)]
    assert (nearest == rows).all(1).mean() > 0.8
    assert (nearest[:, 0] == rows[:, 0]).mean() > 0.9


def test_gallery_is_one_that_repeats_and_shows_no_held_out_pair(tmp_path: Path):
    spec = World(folder="w", benchmark_seed=4)
    places = [dataset.ensure_gallery(spec, str(tmp_path / name)) for name in ("one", "two")]
    assert all_bytes(Path(places[0])) == all_bytes(Path(places[1]))
    found = gallery_files(Folder(places[0]))
    kinds = [prompt.kind for prompt in found.prompts]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ("image", "image + text", "several images", "several images + text"), 12
    )
    held_out = {(value, thing) for _, value, thing in world.held_out_pairs()}
    said = [prompt.text.split() for prompt in found.prompts if prompt.text]
    assert len(said) == 24
    assert not [words for words in said if (words[-2], words[1]) in held_out]
