"""Models as people have them, with one fault each; made of a sound one, which stays as it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel, RobertaConfig, RobertaForCausalLM

VOCAB_SIZE = 300


def with_weights(model: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a model with other weights."""
    shutil.copytree(model, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def with_config(model: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a model with another config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def with_prefix(model: Path, folder: Path, prefix: str) -> Path:
    return with_weights(model, folder, lambda weights: {prefix + name: each for name, each in weights.items()})


def with_pointer(model: Path, folder: Path, file: str) -> Path:
    """A copy of which a file is a pointer, as a clone without Git LFS has it."""
    shutil.copytree(model, folder)
    (folder / file).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 999\n")
    return folder


def _small(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"vocab_size": VOCAB_SIZE, **sizes, **more}


def bert_encoder(tokenizer_of: Path, folder: Path) -> Path:
    """A model with a head for the next token whose tokens see those after them."""
    torch.manual_seed(0)
    shutil.copytree(tokenizer_of, folder)
    BertLMHeadModel(BertConfig(**_small(is_decoder=False))).save_pretrained(folder)
    return folder


def roberta_decoder(tokenizer_of: Path, folder: Path, positions: int) -> Path:
    """A causal model that numbers its positions from `pad_token_id + 1` = 2 on."""
    torch.manual_seed(0)
    shutil.copytree(tokenizer_of, folder)
    config = RobertaConfig(**_small(is_decoder=True, pad_token_id=1, max_position_embeddings=positions))
    RobertaForCausalLM(config).save_pretrained(folder)
    return folder
