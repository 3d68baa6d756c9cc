import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replay_service.testing import replay_service
from replay_trainer.client import RetryPolicy
from replay_trainer.errors import ServiceUnavailable
from replay_trainer.rehearsal import RehearsalStream
from tests.gateway.worlds import losses_of

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test.md"
SETTINGS = {"global_batch_size": 8, "injection_ratio": "0.5"}
DOCUMENTS = {"en": [[5, 6, 7], [8, 9, 10, 11, 12]], "fr": [range(20, 27)]}


def ids_of(**options: Any) -> list[int]:
    with replay_service(**options) as service, service.client() as client:
        client.ensure_run("a-run", service.corpus, SETTINGS)
        return client.batch("a-run", 0, num_steps=5).sample_id.tolist()


def test_the_same_call_gives_the_same_samples_and_another_seed_others() -> None:
    assert ids_of() == ids_of()
    contents = []
    for seed in (0, 0, 1):
        with replay_service(seed=seed) as service, service.client() as client:
            client.ensure_run("a-run", service.corpus, SETTINGS)
            contents.append(client.batch("a-run", 0).input_ids.tolist())
    assert contents[0] == contents[1] != contents[2]


def test_documents_are_packed_as_an_ingest_packs_them() -> None:
    with (
        replay_service(DOCUMENTS, seq_len=4, base_losses=[1.0, 2.0, 3.0, 4.0, 5.0], num_quantiles=1) as service,
        service.client() as client,
    ):
        client.ensure_run("a-run", service.corpus, {"global_batch_size": 5, "injection_ratio": "1"})
        batch = client.batch("a-run", 0)
    found = {
        tuple(ids[:length]): loss
        for ids, length, loss in zip(
            batch.input_ids.tolist(), batch.length.tolist(), batch.base_loss.tolist(), strict=True
        )
    }
    assert found == {
        (5, 6, 7, 0): 1.0,
        (8, 9, 10, 11): 2.0,
        (12, 0): 3.0,
        (20, 21, 22, 23): 4.0,
        (24, 25, 26, 0): 5.0,
    }
    right = np.unpackbits(batch.base_correct, axis=1, count=4, bitorder="little").astype(bool)
    assert not right[:, 0].any()
    assert not right[np.arange(4) >= batch.length[:, None]].any()


@pytest.mark.parametrize(
    ("documents", "problem"), [({}, "must hold tokens"), ({"en": [[300]]}, "0 to 299"), ({"en": [[1, 2, 3]]}, "1 rows")]
)
def test_what_makes_no_corpus_is_refused(documents: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem), replay_service(documents, seq_len=4, base_losses=[1.0, 2.0]):
        pass


def test_many_clients_on_many_threads_use_it_without_a_socket() -> None:
    with replay_service() as service, service.client() as client, ThreadPoolExecutor(4) as threads:
        client.ensure_run("a-run", service.corpus, SETTINGS)

        def train(rank: int) -> int:
            with service.client() as own:
                batches = list(RehearsalStream(own, "a-run", rank, 4, num_steps=20))
                return sum(own.report("a-run", losses_of(batch)).accepted for batch in batches)

        assert sum(threads.map(train, range(4))) == 80
        assert client.stats("a-run")["num_reported"] == 80


def test_other_processes_reach_it_when_it_is_served() -> None:
    code = (
        "import sys; from replay_trainer.client import ReplayClient; client = ReplayClient(sys.argv[1]);"
        "print(client.corpus('pretraining').num_samples)"
    )
    with replay_service(serve=True) as service, service.client() as client:
        said = subprocess.run([sys.executable, "-c", code, service.url], stdout=subprocess.PIPE, check=True).stdout
        assert int(said) == client.corpus(service.corpus).num_samples == 80
    assert not any(each.name == "replay-service" for each in threading.enumerate())


def test_a_client_that_outlives_it_is_told() -> None:
    with replay_service() as service:
        client = service.client(retry=RetryPolicy(0.1, 0.01, 0.01))
    with pytest.raises(ServiceUnavailable, match="has ended"):
        client.corpus(service.corpus)
    assert not service.root.exists()


def test_the_environments_settings_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_DATABASE_URL", f"sqlite:///{tmp_path / 'precious.sqlite'}")
    monkeypatch.setenv("REPLAY_MAX_STEPS_PER_REQUEST", "1")
    with replay_service(settings={"max_steps_per_request": 3}) as service, service.client() as client:
        assert client.ensure_run("a-run", service.corpus, SETTINGS)["max_window_steps"] == 3
    assert list(tmp_path.iterdir()) == []


def test_the_documentation_shows_how_to_test_a_loop() -> None:
    (example,) = re.findall(r"```python\n(from replay_service\.testing.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    (test,) = [value for name, value in names.items() if name.startswith("test_")]
    test()
