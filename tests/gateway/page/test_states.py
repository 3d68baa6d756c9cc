"""The page of a run in each of its states."""

import re
from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from tests.gateway.page.worlds import runs_in, text_of, train
from tests.gateway.worlds import ask, batch_of, client_on, create_run


class TestStates:
    """Each state of a run, as its page draws it."""

    def test_waiting(self, running: TestClient) -> None:
        assert "waiting" in text_of(running.get("/runs/tune").text)

    def test_first_reports(self, running: TestClient) -> None:
        train(running, 2)
        assert re.search(
            r"worth \d+\.\d independent ones, and an estimate takes 6", text_of(running.get("/runs/tune").text)
        )

    def test_stale(self, root: Path) -> None:
        with client_on(root, stale_after_s=1e-9) as client:
            create_run(client)
            batch_of(client, 0)
            page = text_of(client.get("/runs/tune").text)
        assert "stale" in page and "LOOK nothing was heard of the job" in page

    def test_with_too_few_reports(self, running: TestClient) -> None:
        train(running, 2)
        page = text_of(running.get("/runs/tune").text)
        assert re.search(r"too few: \d\.\d of 6 reports the first visits reported in the last 2 steps are worth", page)

    def test_domains_tell_how_much_they_are_drawn(self, trained: TestClient) -> None:
        assert re.search(r"Drawn / size .* \d+ % / 50 %", text_of(trained.get("/runs/tune").text))

    def test_seen_once(self, running: TestClient) -> None:
        train(running, 60)
        assert "of the draws are repeats" in text_of(running.get("/runs/tune").text)

    def test_damaged(self, root: Path, running: TestClient) -> None:
        batch_of(running, 0)
        segment = min((root / "corpora" / "wiki").rglob("*.arrow"))
        segment.write_bytes(segment.read_bytes()[:100])
        with client_on(root) as client:
            client.post("/v1/runs/tune/batches", json={"step": 1, "num_steps": 20}).raise_for_status()
            page, corpus = (text_of(client.get(path).text) for path in ("/runs/tune", "/corpora/wiki"))
            assert runs_in(client.get("/?state=damaged").text) == ["tune"]
        assert "damaged" in page and re.search(rf"LOOK segment \S*{segment.name} ", page)
        assert re.search(rf"LOOK Segment \S*{segment.name} cannot be read", corpus)

    def test_with_a_damaged_journal(self, root: Path, trained: TestClient) -> None:
        engine = create_engine(f"sqlite:///{root / 'journal.sqlite'}")
        with engine.begin() as connection:
            connection.execute(text("UPDATE events SET step = step + 50 WHERE kind = 'planned'"))
        engine.dispose()
        with client_on(root) as client:
            page = client.get("/runs/tune")
            assert page.status_code == 500 and "journal verify tune" in text_of(page.text)
            assert "journal verify tune" in text_of(client.get("/").text)

    def test_finished(self, trained: TestClient) -> None:
        trained.post("/v1/runs/tune/finish", json={"num_steps": 6}).raise_for_status()
        assert "finished" in text_of(trained.get("/runs/tune").text)

    def test_closed_offers_to_rewind_alone(self, trained: TestClient) -> None:
        trained.post("/v1/runs/tune/close", json={}).raise_for_status()
        page = trained.get("/runs/tune").text
        assert re.findall(r'name="action" value="([^"]+)"', page) == ["rewind"]

    def test_of_another_owner(self, root: Path, trained: TestClient) -> None:
        """A page of a second service takes the run from nobody."""
        with client_on(root) as other:
            page = text_of(other.get("/runs/tune").text)
            assert "step 6" in page
            assert "tune" in other.get("/").text
        train(trained, 1, 6)

    def test_of_a_service_from_which_another_takes_the_run(self, root: Path, trained: TestClient) -> None:
        with client_on(root) as other:
            train(other, 1, 6)
            page = text_of(trained.get("/runs/tune").text)
            assert "LOOK another service on the same journal has taken the run" in page
            assert "another service" not in text_of(other.get("/runs/tune").text)
            for step in range(7, 13):
                owner = (trained, other)[step % 2 == 0]
                ask(owner, step=step)  # it learns here that it has lost the run
                train(owner, 1, step)
            page = text_of(trained.get("/runs/tune").text)
        assert "LOOK two services take the run from each other, this one 3 times in ten minutes" in page

    def test_without_its_corpus(self, root: Path, trained: TestClient) -> None:
        (root / "corpora" / "wiki").rename(root / "away")
        with client_on(root) as other:
            page = text_of(other.get("/runs/tune").text)
            assert "damaged" in text_of(other.get("/").text)
        assert "damaged" in page and "LOOK there is no corpus 'wiki'" in page
