import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event, make_url
from structlog.testing import capture_logs

from replay_service.corpus.reading.reader import CorpusStore
from replay_service.errors import NotReady
from replay_service.gateway.readiness import Readiness
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from replay_service.settings import load_settings
from tests.proxy import NO_FAULT, FaultyProxy

NUM_ASKERS = 40


@dataclass(slots=True)
class World:
    """Readiness of a journal and corpora, on a clock of the test's own."""

    readiness: Readiness
    now: list[float]
    queries: list[str] = field(default_factory=list)

    async def ask(self, num: int = 1) -> list[str]:
        """What so many askers hear at the same time: an empty text where all is well."""

        async def one() -> str:
            try:
                await self.readiness.check()
            except NotReady as error:
                return error.detail
            return ""

        return await asyncio.gather(*(one() for _ in range(num)))


@contextmanager
def world(root: Path, database_url: str | None = None, **limits: Any) -> Iterator[World]:
    settings = load_settings(root=root, database_url=database_url)
    engine = open_database(settings.journal_url, timeout_s=1.0)
    journal, store, now = Journal(engine), CorpusStore(settings.corpora_place), [0.0]
    readiness = Readiness(settings, journal, store, monotonic=lambda: now[0], **limits)
    found = World(readiness, now)
    event.listen(engine, "before_cursor_execute", lambda *given: found.queries.append(given[2]))
    try:
        yield found
    finally:
        readiness.close()
        journal.close()
        store.close()


def test_one_look_serves_all_who_ask_within_a_second(root: Path) -> None:
    async def story(world: World) -> None:
        assert set(await world.ask(NUM_ASKERS)) == {""}
        world.now[0] = 0.9
        assert set(await world.ask(NUM_ASKERS)) == {""}
        assert len(world.queries) == 1
        world.now[0] = 1.0
        assert set(await world.ask(NUM_ASKERS)) == {""}
        assert len(world.queries) == 2

    with world(root) as made:
        asyncio.run(story(made))


def test_corpora_that_are_gone_are_told_and_that_they_are_back(root: Path) -> None:
    async def story(world: World) -> None:
        assert await world.ask() == [""]
        (root / "corpora").rename(root / "elsewhere")
        world.now[0] = 1.0
        (problem,) = await world.ask()
        assert "the folder of the corpora cannot be read" in problem
        (root / "elsewhere").rename(root / "corpora")
        assert await world.ask() == [problem]
        world.now[0] = 2.0
        assert await world.ask() == [""]

    with world(root) as made, capture_logs() as logs:
        asyncio.run(story(made))
    assert [each["event"] for each in logs] == ["not ready", "ready again"]


def test_a_disk_that_is_full_is_told(root: Path) -> None:
    with world(root, least_free_bytes=shutil.disk_usage(root).total + 1) as made:
        assert "full" in asyncio.run(made.ask())[0]


def test_a_database_that_is_silent_keeps_nobody_waiting_and_is_asked_once(root: Path, postgresql_database: str) -> None:
    async def story(world: World, proxy: FaultyProxy) -> None:
        assert await world.ask() == [""]
        proxy.fall_silent()
        world.now[0] = 1.0
        before = len(world.queries)
        problems = [each for _ in range(2) for each in await world.ask(NUM_ASKERS)]
        assert all("journal" in each for each in problems)
        assert len(world.queries) <= before + 1
        proxy.speak()
        for now in range(2, 100):
            world.now[0] = float(now)
            if await world.ask() == [""]:
                return
        raise AssertionError("not ready again")

    direct = make_url(postgresql_database)
    assert direct.host is not None and direct.port is not None
    with FaultyProxy((direct.host, direct.port), lambda: NO_FAULT) as proxy:
        url = direct.set(port=proxy.port).render_as_string(hide_password=False)
        with world(root, url) as made:
            asyncio.run(story(made, proxy))
