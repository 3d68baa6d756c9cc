"""Pages about corpora: the list of them, and one corpus."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from replay_service.gateway.middleware.access import READ, CorpusName
from replay_service.gateway.page.rendering import render
from replay_service.gateway.page.routing import PageRoute
from replay_service.gateway.routes.corpora import get_corpus, list_corpora
from replay_service.gateway.service import Service

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/corpora", dependencies=READ)
def show_corpora(request: Request, service: Service) -> Response:
    """All corpora that can be rehearsed from."""
    return render(request, "corpora.html", corpora=list_corpora(service).corpora)


@router.get("/corpora/{corpus}", dependencies=READ)
def show_corpus(request: Request, corpus: CorpusName, service: Service) -> Response:
    """One corpus: what is in it, what is damaged, and how its ingest goes."""
    return render(request, "corpus.html", corpus=get_corpus(corpus, service))
