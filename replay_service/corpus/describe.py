"""What a corpus holds, for people: tables, a picture, and the text of some samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from replay_service.corpus.format.manifest import DomainSummary, Manifest
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.format.sketch import QuantileSketch
from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import CorpusError
from replay_service.sampling.partition import stratum_name
from replay_service.sampling.permutation import keys, permute

_BARS: Final = " ▁▂▃▄▅▆▇█"
_NUM_BARS: Final = 20
_MOST_NATS: Final = 10.0


def content_of(manifest: Manifest) -> str:
    """What a sample is, in a few words."""
    classes = manifest.classes
    if classes is None:
        return f"seq_len {manifest.seq_len}, topk {manifest.topk}"
    is_text = not classes.input_shape
    what = f"texts of {manifest.seq_len} tokens" if is_text else f"{classes.input_type}{classes.input_shape}"
    return f"{what} of {classes.num_classes} classes"


def domain_rows(manifest: Manifest) -> list[list[str]]:
    """A line for each domain: samples, tokens, mean and quantiles of the base losses in nats, their histogram."""
    return [_domain_row(each) for each in manifest.domains]


def _domain_row(domain: DomainSummary) -> list[str]:
    sketch = QuantileSketch.from_json(domain.base_losses)
    quantiles = [f"{each:.2f}" for each in sketch.quantiles([0.1, 0.5, 0.9])]
    counts = sketch.histogram(np.linspace(0.0, _MOST_NATS, _NUM_BARS + 1))
    levels = np.ceil(counts / max(1, counts.max()) * (len(_BARS) - 1)).astype(int)
    bars = "".join(_BARS[level] for level in levels)
    numbers = [f"{domain.num_samples:,}", f"{domain.num_tokens:,}", f"{domain.mean_base_loss_nats:.2f}"]
    return [domain.name, *numbers, *quantiles, bars]


def group_rows(manifest: Manifest) -> list[list[str]]:
    """A line for each group: the generation that brought it, and the samples in each of its strata."""
    sizes = manifest.partition().sizes.reshape(-1, manifest.num_quantiles)
    return [
        [group.name, str(group.generation), *(f"{size:,}" for size in sizes[index])]
        for index, group in enumerate(manifest.groups)
    ]


def draw_losses(manifest: Manifest, path: Path) -> None:
    """Draw the share of each domain's samples by base loss; the file's ending says in which format.

    Raises:
        CorpusError: when no format has that ending.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    sketches = [QuantileSketch.from_json(each.base_losses) for each in manifest.domains]
    most = max(float(each.quantiles([0.995])[0]) for each in sketches)
    edges = np.linspace(0.0, most, 61)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for domain, sketch in zip(manifest.domains, sketches, strict=True):
        share = sketch.histogram(edges) / domain.num_samples
        axes.stairs(share, edges, label=f"{domain.name} ({domain.num_samples:,})")
    axes.set(
        title=f"Corpus {manifest.name}, generation {manifest.generation}: base losses",
        xlabel="base loss, nats per token",
        ylabel="share of the domain's samples",
    )
    axes.legend(frameon=False, fontsize="small", ncols=1 + len(sketches) // 12)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise CorpusError(f"{path} cannot be drawn: {error}; name a file that ends in .png, .svg or .pdf") from error
    finally:
        plt.close(figure)


@dataclass(frozen=True, slots=True)
class SampleText:
    """A sample as a person reads it."""

    sample_id: int
    num_tokens: int
    base_loss_nats: float
    text: str


def sample_texts(corpus: Corpus, stratum: str, count: int, seed: int) -> Iterator[SampleText]:
    """The text of `count` samples of a stratum that is named as `group/q3`; fewer if it has fewer.

    Raises:
        CorpusError: when there is no such stratum, or the corpus has no tokenizer.
    """
    manifest, partition = corpus.manifest, corpus.partition
    names = [stratum_name(partition.groups, partition.num_quantiles, k) for k in range(partition.num_strata)]
    if stratum not in names:
        raise CorpusError(f"corpus {manifest.name!r} has no stratum {stratum!r}; it has {', '.join(names)}")
    k = names.index(stratum)
    size = int(partition.sizes[k])
    place = np.arange(min(count, size))
    row = permute(np.repeat(keys(seed), len(place)), np.full(len(place), size), place)
    sample_id = partition.locate(np.full(len(place), k), row)
    rows = corpus.rows(sample_id)
    for index, content in enumerate(_contents(corpus, rows)):
        text = content if rows.label is None else f"label {rows.label[index]}: {content}"
        yield SampleText(int(sample_id[index]), int(rows.length[index]), float(rows.base_loss[index]), text)


def _contents(corpus: Corpus, rows: SampleRows) -> list[str]:
    """What each sample holds: its text, its token ids where nobody tokenized text, or a few words on its tensor."""
    if rows.inputs is not None:
        return [
            f"{each.dtype}{list(each.shape)} from {each.min():g} to {each.max():g}, mean {each.mean():g}"
            for each in rows.inputs
        ]
    if corpus.manifest.tokenizer_fingerprint:
        return corpus.texts.of(rows.input_ids, rows.length)
    return [" ".join(map(str, ids[:num].tolist())) for ids, num in zip(rows.input_ids, rows.length, strict=True)]
