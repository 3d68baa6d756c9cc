"""Corpora: what there is to rehearse from."""

from dataclasses import asdict

import structlog
from fastapi import APIRouter

from replay_service.corpus.reader import Corpus
from replay_service.errors import CorpusError, CorpusUnavailable
from replay_service.gateway.models import CorpusInfo, CorpusList, DamagedSegment, DomainInfo, GroupInfo
from replay_service.gateway.problems import responses
from replay_service.gateway.service import Service

_log = structlog.get_logger()

router = APIRouter(prefix="/v1/corpora", tags=["corpora"])


@router.get("", operation_id="list_corpora", responses=responses(503))
def list_corpora(service: Service) -> CorpusList:
    """All corpora that can be rehearsed from, by name; the log names those that are damaged."""
    corpora = []
    for name in service.corpora.names():
        try:
            corpora.append(_describe(service.corpora.get(name)))
        except CorpusUnavailable:
            raise
        except CorpusError as error:
            _log.warning("damaged corpus", corpus=name, problem=error.detail)
    return CorpusList(corpora=corpora)


@router.get("/{corpus}", operation_id="get_corpus", responses=responses(404, 422, 503))
def get_corpus(corpus: str, service: Service) -> CorpusInfo:
    """One corpus: its base model, its rows, its domains, and what of it is damaged."""
    return _describe(service.corpora.get(corpus))


def _describe(corpus: Corpus) -> CorpusInfo:
    manifest = corpus.manifest
    return CorpusInfo(
        corpus=manifest.name,
        generation=manifest.generation,
        model=manifest.model,
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        vocab_size=manifest.vocab_size,
        separator_id=manifest.separator_id,
        seq_len=manifest.seq_len,
        precision=manifest.precision,
        num_samples=manifest.num_samples,
        num_tokens=manifest.num_tokens,
        num_strata=corpus.partition.num_strata,
        partition_by=manifest.partition_by,
        topk=manifest.topk,
        num_shards=manifest.num_shards,
        num_documents=manifest.num_documents,
        set_aside=manifest.set_aside,
        domains=[
            DomainInfo(
                name=each.name,
                num_samples=each.num_samples,
                num_tokens=each.num_tokens,
                mean_base_loss_nats=each.mean_base_loss_nats,
            )
            for each in manifest.domains
        ],
        groups=[_group(corpus, index) for index in range(len(manifest.groups))],
        damaged_segments=[DamagedSegment(**asdict(damage)) for damage in corpus.damage()],
    )


def _group(corpus: Corpus, index: int) -> GroupInfo:
    group, num_quantiles = corpus.manifest.groups[index], corpus.manifest.num_quantiles
    sizes = corpus.partition.sizes[index * num_quantiles : (index + 1) * num_quantiles]
    return GroupInfo(
        name=group.name,
        generation=group.generation,
        quantile_edges_nats=group.edges_nats,
        stratum_sizes=sizes.tolist(),
    )
