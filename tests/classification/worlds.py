"""The smallest models that classify."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

NUM_CLASSES = 4
SHAPE = (1, 8, 8)


class TinyNet(nn.Module):
    """Classifies images of 8 x 8 numbers; without further ado, so that bytes are scaled here."""

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8 * 3 * 3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images / 16.0).flatten(1))
        return logits


class TinyReader(nn.Module):
    """Classifies texts of 50 tokens by the mean of their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        real = attention_mask[:, :, None].float()
        mean = (self.embedding(input_ids) * real).sum(1) / real.sum(1).clamp(min=1)
        logits: Tensor = self.head(mean)
        return logits


def tiny_net() -> nn.Module:
    torch.manual_seed(0)
    return TinyNet()


def tiny_reader() -> nn.Module:
    torch.manual_seed(0)
    return TinyReader()


def no_model() -> int:
    return 3


def images(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of bytes, and their labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, *SHAPE)).astype(np.uint8), rng.integers(0, NUM_CLASSES, num)


def make_tiny_vit(folder: Path, num_classes: int = NUM_CLASSES) -> Path:
    """A random ViT for images of one channel of 8 x 8 numbers."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=num_classes,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def make_tiny_bert(folder: Path, tokenizer: Path, num_classes: int = NUM_CLASSES) -> Path:
    """A random BERT that classifies texts, with the tokenizer of another model."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.pad_token = loaded.eos_token
    loaded.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(loaded),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=num_classes,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
