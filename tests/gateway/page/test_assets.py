import gzip
import hashlib
from pathlib import Path

from fastapi.testclient import TestClient

from replay_service.gateway.middleware.problems import SAFE_HEADERS
from replay_service.gateway.page import assets as assets_module
from replay_service.gateway.page.assets import MEDIA_TYPES, PREFIX, Assets
from tests.gateway.worlds import client_on, make_token

STATIC, VENDOR = assets_module.FOLDERS
FILES = [path for folder in (STATIC, VENDOR) for path in sorted(folder.iterdir()) if path.suffix in MEDIA_TYPES]


def test_vendored_files_are_those_that_the_checksums_state() -> None:
    stated = dict(reversed(line.split("  ")) for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES if path.parent == VENDOR}
    assert stated == found


def test_every_vendored_package_brings_its_licence() -> None:
    names = {path.name for path in VENDOR.iterdir()}
    assert {"htmx.LICENSE", "uplot.LICENSE", "swagger-ui.LICENSE", "swagger-ui-bundle.js.LICENSE.txt"} <= names


def test_a_file_is_kept_for_ever_under_a_name_with_its_hash(client: TestClient) -> None:
    for path in FILES:
        url = Assets().url(path.name)
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in url
        answer = client.get(url, headers={"accept-encoding": "gzip"})
        assert answer.status_code == 200 and answer.content == path.read_bytes()
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers.get_list("cache-control") == ["public, max-age=31536000, immutable"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"].startswith(MEDIA_TYPES[path.suffix])


def test_a_file_comes_as_it_is_to_who_takes_no_gzip(client: TestClient) -> None:
    answer = client.get(Assets().url("page.css"), headers={"accept-encoding": "identity"})
    assert "content-encoding" not in answer.headers
    assert answer.content == (STATIC / "page.css").read_bytes()


def test_what_is_compressed_is_the_same_every_time() -> None:
    first, second = (Assets()._by_file["page.js"].compressed for _ in range(2))
    assert first == second and gzip.decompress(first) == (STATIC / "page.js").read_bytes()


def test_no_other_file_is_given(client: TestClient) -> None:
    for name in ("page.css", "page.000000000000.css", "..%2Frendering.py", "..%2F..%2Fapp.py", "%00"):
        answer = client.get(PREFIX + name)
        assert answer.status_code == 404, name
        assert answer.headers["cache-control"] == SAFE_HEADERS["Cache-Control"]


def test_files_are_given_to_a_browser_that_has_not_logged_in(root: Path) -> None:
    make_token(root, "read")
    with client_on(root) as client:
        assert client.get(Assets().url("page.css")).status_code == 200
        assert client.get("/").status_code == 401
