"""How a service is named: by one URL, or by several that lead to the same one."""

from collections.abc import Sequence
from typing import Final

import httpx2

from replay_trainer.errors import ServiceError
from replay_trainer.routes import service_url

URL_VARIABLE: Final = "REPLAY_URL"
"""The environment variable that names a service for commands."""


def service_urls(named: str | Sequence[str]) -> tuple[str, ...]:
    """The URLs of a service, without those that come twice.

    Args:
        named: a URL, several with commas between them, or a list of URLs.

    Raises:
        ServiceError: when one of them is no URL of a service, or they cannot be meant for the same one.
    """
    texts = [each.strip() for each in (named.split(",") if isinstance(named, str) else named)]
    if len(texts) < 2:
        service_url(texts[0] if texts else "")
        return tuple(texts)
    urls = [_url_in_list(text, number, len(texts)) for number, text in enumerate(texts, 1)]
    for part, name in (("scheme", "scheme"), ("raw_path", "path"), ("userinfo", "user")):
        if len({_part(url, part) for url in urls}) > 1:
            raise ServiceError(
                f"the URLs of the service, {shown_urls(texts)}, differ in their {name}, so they cannot all lead to one "
                "service; write them alike but for host and port"
            )
    return tuple(dict.fromkeys(texts))


def shown_urls(urls: Sequence[str]) -> str:
    """URLs as they may be shown, without a user."""
    return ", ".join(str(httpx2.URL(each).copy_with(userinfo=b"")) for each in urls)


def _url_in_list(text: str, number: int, num: int) -> httpx2.URL:
    try:
        return service_url(text)
    except ServiceError as error:
        raise ServiceError(f"of the {num} URLs of the service, number {number} cannot be used: {error}") from None


def _part(url: httpx2.URL, name: str) -> object:
    return url.raw_path.rstrip(b"/") if name == "raw_path" else getattr(url, name)
