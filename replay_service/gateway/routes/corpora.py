"""Corpora: what there is to rehearse from."""

from dataclasses import asdict, replace
from datetime import UTC, datetime

import structlog
from fastapi import APIRouter, Response

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import CorpusError, CorpusUnavailable, InvalidRequest, UnknownCorpus
from replay_service.gateway.corpus_models import (
    ClassesInfo,
    CorpusInfo,
    CorpusInTheMaking,
    CorpusList,
    DamagedSegment,
    DomainInfo,
    GroupInfo,
    IngestCreate,
    IngestInfo,
)
from replay_service.gateway.ingests import LOG_NAME
from replay_service.gateway.middleware.access import ADMIN, READ, CorpusName, RequestAccess
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import ReplayService, Service

_GONE = f"the process is gone without a word; {LOG_NAME} in the corpus's folder may say why"

_log = structlog.get_logger()

router = APIRouter(prefix="/v1/corpora", tags=["corpora"], route_class=StrictRoute)


@router.get("", operation_id="list_corpora", dependencies=READ, responses=responses(503))
def list_corpora(service: Service) -> CorpusList:
    """All corpora that can be rehearsed from, by name; the log names those that are damaged."""
    corpora = []
    for name in service.corpora.names():
        try:
            corpora.append(_describe(service, service.corpora.get(name)))
        except CorpusUnavailable:
            raise
        except CorpusError as error:
            _log.warning("damaged corpus", corpus=name, problem=error.detail)
    return CorpusList(corpora=corpora)


@router.post(
    "", operation_id="start_ingest", dependencies=ADMIN, status_code=202, responses=responses(403, 409, 413, 422)
)
def start_ingest(
    body: IngestCreate, service: Service, access: RequestAccess, response: Response
) -> CorpusInTheMaking | CorpusInfo:
    """Start an ingest, in a process of its own: make a corpus, or bring new shards into one.

    Work of an earlier ingest of the corpus is not done again. Each finished segment can be rehearsed from at
    once; runs see it when they adopt its generation.
    """
    access.corpus = body.corpus
    if service.settings.corpora_url is not None:
        raise InvalidRequest(
            "this service reads its corpora from object storage; ingest elsewhere, and copy the corpus there with "
            "`replay-service corpus upload`"
        )
    service.ingests.start(body.job(service.settings.corpora.absolute()))
    response.headers["Location"] = f"/v1/corpora/{body.corpus}"
    return _found(body.corpus, service)


@router.get("/{corpus}", operation_id="get_corpus", dependencies=READ, responses=responses(404, 422, 503))
def get_corpus(corpus: CorpusName, service: Service) -> CorpusInTheMaking | CorpusInfo:
    """One corpus: its base model, its rows, how full its strata are, what is damaged, and how its ingest goes."""
    return _found(corpus, service)


@router.delete("/{corpus}", operation_id="stop_ingest", dependencies=ADMIN, responses=responses(404, 409, 422))
def stop_ingest(corpus: CorpusName, service: Service) -> CorpusInTheMaking | CorpusInfo:
    """Stop the ingest that writes a corpus. Scored rows are kept, and the corpus stays.

    An ingest that is started again continues.
    """
    service.ingests.stop(corpus)
    return _found(corpus, service)


def _found(corpus: str, service: ReplayService) -> CorpusInTheMaking | CorpusInfo:
    try:
        return _describe(service, service.corpora.get(corpus))
    except UnknownCorpus:
        ingest = _ingest(service, corpus)
        if ingest is None:
            raise
        return CorpusInTheMaking(corpus=corpus, ingest=ingest)


def _ingest(service: ReplayService, corpus: str) -> IngestInfo | None:
    status = service.ingests.status(corpus)
    if status is None:
        return None
    is_gone = status.state == "running" and not service.ingests.is_alive(corpus)
    seconds = max(status.updated_at - status.started_at, 1e-9)
    return IngestInfo(
        **asdict(replace(status.progress, seconds_left=None, waiting=None) if is_gone else status.progress),
        state="killed" if is_gone else status.state,
        started_at=_time(status.started_at),
        updated_at=_time(status.updated_at),
        rows_per_s=status.progress.num_rows / seconds,
        tokens_per_s=status.progress.num_tokens / seconds,
        problem=_GONE if is_gone else status.problem,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _describe(service: ReplayService, corpus: Corpus) -> CorpusInfo:
    manifest = corpus.manifest
    return CorpusInfo(
        corpus=manifest.name,
        generation=manifest.generation,
        kind=manifest.kind,
        classes=None if manifest.classes is None else ClassesInfo(**asdict(manifest.classes)),
        model=manifest.model,
        checkpoint_fingerprint=manifest.checkpoint_fingerprint,
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        vocab_size=manifest.vocab_size,
        separator_id=manifest.separator_id,
        bos_id=manifest.bos_id,
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
        ingest=None if corpus.is_remote else _ingest(service, manifest.name),
        domains=[
            DomainInfo(
                name=each.name,
                num_samples=each.num_samples,
                num_tokens=each.num_tokens,
                mean_base_loss_nats=each.mean_base_loss_nats,
                loss_above_entropy_nats=each.loss_above_entropy_nats if each.num_entropies else None,
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
