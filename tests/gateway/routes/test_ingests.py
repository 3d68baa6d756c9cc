"""Corpora as a service: an ingest that is started, watched and stopped over HTTP."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from fastapi.testclient import TestClient

from replay_service.corpus.format.manifest import write_json
from replay_service.corpus.ingest.settings import IngestJob, IngestSettings
from replay_service.corpus.ingest.status import STATUS_NAME, write_begun
from replay_service.corpus.shards.places import AllowedPlaces
from replay_service.errors import CorpusUnavailable, IngestRunning, NoIngest, SourceForbidden
from replay_service.gateway.ingests import JOB, LOG_NAME, Ingests
from tests.corpus.worlds import sentences, write_jsonl
from tests.gateway.worlds import assert_problem, client_on, create_run

STUBBORN = """
import json, signal, sys, time
job = json.loads(sys.stdin.read())
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""

PRINTING = "import sys; print(sys.stdin.read())"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "classification", "model": "os:getcwd"}, "would run code in the service"),
        ({"kind": "classification", "topk": 3}, "leave topk"),
        ({"inputs_column": "image"}, "say kind classification"),
        ({"kind": "speech"}, "classification"),
    ],
)
def test_samples_to_classify_that_the_service_will_not_ingest_are_refused(
    changes: dict[str, object], problem: str, tmp_path: Path
) -> None:
    asked = {"corpus": "digits", "source": str(tmp_path), "model": "a-model"} | changes
    with client_on(tmp_path, ingest_from=(str(tmp_path),)) as client:
        answer = client.post("/v1/corpora", json=asked)
    assert answer.status_code == 422 and problem in answer.text
    assert not (tmp_path / "corpora" / "digits").exists()


def job_of(folder: Path, source: Path | str, name: str = "made") -> IngestJob:
    return IngestJob(IngestSettings(source=str(source), folder=folder, name=name, model="none"), 30.0)


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    for _ in range(int(seconds / 0.05)):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about")


@pytest.fixture
def ingests(tmp_path: Path) -> Iterator[Ingests]:
    """A program in the place of the job that only reads its orders, and does not stop when it is asked to."""
    command = [sys.executable, "-c", STUBBORN]
    ingests = Ingests(tmp_path / "corpora", [str(tmp_path / "shards")], stop_timeout_s=0.2, command=command)
    (tmp_path / "shards").mkdir()
    yield ingests
    ingests.close()


@pytest.mark.parametrize("source", ["shards", "shards/web", "shards/**/*.parquet", "shards/web/../books"])
def test_shards_may_come_from_within_the_places_that_the_settings_name(
    ingests: Ingests, tmp_path: Path, source: str
) -> None:
    ingests.start(job_of(tmp_path / "corpora", tmp_path / source))
    assert ingests.is_alive("made")


@pytest.mark.parametrize(
    "source",
    ["/etc", "shards/../secrets", "shardsmith", "shards/*/../../secrets", "s3://bucket/shards", "file:///etc"],
)
def test_shards_from_elsewhere_are_refused(ingests: Ingests, tmp_path: Path, source: str) -> None:
    place = source if source.startswith(("/", "s3:", "file:")) else str(tmp_path / source)
    with pytest.raises(SourceForbidden, match="ingest_from"):
        ingests.start(job_of(tmp_path / "corpora", place))
    assert not (tmp_path / "corpora" / "made").exists()


def test_a_link_that_leads_out_of_a_place_is_elsewhere(ingests: Ingests, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "shards" / "link").symlink_to(tmp_path / "secrets")
    with pytest.raises(SourceForbidden):
        ingests.start(job_of(tmp_path / "corpora", tmp_path / "shards" / "link"))


@pytest.mark.parametrize(
    ("source", "is_allowed"),
    [
        ("s3://bucket/web/a.parquet", True),
        ("s3://bucket/web", True),
        ("s3://bucket/website/a.parquet", False),
        ("s3://bucket/web/../books", False),
        ("s3://bucket/web/%2e%2e/books", False),
        ("s3://bucket/web/a?endpoint_override=evil.example", False),
        ("s3://bucket", False),
    ],
)
def test_urls_are_allowed_below_a_url(tmp_path: Path, source: str, is_allowed: bool) -> None:
    ingests = Ingests(tmp_path, ["s3://bucket/web?region=us-east-1"], 0.2, [sys.executable, "-c", PRINTING])
    if is_allowed:
        ingests.start(job_of(tmp_path, source))
        until(lambda: not ingests.is_alive("made"))
        told = json.loads((tmp_path / "made/ingest.log").read_text())
        assert told["source"] == f"{source}?region=us-east-1"
        assert told["allowed"] == {"places": ["s3://bucket/web?region=us-east-1"]}
    else:
        with pytest.raises(SourceForbidden):
            ingests.start(job_of(tmp_path, source))
    ingests.close()


def test_a_refusal_does_not_tell_the_secrets_of_a_url(tmp_path: Path) -> None:
    with pytest.raises(SourceForbidden) as refused:
        Ingests(tmp_path, [], 0.2).start(job_of(tmp_path, "s3://key:secret@bucket/web"))
    assert "secret" not in refused.value.detail


def test_a_corpus_is_written_by_one_ingest_at_a_time(ingests: Ingests, tmp_path: Path) -> None:
    ingests.start(job_of(tmp_path / "corpora", tmp_path / "shards"))
    with pytest.raises(IngestRunning):
        ingests.start(job_of(tmp_path / "corpora", tmp_path / "shards"))
    ingests.start(job_of(tmp_path / "corpora", tmp_path / "shards", name="other"))
    assert ingests.is_alive("other")


def test_a_job_that_does_not_stop_is_killed(ingests: Ingests, tmp_path: Path) -> None:
    ingests.start(job_of(tmp_path / "corpora", tmp_path / "shards"))
    until(lambda: "ready" in (tmp_path / "corpora/made/ingest.log").read_text())
    ingests.stop("made")
    assert not ingests.is_alive("made")
    with pytest.raises(NoIngest):
        ingests.stop("made")


@pytest.mark.parametrize("command", [JOB, (sys.executable, "-c", STUBBORN)])
def test_a_job_that_is_stopped_before_it_has_begun_is_stopped(tmp_path: Path, command: Sequence[str]) -> None:
    ingests = Ingests(tmp_path, [str(tmp_path)], stop_timeout_s=0.5, command=command)
    ingests.start(job_of(tmp_path, tmp_path))
    ingests.stop("made")
    status = ingests.status("made")
    assert status is not None
    assert (status.state, status.problem) == ("stopped", None)
    assert not ingests.is_alive("made")
    assert "Traceback" not in (tmp_path / "made" / LOG_NAME).read_text()
    ingests.start(job_of(tmp_path, tmp_path))
    ingests.close()
    status = ingests.status("made")
    assert status is not None
    assert status.state == "stopped"


def test_a_job_that_ends_before_it_reads_its_orders_is_gone(tmp_path: Path) -> None:
    ingests = Ingests(tmp_path, [str(tmp_path)], stop_timeout_s=0.2, command=[sys.executable, "-c", ""])
    for _ in range(3):
        ingests.start(job_of(tmp_path, tmp_path))
        until(lambda: not ingests.is_alive("made"))


def test_an_ingest_of_an_earlier_life_of_the_container_does_not_run(ingests: Ingests, tmp_path: Path) -> None:
    """Its pid is another process's now."""
    folder = tmp_path / "corpora/made"
    folder.mkdir(parents=True)
    status = write_begun(folder, os.getpid(), time.time())
    assert ingests.is_alive("made")
    write_json(folder / STATUS_NAME, asdict(replace(status, process="an-earlier-boot 7")))
    assert not ingests.is_alive("made")
    ingests.start(job_of(tmp_path / "corpora", tmp_path / "shards"))


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "corpora").write_text("no folder")
    with pytest.raises(CorpusUnavailable, match="the ingest cannot be started"):
        Ingests(tmp_path / "corpora", [str(tmp_path)], 0.2).start(job_of(tmp_path / "corpora", tmp_path))


def test_jobs_stop_with_the_service(ingests: Ingests, tmp_path: Path) -> None:
    ingests.start(job_of(tmp_path / "corpora", tmp_path / "shards"))
    ingests.close()
    assert not ingests.is_alive("made")


def test_a_job_reads_what_was_asked_for() -> None:
    job = job_of(Path("/corpora"), "s3://key:secret@bucket/web")
    allowed = AllowedPlaces(("s3://key:secret@bucket/web", "/data"))
    for each in (job, replace(job, settings=replace(job.settings, allowed=allowed))):
        assert IngestJob.from_json(each.to_json()) == each
        assert "secret" not in repr(each)


def test_without_a_place_to_take_shards_from_nothing_is_started(client: TestClient) -> None:
    body = {"corpus": "made", "source": "/etc", "model": "none"}
    assert "ingest_from" in assert_problem(client.post("/v1/corpora", json=body), 403, "source-forbidden")["detail"]
    assert_problem(client.get("/v1/corpora/made"), 404, "unknown-corpus")


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        ({"corpus": "../out"}, "invalid-request"),
        ({"seq_len": 1}, "invalid-request"),
        ({"num_clusters": 4, "group_column": "topic"}, "corpus-error"),
        ({"unknown": 1}, "invalid-request"),
    ],
)
def test_an_ingest_that_cannot_be_is_refused(root: Path, body: dict[str, Any], slug: str) -> None:
    with client_on(root, ingest_from=(str(root),)) as client:
        whole = {"corpus": "made", "source": str(root), "model": "none"} | body
        assert_problem(client.post("/v1/corpora", json=whole), 422, slug)


def strange() -> dict[str, str]:
    return {"null": "a\\u0000b", "surrogate": "\\ud800", "long": "x" * 10_000, "name too long": "x" * 300}


@pytest.mark.parametrize("text", strange().values(), ids=strange())
@pytest.mark.parametrize("field", ["corpus", "source", "model", "source below", "model below", "factory"])
def test_no_text_of_a_request_is_a_fault_of_the_service(root: Path, field: str, text: str) -> None:
    """Written as JSON, in which half of a surrogate pair can be spelt."""
    key, _, how = field.partition(" ")
    text = f"{root}/{text}" if how == "below" else f"a:b{text}" if key == "factory" else text
    key = "model" if key == "factory" else key
    whole = {"corpus": "made", "source": str(root), "model": "none"} | {key: text}
    body = "{" + ", ".join(f'"{name}": "{value}"' for name, value in whole.items()) + "}"
    with client_on(root, ingest_from=(str(root),), drain_timeout_s=1) as client:
        answer = client.post("/v1/corpora", content=body, headers={"content-type": "application/json"})
        if field == "source below" and text.endswith("x" * 300) and len(text) < 4096:
            assert answer.status_code == 202  # the job says that there is no such file
        else:
            assert 400 <= answer.status_code < 500, answer.text
            assert answer.json()["detail"]
            assert not (root / "corpora/made").exists()


def test_a_model_whose_weights_are_a_pickle_is_refused(root: Path) -> None:
    (root / "model").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (root / "model" / name).write_text("{}")
    with client_on(root, ingest_from=(str(root),)) as client:
        body = {"corpus": "made", "source": str(root), "model": str(root / "model")}
        told = assert_problem(client.post("/v1/corpora", json=body), 422, "corpus-error")["detail"]
    assert "loads no pickle" in told
    assert not (root / "corpora/made").exists()


def test_nothing_is_stopped_where_nothing_runs(client: TestClient) -> None:
    assert_problem(client.delete("/v1/corpora/wiki"), 404, "no-ingest")
    assert_problem(client.delete("/v1/corpora/..%2f"), 404)


def test_corpora_in_object_storage_are_not_written(root: Path) -> None:
    with client_on(root, corpora_url="memory://corpora", ingest_from=(str(root),)) as client:
        body = {"corpus": "made", "source": str(root), "model": "none"}
        assert "upload" in assert_problem(client.post("/v1/corpora", json=body), 422, "invalid-request")["detail"]


def test_a_status_of_a_process_that_is_gone_says_so(root: Path, client: TestClient) -> None:
    progress = dict.fromkeys(("shards_done", "num_shards", "num_rows", "num_tokens", "num_set_aside", "generation"), 0)
    status = {"state": "running", "started_at": 10.0, "updated_at": 20.0, "host": "elsewhere", "pid": 1}
    content = {**status, "progress": {**progress, "share_done": 0.5, "num_rows": 30}, "problem": None}
    (root / "corpora/wiki/status.json").write_text(json.dumps(content))
    ingest = client.get("/v1/corpora/wiki").json()["ingest"]
    assert (ingest["state"], ingest["rows_per_s"], ingest["seconds_left"]) == ("killed", 3.0, None)
    assert ingest["started_at"] == "1970-01-01T00:00:10+00:00"


@pytest.mark.usefixtures("ray_session")
def test_a_corpus_is_made_grows_and_is_rehearsed_from_over_http(
    root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    write_jsonl(root / "shards/en/0.jsonl", [*sentences("en", 60), ""])
    body = {"corpus": "made", "source": str(root / "shards"), "model": str(tiny_model), "seq_len": 32}
    with client_on(root, ingest_from=(str(root / "shards"),)) as client:
        started = client.post(
            "/v1/corpora", json=body | {"num_quantiles": 2, "rows_per_segment": 20, "follow_every_s": 0.5}
        )
        assert (started.status_code, started.headers["location"]) == (202, "/v1/corpora/made")
        until(lambda: client.get("/v1/corpora/made").json().get("num_shards") == 1)
        corpus = client.get("/v1/corpora/made").json()
        assert (corpus["num_documents"], corpus["set_aside"]) == (60, {"the text is blank": 1})
        assert create_run(client, corpus="made").json()["generation"] == corpus["generation"]
        assert_problem(client.post("/v1/corpora", json=body), 409, "ingest-running")
        write_jsonl(root / "shards/fr/1.jsonl", sentences("fr", 40))
        until(lambda: client.get("/v1/corpora/made").json()["num_shards"] == 2)
        grown = client.delete("/v1/corpora/made").json()
        assert grown["ingest"]["state"] == "stopped"
        assert grown["num_samples"] > corpus["num_samples"]
        assert [each["name"] for each in grown["groups"]] == ["en", "fr"]
        assert client.post("/v1/runs/tune/adopt", json={}).json()["generation"] == grown["generation"]
        strata = client.get("/v1/runs/tune/strata").json()["strata"]
        assert sum(each["num_samples"] for each in strata) == grown["num_samples"]
