"""The server: Gradio's page and the report's pages in one application, bound to one address, ended by a signal."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Final

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from egobench.errors import EgobenchError
from egobench.report.chart_page import CAPTIONS, chart_page
from egobench.report.page import html_page
from egobench.report.rows import SweepRows
from egobench.serve.asking import Desk
from egobench.serve.html import failure, style
from egobench.serve.page import HEAD, THEME, build
from egobench.serve.pictures import MAX_UPLOAD_BYTES
from egobench.serve.sources import Sources

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; connect-src 'self'; worker-src 'self' "
    "blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
"""Whatever Gradio may want from elsewhere, the browser does not fetch it."""
_GRACE_S: Final = 1


def application(desk: Desk, host: str, port: int) -> FastAPI:
    """Put the routes together."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    if host in LOOPBACK:
        # A foreign page whose name is made to point here must not reach it.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])

    @app.middleware("http")
    async def restrict(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        response.headers.setdefault("Content-Security-Policy", _POLICY)
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    @app.get("/report/{key:path}")
    def whole_report(key: str) -> Response:
        return _page(desk.sources, key, html_page)

    @app.get("/charts/{key:path}")
    def some_charts(key: str, names: str = "") -> Response:
        wanted = [name for name in names.split(",") if name in CAPTIONS]
        return _page(desk.sources, key, lambda rows: chart_page(rows, wanted))

    # Last: it answers every other path.
    whole: FastAPI = gr.mount_gradio_app(
        app, build(desk), path="/", server_name=host, server_port=port, footer_links=[], show_error=False,
        max_file_size=MAX_UPLOAD_BYTES, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        theme=THEME, css=style(), head=HEAD,
    )  # fmt: skip
    return whole


def _page(sources: Sources, key: str, make: Callable[[SweepRows], str]) -> Response:
    source = sources.all().get(key)
    if source is None:
        return HTMLResponse(failure(f"There is no sweep '{key}'."), 404)
    try:
        return HTMLResponse(make(sources.rows(source)))
    except EgobenchError as error:
        return HTMLResponse(failure(str(error)), 422)


class Server(uvicorn.Server):
    """Says where it is once it answers."""

    def __init__(self, config: uvicorn.Config, say: Callable[[], None]) -> None:
        super().__init__(config)
        self._say = say

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._say()


def run(app: FastAPI, listening: socket.socket, say: Callable[[], None]) -> None:
    """Answer until SIGINT or SIGTERM; both return from here, so that whoever called can tidy up."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE_S, lifespan="on")
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        Server(config, say).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    # uvicorn passes a signal on to whoever handled it before, once it has shut down.
    raise KeyboardInterrupt
