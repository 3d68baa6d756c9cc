"""Small byte-level language models that are pretrained here, on text that is known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from replay_trainer.config import TrainConfig

SEQ_LEN: Final = 128
SEPARATOR: Final = "<|endoftext|>"
BATCH: Final = 32
CONFIG: Final = "pretraining.toml"

SizeName = Literal["small", "medium", "large"]


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of a Llama, and how it is pretrained."""

    hidden: int
    layers: int
    heads: int
    learning_rate: float
    num_steps: int

    @property
    def intermediate(self) -> int:
        return 8 * self.hidden // 3


SIZES: Final[dict[SizeName, Size]] = {
    "small": Size(hidden=96, layers=3, heads=3, learning_rate=4e-3, num_steps=2000),
    "medium": Size(hidden=192, layers=4, heads=6, learning_rate=3e-3, num_steps=2000),
    "large": Size(hidden=384, layers=4, heads=6, learning_rate=2e-3, num_steps=2000),
}
"""About 0.36, 1.82 and 7.2 million parameters."""


def make_tokenizer(folder: Path) -> None:
    """Saves a tokenizer whose tokens are the 256 bytes, token i for byte i, and a separator of documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR).save_pretrained(folder)


def _characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte: itself where it is printable, else a later one."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def make_model(folder: Path, size: Size, seed: int) -> None:
    """Saves a Llama with random weights, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=SEQ_LEN,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def pretraining_job(size: Size, model: Path, output: Path, text: Path) -> TrainConfig:
    """An ordinary job that trains a model with random weights on the corpus's text."""
    return TrainConfig.model_validate(
        {
            "model": str(model),
            "output": output,
            "num_steps": size.num_steps,
            "global_batch_size": BATCH,
            "learning_rate": size.learning_rate,
            "schedule": "cosine",
            "warmup_steps": size.num_steps // 20,
            "precision": "bf16",
            "checkpoint_every": 100,
            "data": {
                "target": str(text / "pretraining"),
                "heldout_pretraining": str(text / "heldout"),
                "domain_column": "domain",
                "seq_len": SEQ_LEN,
            },
        }
    )
