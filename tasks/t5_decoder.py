"""The frozen T5 decoder that teaches the aligner: embeddings in, next-token loss of a text out.

Shapes: B batch, L prompt rows, U target tokens, D T5 width. The encoder is dropped after its final norm was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinkdiff.tasks.models import loading, require_files

if TYPE_CHECKING:
    import torch


class T5Decoder:
    """Decoder, head and tokenizer of a T5, frozen.

    `norm_D` is the weight of the *encoder's* final RMSNorm, which starts the aligner's (paper, section 3.3).
    """

    def __init__(self, path: str, device: str, dtype: torch.dtype) -> None:
        require_files(path, ("config.json", "tokenizer_config.json", "*.safetensors"))
        with loading(path):
            from transformers import AutoTokenizer, T5ForConditionalGeneration

            model: Any = T5ForConditionalGeneration.from_pretrained(path, dtype=dtype)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.norm_D = model.encoder.final_layer_norm.weight.detach().float().clone()
        model.encoder.block = model.encoder.block[:0]
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device

    @property
    def width(self) -> int:
        """D."""
        return self.model.config.d_model

    def labels(self, texts: list[str], max_tokens: int) -> torch.Tensor:
        """Texts as int64 (B, U) token ids ending in `</s>`, padded with -100, cut to `max_tokens`."""
        batch = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=max_tokens, return_tensors="pt"
        )  # fmt: skip
        return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100).to(self.device)

    def loss_sum(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor, labels_BU: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Summed cross entropy of the targets given the prompt embeddings, and the number of target tokens."""
        import torch.nn.functional as F
        from transformers.modeling_outputs import BaseModelOutput

        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=x_BLD),  # pyright: ignore[reportArgumentType]
            attention_mask=mask_BL,
            labels=labels_BU,
            decoder_attention_mask=(labels_BU != -100).long(),
            use_cache=False,
        )
        logits = output.logits.float().flatten(0, 1)
        loss = F.cross_entropy(logits, labels_BU.flatten(), ignore_index=-100, reduction="sum")
        return loss, int((labels_BU != -100).sum())
