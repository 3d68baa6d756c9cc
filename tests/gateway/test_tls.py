import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from replay_service.cli import app
from replay_trainer.client import ReplayClient
from replay_trainer.errors import ServiceError, ServiceUnavailable
from tests.certificates import CertificateFiles, certificate_in
from tests.gateway.worlds import make_token
from tests.support import free_port, running_service


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return certificate_in(tmp_path / "tls")


def serve(*options: str | Path) -> Any:
    return CliRunner().invoke(app, ["serve", *map(str, options)])


def test_the_client_trusts_the_authority_that_it_is_given(
    root: Path, files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_token(root, "read")
    stranger = certificate_in(root / "stranger")
    with running_service(root, options=files.options, trusted=files.trusted) as (base_url, _):
        assert base_url.startswith("https://")
        with ReplayClient(base_url, token, ca_file=files.authority) as client:
            assert client.corpus("wiki").num_samples == 80
        for ca_file in (None, stranger.authority):
            with ReplayClient(base_url, token, ca_file=ca_file) as client:
                with pytest.raises(ServiceError, match="REPLAY_CA_FILE") as refusal:
                    client.corpus("wiki")
                assert not isinstance(refusal.value, ServiceUnavailable)
        monkeypatch.setenv("REPLAY_CA_FILE", str(files.authority))
        with ReplayClient(base_url, token) as client:
            assert client.corpus("wiki").num_samples == 80
        with pytest.raises(httpx2.TransportError):
            httpx2.get(base_url.replace("https", "http"))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ServiceError, match=r"ca\.pem"):
        ReplayClient("https://127.0.0.1:1", ca_file=path)


def test_files_that_are_no_certificate_and_key_end_with_a_message(tmp_path: Path, files: CertificateFiles) -> None:
    other = certificate_in(tmp_path / "other")
    (tmp_path / "text.pem").write_text("text")
    for certificate, key in (
        (files.certificate, other.key),
        (files.certificate, tmp_path / "none.pem"),
        (tmp_path / "text.pem", files.key),
    ):
        result = serve("--root", tmp_path / "new", "--tls-certificate", certificate, "--tls-key", key)
        assert result.exit_code == 2
        assert str(key) in result.output.replace("\n", "")
        assert "Traceback" not in result.output


@pytest.mark.parametrize("index", [0, 2])
def test_a_certificate_and_its_key_go_together(tmp_path: Path, files: CertificateFiles, index: int) -> None:
    result = serve("--root", tmp_path / "new", *files.options[index : index + 2])
    assert result.exit_code == 2
    assert "tls_certificate and tls_key go together" in result.output


def warnings_of(root: Path) -> list[str]:
    lines = [json.loads(line) for line in (root / "serve.log").read_text().splitlines()]
    return [line["event"] for line in lines if line["level"] == "warning"]


def test_tokens_beyond_loopback_without_tls_are_warned_of(root: Path, files: CertificateFiles) -> None:
    make_token(root, "read")
    beyond = ["--host", "0.0.0.0"]
    with running_service(root, options=[*beyond, *files.options], trusted=files.trusted):
        assert warnings_of(root) == []
    with running_service(root, port=free_port(), options=beyond) as (base_url, _):
        assert httpx2.get(f"{base_url}/v1/runs").status_code == 401
        (warning,) = warnings_of(root)
    assert "tls_certificate" in warning


def test_a_private_key_that_others_can_read_is_warned_of(root: Path, files: CertificateFiles) -> None:
    files.key.chmod(0o644)
    with running_service(root, options=files.options, trusted=files.trusted):
        assert warnings_of(root) == ["the private key is open to others than its owner; chmod 600"]
