"""Content of answers that is compressed once for all who take that."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True)
class Packed:
    """The content of an answer."""

    media_type: str
    content: bytes

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.content, 6, mtime=0)

    def answer(self, request: Request, headers: Mapping[str, str], status: int = 200) -> Response:
        """An answer, compressed by gzip where the caller takes that."""
        headers = {**headers, "Vary": "Accept-Encoding"}
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.content, status, headers, self.media_type)
        return Response(self.compressed, status, {**headers, "Content-Encoding": "gzip"}, self.media_type)
