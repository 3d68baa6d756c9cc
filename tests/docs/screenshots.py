"""Draws the operators' page in each state: `python -m tests.docs.screenshots FOLDER`.

Without a folder it writes the pictures that the documentation shows, to docs/assets.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize

from replay_service.testing import ServiceUnderTest, replay_service
from tests.gateway.page.browsers import chromium
from tests.gateway.page.worlds import DOMAINS, NUM_QUANTILES, Job
from tests.gateway.worlds import make_token

ASSETS: Final = Path(__file__).parents[2] / "docs" / "assets"
SIZES: Final[dict[str, ViewportSize]] = {
    "wide": {"width": 1200, "height": 900},
    "phone": {"width": 500, "height": 900},
}
_SETTLED_MS: Final = 500
_NUM_COLORS: Final = 64

Scheme = Literal["light", "dark"]


def main() -> None:
    with chromium() as browser:
        if len(sys.argv) > 1:
            draw_all(browser, Path(sys.argv[1]))
        else:
            draw_for_docs(browser)


def draw_for_docs(browser: Browser) -> None:
    with trained() as service:
        draw(browser, service.url, ASSETS / "page-runs.png")
        draw(browser, f"{service.url}/runs/steady", ASSETS / "page-run.png")
        draw(browser, f"{service.url}/runs/steady", ASSETS / "page-run-phone.png", "phone", "dark")


def draw_all(browser: Browser, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replay_service(serve=True) as service:
        draw_in_all_sizes(browser, service.url, folder, "empty")
    with trained() as service:
        paths = {"list": "/", "corpus": "/corpora/web", "docs": "/docs", "unknown": "/runs/nobody"}
        paths |= {name: f"/runs/{name}" for name in ("steady", "young", "waiting", "finished", "closed", "seen")}
        paths["change"] = "/runs/steady/change?action=policy&value=uniform"
        for name, path in paths.items():
            draw_in_all_sizes(browser, service.url + path, folder, name)
    make_token(folder, "read", "reader")
    with replay_service(serve=True, settings={"tokens_file": folder / "tokens.toml"}) as service:
        draw_in_all_sizes(browser, service.url, folder, "login")
    with trained({"stale_after_s": 0.001}) as service:
        draw_in_all_sizes(browser, f"{service.url}/runs/steady", folder, "stale")
        for segment in (service.root / "corpora").rglob("*.arrow"):
            segment.write_bytes(segment.read_bytes()[:100])
        with service.client() as client:
            client.batch("young", 3, num_steps=20)
        draw_in_all_sizes(browser, f"{service.url}/runs/young", folder, "damaged")


@contextmanager
def trained(settings: dict[str, float] | None = None) -> Iterator[ServiceUnderTest]:
    """A service with a run in each state but `damaged`."""
    world = replay_service(
        serve=True,
        domains=DOMAINS,
        rows_per_domain=6000,
        num_quantiles=NUM_QUANTILES,
        corpus="web",
        settings=settings,
    )
    with world as service, service.client() as client:
        Job(client, "steady").begin("web").train(120)
        client.configure("steady", injection_ratio="0.25")
        Job(client, "steady", next_step=120).train(140)
        Job(client, "young").begin("web").train(3)
        Job(client, "waiting").begin("web")
        Job(client, "finished").begin("web").train(30)
        client.finish_run("finished", 30)
        Job(client, "closed").begin("web").train(30)
        client.close_run("closed")
        Job(client, "seen").begin("web", injection_ratio="1", global_batch_size=2048).train(40, window=4)
        yield service


def draw_in_all_sizes(browser: Browser, url: str, folder: Path, name: str) -> None:
    draw(browser, url, folder / f"{name}-light.png")
    draw(browser, url, folder / f"{name}-dark.png", scheme="dark")
    draw(browser, url, folder / f"{name}-phone.png", "phone")


def draw(browser: Browser, url: str, path: Path, size: str = "wide", scheme: Scheme = "light") -> None:
    """Write what is seen without scrolling; of a folder of all states, the whole page."""
    page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
    page.goto(url)
    if page.locator("#curve-section").count():
        page.wait_for_selector('#curve-section[data-live="10"]', timeout=60_000)  # the curve is whole
    page.wait_for_timeout(_SETTLED_MS)
    picture_of(page, full_page=path.parent != ASSETS).save(path, optimize=True)
    page.close()


def picture_of(page: Page, full_page: bool) -> Image.Image:
    """A page in few colours: its file is small."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full_page)))
    return picture.convert("RGB").quantize(_NUM_COLORS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
