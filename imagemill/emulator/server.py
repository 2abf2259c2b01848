"""The server: the routes of all vendors on loopback, run in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from imagemill.emulator.answers import BodyTooLargeError, json_answer, read_body
from imagemill.emulator.bfl import BlackForestLabs
from imagemill.emulator.chat import Chat
from imagemill.emulator.cloudflare import PATH as CLOUDFLARE_PATH
from imagemill.emulator.cloudflare import Cloudflare
from imagemill.emulator.console import Console
from imagemill.emulator.fal import APPLICATION, Fal
from imagemill.emulator.fal import PATH as FAL_PATH
from imagemill.emulator.fal_platform import FalPlatform
from imagemill.emulator.openai import OpenAI, speaks_openai
from imagemill.emulator.replicate import Replicate
from imagemill.emulator.runware import Runware
from imagemill.emulator.settings import Settings
from imagemill.emulator.studio import Studio
from imagemill.emulator.together import PATH as TOGETHER_PATH
from imagemill.emulator.together import Together

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["Emulator"]

_Handler = Callable[[Request], Awaitable[Response]]
_T = TypeVar("_T")
_HOST = "127.0.0.1"
_BACKLOG = 2048
_START_S = 10.0
_KEEP_ALIVE_S = 75


class _Server(uvicorn.Server):
    """A uvicorn server that says when it accepts requests."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


class Emulator:
    """Vendors' image APIs on a loopback port, in a daemon thread.

    ```python
    with Emulator(Settings(max_concurrent=20)) as emulator:
        httpx.post(f"{emulator.base_url}/v1/images/generations", ...)
        emulator.bill()
    ```
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        port: int = 0,
        certfile: Path | None = None,
        keyfile: Path | None = None,
    ) -> None:
        """Take the settings; port 0 stands for a free port.

        With a certificate (PEM files) the server speaks https, which fal's own client needs.
        """
        self._certfile = certfile
        self._keyfile = keyfile
        self._first_settings = settings if settings is not None else Settings()
        self._asked_port = port
        self._port = 0
        self._studio: Studio | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on, 0 before the start."""
        return self._port

    @property
    def base_url(self) -> str:
        """The base URL, without a slash at the end."""
        scheme = "http" if self._certfile is None else "https"
        return f"{scheme}://{_HOST}:{self._port}"

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self._studio.settings if self._studio is not None else self._first_settings

    def start(self) -> Self:
        """Listen and answer.

        Raises:
            OSError: The port cannot be used.
        """
        if self._thread is not None:
            message = "The emulator runs already."
            raise RuntimeError(message)
        listener = _listen(self._asked_port)
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(listener, ready), name="emulator", daemon=True
        )
        self._thread.start()
        if not ready.wait(_START_S) or self._failure is not None:
            message = "The emulator did not start."
            raise RuntimeError(message) from self._failure
        return self

    def stop(self) -> None:
        """Cut all connections off and end the thread. Bill and statistics stay readable."""
        if self._thread is None or self._loop is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop_in_loop)
            self._thread.join()
        self._thread = None
        self._loop = None

    def bill(self) -> dict[str, Any]:
        """Return the bill: images, usd, and by_key with one line a digest."""
        return self._call(lambda studio: studio.bill.as_dict())

    def stats(self) -> dict[str, Any]:
        """Return the statistics: counts, requests in flight, and times in Unix seconds."""
        return self._call(lambda studio: studio.report())

    def requests(self, last: int = 20) -> list[dict[str, Any]]:
        """Return the last generation requests as received, oldest first."""
        return self._call(lambda studio: studio.stats.last(last))

    def configure(self, **changes: Any) -> Settings:  # noqa: ANN401 - checked by Settings.
        """Change settings at run time and return them.

        Raises:
            SettingsError: A name is unknown or a value cannot be used.
        """

        def change(studio: Studio) -> Settings:
            studio.configure(studio.settings.changed(changes))
            return studio.settings

        return self._call(change)

    def reset(self) -> None:
        """Clear bill, statistics and the markers used up; what is in flight is charged to the old bill."""
        self._call(lambda studio: studio.reset())

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _call(self, work: Callable[[Studio], _T]) -> _T:
        """Do work on the studio in the server's loop, or here once the server has stopped."""
        studio = self._studio
        if studio is None:
            message = "The emulator has not been started."
            raise RuntimeError(message)

        async def inside() -> _T:
            return work(studio)

        if self._loop is None:
            return work(studio)
        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result()

    def _stop_in_loop(self) -> None:
        if self._studio is not None and self._server is not None:
            self._server.should_exit = True
            self._studio.stop()

    def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(listener, ready))
        except BaseException as error:  # noqa: BLE001 - reported by start() in its own thread.
            self._failure = error
        finally:
            listener.close()
            ready.set()

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        studio = Studio(self._first_settings)
        config = uvicorn.Config(
            _application(studio),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,
            ssl_certfile=self._certfile,
            ssl_keyfile=self._keyfile,
        )
        server = _Server(config, ready.set)
        studio.connections.state = server.server_state
        self._studio = studio
        self._server = server
        try:
            await server.serve([listener])
        finally:
            await studio.close()


def _listen(port: int) -> socket.socket:
    # With the protocol named, asyncio sets TCP_NODELAY on the connections.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _application(studio: Studio) -> Starlette:
    together, openai, fal, console = Together(studio), OpenAI(studio), Fal(studio), Console(studio)
    replicate, bfl, platform = Replicate(studio), BlackForestLabs(studio), FalPlatform(fal)
    request_path = APPLICATION + "/requests/{request_id}"

    def route(method: str, path: str, handler: _Handler, *, counted: bool = True) -> Route:
        endpoint = _counted(studio, f"{method} {path}", handler) if counted else handler
        return Route(path, endpoint, methods=[method])

    async def images(request: Request) -> Response:
        try:
            body = await read_body(request)
        except BodyTooLargeError:
            return together.error(413)
        return await (openai if speaks_openai(body) else together).generate(request, body)

    async def models(request: Request) -> Response:
        asks_together = request.headers.get("authorization", "").lower().startswith("bearer")
        if asks_together and not together.known(request):
            return together.error(401)
        return await platform.models(request)

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        studio.stats.arrive()
        studio.stats.answer(f"{request.method} other", str(status))
        return json_answer({"detail": "There is no such route."}, status)

    routes = [
        route("POST", TOGETHER_PATH, images),
        route("POST", "/{prefix:path}/images/generations", openai.generate),
        route("POST", "/{prefix:path}/chat/completions", Chat(studio).complete),
        route("POST", "/v1/models/{owner}/{name}/predictions", replicate.create),
        route("GET", "/v1/predictions", replicate.predictions),
        route("GET", "/v1/predictions/{id}", replicate.show),
        route("POST", "/v1/predictions/{id}/cancel", replicate.cancel),
        route("POST", "/v1", Runware(studio).post),
        route("POST", CLOUDFLARE_PATH, Cloudflare(studio).run),
        route("POST", "/v1/{model}", bfl.submit),
        route("GET", "/v1/get_result", bfl.result),
        route("POST", f"/sync{FAL_PATH}", fal.run),
        route("GET", f"{request_path}/status", fal.status),
        route("GET", f"{request_path}/status/stream", fal.status_stream),
        route("GET", request_path, fal.result),
        route("PUT", f"{request_path}/cancel", fal.cancel),
        route("GET", "/v1/models", models),
        route("GET", "/v1/models/pricing", platform.pricing),
        route("GET", "/v1/models/billing-events", platform.billing_events),
        route("GET", "/v1/models/requests/by-endpoint", platform.requests),
        route("GET", "/v1/models/{owner}/{name}", replicate.model),
        route("POST", FAL_PATH, fal.submit),
        route("GET", "/files/{name}", studio.links.download),
        route("GET", "/__bill", console.bill, counted=False),
        route("GET", "/__stats", console.stats, counted=False),
        route("GET", "/__config", console.config, counted=False),
        route("POST", "/__config", console.config, counted=False),
        route("POST", "/__reset", console.reset, counted=False),
        route("GET", "/__requests", console.requests, counted=False),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: refuse})


def _counted(studio: Studio, route: str, handler: _Handler) -> _Handler:
    async def count(request: Request) -> Response:
        studio.stats.arrive()
        answer = await handler(request)
        outcome = getattr(answer, "outcome", None) or str(answer.status_code)
        studio.stats.answer(route, outcome)
        return answer

    return count
