import pytest

from replay_trainer.errors import ServiceError
from replay_trainer.service_urls import service_urls, shown_urls


@pytest.mark.parametrize(
    ("named", "urls"),
    [
        ("http://a:8400", ("http://a:8400",)),
        ("http://a:8400, http://b:8400", ("http://a:8400", "http://b:8400")),
        (["https://a/replay", "https://b:1/replay/"], ("https://a/replay", "https://b:1/replay/")),
        (("http://a:8400", "http://b:8400", "http://a:8400"), ("http://a:8400", "http://b:8400")),
        ("http://u:p@a, http://u:p@[::1]:8400", ("http://u:p@a", "http://u:p@[::1]:8400")),
    ],
)
def test_a_service_has_one_url_or_several(named: "str | list[str]", urls: tuple[str, ...]) -> None:
    assert service_urls(named) == urls


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("", "'' is no URL of a service"),
        ([], "'' is no URL of a service"),
        ("127.0.0.1:8400", "'127.0.0.1:8400' is no URL of a service; write one such as"),
        ("http://a:84oo", "'http://a:84oo' is no URL"),
        ("http://a:8400;http://b:8400", "is no URL"),
        ("http://a:8400 http://b:8400", "is no URL"),
        ("http://a:8400,b:8400", "of the 2 URLs of the service, number 2 cannot be used: 'b:8400' is no URL"),
        ("http://a:8400,,http://b:8400", "of the 3 URLs of the service, number 2 cannot be used: '' is no URL"),
        ("http://a,http//b", "number 2 cannot be used"),
        ("http://a:8400,https://b:8400", "http://a:8400, https://b:8400, differ in their scheme"),
        ("http://a/x,http://b", "differ in their path"),
        ("http://one:secret@a,http://two:secret@b", "http://a, http://b, differ in their user"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(named: "str | list[str]", said: str) -> None:
    with pytest.raises(ServiceError) as failure:
        service_urls(named)
    assert said in str(failure.value)
    assert "secret" not in str(failure.value) and "\n" not in str(failure.value)


def test_a_user_is_not_shown() -> None:
    assert shown_urls(["http://somebody:secret@a:1/x", "http://b"]) == "http://a:1/x, http://b"
    with pytest.raises(ServiceError) as failure:
        service_urls("http://some:secret@a:84oo")
    assert "secret" not in str(failure.value)
