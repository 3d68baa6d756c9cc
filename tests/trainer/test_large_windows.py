"""Windows that are larger than one answer of the service may be."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from replay_trainer.client import ReplayClient
from replay_trainer.errors import AnswerTooLarge, RunGone
from tests.support import make_corpus, running_service
from tests.trainer.test_client import Flaky

SEQ_LEN = 16384
"""About thirty rows of this length fit into the smallest answer that the service can be told to keep to."""


@pytest.fixture(scope="module")
def frugal_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service whose answers have at most a megabyte."""
    root = tmp_path_factory.mktemp("frugal")
    make_corpus(root / "corpora", seq_len=SEQ_LEN)
    (root / "replay.toml").write_text("max_response_bytes = 1048576\n")
    with running_service(root, options=["--config", root / "replay.toml"]) as (base_url, _):
        yield base_url


def settings(rows_a_step: int) -> dict[str, object]:
    return {"global_batch_size": rows_a_step, "injection_ratio": "1", "seed": 3}


def test_a_large_window_comes_by_several_requests_and_is_the_same(frugal_url: str) -> None:
    asking = Flaky([])
    with ReplayClient(frugal_url) as client, ReplayClient(frugal_url, transport=asking) as counted:
        client.ensure_run("windows", "wiki", settings(8))
        whole = counted.batch("windows", 0, num_steps=10)
        assert asking.num_requests == 5  # refused, then three, three, three and one
        assert [each.step for each in whole.header.steps] == list(range(10))
        single = [client.batch("windows", step) for step in range(10)]
    assert whole.sample_id.tolist() == [each for batch in single for each in batch.sample_id.tolist()]
    assert whole.input_ids.tolist() == [each for batch in single for each in batch.input_ids.tolist()]


def test_a_single_step_that_is_too_large_is_refused_with_what_to_do(frugal_url: str) -> None:
    with ReplayClient(frugal_url) as client:
        client.ensure_run("steps", "wiki", settings(64))
        with pytest.raises(AnswerTooLarge, match="max_response_bytes, or train on more ranks") as refusal:
            client.batch("steps", 0, num_steps=4)
        assert (refusal.value.max_steps, refusal.value.status) == (0, 422)
        assert len(client.batch("steps", 0, num_steps=4, world_size=4)) == 64


def test_a_run_that_is_rewound_between_the_parts_of_a_window_is_gone(frugal_url: str) -> None:
    class Rewinding(Flaky):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if self.num_requests == 3:
                with ReplayClient(frugal_url) as other:
                    other.rewind("rewound", 1)
            return super().handle_request(request)

    with ReplayClient(frugal_url) as client, ReplayClient(frugal_url, transport=Rewinding([])) as misled:
        client.ensure_run("rewound", "wiki", settings(8))
        with pytest.raises(RunGone, match="was rewound while a window"):
            misled.batch("rewound", 0, num_steps=10)


def test_an_answer_in_json_is_bounded_too(frugal_url: str, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora", seq_len=SEQ_LEN)
    with running_service(tmp_path) as (base_url, _), httpx2.Client(base_url=base_url, timeout=60.0) as client:
        client.post("/v1/runs", json={"run": "read", "corpus": "wiki", **settings(16)}).raise_for_status()
        window, as_json = {"step": 0, "num_steps": 12}, {"accept": "application/json"}
        refused = client.post("/v1/runs/read/batches", json=window, headers=as_json)
        assert refused.status_code == 422
        problem = refused.json()
        assert problem["type"].endswith("answer-too-large")
        assert 0 < problem["max_steps"] < 12
        smaller = window | {"num_steps": problem["max_steps"]}
        assert client.post("/v1/runs/read/batches", json=smaller, headers=as_json).status_code == 200
        assert client.post("/v1/runs/read/batches", json=window).status_code == 200
