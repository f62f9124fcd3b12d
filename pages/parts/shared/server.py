"""What the server does besides drawing pages: starts, stops, and hands out exported files."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from streamlit.runtime.pages_manager import PagesManager

from mapmerge_core.errors import MapMergeError

if TYPE_CHECKING:
    import streamlit as st
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Without this, a deep link on a cold server runs a page without app.py, as a folder is called pages.
PagesManager.uses_pages_directory = False


@contextlib.asynccontextmanager
async def lifespan(_app: st.App) -> AsyncIterator[None]:
    """Get ready for the first page; stop the jobs when the server stops."""
    ready = asyncio.create_task(asyncio.to_thread(prepare))
    yield
    await ready
    # Imported here because its caches need the runtime that the app starts before this.
    from pages.parts.shared import state  # noqa: PLC0415

    await asyncio.to_thread(state.close)


def prepare() -> None:
    """Open the store and read the demos' pictures, while a browser already loads the dashboard's scripts."""
    from pages.parts.shared import state  # noqa: PLC0415
    from pages.parts.studies import demos  # noqa: PLC0415

    try:
        state.store().runs.recover()
    except MapMergeError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - there may be no page yet to say it on
        # An error raised here would be shown with a traceback.
        os._exit(1)
    freeze()
    with contextlib.suppress(MapMergeError):  # Home says what is wrong
        demos.find()


def freeze() -> None:
    """Keep what was imported so far out of the garbage collector's sight."""
    # Streamlit collects garbage after every rerun, which takes long once large packages are imported.
    gc.collect()
    gc.freeze()
    # Extension modules complain at the end about objects that were never collected.
    atexit.register(gc.unfreeze)


async def download(request: Request) -> Response:
    """Send a file of a pick's export, found by its number and name and never by a path."""
    from pages.parts.shared import exported, state  # noqa: PLC0415

    wanted = request.path_params.get("file")
    try:
        path = await asyncio.to_thread(state.exported_file, request.path_params["pick"])
    except MapMergeError as error:
        return PlainTextResponse(str(error), status_code=404)
    if wanted is not None:
        beside = {other.name: other for other in exported.beside(path)}
        if wanted not in beside:
            return PlainTextResponse(f"The export has no file '{wanted}'.", status_code=404)
        path = beside[wanted]
    return _weights(path)


async def download_state(request: Request) -> Response:
    """Send what a merge's preparation wrote, found by its number."""
    from pages.parts.shared import state  # noqa: PLC0415

    try:
        path = await asyncio.to_thread(state.state_file, request.path_params["merge"])
    except MapMergeError as error:
        return PlainTextResponse(str(error), status_code=404)
    return _weights(path)


def _weights(path: Path) -> FileResponse:
    # Compressing weights again gains nothing and makes downloads many times slower.
    return FileResponse(path, filename=path.name, headers={"Content-Encoding": "identity"})


class ImagesFromHere:
    """Keeps browsers from loading images from elsewhere, as Streamlit makes them do for a page's icon."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header to every answer."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = "img-src 'self' data: blob:"
            await send(message)

        await self.app(scope, receive, send_with_policy)


MIDDLEWARE = [Middleware(ImagesFromHere)]
ROUTES = [
    Route("/download/{pick:int}", download),
    Route("/download/{pick:int}/{file}", download),
    Route("/download/merge/{merge:int}", download_state),
]
