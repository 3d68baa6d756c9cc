"""Draws the operators' page in each state: `python -m tests.docs.screenshots FOLDER`.

Those that the documentation shows are written to docs/assets by `python -m tests.docs.screenshots --docs`.
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser

from replay_service.testing import replay_service
from tests.gateway.page.browsers import chromium
from tests.gateway.page.worlds import DOMAINS, NUM_QUANTILES, Job

SIZES = {"wide": (1280, 900), "phone": (500, 900)}


def shoot(browser: Browser, url: str, name: str, folder: Path, schemes: tuple[str, ...] = ("light", "dark")) -> None:
    for size, (width, height) in SIZES.items():
        for scheme in schemes:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(url)
            page.wait_for_timeout(3000 if "steady" in url else 300)
            page.screenshot(path=folder / f"{name}-{size}-{scheme}.png", full_page=True)
            page.close()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        with replay_service(serve=True) as service:
            shoot(browser, service.url, "empty", folder, ("light",))
        corpus = {"domains": DOMAINS, "rows_per_domain": 2000, "num_quantiles": NUM_QUANTILES, "corpus": "web"}
        with replay_service(serve=True, **corpus) as service, service.client() as client:
            Job(client, "steady").begin("web").train(260)
            client.configure("steady", injection_ratio="0.25")
            Job(client, "young").begin("web").train(3)
            Job(client, "finished").begin("web").train(30)
            client.finish_run("finished", 30)
            Job(client, "closed").begin("web").train(30)
            client.close_run("closed")
            Job(client, "waiting").begin("web")
            shoot(browser, service.url, "list", folder)
            shoot(browser, f"{service.url}/runs/steady", "running", folder)
            for name in ("young", "waiting", "closed"):
                shoot(browser, f"{service.url}/runs/{name}", name, folder, ("light",))
            shoot(browser, f"{service.url}/corpora/web", "corpus", folder, ("light",))
            shoot(
                browser, f"{service.url}/runs/steady/change?action=policy&value=uniform", "change", folder, ("light",)
            )
            shoot(browser, f"{service.url}/docs", "docs", folder, ("light",))


if __name__ == "__main__":
    main()
