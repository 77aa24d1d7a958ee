"""Trains `mini-qwen2-vl`, a Qwen2-VL of 0.8 M parameters that captions the world and solves in-context tasks on it.

First the vision tower with heads that name the attributes (thrown away afterwards), then, on its frozen features, the
language model: captions only, then in-context tasks too, at last with distracting attributes in the demonstrations.
Everything it reads has gone through JPEG, its own image processor and its own chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention, apply_rotary_pos_emb_vision

from thinkdiff.mini import renderer, training, words, world
from thinkdiff.mini.train_judge import GROUP_SIZES
from thinkdiff.mini.vlm_prompts import IMAGE_TOKENS, ChatIds, InContextTask, caption_chat, draw_task, in_context_chat
from thinkdiff.schemas.features import PAPER_PROMPTS

NAME = "mini-qwen2-vl"
HIDDEN, PATCHES = 128, 16
VISION_STEPS, VISION_BATCH = 1400, 96
CAPTION_STEPS, PLAIN_STEPS, DISTRACTED_STEPS, BATCH = 500, 400, 1800, 48
LR = 2e-3
SHOT_ODDS = {1: 0.15, 2: 0.40, 3: 0.10, 4: 0.35}


def train_vlm(weights: Path, seed: int) -> training.Report:
    """Train, save to `weights/mini-qwen2-vl`, score by its texts on fresh pictures and tasks."""
    rng, clock = training.start(seed), training.Clock()
    processor = new_processor()
    pictures = Pictures(processor.image_processor, rng)
    model = new_model(processor)
    _train_vision(model, pictures, rng)
    features_NTD = _vision_features(model, pictures.patches_NPX)
    _train_language(model, processor, pictures, features_NTD, rng)
    training.round_to_bfloat16(model)
    training.save_folder(weights / NAME, lambda folder: _write(model, processor, folder))
    spent, test_seed = clock.seconds(), 60_000 + seed
    return training.write_report(
        weights / NAME,
        {
            "what": "Qwen2VLForConditionalGeneration: captions pictures and solves in-context tasks in words",
            "parameters": training.parameter_count(model),
            "seed": seed,
            "steps": f"{VISION_STEPS} vision + {CAPTION_STEPS + PLAIN_STEPS + DISTRACTED_STEPS} language",
            **spent,
            "scores": text_scores(weights / NAME, test_seed),
            "test_seed": test_seed,
        },
    )


def _train_vision(model: Any, pictures: Pictures, rng: np.random.Generator) -> None:
    """Teach the tower to see attributes, so that the language model starts from useful picture tokens."""
    tower = model.model.visual
    for block in tower.blocks:
        block.attn.forward = partial(_attend_equal_pictures, block.attn)
    heads = nn.Sequential(nn.LayerNorm(HIDDEN), nn.Flatten(1), nn.Linear(IMAGE_TOKENS * HIDDEN, sum(GROUP_SIZES)))
    both = nn.ModuleList([tower, heads])
    labels_NG = torch.from_numpy(pictures.rows)
    optimizer = torch.optim.AdamW(both.parameters(), lr=LR, weight_decay=0.02, betas=(0.9, 0.98))
    bar = training.Progress("vlm vision", VISION_STEPS)
    for step in range(VISION_STEPS):
        training.set_lr(optimizer, LR * min((step + 1) / 100, 1.02 - step / VISION_STEPS))
        chosen = torch.from_numpy(rng.integers(len(labels_NG), size=VISION_BATCH))
        with training.autocast():
            logits = heads(_see(tower, pictures.patches_NPX[chosen]))
        groups = logits.float().split(GROUP_SIZES, dim=1)
        loss = torch.stack([F.cross_entropy(g, labels_NG[chosen, i]) for i, g in enumerate(groups)]).sum()
        bar.update(training.optimizer_step(loss, both, optimizer))
    bar.close()
    tower.requires_grad_(False)


def _train_language(
    model: Any,
    processor: Qwen2VLProcessor,
    pictures: Pictures,
    features_NTD: torch.Tensor,
    rng: np.random.Generator,
) -> None:
    """Next-token loss on answers only; a batch has one prompt length, so one set of M-RoPE positions serves it."""
    data = AnswerBatches(processor, pictures, rng)
    learned = nn.ModuleList([model.model.language_model, model.lm_head])
    optimizer = torch.optim.AdamW(learned.parameters(), lr=LR, weight_decay=0.01, betas=(0.9, 0.98))
    steps = CAPTION_STEPS + PLAIN_STEPS + DISTRACTED_STEPS
    bar = training.Progress("vlm language", steps)
    for step in range(steps):
        remaining = (steps - step) / DISTRACTED_STEPS
        training.set_lr(optimizer, LR * min((step + 1) / 100, 1.0, 0.02 + remaining))
        distracted = step >= CAPTION_STEPS + PLAIN_STEPS
        if step >= CAPTION_STEPS and rng.random() < (0.5 if distracted else 0.65):
            ids_BL, prompt_length, shown = data.tasks(BATCH, distracted)
        else:
            ids_BL, prompt_length, shown = data.captions(BATCH)
        with training.autocast():
            x_BLD = model.model.language_model.embed_tokens(ids_BL)
            x_BLD = x_BLD.masked_scatter((ids_BL == data.image_id)[..., None], features_NTD[shown].to(x_BLD.dtype))
            h_BLD = model.model.language_model(
                inputs_embeds=x_BLD, position_ids=data.positions(model, ids_BL), use_cache=False
            ).last_hidden_state[:, prompt_length - 1 : -1]
            answers = ids_BL[:, prompt_length:]
            said = answers != data.pad_id
            loss = F.cross_entropy(model.lm_head(h_BLD[said]).float(), answers[said])
        bar.update(training.optimizer_step(loss, learned, optimizer))
    bar.close()
    model.eval()


class Pictures:
    """Rendered pictures without held-out pairs, as patches of the real image processor `(N, 16, 384)` float16."""

    def __init__(self, image_processor: Qwen2VLImageProcessor, rng: np.random.Generator) -> None:
        singles, pairs = world.single_attribute_pictures(), _two_attribute_pictures()
        mixed = world.sample_attributes(14_000, rng)
        self.rows = np.concatenate([mixed, singles.repeat(32, axis=0), pairs.repeat(6, axis=0)])
        drawn = renderer.render(self.rows, rng)
        self.patches_NPX = torch.cat(
            [patches(image_processor, drawn[i : i + 500]).half() for i in range(0, len(drawn), 500)]
        )
        self._by_row: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(self.rows.tolist()):
            self._by_row.setdefault(tuple(row), []).append(i)

    def of(self, row: tuple[int, ...], rng: np.random.Generator) -> int:
        """The number of some picture with exactly these attributes."""
        found = self._by_row[row]
        return found[int(rng.integers(len(found)))]


class AnswerBatches:
    """Prompts with their answers as one block of token ids, and which pictures stand in the prompts."""

    def __init__(self, processor: Qwen2VLProcessor, pictures: Pictures, rng: np.random.Generator) -> None:
        self._pictures, self._rng = pictures, rng
        self._tokenizer = processor.tokenizer
        self._chats = ChatIds(self._tokenizer)
        self._caption_prompts = [self._chats.caption(prompt) for prompt in PAPER_PROMPTS]
        self.image_id, self.pad_id = processor.image_token_id, self._tokenizer.pad_token_id
        self._positions: dict[tuple[int, int], torch.Tensor] = {}

    def captions(self, size: int) -> tuple[torch.Tensor, int, torch.Tensor]:
        prompt = int(self._rng.integers(len(PAPER_PROMPTS)))
        shown = self._rng.integers(len(self._pictures.rows), size=size)
        said = [world.answer_caption(self._pictures.rows[i], prompt) for i in shown]
        return *self._join([self._caption_prompts[prompt]] * size, said), torch.from_numpy(shown)

    def tasks(self, size: int, distracted: bool) -> tuple[torch.Tensor, int, torch.Tensor]:
        shots = int(self._rng.choice(list(SHOT_ODDS), p=list(SHOT_ODDS.values())))
        tasks = [draw_task(self._rng, shots, distracted) for _ in range(size)]
        said = [world.caption(task.answer, world.LEAD_CREATE) for task in tasks]
        shown = [self._pictures.of(row, self._rng) for task in tasks for row in task.demos]
        return *self._join([self._chats.in_context(task) for task in tasks], said), torch.tensor(shown)

    def positions(self, model: Any, ids_BL: torch.Tensor) -> torch.Tensor:
        """M-RoPE positions `(3, B, L)`; they depend on where the pictures stand, the same in every row."""
        B, L = ids_BL.shape
        first = ids_BL[:1]
        at = tuple((first[0] == self.image_id).nonzero().flatten().tolist())
        if (key := (L, hash(at))) not in self._positions:
            kinds = (first == self.image_id).int()
            grids = torch.tensor([[1, 4, 4]] * (len(at) // IMAGE_TOKENS))
            self._positions[key] = model.model.get_rope_index(first, kinds, image_grid_thw=grids)[0]
        return self._positions[key].expand(3, B, L)

    def _join(self, prompts: list[list[int]], said: list[list[str]]) -> tuple[torch.Tensor, int]:
        end = self._tokenizer.eos_token_id
        rows = [p + words.ids_of(self._tokenizer, s) + [end] for p, s in zip(prompts, said, strict=True)]
        ids_BL = torch.full((len(rows), max(map(len, rows))), self.pad_id)
        for i, row in enumerate(rows):
            ids_BL[i, : len(row)] = torch.tensor(row)
        return ids_BL, len(prompts[0])


def patches(image_processor: Qwen2VLImageProcessor, drawn_NHHC: renderer.Pictures) -> torch.Tensor:
    """What the model reads of pictures that were written as JPEG: `(N, 16, 384)` float32."""
    read = list(renderer.through_jpeg(drawn_NHHC))
    pixels = image_processor(images=read, return_tensors="pt")["pixel_values"]
    return pixels.reshape(len(read), PATCHES, -1)


def _two_attribute_pictures() -> world.Attributes:
    singles = world.single_attribute_pictures()
    both = [np.maximum(a, b) for a in singles for b in singles if a[0] == b[0]]
    named = [row for row in both if (row[1:] > 0).sum() == 2]
    return np.unique(np.array(named), axis=0)


def _see(tower: nn.Module, patches_NPX: torch.Tensor) -> torch.Tensor:
    """Merged picture tokens `(N, 4, 128)`."""
    grids = torch.tensor([[1, 4, 4]]).expand(len(patches_NPX), 3)
    out = tower(patches_NPX.float().flatten(0, 1), grid_thw=grids)
    return out.pooler_output.reshape(len(patches_NPX), IMAGE_TOKENS, HIDDEN)


@torch.no_grad()
def _vision_features(model: Qwen2VLForConditionalGeneration, patches_NPX: torch.Tensor) -> torch.Tensor:
    """All picture tokens once, since the tower is frozen from here on, with the weights it will be released with."""
    training.round_to_bfloat16(model.model.visual)
    return torch.cat([_see(model.model.visual, chunk) for chunk in patches_NPX.split(500)])


def _attend_equal_pictures(
    attention: VisionAttention,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: object,
) -> torch.Tensor:
    """The tower's attention for pictures of one size, as one product instead of a loop over pictures."""
    qkv = attention.qkv(hidden_states).reshape(len(hidden_states), 3, attention.num_heads, -1)
    q, k, v = qkv.unbind(1)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (x.reshape(-1, PATCHES, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
    return attention.proj(out.transpose(1, 2).reshape(len(hidden_states), -1))


def new_processor() -> Qwen2VLProcessor:
    """The stock processor over the word tokenizer; pictures of 32x32 stay so, others are scaled to that area."""
    sizes: dict[str, Any] = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    sizes["size"] = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=words.vlm_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=words.CHAT_TEMPLATE,
    )


def new_model(processor: Qwen2VLProcessor) -> Qwen2VLForConditionalGeneration:
    """An untrained model with the processor's special tokens."""
    token = dict(zip(words.VLM_SPECIALS, range(len(words.VLM_SPECIALS)), strict=True))
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    text = {
        "vocab_size": len(words.VLM_SPECIALS) + len(words.words()),
        "hidden_size": HIDDEN,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope,
        "bos_token_id": token["<|endoftext|>"],
        "eos_token_id": token["<|im_end|>"],
        "pad_token_id": token["<|endoftext|>"],
    }
    vision = {"depth": 3, "embed_dim": 64, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 4, "in_channels": 3}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision | {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = Qwen2VLForConditionalGeneration(config)
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = token["<|im_end|>"], token["<|endoftext|>"]
    return model


def _write(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore
    training.store_float32_config(folder)
    processor.save_pretrained(folder)


def text_scores(folder: Path, seed: int, count: int = 200) -> dict[str, float]:
    """Shares of exact captions, and of in-context answers that name the right object and value, greedily decoded."""
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor, rng = AutoProcessor.from_pretrained(folder), np.random.default_rng(seed)
    rows = world.sample_attributes(count, rng, all_pairs=True)
    drawn = renderer.through_jpeg(renderer.render(rows, rng))
    chats = [caption_chat(PAPER_PROMPTS[12])] * count
    said = answer(model, processor, chats, [[picture] for picture in drawn], vision_ids=False)
    exact = np.array([s == " ".join(world.answer_caption(r, 12)) for s, r in zip(said, rows, strict=True)])
    unseen = world.has_held_out(rows)
    scores = {"caption_exact_seen": exact[~unseen].mean(), "caption_exact_held_out": exact[unseen].mean()}
    for shots in (2, 4):
        tasks = [draw_task(rng, shots, distractors=True, all_pairs=True) for _ in range(count)]
        drawn = renderer.render(np.array([row for task in tasks for row in task.demos]), rng)
        shown = renderer.through_jpeg(drawn).reshape(count, shots, *drawn.shape[1:])
        chats = [in_context_chat(task.words, task.query) for task in tasks]
        said = answer(model, processor, chats, list(map(list, shown)), vision_ids=True)
        right = np.array([is_right(s, task) for s, task in zip(said, tasks, strict=True)])
        unseen = world.has_held_out(np.array([task.answer for task in tasks]))
        scores |= {f"{shots}_shot_seen": right[~unseen].mean(), f"{shots}_shot_held_out": right[unseen].mean()}
    return {name: round(float(score), 4) for name, score in scores.items()}


def is_right(text: str, task: InContextTask) -> bool:
    """Whether a text names the object and the value of the answer and no others of their kind."""
    said = set(text.split())
    wanted = {world.OBJECTS[int(task.answer[0])], world.value_word(task.answer, task.family)}
    kinds = {*world.OBJECTS, *world.FAMILIES[task.family]}
    return said & kinds == wanted


@torch.no_grad()
def answer(
    model: Any,
    processor: Any,
    chats: Sequence[list],
    pictures: Sequence[list],
    vision_ids: bool,
) -> list[str]:
    """Greedy answers to chats of one length, through the stock processor and `generate`."""
    said = []
    for at in range(0, len(chats), 50):
        texts = [
            processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, add_vision_id=vision_ids)
            for chat in chats[at : at + 50]
        ]
        inputs = processor(
            text=texts, images=[p for shown in pictures[at : at + 50] for p in shown], return_tensors="pt"
        )
        tokens = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        said += processor.batch_decode(new, skip_special_tokens=True)
    return said
