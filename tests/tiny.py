"""Models small enough to make on the spot: a Llama of two layers with a tokenizer and a chat template of its own.

Invariants:
- The same arguments make the same weights and the same token ids.
- Every text tokenizes (byte-level, all 256 bytes); heads are of a size that vLLM's CPU attention takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TEXTS = (
    "Describe the structure of an atom.",
    "Write a short poem about the sea and the wind.",
    "Explain how a bicycle stays upright while it is moving.",
    "The answer is that the wheel turns, the rider steers, and the weight shifts from side to side.",
)
BOS, EOS, TURN, TURN_END = SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_POSITIONS = 512


def make_tiny_tokenizer(texts: Sequence[str] = TEXTS, *, chat_template: bool = True):
    """A fast byte-level BPE tokenizer of at most 400 tokens; bos ``<s>``, eos ``</s>``, turns end ``<|im_end|>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[TURN, TURN_END],
        model_max_length=MAX_POSITIONS,
    )
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def make_tiny_model(
    folder: str | Path,
    *,
    seed: int = 0,
    texts: Sequence[str] = TEXTS,
    chat_template: bool = True,
    initializer_range: float = 0.1,
    tied: bool = False,
    layers: int = 2,
) -> Path:
    """Write a Hugging Face folder (float32 safetensors, tokenizer, chat template) and return it.

    A larger `initializer_range` makes greedy answers less of a tie; `tied` shares the head with the embeddings.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tiny_tokenizer(texts, chat_template=chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=initializer_range,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
