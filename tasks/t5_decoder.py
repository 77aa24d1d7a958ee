"""The frozen T5 that teaches the aligner: prompt embeddings and token ids in, the loss of each target token out.

The decoder computes no padded position: targets and prompts lie one behind the other, and all but the attention works
on tokens by themselves. Attention alone is laid out by samples, which keeps T5's relative positions as they are.

Shapes: B samples, N target tokens of all samples, P prompt rows of all samples, U longest target, L longest prompt,
H heads, K width of a head, D width of the T5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.models import SAFE, complete, loading, require_files

UNSEEN = -1e9  # added to a score that must not count
ALIGNED = 8  # lengths that the fused attention kernels of a GPU want a multiple of
ENCODER_NORM = "encoder.final_layer_norm.weight"
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Packing:
    """Where the rows of `samples` are in an array of that many times `longest` rows. places: int64 (rows,)."""

    samples: int
    longest: int
    places: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: str | torch.device) -> Packing:
        """For samples that lie one behind the other. Every length is at least 1."""
        longest = -(-max(lengths) // ALIGNED) * ALIGNED
        counts = torch.tensor(lengths)
        first_row = torch.arange(len(lengths)) * longest
        shift = torch.repeat_interleave(first_row - (counts.cumsum(0) - counts), counts)
        places = torch.arange(int(counts.sum())) + shift
        return cls(len(lengths), longest, places.to(device, non_blocking=True))

    def spread(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Packed rows (N, …) as (B, longest, …), zeros elsewhere."""
        laid = rows_ND.new_zeros(self.samples * self.longest, *rows_ND.shape[1:])
        laid = laid.index_copy(0, self.places, rows_ND)
        return laid.view(self.samples, self.longest, *rows_ND.shape[1:])

    def gather(self, laid_BLD: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return laid_BLD.reshape(self.samples * self.longest, *laid_BLD.shape[2:]).index_select(0, self.places)

    def mask(self) -> torch.Tensor:
        """Which places hold a row: bool (B, longest)."""
        held = torch.zeros(self.samples * self.longest, dtype=torch.bool, device=self.places.device)
        return held.index_fill_(0, self.places, True).view(self.samples, self.longest)


@dataclass(frozen=True)
class Targets:
    """Token ids of samples, one behind the other: what the decoder is given and what it must say, int64 (N,)."""

    inputs_N: torch.Tensor
    labels_N: torch.Tensor
    packing: Packing


class T5Decoder:
    """Decoder, head and tokenizer of a T5, frozen; with `encoder` its encoder, too.

    `norm_D` is the weight of the *encoder's* final RMSNorm, which starts the aligner's (paper, section 3.3).
    Raises ModelError when the folder is no whole T5.
    """

    def __init__(self, path: str, device: str, dtype: torch.dtype, encoder: bool = False) -> None:
        require_files(path, ("config.json", "tokenizer_config.json", "*.safetensors"))
        with loading(path):
            from transformers import AutoTokenizer, T5ForConditionalGeneration

            loaded = T5ForConditionalGeneration.from_pretrained(path, dtype=dtype, output_loading_info=True, **SAFE)
            model: Any = complete(path, loaded)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self._hold(model.to(dtype), device, encoder)

    @classmethod
    def holding(cls, model: Any, tokenizer: Any, device: str) -> T5Decoder:
        """Around a `T5ForConditionalGeneration` that is in memory."""
        self = cls.__new__(cls)
        self.tokenizer = tokenizer
        self._hold(model, device, False)
        return self

    def _hold(self, model: Any, device: str, encoder: bool) -> None:
        self.norm_D = model.encoder.final_layer_norm.weight.detach().float().clone()
        if not encoder:
            model.encoder.block = model.encoder.block[:0]
        self.model = model.to(device).eval().requires_grad_(False)
        self.device, self.block, config = device, decoder_block, model.config
        # Up to transformers 4 the config does not say so: the outputs are scaled where the embeddings are tied.
        scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
        self._scale = config.d_model**-0.5 if scaled else 1.0

    @property
    def width(self) -> int:
        """D."""
        return self.model.config.d_model

    def compile(self) -> None:
        """Lets torch.compile fuse what is between the products of matrices; one compilation serves all layers."""
        self.block: Callable[..., torch.Tensor] = torch.compile(decoder_block, dynamic=True)

    def tokens(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """The token ids of each text, ending in `</s>`, cut to `most`."""
        # Cut here: a limit is state of the tokenizer, which two threads use.
        whole = self.tokenizer(list(texts))["input_ids"]
        return [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in whole]

    def targets(self, ids: Sequence[Sequence[int]]) -> Targets:
        """Token ids of samples, shifted right behind T5's start token, on the device."""
        start = self.model.config.decoder_start_token_id
        labels = torch.tensor([token for sample in ids for token in sample])
        inputs = torch.tensor([token for sample in ids for token in (start, *sample[:-1])])
        packing = Packing.of([len(sample) for sample in ids], self.device)
        return Targets(inputs.to(self.device), labels.to(self.device), packing)

    def losses(self, x_PD: torch.Tensor, prompts: Packing, targets: Targets) -> torch.Tensor:
        """Cross entropy (N,) in nats of each target token, given the prompt rows of its sample and the tokens before.

        The same numbers as `T5ForConditionalGeneration(encoder_outputs=…, labels=…)`. In float32, or wider.
        """
        y_ND = self._decoded(targets.inputs_N, targets.packing, x_PD, prompts)
        logits_NV = self.model.lm_head(y_ND * self._scale if self._scale != 1 else y_ND)
        wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        return F.cross_entropy(wide, targets.labels_N, reduction="none")

    def read(self, x_PD: torch.Tensor, prompts: Packing, most: int) -> list[str]:
        """What the decoder says to each of B prompts, greedily, in at most `most` tokens."""
        from transformers.modeling_outputs import BaseModelOutput

        x_BLD: Any = prompts.spread(x_PD.to(self.model.dtype))
        with torch.no_grad():
            ids = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=x_BLD), attention_mask=prompts.mask().long(),
                max_new_tokens=most, do_sample=False, num_beams=1,
            )  # fmt: skip
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def encode(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The encoder's states (P, D) of token ids, one text behind the other."""
        packing = Packing.of([len(text) for text in texts], self.device)
        ids = torch.tensor([token for text in texts for token in text]).to(self.device)
        with torch.no_grad():
            found = self.model.encoder(input_ids=packing.spread(ids), attention_mask=packing.mask().long())
        return packing.gather(found.last_hidden_state)

    def flops(self, tokens: int, rows: int) -> int:
        """Of a step through the frozen decoder with `tokens` targets and `rows` of prompts: products of matrices alone.

        There are two of each size: forward, and backward to the inputs. Attention's scores are left out.
        """
        config = self.model.config
        inner, gates = config.num_heads * config.d_kv, 2 if config.is_gated_act else 1
        a_token = 6 * inner * config.d_model + (gates + 1) * config.d_ff * config.d_model
        layers = config.num_decoder_layers
        own = layers * (tokens * a_token + rows * 2 * inner * config.d_model)
        return 4 * (own + tokens * config.vocab_size * config.d_model)

    def _decoded(self, inputs_N: torch.Tensor, targets: Packing, x_PD: torch.Tensor, prompts: Packing) -> torch.Tensor:
        """The decoder's states (N, D) after its final norm."""
        decoder = self.model.decoder
        y_ND = decoder.embed_tokens(inputs_N)
        x_PD = x_PD.to(y_ND.dtype)
        bias_1HUU, mask_B11L = self._causal_bias(targets.longest, y_ND), prompts.mask()[:, None, None]
        for block in decoder.block:
            y_ND = self.block(block, y_ND, targets, bias_1HUU, x_PD, prompts, mask_B11L)
        return normed(decoder.final_layer_norm, y_ND)

    def _causal_bias(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """T5's bias by relative position, the tokens to come shut out: (1, H, U, U).

        What stands behind the end of a short sample is to come for all its tokens, so no other mask is needed.
        """
        first = self.model.decoder.block[0].layer[0].SelfAttention
        bias_1HUU = first.compute_bias(length, length, device=like.device).to(like.dtype)
        future_UU = torch.ones(length, length, dtype=torch.bool, device=like.device).triu(1)
        return bias_1HUU.masked_fill(future_UU, UNSEEN)


def decoder_block(
    block: Any, y_ND: torch.Tensor, targets: Packing, bias_1HUU: torch.Tensor,
    x_PD: torch.Tensor, prompts: Packing, mask_B11L: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """One layer of the decoder on packed rows: (N, D) -> (N, D)."""
    first, second, last = block.layer
    own = normed(first.layer_norm, y_ND)
    y_ND = y_ND + attention(first.SelfAttention, own, own, targets, targets, bias_1HUU)
    asking = normed(second.layer_norm, y_ND)
    y_ND = y_ND + attention(second.EncDecAttention, asking, x_PD, targets, prompts, mask_B11L)
    return y_ND + feed_forward(last.DenseReluDense, normed(last.layer_norm, y_ND))


def attention(
    layer: Any, y_ND: torch.Tensor, x_PD: torch.Tensor, queries: Packing, keys: Packing, mask: torch.Tensor
) -> torch.Tensor:
    """T5's attention of one layer, packed in and out: scores are not scaled; `mask` is added, or says what counts."""
    q_BUHK, k_BLHK, v_BLHK = (
        packing.spread(rows).unflatten(-1, (layer.n_heads, -1))
        for packing, rows in ((queries, layer.q(y_ND)), (keys, layer.k(x_PD)), (keys, layer.v(x_PD)))
    )
    seen_BHUK = F.scaled_dot_product_attention(
        q_BUHK.transpose(1, 2), k_BLHK.transpose(1, 2), v_BLHK.transpose(1, 2), attn_mask=mask, scale=1.0
    )
    return layer.o(queries.gather(seen_BHUK.transpose(1, 2).flatten(2)))


def feed_forward(layer: Any, y_ND: torch.Tensor) -> torch.Tensor:
    """The two kinds of T5: gated with GELU (v1.1, FLAN), or ReLU."""
    if not hasattr(layer, "wi_0"):
        return layer.wo(layer.act(layer.wi(y_ND)))
    gate_NF = layer.wi_0(y_ND)
    tanh = type(layer.act).__name__ == "NewGELUActivation"  # the same in one kernel
    gate_NF = F.gelu(gate_NF, approximate="tanh") if tanh else layer.act(gate_NF)
    return layer.wo(gate_NF * layer.wi_1(y_ND))


def normed(layer: Any, y_ND: torch.Tensor) -> torch.Tensor:
    """T5's norm by PyTorch's own kernel."""
    return F.rms_norm(y_ND, layer.weight.shape, layer.weight, layer.variance_epsilon)


def encoder_norm(path: str) -> torch.Tensor:
    """The weight (D,) of the encoder's final norm of a T5, read without the rest. Raises ModelError without one."""
    from safetensors import safe_open

    require_files(path, ("*.safetensors",))
    index = Path(path) / "model.safetensors.index.json"
    with loading(path):
        known = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
        name = Path(path) / Path(known.get(ENCODER_NORM, "model.safetensors")).name
        with safe_open(name, "pt") as file:
            if ENCODER_NORM in file.keys():
                return file.get_tensor(ENCODER_NORM).float()
    raise ModelError(f"model {path}: found no {ENCODER_NORM}, expected the weights of a T5. Name one as norm_from.")
