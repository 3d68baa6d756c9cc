"""All routes of pages."""

from typing import Final

from fastapi import APIRouter

from replay_service.gateway.page import action_pages, corpus_pages, docs, login, run_list, run_pages, sample_pages

ROUTERS: Final[tuple[APIRouter, ...]] = (
    run_list.router,
    run_pages.router,
    action_pages.router,
    sample_pages.router,
    corpus_pages.router,
    docs.router,
    login.router,
)
