"""Makes the secrets of a cluster that are missing in a folder: python make_secrets.py FOLDER

Those in `for-others` are read by programs that run as another user; all others by their owner alone. A secret that is
there is left as it is.
"""

import secrets
import sys
from pathlib import Path


def make_secrets(folder: Path) -> None:
    database = _secret(folder / "for-others/database-password", 0o644)
    user = _secret(folder / "for-others/storage-user", 0o644)
    password = _secret(folder / "for-others/storage-password", 0o644)
    for name in ("cluster-secret", "ray-token"):
        _secret(folder / name)
    _write(folder / "database-passfile", f"*:*:*:*:{database}\n")
    _write(folder / "aws-credentials", f"[default]\naws_access_key_id = {user}\naws_secret_access_key = {password}\n")


def _secret(path: Path, mode: int = 0o600) -> str:
    if not path.exists():
        _write(path, secrets.token_hex(32), mode)
    return path.read_text()


def _write(path: Path, content: str, mode: int = 0o600) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.touch(mode)
        temporary.write_text(content)
        temporary.replace(path)


if __name__ == "__main__":
    make_secrets(Path(sys.argv[1]))
