"""Proxies of the environment: which is asked for which service, and what errors say of it."""

from typing import Any
from urllib.parse import urlsplit

import pytest

from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.errors import ServiceError, ServiceRefused, ServiceUnavailable
from replay_trainer.proxies import NamedProxy, proxy_to
from tests.proxy import NO_FAULT, FaultyProxy
from tests.support import free_port

HASTY = RetryPolicy(give_up_after_s=0.2, first_wait_s=0.01, longest_wait_s=0.02)
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("base_url", "names", "expected"),
    [
        ("http://replay.example.org", {}, None),
        ("http://replay.example.org", {"http_proxy": "http://proxy:3128"}, NamedProxy("http://proxy:3128")),
        ("http://replay.example.org", {"http_proxy": "proxy:3128"}, NamedProxy("http://proxy:3128")),
        ("http://replay.example.org", {"https_proxy": "http://proxy:3128"}, None),
        ("https://replay.example.org", {"all_proxy": "http://a:b%40@proxy"}, NamedProxy("http://proxy", ("a", "b@"))),
        ("http://replay.example.org", {"all_proxy": "http://proxy", "no_proxy": "example.org"}, None),
        ("http://me:secret@replay.example.org", {"all_proxy": "http://proxy", "no_proxy": "example.org"}, None),
        ("http://10.3.2.1:8400", {"all_proxy": "http://proxy", "no_proxy": "localhost, 10.0.0.0/8"}, None),
        ("http://[fd00::7]:8400", {"all_proxy": "http://proxy", "no_proxy": "fd00::/8"}, None),
        (
            "http://11.3.2.1",
            {"all_proxy": "http://proxy", "no_proxy": "10.0.0.0/8,nonsense/9"},
            NamedProxy("http://proxy"),
        ),
        ("http://ten.example", {"all_proxy": "http://proxy", "no_proxy": "10.0.0.0/8"}, NamedProxy("http://proxy")),
        ("http://127.0.0.1:8400", {"all_proxy": "socks5h://proxy:1080"}, None),
        ("http://localhost:8400", {"all_proxy": "socks5://proxy:1080"}, None),
        ("http://10.3.2.1", {"all_proxy": "socks5://proxy:1080", "no_proxy": "10.0.0.0/8"}, None),
    ],
)
def test_the_proxy_of_a_service(
    environment: pytest.MonkeyPatch, base_url: str, names: dict[str, str], expected: Any
) -> None:
    for name, value in names.items():
        environment.setenv(name, value)
    assert proxy_to(base_url) == expected


@pytest.mark.parametrize("named", ["socks5://me:secret@proxy:1080", "ftp://proxy", "http://proxy:port", "http://"])
def test_what_is_no_http_proxy_is_refused_by_its_variable(environment: pytest.MonkeyPatch, named: str) -> None:
    environment.setenv("all_proxy", named)
    with pytest.raises(ServiceError, match="all_proxy names .* add replay.example.org to no_proxy") as failure:  # noqa: RUF043
        ReplayClient("http://replay.example.org")
    assert "secret" not in str(failure.value)


def test_a_service_is_reached_past_a_proxy_that_is_not_for_it(
    environment: pytest.MonkeyPatch, service_url: str
) -> None:
    for name, value in (("all_proxy", "socks5://127.0.0.1:1"), ("no_proxy", "")):
        environment.setenv(name, value)
    with ReplayClient(service_url) as client:
        assert client.corpus("wiki").num_samples == 80
    environment.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    environment.setenv("no_proxy", "127.0.0.0/8")
    with ReplayClient(service_url) as client:
        assert client.corpus("wiki").num_samples == 80


@pytest.mark.parametrize("by_proxy", [False, True])
def test_a_refusal_names_the_proxy_that_it_came_by(
    environment: pytest.MonkeyPatch, service_url: str, by_proxy: bool
) -> None:
    url = urlsplit(service_url)
    with FaultyProxy((url.hostname, url.port), lambda: NO_FAULT) as proxy:
        if by_proxy:
            environment.setenv("http_proxy", proxy.base_url.replace("//", "//somebody:secret@"))
        with ReplayClient(service_url) as client:
            for ask in (lambda: client.corpus("nothing"), lambda: client.run("nothing")):
                with pytest.raises(ServiceRefused) as refused:
                    ask()
                said = f"(by way of the proxy {proxy.base_url}, which the environment names)"
                assert (said in str(refused.value)) == by_proxy
                assert "nothing" in str(refused.value) and "secret" not in str(refused.value)


def test_an_error_names_the_proxy_without_its_password(environment: pytest.MonkeyPatch) -> None:
    proxy = f"127.0.0.1:{free_port()}"
    environment.setenv("http_proxy", f"http://somebody:secret@{proxy}")
    with (
        ReplayClient("http://replay.example.org", retry=HASTY) as client,
        pytest.raises(ServiceUnavailable, match=f"replay.example.org .by way of the proxy http://{proxy}") as failure,
    ):
        client.corpus("wiki")
    assert "secret" not in str(failure.value) and "secret" not in repr(failure.value.__cause__)
