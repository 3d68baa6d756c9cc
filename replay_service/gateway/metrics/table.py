"""The table of all metrics. Code, documentation, alert rules and dashboard are tested against it."""

from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "replay_"
MOST_RUNS: Final = 50
"""Open runs that have series of their own: those that were active last."""
MOST_DOMAINS: Final = 32
"""Domains of a run that have series of their own: those that forgot most."""
MOST_CORPORA: Final = 50

Kind = Literal["counter", "gauge", "histogram"]

REQUEST_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COMMIT_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0)
DELAY_BUCKETS_S: Final = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as a scrape names it.

    Attributes:
        name: without the prefix.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name


HTTP_REQUESTS: Final = Metric(
    "http_requests_total",
    "counter",
    ("route", "method", "code"),
    "Answers, those that were refused before any route included. The route is a template such as /v1/runs/{run}.",
)
HTTP_DURATION: Final = Metric(
    "http_request_duration_seconds",
    "histogram",
    ("route",),
    "Time from a request's head to the end of its answer. Streams of events are left out.",
    REQUEST_BUCKETS_S,
)
IN_PROGRESS: Final = Metric("requests_in_progress", "gauge", (), "Requests that are being answered.")
REFUSED: Final = Metric(
    "requests_refused_total",
    "counter",
    ("reason",),
    "Requests that were refused, by reason: too-many-requests, too-many-connections, too-many-watchers, "
    "awaiting-reports (a plan of a fenced run), and what is no HTTP/1.1.",
)
COMMIT_DURATION: Final = Metric(
    "commit_duration_seconds", "histogram", (), "Time of one commit of the journal, for all who wait.", COMMIT_BUCKETS_S
)
OWNER_SECONDS: Final = Metric(
    "owner_seconds_total",
    "counter",
    ("phase",),
    "Time that owners of runs spent: waiting for the run's lock (lock), planning (plan), committing with the wait for "
    "others (commit), folding events into the state (fold).",
)
OWNER_TAKEOVERS: Final = Metric(
    "owner_takeovers_total",
    "counter",
    (),
    "Runs that this service became the owner of. After a start, once a run; more mean that two services take runs from "
    "each other.",
)
RUNS: Final = Metric("runs", "gauge", ("state",), "Runs by state.")
RUN_INFO: Final = Metric(
    "run_info", "gauge", ("run", "corpus", "policy", "signal"), "1; the labels say how the run samples."
)
RUN_STATE: Final = Metric(
    "run_state",
    "gauge",
    ("run", "state"),
    "1; the label says the state: waiting, running, stale, finished, damaged.",
)
RUN_NEXT_STEP: Final = Metric("run_next_step", "gauge", ("run",), "First step that has no plan yet.")
RUN_PENDING: Final = Metric("run_samples_pending", "gauge", ("run",), "Planned samples that await a report.")
RUN_DUE: Final = Metric(
    "run_rows_due", "gauge", ("run",), "Rows that the ratios in force ask the planned steps to rehearse."
)
RUN_REHEARSED: Final = Metric("run_rows_rehearsed", "gauge", ("run",), "Rows that the planned steps rehearse.")
RUN_RATIO: Final = Metric("run_injection_ratio", "gauge", ("run",), "Injection ratio of the next step.")
RUN_SAMPLES: Final = Metric(
    "run_samples_total",
    "counter",
    ("run", "outcome"),
    "Samples since this process started: planned, reported, duplicate (reported before), rejected (came too late), "
    "unmeasured (never reported, or reported as not measured).",
)
RUN_DELAY: Final = Metric(
    "run_report_delay_seconds",
    "histogram",
    ("run",),
    "Time from the commit of a step's plan to each report of it, in this process.",
    DELAY_BUCKETS_S,
)
RUN_LAST_PLAN: Final = Metric(
    "run_last_plan_timestamp_seconds", "gauge", ("run",), "When the latest plan was committed."
)
RUN_LAST_REPORT: Final = Metric(
    "run_last_report_timestamp_seconds", "gauge", ("run",), "When the latest report was committed."
)
RUN_FORGETTING: Final = Metric(
    "run_forgetting_nats", "gauge", ("run",), "Estimated forgetting of the corpus, nats per token."
)
RUN_FORGETTING_LOW: Final = Metric(
    "run_forgetting_low_nats", "gauge", ("run",), "Lower end of its 95 % interval, nats per token."
)
RUN_FORGETTING_HIGH: Final = Metric(
    "run_forgetting_high_nats", "gauge", ("run",), "Upper end of its 95 % interval, nats per token."
)
RUN_BUDGET: Final = Metric(
    "run_forgetting_budget_nats", "gauge", ("run",), "Most forgetting that an auto ratio allows; absent without one."
)
RUN_COVERED: Final = Metric(
    "run_forgetting_covered_ratio", "gauge", ("run",), "Share of the corpus's mass that the estimate tells of."
)
RUN_REPEATS: Final = Metric(
    "run_repeated_draws_ratio",
    "gauge",
    ("run",),
    "Share of the draws now that are samples which the run has had before.",
)
DOMAIN_LOW: Final = Metric(
    "run_domain_forgetting_low_nats", "gauge", ("run", "domain"), "Lower end of a domain's interval, nats per token."
)
DOMAIN_HIGH: Final = Metric(
    "run_domain_forgetting_high_nats", "gauge", ("run", "domain"), "Upper end of a domain's interval, nats per token."
)
DOMAIN_DAMAGE: Final = Metric(
    "run_domain_damage_ratio", "gauge", ("run", "domain"), "Damage rate of a domain, the mean over its samples."
)
CORPUS_GENERATION: Final = Metric("corpus_generation", "gauge", ("corpus",), "Latest generation of the corpus.")
CORPUS_DAMAGED: Final = Metric(
    "corpus_damaged_blocks", "gauge", ("corpus",), "Blocks of 64 KiB that cannot be read, of those that were read."
)
INGEST_ROWS: Final = Metric("ingest_rows_total", "counter", ("corpus",), "Rows that the latest ingest has scored.")
INGEST_RUNNING: Final = Metric(
    "ingest_running", "gauge", ("corpus",), "1 while an ingest writes the corpus, 0 after it ended."
)
INGEST_PROGRESS: Final = Metric(
    "ingest_last_progress_timestamp_seconds", "gauge", ("corpus",), "When the latest ingest last told of its progress."
)

IN_PROCESS: Final = (
    HTTP_REQUESTS,
    HTTP_DURATION,
    IN_PROGRESS,
    REFUSED,
    COMMIT_DURATION,
    OWNER_SECONDS,
    OWNER_TAKEOVERS,
    CORPUS_DAMAGED,
)
"""Every process counts these for itself; a scrape adds them up."""

OF_RUNS: Final = (
    RUNS,
    RUN_INFO,
    RUN_STATE,
    RUN_NEXT_STEP,
    RUN_PENDING,
    RUN_DUE,
    RUN_REHEARSED,
    RUN_RATIO,
    RUN_SAMPLES,
    RUN_DELAY,
    RUN_LAST_PLAN,
    RUN_LAST_REPORT,
    RUN_FORGETTING,
    RUN_FORGETTING_LOW,
    RUN_FORGETTING_HIGH,
    RUN_BUDGET,
    RUN_COVERED,
    RUN_REPEATS,
    DOMAIN_LOW,
    DOMAIN_HIGH,
    DOMAIN_DAMAGE,
)
OF_CORPORA: Final = (CORPUS_GENERATION, INGEST_ROWS, INGEST_RUNNING, INGEST_PROGRESS)

METRICS: Final = (*IN_PROCESS, *OF_RUNS, *OF_CORPORA)
