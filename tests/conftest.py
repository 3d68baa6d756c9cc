import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# How long something takes on a busy machine is no property of the code.
hypothesis.settings.register_profile("project", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random language model and its tokenizer."""
    from tests.support import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all tests that need it; its token goes to a temporary home."""
    import ray

    from replay_service.ray_session import start_ray

    home = os.environ.get("HOME")
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    start_ray()
    yield
    ray.shutdown()
    if home is not None:
        os.environ["HOME"] = home


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """One PostgreSQL server for all tests that need it: a URL template with the field `{database}`.

    Its folder is not one of pytest's, which only their owner can enter: root runs the server as somebody else.
    """
    import tempfile

    from tests.databases import find_postgresql, postgresql_server

    if find_postgresql() is None:
        pytest.skip("PostgreSQL is not installed: no initdb and postgres in PATH or in /usr/lib/postgresql/*/bin")
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder, postgresql_server(Path(folder)) as server:
        yield server.url


@pytest.fixture
def postgresql_database(postgresql_url: str) -> Iterator[str]:
    """The URL of a fresh, empty database on that server."""
    import uuid

    from tests.databases import fresh_database

    with fresh_database(postgresql_url, f"test_{uuid.uuid4().hex[:12]}") as url:
        yield url
