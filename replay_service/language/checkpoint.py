"""Telling checkpoints of models apart at little cost, whatever their paths are."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from replay_service.language.pretrained import is_hub_name

_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; each may also be cut into shards, which an index lists."""
_SAID_OF_FILES: Final = ("_name_or_path", "transformers_version")
"""Members of a config.json that say nothing of the model."""
_SAMPLE_BYTES: Final = 64


def checkpoint_fingerprint(name: str) -> str:
    """Equal for checkpoints with equal configuration and weights: 16 hex digits.

    Only the first and the last bytes of each tensor are read, which training changes in nearly all tensors.

    Args:
        name: a local folder, or the hub name of a model that has been loaded on this machine.

    Returns:
        An empty string where there are no such files.
    """
    folder = _folder_of(name)
    files = [] if folder is None else _weight_files(folder)
    if folder is None or not files or not (folder / "config.json").exists():
        return ""
    config = json.loads((folder / "config.json").read_text())
    about = {key: value for key, value in config.items() if key not in _SAID_OF_FILES}
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for sample in sorted(sample for file in files for sample in _samples(file)):
        found.update(sample)
    return found.hexdigest()[:16]


def _folder_of(name: str) -> Path | None:
    """The model's folder, or that of its snapshot in the hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    if not is_hub_name(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _weight_files(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            files = {folder / file for file in json.loads(index.read_text())["weight_map"].values()}
            return sorted(files) if all(file.exists() for file in files) else []
    return []


def _samples(file: Path) -> Iterator[bytes]:
    """What a file says of each tensor: however tensors are dealt out to files, they give the same."""
    with file.open("rb") as opened:
        if file.suffix == ".safetensors":
            yield from _tensor_samples(opened)
        else:
            # A zip file, whose end lists the checksums of all tensors.
            yield _between(opened, 0, file.stat().st_size, 1 << 16)


def _tensor_samples(opened: IO[bytes]) -> Iterator[bytes]:
    (header_bytes,) = struct.unpack("<Q", opened.read(8))
    header: dict[str, Any] = json.loads(opened.read(header_bytes))
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        first, end = (8 + header_bytes + offset for offset in tensor["data_offsets"])
        about = json.dumps([name, tensor["dtype"], tensor["shape"]]).encode()
        yield about + _between(opened, first, end, _SAMPLE_BYTES)


def _between(opened: IO[bytes], first: int, end: int, num_bytes: int) -> bytes:
    """The first and the last bytes of a part of a file."""
    opened.seek(first)
    begin = opened.read(min(num_bytes, end - first))
    opened.seek(max(first, end - num_bytes))
    return begin + opened.read(min(num_bytes, end - first))
