"""In which arithmetic a model runs."""

from typing import Literal

Precision = Literal["float32", "bf16"]
"""`bf16` keeps float32 weights and multiplies matrices in bfloat16 (autocast), in scoring as in training: a difference
between two losses must come from the weights and not from the arithmetic."""
