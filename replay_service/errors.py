"""Every error that a caller can cause, with the name and the HTTP status that it has on the wire.

ReplayError
├── CorpusError              a corpus cannot be made, read or used
│   ├── UnknownCorpus
│   ├── UnusableSource       a shard is missing, unreadable or without text
│   ├── EmptyCorpus
│   ├── CorpusUnavailable    its files cannot be reached now; asking again later may help
│   ├── ModelMismatch        another model or tokenizer than the corpus was made with
│   ├── SourceForbidden      shards may not come from there
│   ├── IngestRunning        the corpus is being written
│   └── NoIngest             nothing writes the corpus
├── RunError
│   ├── UnknownRun
│   ├── UnknownSample        nothing was reported of it
│   ├── RunExists            the name is taken by a run with another configuration
│   ├── RunInUse             another job uses it
│   ├── JobSuperseded        another job has taken it over
│   ├── InvalidRun           its configuration cannot be served
│   ├── RunTaken             another process owns it now
│   ├── RunClosed            it was closed, and plans no further step
│   ├── RunOpen              it is not closed, and cannot be deleted
│   ├── CorpusReplaced       another corpus has the name of the one that it began on
│   ├── StepOutOfRange       a step before the first or too far ahead
│   ├── AwaitingReports      a fenced run plans the step when the reports of earlier ones have come
│   └── InvalidReport        a report that does not fit the plan, or a loss that is not a number
├── AccessError              the caller may not do that
│   ├── MissingToken
│   ├── InvalidToken         unknown, revoked or expired
│   ├── ScopeTooSmall        the token's scope does not include the request
│   ├── RunForbidden         the token is for other runs
│   └── CrossSite            a web page of another site asks for a change
├── UnusableRuns             no scaling law can be fitted to them
├── JournalDamaged           a run's journal cannot be folded
├── JournalUnavailable       what was to be written did not become durable; nothing was changed
├── RayUnavailable           Ray, which scores and trains, cannot be started or reached
├── ServiceUnavailable       the service cannot take the request now; asking again helps
│   ├── Overloaded           too many requests or connections
│   ├── NotReady             the journal or the corpora cannot be reached
│   ├── NotOwner             another replica of the cluster owns the runs, or none does for a moment
│   └── Stopping             it finishes what it has begun
└── InvalidRequest           the request itself
    ├── HostNotAllowed       it was sent to a name that the service does not answer to
    ├── NotAcceptable
    ├── UnsupportedMediaType
    ├── BodyTooLarge
    ├── BodyDamaged          its checksum is another; sending it again helps
    ├── AnswerTooLarge       it asks for more bytes than one answer may have
    ├── RequestTooSlow       it did not come to its end in time
    ├── HeadTooLarge
    ├── MalformedRequest     it is no HTTP/1.1
    └── UpgradeRefused       it asks for another protocol
"""

from typing import ClassVar


class ReplayError(Exception):
    """Says what was wrong and what to do about it; `extensions` are further members of its problem document."""

    slug: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong"
    status: ClassVar[int] = 500

    def __init__(self, detail: str, **extensions: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extensions = extensions


class CorpusError(ReplayError):
    slug, title, status = "corpus-error", "The corpus cannot be used", 422


class UnknownCorpus(CorpusError):
    slug, title, status = "unknown-corpus", "There is no such corpus", 404


class UnusableSource(CorpusError):
    slug, title, status = "unusable-source", "A shard cannot be used", 422


class EmptyCorpus(CorpusError):
    slug, title, status = "empty-corpus", "There is nothing to rehearse", 422


class CorpusUnavailable(CorpusError):
    slug, title, status = "corpus-unavailable", "The corpus cannot be reached now", 503


class ModelMismatch(CorpusError):
    slug, title, status = "model-mismatch", "The model does not fit the corpus", 409


class SourceForbidden(CorpusError):
    slug, title, status = "source-forbidden", "Shards may not come from there", 403


class IngestRunning(CorpusError):
    slug, title, status = "ingest-running", "The corpus is being written", 409


class NoIngest(CorpusError):
    slug, title, status = "no-ingest", "Nothing writes the corpus", 404


class RunError(ReplayError):
    slug, title, status = "run-error", "The run cannot do that", 422


class UnknownRun(RunError):
    slug, title, status = "unknown-run", "There is no such run", 404


class UnknownSample(RunError):
    slug, title, status = "unknown-sample", "Nothing is known of the sample", 404


class RunExists(RunError):
    slug, title, status = "run-exists", "The name of the run is taken", 409


class RunInUse(RunError):
    slug, title, status = "run-in-use", "Another job uses the run", 409


class JobSuperseded(RunError):
    slug, title, status = "job-superseded", "Another job has taken the run over", 409


class InvalidRun(RunError):
    slug, title, status = "invalid-run", "The run's configuration cannot be served", 422


class RunTaken(RunError):
    slug, title, status = "run-taken", "Another process owns the run", 503


class RunClosed(RunError):
    slug, title, status = "run-closed", "The run is closed", 409


class RunOpen(RunError):
    slug, title, status = "run-open", "The run is not closed", 409


class CorpusReplaced(RunError):
    slug, title, status = "corpus-replaced", "The run's corpus was replaced", 409


class StepOutOfRange(RunError):
    slug, title, status = "step-out-of-range", "The step cannot be planned", 422


class AwaitingReports(RunError):
    slug, title, status = "awaiting-reports", "The plan waits for reports", 503


class InvalidReport(RunError):
    slug, title, status = "invalid-report", "The report cannot be folded in", 422


class AccessError(ReplayError):
    slug, title, status = "access-error", "The caller may not do that", 403


class MissingToken(AccessError):
    slug, title, status = "missing-token", "The service asks for a token", 401


class InvalidToken(AccessError):
    slug, title, status = "invalid-token", "The token is not in force", 401


class ScopeTooSmall(AccessError):
    slug, title, status = "scope-too-small", "The token's scope is too small", 403


class RunForbidden(AccessError):
    slug, title, status = "run-forbidden", "The token is for other runs", 403


class CrossSite(AccessError):
    slug, title, status = "cross-site", "A page of another site may not do that", 403


class UnusableRuns(ReplayError):
    slug, title, status = "unusable-runs", "No law can be fitted to the runs", 422


class JournalDamaged(ReplayError):
    slug, title, status = "journal-damaged", "The run's journal is damaged", 500


class JournalUnavailable(ReplayError):
    slug, title, status = "journal-unavailable", "The journal cannot be written", 503


class RayUnavailable(ReplayError):
    slug, title, status = "ray-unavailable", "Ray cannot be used", 503


class ServiceUnavailable(ReplayError):
    slug, title, status = "service-unavailable", "The service cannot answer now", 503


class Overloaded(ServiceUnavailable):
    slug, title, status = "overloaded", "The service has too much to do", 503


class NotReady(ServiceUnavailable):
    slug, title, status = "not-ready", "The service is not ready", 503


class NotOwner(ServiceUnavailable):
    slug, title = "not-owner", "Another replica owns the runs"


class Stopping(ServiceUnavailable):
    slug, title, status = "stopping", "The service is stopping", 503


class InvalidRequest(ReplayError):
    slug, title, status = "invalid-request", "The request cannot be understood", 422


class HostNotAllowed(InvalidRequest):
    slug, title, status = "host-not-allowed", "The service has another name", 421


class NotAcceptable(InvalidRequest):
    slug, title, status = "not-acceptable", "No such representation", 406


class UnsupportedMediaType(InvalidRequest):
    slug, title, status = "unsupported-media-type", "The body's type is not understood", 415


class BodyTooLarge(InvalidRequest):
    slug, title, status = "body-too-large", "The body is too large", 413


class BodyDamaged(InvalidRequest):
    slug, title, status = "body-damaged", "The body was damaged on the way", 400


class RequestTooSlow(InvalidRequest):
    slug, title, status = "request-too-slow", "The request did not come in time", 408


class AnswerTooLarge(InvalidRequest):
    slug, title, status = "answer-too-large", "The answer would be too large", 422


class HeadTooLarge(InvalidRequest):
    slug, title, status = "head-too-large", "The head of the request is too large", 431


class MalformedRequest(InvalidRequest):
    slug, title, status = "malformed-request", "The request is no HTTP/1.1", 400


class UpgradeRefused(InvalidRequest):
    slug, title, status = "upgrade-refused", "The service speaks HTTP/1.1", 400
