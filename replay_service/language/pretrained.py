"""Loading what the library transformers saved: errors in one sentence, and no weight that was left random."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from replay_service.errors import CorpusError

_WEIGHTS: Final = (".safetensors", ".bin")
_TOKENIZERS: Final = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "tekken")
"""How the names of a tokenizer's files begin."""
LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
"""How the text begins that stands in place of a file which Git LFS has not fetched."""
_HUB_NAME: Final = re.compile(r"\w([\w.-]*\w)?(/\w([\w.-]*\w)?)?")
_WRAPPERS: Final = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel", "base_model.model.": "peft"}
"""What puts such a prefix before the names of a model's weights."""
_STATISTICS: Final = ("running_mean", "running_var")
"""Buffers that are learned. Others follow from the configuration, and many checkpoints leave them out."""
_NUM_NAMED: Final = 3


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Within it, every error is a CorpusError of one sentence: that `what` cannot be loaded from `name`, and why."""
    _check_place(what, name)
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:  # The loaders of weights and tokenizers raise every kind, down to Exception itself.
        place = "" if Path(name).is_dir() else ", which is no folder here either"
        raise CorpusError(f"no {what} could be loaded from {name!r}{place}: {_first_line(error)}") from error


def load_weights(loader: Any, what: str, name: str, *, is_outline: bool = False) -> Any:
    """A model with float32 weights, in evaluation mode.

    Args:
        loader: an AutoModel class.
        what: the kind of model, for messages.
        name: a local folder or a hub name.
        is_outline: leave the weights on the disk: the model has their shapes, on the device `meta`.

    Raises:
        CorpusError: when there is no such model, or when its weights are not those of the checkpoint.
    """
    with loading(what, name), _quiet():
        options = {"dtype": "float32", "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = loader.from_pretrained(name, **options, **({"device_map": "meta"} if is_outline else {}))
    _check_shapes(name, sorted(found["mismatched_keys"]))
    _check_names(name, model, sorted(found["missing_keys"]), sorted(found["unexpected_keys"]))
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of the library, and without its reports of weights, which are judged here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    usual = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(usual)


def is_hub_name(name: str) -> bool:
    """Whether a name is that of a model at the Hugging Face hub, `name` or `owner/name`, and not a path.

    Where the folder `owner` is there, `owner/name` is a path.
    """
    return _may_be_hub_name(name) and not ("/" in name and Path(name).parent.is_dir())


def _may_be_hub_name(name: str) -> bool:
    return _HUB_NAME.fullmatch(name) is not None


def _check_place(what: str, name: str) -> None:
    """A folder that is there holds no pointers to files; a path that is not there is no name at a hub."""
    path = Path(name)
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.is_file() and _begins_with(file, LFS_POINTER):
                raise CorpusError(
                    f"{file.name} in {name!r} is a Git LFS pointer in place of the file; run `git lfs pull` there"
                )
        if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
            raise CorpusError(
                f"the folder {name!r} holds an adapter and not a model; load it with peft and save the model of its "
                "merge_and_unload(), with the tokenizer"
            )
    elif path.exists():
        raise CorpusError(f"no {what} could be loaded from {name!r}: it is a file; name the folder that it is in")
    elif not is_hub_name(name):
        raise CorpusError(f"no {what} could be loaded from {name!r}: {_missing_folder(name)}")


def _missing_folder(name: str) -> str:
    if not _may_be_hub_name(name):
        return "there is no such folder"
    owner = str(Path(name).parent)
    return (
        f"there is no such folder in {owner!r}; to take the model of that name from the Hugging Face hub, start where "
        f"there is no folder {owner!r}"
    )


def check_has_weights(name: str) -> None:
    """Raises CorpusError when `name` is a folder without a file of weights."""
    path = Path(name)
    if path.is_dir() and not any(file.suffix in _WEIGHTS for file in path.iterdir()):
        raise CorpusError(
            f"the folder {name!r} holds no weights; a model has a file such as model.safetensors beside its config.json"
        )


def check_has_tokenizer(name: str) -> None:
    """Raises CorpusError when `name` is a folder without a file of a tokenizer."""
    path = Path(name)
    if path.is_dir() and not any(file.name.startswith(_TOKENIZERS) for file in path.iterdir()):
        raise CorpusError(
            f"the folder {name!r} holds no tokenizer; save it beside the config.json, with tokenizer.save_pretrained"
        )


def _begins_with(file: Path, start: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(start)) == start


def _first_line(error: Exception) -> str:
    """What an error says first; libraries append paragraphs of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _check_shapes(name: str, mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    if mismatched:
        key, stored, wanted = mismatched[0]
        more = f", and {len(mismatched) - 1} more differ" if len(mismatched) > 1 else ""
        raise CorpusError(
            f"the checkpoint {name!r} does not fit its config.json: {key} has shape {list(stored)}, and the model "
            f"wants {list(wanted)}{more}; take the config.json that was saved with these weights"
        )


def _check_names(name: str, model: Any, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    own = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    learned = [key for key in missing if key in own or key.endswith(_STATISTICS)]
    if learned:
        raise CorpusError(
            f"the checkpoint {name!r} lacks weights of the model, which would stay random: {_named(learned)}; "
            f"{_mending(missing, unexpected)}"
        )
    dropped = _dropped(own, unexpected)
    if dropped:
        raise CorpusError(
            f"the checkpoint {name!r} holds weights that a model of its config.json leaves out: {_named(dropped)}; "
            "take the config.json that was saved with these weights"
        )


def _dropped(own: Collection[str], unexpected: Sequence[str]) -> list[str]:
    """Those unexpected weights that belong to a module which the model has: more layers, or a bias.

    Others, such as a pooler, a vision tower or another head, have no part in the model's predictions.
    """
    patterns = {_pattern(key) for key in own}
    return [
        key
        for key in unexpected
        if _pattern(key) in patterns or (key.endswith(".bias") and key.removesuffix("bias") + "weight" in own)
    ]


def _pattern(key: str) -> str:
    """The name of a weight without the number of its layer."""
    return re.sub(r"\.\d+\.", ".#.", key)


def _mending(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What to do; it is known where all weights are there under a prefix."""
    prefixes = {key.removesuffix(each) for key in unexpected for each in missing if key.endswith(f".{each}")}
    for prefix in sorted(prefixes, key=len):
        if all(key.startswith(prefix) for key in unexpected):
            wrapper = f", which {_WRAPPERS[prefix]} puts there" if prefix in _WRAPPERS else ""
            return (
                f"all names in it begin with {prefix!r}{wrapper}: save the model that was wrapped, or take the prefix "
                "off the names"
            )
    return "save the whole model with save_pretrained, or take the config.json that was saved with these weights"


def _named(keys: Sequence[str]) -> str:
    more = len(keys) - _NUM_NAMED
    return ", ".join(keys[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
