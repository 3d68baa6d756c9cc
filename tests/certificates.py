"""A certificate, signed by an authority that nobody trusts unless told to."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate for 127.0.0.1 with its key, and that of the authority that has signed it."""

    certificate: Path
    key: Path
    authority: Path

    @property
    def options(self) -> list[str | Path]:
        return ["--tls-certificate", self.certificate, "--tls-key", self.key]

    @property
    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


def certificate_in(folder: Path) -> CertificateFiles:
    folder.mkdir()
    authority = trustme.CA()
    files = CertificateFiles(folder / "certificate.pem", folder / "key.pem", folder / "authority.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(files.key)
    files.key.chmod(0o600)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(files.certificate, append=True)
    authority.cert_pem.write_to_path(files.authority)
    return files
