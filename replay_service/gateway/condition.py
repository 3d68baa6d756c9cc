"""The condition of runs: their states, and what is known to be damaged of their corpora and journals."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.errors import CorpusError, CorpusReplaced, CorpusUnavailable
from replay_service.gateway.service import ReplayService
from replay_service.ledger.lifecycle import Lifecycle, RunFacts, lifecycle_of
from replay_service.ledger.progress import Point
from replay_service.ledger.records import RunHead, RunRecord
from replay_service.ledger.run_view import RunView
from replay_service.ledger.sampled_corpus import check_fingerprint


def heard_at(point: Point) -> int | None:
    """When a rank of the job was last heard of, in milliseconds since 1970."""
    return max((each for each in (point.planned_at, point.reported_at, point.trained_at) if each), default=None)


def lifecycles(service: ReplayService, heads: Iterable[RunHead]) -> list[Lifecycle]:
    """The states of many runs; each of their corpora is looked at once."""
    now_ms, stale_after_s = service.clock(), service.settings.stale_after_s
    problem_of = cache(lambda *of_corpus: corpus_problem(service.corpora, *of_corpus))
    return [lifecycle_of(facts_of(service, each, problem_of), now_ms, stale_after_s) for each in heads]


def facts_of(
    service: ReplayService,
    head: RunHead,
    problem_of: Callable[[str, str | None, int | None], str | None],
) -> RunFacts:
    problem = service.journal.damaged.problem(head.run, head.point.incarnation)
    problem = problem or problem_of(head.corpus, head.corpus_fingerprint, head.generation)
    return RunFacts(head.next_step, head.closed, head.job_end, heard_at(head.point), problem)


def facts_in(view: RunView) -> RunFacts:
    """The facts of one run at a look, but for its corpus: nobody who holds a view waits for storage."""
    state = view.state
    return RunFacts(state.next_step, state.closed, state.job_end, heard_at(view.point))


def with_corpus(service: ReplayService, facts: RunFacts, record: RunRecord, generation: int) -> RunFacts:
    """The same facts, with what is damaged of the run's corpus."""
    fingerprint = record.created.corpus_fingerprint
    return replace(facts, problem=corpus_problem(service.corpora, record.corpus, fingerprint, generation))


def lifecycle_now(service: ReplayService, facts: RunFacts) -> Lifecycle:
    return lifecycle_of(facts, service.clock(), service.settings.stale_after_s)


def corpus_problem(store: CorpusStore, name: str, fingerprint: str | None, generation: int | None) -> str | None:
    """What is damaged of a run's corpus: it is gone, another one stands in its place, or segments that the run sees
    cannot be read. Storage that does not answer now is no damage.

    Args:
        generation: the latest that the run sees; None: any.
    """
    try:
        corpus = store.get(name)
        check_fingerprint(name, fingerprint, corpus.fingerprint)
    except CorpusUnavailable:
        return None
    except (CorpusError, CorpusReplaced) as error:
        return error.detail
    return _segments_problem(corpus, generation)


def _segments_problem(corpus: Corpus, generation: int | None) -> str | None:
    last = corpus.generation if generation is None else generation
    seen = {each.file for each in corpus.manifest.segments if each.generation <= last}
    damage = [each for each in corpus.damage() if each.file in seen]
    if not damage:
        return None
    first, more = damage[0], f" and {len(damage) - 1} more" if len(damage) > 1 else ""
    return (
        f"segment {first.file} of corpus {corpus.manifest.name!r}{more} cannot be read in part: {first.problem}; its "
        "samples are served with length 0"
    )
