"""Which extra of this distribution brings a package that could not be imported."""

from typing import Final, Literal

PACKAGES: Final = {
    "server": (
        "alembic",
        "anyio",
        "fastapi",
        "jinja2",
        "prometheus_client",
        "pydantic_settings",
        "sqlalchemy",
        "starlette",
        "uvicorn",
        "uvloop",
    ),
    "postgresql": ("psycopg",),
    "text": ("tokenizers",),
    "lora": ("peft",),
    "plan": ("scipy",),
    "demo": ("gguf", "matplotlib", "psutil"),
}
"""Import names by extra. torch, Ray and what belongs to them are in several extras."""

Command = Literal["corpus", "train"]


def missing_package(error: ModuleNotFoundError, command: Command) -> str:
    """A sentence that names the missing package, and how to install it.

    Args:
        error: what an import raised.
        command: the extra of the command that needs torch and Ray.
    """
    name = str(error.name).partition(".")[0]
    extra = next((extra for extra, names in PACKAGES.items() if name in names), command)
    return f"{name} is not installed; install what this command needs: pip install 'replay-service[{extra}]'"
