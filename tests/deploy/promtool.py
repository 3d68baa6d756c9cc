"""Prometheus's own tools, where they are installed (Debian's package `prometheus`)."""

import shutil

import pytest


def promtool() -> str:
    return _found("promtool")


def prometheus() -> str:
    return _found("prometheus")


def _found(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} in PATH; Debian's package `prometheus` has it")
    return path
