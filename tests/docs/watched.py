"""A training job that is watched from its first step to its last, with every fault provoked once.

`python -m tests.docs.watched FOLDER` writes `watched.md` and the pictures of the page to a folder; without a folder, to
the documentation. What is real: the service's process, PostgreSQL, Prometheus with the alert rules of the repository,
Chromium, and the commands. The trainer plans, fetches and reports as a job does, and makes up losses that rise.

Nobody waits for half an hour here: in the rules, times are shortened (`SHORTENED`), and so is `stale_after_s`.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
from playwright.sync_api import Browser, Page

from replay_trainer.client import ReplayClient
from tests.databases import PostgresqlServer, postgresql_server
from tests.deploy.promtool import RULES, scraping
from tests.docs.screenshots import picture_of
from tests.gateway.page.browsers import chromium
from tests.gateway.page.worlds import DOMAINS, NUM_QUANTILES, Job
from tests.support import make_corpus, running_service

DOCS: Final = Path(__file__).parents[2] / "docs"
SHORTENED: Final = (
    (r"for: \w+", "for: 6s"),
    (r"< 60$", "< 10"),
    (r"1800", "20"),
    (r"\[(5|10)m\]", "[30s]"),
)
"""What is replaced in the alert rules: how long a condition must hold, and the times in the conditions."""
STALE_AFTER_S: Final = 15.0
WAIT_S: Final = 240.0
RUN: Final = "tuning"
SETTINGS: Final = {
    "injection_ratio": "auto",
    "budget": {"nats": 0.02, "first_ratio": "0.2", "most_ratio": "0.2"},
    "floor": 0.6,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one fault.

    Attributes:
        page: the texts of the page: its state, and what it says to look at.
        alerts: names and descriptions of the alerts that fired.
        shown: what `replay-service runs show` printed.
        top: what `replay-service top --times 1` printed.
        picture: the file name of the page's picture.
    """

    fault: str
    page: list[str]
    alerts: dict[str, str]
    shown: str
    top: str
    picture: str


@dataclass
class Trainer:
    """A job on a thread: it makes a step every now and then, until it is stopped."""

    job: Job
    pause_s: float = 0.1
    window: int = 1
    _may_train: threading.Event = field(default_factory=threading.Event)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _is_resting: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at_work(self) -> Iterator["Trainer"]:
        thread = threading.Thread(target=self._train, daemon=True)
        self._may_train.set()
        thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            self._may_train.set()
            thread.join()

    def _train(self) -> None:
        while not self._is_over.wait(self.pause_s):
            if not self._may_train.is_set():
                self._is_resting.set()
                self._may_train.wait()
            if not self._is_over.is_set():
                self.job.train(self.window, self.window)

    @contextmanager
    def resting(self) -> Iterator[Job]:
        """No step is made meanwhile, but by hand."""
        self._is_resting.clear()
        self._may_train.clear()
        self._is_resting.wait()
        try:
            yield self.job
        finally:
            self._may_train.set()


@dataclass
class Watch:
    """The watched run, and all who watch it."""

    url: str
    root: Path
    folder: Path
    database: PostgresqlServer
    database_url: str
    trainer: Trainer
    page: Page
    prometheus: httpx2.Client
    seen: list[Seen] = field(default_factory=list)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{self.url}/v1/runs/{RUN}/stats", timeout=60).raise_for_status().json()
        return found

    def advice(self) -> set[str]:
        return {each["id"] for each in self.stats()["advice"]}

    def firing(self) -> dict[str, str]:
        """The descriptions of the alerts that fire now, by name."""
        alerts = self.prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
        return {
            each["labels"]["alertname"]: each["annotations"]["description"]
            for each in alerts
            if each["state"] == "firing"
        }

    def look(self, fault: str, *advice: str, alerts: tuple[str, ...] = (), stays: bool = False) -> None:
        """Wait until the advice is given and the alerts fire, and write down what is seen.

        Args:
            stays: on the page that is open; by default it is opened anew.
        """
        await_true(f"{fault}: advice {advice}", lambda: stays or set(advice) <= self.advice())
        await_true(f"{fault}: alerts {alerts}", lambda: set(alerts) <= self.firing().keys())
        if not stays:
            self.page.goto(f"{self.url}/runs/{RUN}")
            self.page.wait_for_timeout(1500)
        picture = re.sub(r"\W+", "-", fault) + ".png"
        picture_of(self.page, full_page=False).save(self.folder / picture, optimize=True)
        shown, top = self.command("runs", "show", RUN), self.command("top", RUN, "--times", "1")
        self.seen.append(Seen(fault, self._texts(), self.firing(), shown, top, picture))

    def _texts(self) -> list[str]:
        """The state on the page, what it says to look at, and what it says of the service."""
        parts = self.page.locator("#live .state, #live .look, #live .tiles > div:nth-child(2), #offline:not([hidden])")
        return [" ".join(each.split()) for each in parts.all_inner_texts()]

    def command(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "replay_service", *arguments]
        environment = {**os.environ, "REPLAY_URL": self.url, "COLUMNS": "160"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return (done.stdout + done.stderr).rstrip()


def await_true(what: str, is_so: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > ends_at:
            raise TimeoutError(what)
        time.sleep(0.5)


@contextmanager
def world(folder: Path, browser: Browser) -> Iterator[Watch]:
    """The watched run at its first step."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="watched-")))
        cluster = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postgresql-")))
        database = stack.enter_context(postgresql_server(cluster))
        database_url = database.url.format(database="postgres")
        (root / "corpora").mkdir()
        corpus = {"domains": DOMAINS, "num_quantiles": NUM_QUANTILES, "rows_per_domain": 3000}
        make_corpus(root / "corpora", "web", **corpus, rows_per_segment=6000)  # type: ignore[arg-type]
        environment = {"REPLAY_STALE_AFTER_S": str(STALE_AFTER_S)}
        url, _ = stack.enter_context(
            running_service(root, database_url=database_url, options=["--log-level", "error"], environment=environment)
        )
        rules = root / "alerts.yml"
        rules.write_text(shortened(RULES.read_text()))
        prometheus = stack.enter_context(scraping([url], root, rules, "2s"))
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        stack.callback(page.close)
        client = stack.enter_context(ReplayClient(url))
        trainer = Trainer(Job(client, RUN).begin("web", **SETTINGS))
        folder.mkdir(parents=True, exist_ok=True)
        yield Watch(url, root, folder, database, database_url, trainer, page, prometheus)


def shortened(rules: str) -> str:
    for pattern, text in SHORTENED:
        rules = re.sub(pattern, text, rules, flags=re.M)
    return rules


def watch(folder: Path) -> list[Seen]:
    """Everything that was seen, fault by fault."""
    with chromium() as browser, world(folder, browser) as watched:
        watched.look("nothing has begun")
        watched.trainer.job.train(3)
        watched.look("too few reports")
        with watched.trainer.at_work() as trainer:
            await_true("an estimate", lambda: watched.stats()["forgetting"]["nats"] is not None)
            watched.look("over budget", "over-budget", alerts=("ReplayForgettingOverBudget",))
            trainer.job.client.configure(RUN, injection_ratio="0.25", floor=0.8)
            await_true("a step", lambda: watched.stats()["last_change"] is not None)
            watched.look("ratio changed")
            trainer.job.reports = False
            watched.look("reports stopped", "reports-stopped", alerts=("ReplayReportsMissing",))
            trainer.job.reports = True
            damaged_segment(watched)
            another_owner(watched)
            database_away(watched)
            corpus_seen(watched)
        watched.look("trainer gone", "stale", alerts=("ReplayTrainerGone",))
        trainer.job.client.finish_run(RUN, trainer.job.next_step)
        await_true("the end", lambda: watched.stats()["state"] == "finished")
        watched.look("finished")
        return watched.seen


def damaged_segment(watched: Watch) -> None:
    segment = sorted((watched.root / "corpora").rglob("*.arrow"))[-1]
    content = segment.read_bytes()
    segment.write_bytes(content[: len(content) // 2])
    watched.look("damaged segment", "damaged", alerts=("ReplayCorpusDamaged",))
    segment.write_bytes(content)
    await_true("the segment is back", lambda: "damaged" not in watched.advice())


def another_owner(watched: Watch) -> None:
    """A second service on the same journal, that the job asks in turn with the first one."""
    other = running_service(watched.root, database_url=watched.database_url, options=["--log-level", "error"])
    with watched.trainer.resting() as job, other as (url, _), ReplayClient(url) as client:
        clients = job.client, client
        for turn in range(8):
            job.client = clients[1 - turn % 2]
            job.train(1)
            time.sleep(1.0)
        job.client = clients[1]
        job.train(1)
        watched.look("another owner", "another-owner", alerts=("ReplayOwnersInTurn",))
        job.client = clients[0]


def database_away(watched: Watch) -> None:
    watched.page.goto(f"{watched.url}/runs/{RUN}")
    watched.database.stop()
    try:
        watched.page.wait_for_selector("#offline:not([hidden])", timeout=60_000)
        watched.look("database away", alerts=("ReplayServiceDown",), stays=True)
    finally:
        watched.database.start()
    before = watched.trainer.job.next_step
    await_true("the job goes on", lambda: watched.trainer.job.next_step > before + 3)


def corpus_seen(watched: Watch) -> None:
    trainer = watched.trainer
    trainer.job.client.configure(RUN, injection_ratio="1")
    trainer.window = 16
    watched.look("corpus seen", "corpus-seen", alerts=("ReplayCorpusSeen",))


def report(seen: list[Seen], pictures: str) -> str:
    """A table of all faults, and what the commands printed, as Markdown."""
    lines = ["| fault | the page says | alerts that fire |", "| --- | --- | --- |"]
    for each in seen:
        alerts = "<br>".join(f"**{name}** {text}" for name, text in each.alerts.items()) or "none"
        said = "<br>".join(text.replace("|", "\\|") for text in each.page)
        lines.append(f"| [{each.fault}]({pictures}{each.picture}) | {said} | {alerts} |")
    lines += ["", "`replay-service top` shows the same as `replay-service runs show`, and the latest changes:"]
    for each in seen:
        lines += ["", f"### {each.fault}", "", "```console", f"$ replay-service top {RUN} --times 1", each.top, "```"]
    return "\n".join(lines) + "\n"


INTRODUCTION: Final = f"""# A watched run

A training job was watched from its first step to its last, and every fault was provoked once. This page is written by
`python -m tests.docs.watched`: a service on PostgreSQL, Prometheus with the rules of `deploy/prometheus/alerts.yml`,
Chromium, and the commands, all real; the trainer makes up losses that rise. Times in the rules were shortened (`for` to
6 seconds, half an hour to 20 seconds), and `stale_after_s` to {STALE_AFTER_S:g}. What to do about each alert:
[Alerts](../how-to/alerts.md).

"""


def main() -> None:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        (folder / "watched.md").write_text(INTRODUCTION + report(watch(folder), ""))
    else:
        found = report(watch(DOCS / "assets" / "watched"), "../assets/watched/")
        (DOCS / "internals" / "watched.md").write_text(INTRODUCTION + found)


if __name__ == "__main__":
    main()
