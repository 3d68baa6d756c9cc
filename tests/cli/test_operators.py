"""`replay-service runs`, `events`, `samples`, `top` and `corpus list`: commands that ask a service that runs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from replay_service.cli.operators.client import ServiceClient
from replay_service.extras import PACKAGES
from replay_service.testing import ServiceUnderTest, replay_service
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from tests.cli.worlds import assert_message, run
from tests.gateway.page.worlds import HOSTILE_TEXTS, Job, write_hostile_texts
from tests.gateway.worlds import make_token
from tests.support import free_port
from tests.test_extras import WITHOUT

RATIO = "0.25"


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    """A service with the runs `tune`, which has reports, and `tune-2`, which has none."""
    with replay_service(domains=("law", "web forum [x]"), rows_per_domain=400, serve=True) as found:
        with found.client() as client:
            for name in ("tune", "tune-2"):
                client.ensure_run(name, found.corpus, {"global_batch_size": 32, "injection_ratio": RATIO})
            for step in range(0, 40, 4):
                train(client, step)
        yield found


@pytest.fixture(autouse=True)
def address(service: ServiceUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_URL", service.url)


def train(client: ReplayClient, step: int) -> None:
    batch = client.batch("tune", step, num_steps=4)
    rows = np.zeros(len(batch), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"] = batch.step, batch.sample_id
    rows["loss_nats"], rows["num_tokens"] = 9.0, 15
    rows["num_flips"] = np.arange(len(rows)) % 3
    client.report("tune", rows)


def test_runs_are_listed_with_their_states() -> None:
    result = run("runs")
    assert result.exit_code == 0, result.output
    head, *rows = [line.split() for line in result.stdout.splitlines()]
    assert head[:3] == ["run", "state", "step"]
    assert [row[:4] for row in rows] == [["tune", "running", "40", RATIO], ["tune-2", "waiting", "0", RATIO]]
    assert run("runs", "--state", "closed").stdout == "no runs\n"
    assert_message(run("runs", "--state", "asleep"), "asleep", "waiting, running")


def test_a_run_is_shown_with_what_it_forgets_and_where() -> None:
    shown = run("runs", "show", "tune").stdout
    assert shown.startswith("tune  running  step 40")
    assert "rows due 320.00, rehearsed 320" in shown
    assert "web forum [x]" in shown
    assert run("runs", "show", "tune-2").stdout.splitlines()[1].startswith("forgetting not known: ")


def test_every_answer_comes_as_json_too(service: ServiceUnderTest) -> None:
    (listed,) = run("runs", "--json").stdout.splitlines()
    assert [each["run"] for each in json.loads(listed)] == ["tune", "tune-2"]
    assert json.loads(run("runs", "show", "tune", "--json").stdout)["next_step"] == 40
    events = [json.loads(line) for line in run("events", "tune", "--last", 3, "--json").stdout.splitlines()]
    assert [each["kind"] for each in events] == ["reported"] * 3
    assert len(json.loads(run("samples", "tune", "--limit", 2, "--json").stdout)["samples"]) == 2
    assert json.loads(run("top", "tune", "--times", 1, "--json").stdout)["run"] == "tune"
    assert json.loads(run("corpus", "list", "--json").stdout)["corpora"][0]["corpus"] == service.corpus


def test_samples_are_shown_with_their_strata_or_why_they_have_no_text() -> None:
    head, first, *_ = run("samples", "tune", "--limit", 3).stdout.splitlines()
    assert "damage (token_flip)" in head
    assert first.split()[1].split("/")[0] in ("law", "web")
    assert run("samples", "tune", "--text").stdout.startswith("no text: ")
    assert run("samples", "tune-2").stdout == "nothing was reported yet\n"
    assert_message(run("samples", "tune", "--domain", "lww"), "lww")


def test_no_text_of_a_sample_reaches_the_terminal_as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with replay_service(rows_per_domain=60, serve=True) as service, service.client() as client:
        write_hostile_texts(service.root / "corpora" / service.corpus)
        Job(client, "steady", num_quantiles=2).begin(service.corpus).train(10)
        monkeypatch.setenv("REPLAY_URL", service.url)
        shown = run("samples", "steady", "--text", "--limit", 20).stdout
        (as_json,) = run("samples", "steady", "--text", "--limit", 20, "--json").stdout.splitlines()
    assert {each for each in shown if not each.isprintable()} == {"\n"}
    assert "<script>" in shown and r"\x1b[31mred" in shown and r"\u202eright" in shown and "[bold]markup" in shown
    assert "more characters: --json has them all" in shown and len(shown) < 20 * 50_000
    said = "".join(each["text"] for each in json.loads(as_json)["samples"])
    assert all(each in said for each in HOSTILE_TEXTS)


def test_a_setting_is_changed_after_a_preview() -> None:
    result = run("runs", "set", "tune-2", "sharpness=0.5", "budget.nats=0.1", "--yes")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["sharpness", "1.0", "0.5"] in lines
    assert ["budget.nats", "0.05", "0.1"] in lines
    config = json.loads(run("runs", "--json").stdout)[1]["config"]
    assert (config["sharpness"], config["budget"]["nats"]) == (0.5, 0.1)
    assert "nothing to change" in run("runs", "set", "tune-2", "sharpness=0.5", "--yes").stdout


def test_nothing_is_changed_without_a_yes() -> None:
    before = run("runs", "--json").stdout
    assert_message(run("runs", "set", "tune", "floor=0.5"), "--yes")
    assert_message(run("runs", "set", "tune", "floor=0.5", "--json"), "--yes")
    assert json.loads(run("runs", "--json").stdout)[0]["config"] == json.loads(before)[0]["config"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("polcy=uniform", "policy"),
        ("budget.nat=1", "budget.nats"),
        ("budget=1", "budget.nats"),
        ("policy=unifrm", "'uniform'"),
        ("sharpness=sharp", "valid number"),
        ("floor=2", "at most 1"),
        ("injection_ratio=nan", "[0, 1]"),
        ("seed=1", "stays as it was"),
        ("floor", "NAME=VALUE"),
        ("budget.law.A=3", "budget.law.beta"),
    ],
)
def test_a_wrong_change_is_said_in_one_sentence_and_not_sent(change: str, named: str) -> None:
    result = run("runs", "set", "tune", change, "--yes")
    assert_message(result, named)
    assert len(result.output.splitlines()) == 1


def test_options_before_a_command_of_runs_are_not_lost_silently(service: ServiceUnderTest) -> None:
    assert_message(run("runs", "--url", service.url, "show", "tune"), "after the command")


@pytest.mark.parametrize("command", [["runs", "show"], ["events"], ["samples"], ["top"], ["runs", "set"]])
def test_a_mistyped_run_gets_the_nearest_names(command: list[str]) -> None:
    more = ["floor=0.5"] if command[-1] == "set" else []
    assert_message(run(*command, "tunee", *more), "there is no run 'tunee'; the nearest are 'tune', 'tune-2'")
    assert_message(run(*command, "zzz", *more), "there is no run 'zzz'; there are 'tune', 'tune-2'")
    assert_message(run(*command, "No Name/..", *more), "is no name of a run")


def test_events_are_shown_by_kind_and_followed(service: ServiceUnderTest) -> None:
    created = run("events", "tune", "--kind", "created").stdout
    assert len(created.splitlines()) == 1
    assert "created on generation 1" in created
    assert len(run("events", "tune", "--last", 7).stdout.splitlines()) == 7
    assert run("events", "tune", "--last", 0).stdout == ""
    command = [
        sys.executable,
        "-m",
        "replay_service",
        "events",
        "tune",
        "-f",
        "--last",
        "1",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        last = json.loads(following.stdout.readline())["seq"]
        with service.client() as client:
            train(client, 40)
            found = [json.loads(following.stdout.readline())]
            while found[-1]["seq"] < last + 8:
                found.append(json.loads(following.stdout.readline()))
            client.configure("tune", floor=0.3)
            changed = json.loads(following.stdout.readline())
        following.terminate()
    assert {each["kind"] for each in found} == {"progress"}
    assert sum(each["num_plans"] for each in found) == sum(each["num_reports"] for each in found) == 4
    assert (changed["kind"], changed["seq"]) == ("configured", last + 9)


class Dropping(BaseHTTPRequestHandler):
    """Streams of events that end after one event, in the middle of the next."""

    def do_GET(self) -> None:
        after = int(parse_qs(urlsplit(self.path).query)["after"][0])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        data = json.dumps({"seq": after + 1})
        self.wfile.write(f": hello\nretry: 2000\n\nevent: closed\nid: {after + 1}\ndata: {data}\n\nevent: clo".encode())

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_stream_that_breaks_is_asked_for_again_after_the_last_event() -> None:
    with HTTPServer(("127.0.0.1", free_port()), Dropping) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with ServiceClient(f"http://127.0.0.1:{server.server_port}") as client:
            found = list(islice(client.follow("tune", 4, None), 3))
        server.shutdown()
    assert found == [{"kind": "closed", "seq": seq} for seq in (5, 6, 7)]


def test_of_several_urls_the_first_that_can_be_reached_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_URL", f"http://127.0.0.1:1, {os.environ['REPLAY_URL']}")
    assert "tune" in run("runs").stdout


def test_what_is_watched_is_looked_at_again() -> None:
    result = run("runs", "--watch", "--times", 3, "--every", 0.1, "--json")
    assert len(result.stdout.splitlines()) == 3
    top = run("top", "tune", "--times", 2, "--every", 0.1)
    assert top.stdout.count("tune  running") == 2
    assert "/s   last report" in top.stdout


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://127.0.0.1:1", "cannot be reached"),
        ("htp://127.0.0.1", "is no URL of a service"),
        ("127.0.0.1:8400", "is no URL of a service"),
        ("http://127.0.0.1:1, http://127.0.0.1:2", "the service at http://127.0.0.1:1, http://127.0.0.1:2 cannot"),
        ("http://127.0.0.1:1,127.0.0.1:2", "'127.0.0.1:2' is no URL of a service"),
        ("http://", "is no URL of a service"),
        ("http://[::1", "is no URL"),
        ("http://127.0.0.1:99999", "is no URL"),
        ("http://no-such-host.invalid", "cannot be reached"),
    ],
)
def test_an_address_that_leads_nowhere_ends_with_one_sentence(url: str, named: str) -> None:
    for command in (["runs"], ["runs", "show", "tune"], ["corpus", "list"], ["top", "tune"]):
        assert_message(run(*command, "--url", url), named)


class Stranger(BaseHTTPRequestHandler):
    """Another web server."""

    def do_GET(self) -> None:
        status, content = {"/moved": (301, b""), "/json": (200, b"[1]")}.get(
            self.path.removesuffix("/v1/corpora"), (404, b"<h1>not here</h1>")
        )
        self.send_response(status)
        if status == 301:
            self.send_header("Location", "https://elsewhere.example/")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...


def test_another_server_is_not_taken_for_a_service() -> None:
    with HTTPServer(("127.0.0.1", free_port()), Stranger) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert_message(run("corpus", "list", "--url", url), "HTTP 404", "no replay service")
        assert_message(run("corpus", "list", "--url", f"{url}/json"), "no JSON object")
        assert_message(run("corpus", "list", "--url", f"{url}/moved"), "https://elsewhere.example/")
        server.shutdown()


def test_a_connection_that_is_closed_without_an_answer_ends_with_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_all() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        Thread(target=close_all, daemon=True).start()
        assert_message(run("runs", "--url", f"http://127.0.0.1:{server.getsockname()[1]}"), "cannot be reached")


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_text(f"{make_token(tmp_path, 'read')}\n")
    chief = make_token(tmp_path, "admin", "chief")
    with replay_service(serve=True, settings={"tokens_file": tmp_path / "tokens.toml"}) as guarded:
        ask = ("runs", "--url", guarded.url)
        assert run(*ask, "--token-file", path).exit_code == 0
        assert_message(run(*ask), "--token-file", "REPLAY_TOKEN")
        monkeypatch.setenv("REPLAY_TOKEN", path.read_text())
        assert run(*ask).exit_code == 0
        monkeypatch.setenv("REPLAY_TOKEN", "rpl_wrong")
        result = run(*ask)
        assert_message(result, "does not know the token")
        assert "rpl_wrong" not in result.output
        with guarded.client(token=chief) as client:
            client.ensure_run("guarded", guarded.corpus, {"global_batch_size": 8, "injection_ratio": "0.5"})
        assert_message(run("runs", "set", "guarded", "floor=0.2", "--yes", *ask[1:], "--token-file", path), "scope")


@pytest.mark.parametrize("content", ["", "two words", "line\nline", "ümlaut", b"\xff\xfe"])
def test_a_file_without_a_token_is_named(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_message(run("runs", "--token-file", path), str(path))
    assert_message(run("runs", "--token-file", tmp_path / "none"), "none")
    assert_message(run("runs", "--token-file", tmp_path), str(tmp_path))


def test_these_commands_need_the_base_install_alone(service: ServiceUnderTest) -> None:
    for arguments in (["runs"], ["runs", "show", "tune"], ["top", "tune", "--times", "1"], ["corpus", "list"]):
        missing = (*PACKAGES["server"], "ray", "torch", "transformers", "matplotlib", "scipy")
        # httpx2 brings anyio.
        code = WITHOUT.format(
            missing={*missing} - {"anyio"}, command=["replay-service", *arguments], module="replay_service.cli"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_control_characters_of_foreign_names_do_not_reach_the_terminal() -> None:
    with (
        replay_service(domains=("a\x1b[2Jb", "c"), rows_per_domain=400, serve=True) as foreign,
        foreign.client() as client,
    ):
        client.ensure_run("tune", foreign.corpus, {"global_batch_size": 32, "injection_ratio": RATIO})
        for step in range(0, 40, 4):
            train(client, step)
        shown = run("runs", "show", "tune", "--url", foreign.url).stdout
    assert "\x1b" not in shown
    assert r"a\x1b[2Jb" in shown
