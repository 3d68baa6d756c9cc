"""Whether an ingest may bring rows into a corpus that is there, and if not, what differs."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, Final

import numpy as np

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.ingest.base_model import BaseModel
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.errors import CorpusError, ModelMismatch
from replay_service.language.checkpoint import checkpoint_fingerprint
from replay_service.language.packing import id_dtype

_PRECISIONS: Final = ("auto", "float32", "bf16")


def check_fits(manifest: Manifest, settings: IngestSettings, base: BaseModel) -> None:
    """Find whether the rows of an ingest may stand in a corpus.

    Raises:
        ModelMismatch: when the base model is another one.
        CorpusError: when other settings differ; names those that do.
    """
    _check_model(manifest, settings, base)
    is_same_model = settings.model == manifest.model or _has_weights_of(manifest, base)
    if manifest.bos_id == base.ends.bos_id and manifest.recipe in _recipes(manifest, settings, base, is_same_model):
        _check_likeliest(manifest, settings, base)
        return
    differences = list(_differences(manifest, settings, base, is_same_model))
    if not differences:  # an earlier release did not write down all of its settings
        differences = ["columns, clusters, precision or rows_per_segment"]
    raise CorpusError(
        f"corpus {settings.name!r} exists already, made with other settings: {', '.join(differences)}; repeat them, "
        f"choose another name, or remove {settings.corpus_folder}"
    )


def _check_model(manifest: Manifest, settings: IngestSettings, base: BaseModel) -> None:
    if base.classes is not None and base.classes != manifest.classes:
        raise ModelMismatch(
            f"corpus {settings.name!r} was scored by {manifest.model!r} with other weights than {settings.model!r} has "
            "now, or with other classes; choose another corpus name"
        )
    if manifest.tokenizer_fingerprint != base.tokenizer_fingerprint:
        raise ModelMismatch(
            f"corpus {settings.name!r} was made with {manifest.model!r}, whose tokenizer differs from that of "
            f"{settings.model!r}; choose another corpus name"
        )
    known = manifest.checkpoint_fingerprint
    if known and base.checkpoint and known != base.checkpoint:
        raise ModelMismatch(
            f"corpus {settings.name!r} was scored by {manifest.model!r} with other weights, or another config.json, "
            f"than {settings.model!r} has now; choose another corpus name"
        )


def _check_likeliest(manifest: Manifest, settings: IngestSettings, base: BaseModel) -> None:
    """Earlier releases stored ids of a head that is wider than the tokenizer in a type that cut them."""
    if not manifest.topk or not manifest.segments:
        return
    stored = np.dtype(manifest.segments[0].record)["topk_ids"].base  # type: ignore[call-overload]
    if stored != id_dtype(base.num_logits):
        raise CorpusError(
            f"corpus {settings.name!r} stores the likeliest tokens as {stored}, but the model predicts "
            f"{base.num_logits} tokens, so that ids in it are wrong; remove {settings.corpus_folder} and ingest again"
        )


def _has_weights_of(manifest: Manifest, base: BaseModel) -> bool:
    """Whether the base model is the corpus's, perhaps by another path."""
    if base.classes is not None:
        return base.classes == manifest.classes
    known = manifest.checkpoint_fingerprint or checkpoint_fingerprint(manifest.model)
    return bool(known) and known == base.checkpoint


def _recipes(manifest: Manifest, settings: IngestSettings, base: BaseModel, is_same_model: bool) -> set[str]:
    """Those of settings that say the same of this corpus: the model by another path, and the precision it has."""
    models = {settings.model, manifest.model} if is_same_model else {settings.model}
    if settings.precision == "auto":
        precisions = set(_PRECISIONS)
    else:
        precisions = {settings.precision} | ({"auto"} if settings.precision == manifest.precision else set())
    return {
        replace(settings, model=model, precision=precision).recipe(base.identity)  # type: ignore[arg-type]
        for model, precision in product(models, precisions)
    }


def _differences(manifest: Manifest, settings: IngestSettings, base: BaseModel, is_same_model: bool) -> Iterator[str]:
    """What differs, with both values; of a corpus of an earlier release, as far as it is known."""
    theirs, ours = _flat(manifest.settings or _known_of(manifest)), _flat(settings.parts())
    if is_same_model:
        ours["model"] = theirs["model"]
    if settings.precision in ("auto", manifest.precision):
        theirs.pop("precision", None)
    if not manifest.settings:
        ours["partition_by"] = settings.partition_by
    for name, value in theirs.items():
        if name in ours and ours[name] != value:
            yield f"{name} {_shown(value)} and not {_shown(ours[name])}"
    if manifest.bos_id != base.ends.bos_id:
        yield f"bos token {_shown(manifest.bos_id)} and not {_shown(base.ends.bos_id)}"


def _known_of(manifest: Manifest) -> dict[str, Any]:
    names = ("model", "seq_len", "num_quantiles", "topk", "partition_by")
    return {name: getattr(manifest, name) for name in names}


def _flat(parts: dict[str, Any]) -> dict[str, Any]:
    columns = {f"{name}_column": value for name, value in parts.get("columns", {}).items()}
    return {**{name: value for name, value in parts.items() if name != "columns"}, **columns}


def _shown(value: object) -> str:
    return "none" if value is None else repr(value) if isinstance(value, str) else str(value)
