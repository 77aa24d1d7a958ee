"""The miniature's two tokenizers over one frozen word list, `vocabulary.txt` (one word a line, in id order).

Both lower-case, split punctuation off and drop white space and line breaks, so a text is its words; decoding joins
words by a space. The VLM's has Qwen2-VL's special tokens and chat template, T5's ends a text with `</s>`. What one
decodes the other reads back to the same words. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VLM_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|unknown|>",
)
T5_EXTRA_IDS = tuple(f"<extra_id_{i}>" for i in range(8))
T5_SPECIALS = ("<pad>", "</s>", "<unk>", *T5_EXTRA_IDS)
T5_PAD_ID, T5_EOS_ID = 0, 1
VOCABULARY_FILE = Path(__file__).with_name("vocabulary.txt")

# Qwen2-VL's own template (Qwen/Qwen2-VL-7B-Instruct, chat_template.json), with its default system message.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def words() -> tuple[str, ...]:
    """The frozen word list."""
    return tuple(VOCABULARY_FILE.read_text(encoding="utf-8").split())


def vlm_tokenizer() -> PreTrainedTokenizerFast:
    """The miniature Qwen2-VL's tokenizer: `<|endoftext|>` pads, `<|im_end|>` ends an answer."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_word_level(VLM_SPECIALS, unknown="<|unknown|>"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<|unknown|>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """The miniature T5's tokenizer; it appends `</s>` unless told `add_special_tokens=False`."""
    from transformers import PreTrainedTokenizerFast

    raw = _word_level(T5_SPECIALS, unknown="<unk>")
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", T5_EOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def ids_of(tokenizer: PreTrainedTokenizerFast, said: Sequence[str]) -> list[int]:
    """The ids of single words or special tokens. Raises ValueError for one that is not in the vocabulary."""
    ids = [tokenizer.convert_tokens_to_ids(word) for word in said]
    known = [i for i in ids if isinstance(i, int) and i != tokenizer.unk_token_id]
    if len(known) < len(said):
        raise ValueError(f"words: found {' '.join(said)!r}, expected words of vocabulary.txt. It is frozen.")
    return known


def _word_level(specials: tuple[str, ...], unknown: str) -> Tokenizer:
    ids = {token: i for i, token in enumerate((*specials, *words()))}
    raw = Tokenizer(WordLevel(ids, unk_token=unknown))
    raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[‘’]"), "'")])
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return raw
