"""The server: GET only, on loopback, for whoever has the address with its token.

A submit machine has many users, and each of them can reach its loopback. So the address holds a
random token. It is traded for a cookie, which goes out only for a path that is random, too: cookies
do not know ports, and another user's server on the same host must never be sent ours.
A page of elsewhere whose name is made to lead here (DNS rebinding) is told by its Host header.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from condorctl.errors import UserError
from condorctl.ledger import Ledger
from condorctl.web import output, page
from condorctl.web.views import Views, encoded

_COOKIE = "condorctl"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NO_PARTS = "default-src 'none'; frame-ancestors 'none'"
# To be followed by a page of this host, not by the one that led here: of a request that another
# site began, a strict cookie stays behind, also when it is sent on.
_ENTER = '<!doctype html><meta http-equiv="refresh" content="0; url={}"><title>condorctl</title>'


class Guard:
    """Lets through, to the application below `place`, who has the token or its cookie.

    `first` is the fragment of the page to begin with.
    """

    def __init__(self, app: ASGIApp, hosts: set[str], first: str = "") -> None:
        self._app, self._hosts, self._first = app, hosts, first
        self.token, self._session = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self.place = f"/{secrets.token_urlsafe(12)}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", _NO_PARTS)
            await send(message)

        answer = self._answer(Request(scope))
        if answer is None:
            scope = {**scope, "path": scope["path"][len(self.place) - 1 :]}
        await (answer or self._app)(scope, receive, send_headers)

    def _answer(self, request: Request) -> Response | None:
        """What to say instead of the application; None lets the request through."""
        if request.method not in {"GET", "HEAD"}:
            return _refusal("this page is for looking only", 405, {"Allow": "GET, HEAD"})
        if not self._knows(request.headers.getlist("host")):
            return _refusal("this is not the host that was asked for", 421)
        if request.url.path == "/" and (token := request.query_params.get("token")):
            if _same(token, self.token):
                return self._enter()
        elif request.url.path.startswith(self.place) and _same(
            request.cookies.get(_COOKIE, ""), self._session
        ):
            return None
        return _refusal("open the whole address that `condorctl web` printed", 403)

    def _enter(self) -> Response:
        answer = HTMLResponse(_ENTER.format(f"{self.place}{self._first}"))
        answer.set_cookie(_COOKIE, self._session, path=self.place, httponly=True, samesite="strict")
        return answer

    def _knows(self, given: list[str]) -> bool:
        if len(given) != 1:
            return False
        # Whatever the port: a tunnel (ssh -L) has its own.
        name, _, port = given[0].lower().rpartition(":")
        name = name if name and port.isdigit() else given[0].lower()
        try:
            # An address leads nowhere else than where it says.
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name.removesuffix(".") in self._hosts
        return True


def application(views: Views) -> Starlette:
    """The page and its JSON, without a guard."""

    def show(request: Request) -> Response:
        return HTMLResponse(page.live(), headers={"Content-Security-Policy": page.policy()})

    def runs(request: Request) -> Response:
        return _json(views.runs())

    def run(request: Request) -> Response:
        return _json(views.run(_word(request, "run")))

    def curves(request: Request) -> Response:
        return _json(views.curves(_word(request, "run")))

    def printed(request: Request) -> Response:
        stream = _word(request, "stream")
        for known in output.STREAMS:
            if stream == known:
                return _json(views.output(_word(request, "job"), known))
        raise UserError(f"stream={stream}: out or err")

    def complain(request: Request, error: Exception) -> Response:
        if isinstance(error, UserError):
            return _json({"error": str(error)}, 404)
        known = isinstance(error, OSError)
        return _json({"error": str(error) if known else "a mistake of condorctl's own"}, 500)

    return Starlette(
        routes=[
            Route("/", show), Route("/runs", runs), Route("/run", run),
            Route("/curves", curves), Route("/output", printed),
        ],
        exception_handlers={UserError: complain, OSError: complain, Exception: complain},
    )  # fmt: skip


def serve(
    ledger: Ledger, run: str | None, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve the page until SIGINT or SIGTERM; `ready` is called with its address.

    Raises UserError where the address cannot be taken.
    """
    with _listen(host, port) as listening:
        guard = Guard(application(Views(ledger)), _names(host), f"#/{quote(run)}" if run else "")
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}/?token={guard.token}")
        # Its log would hold the token.
        config = uvicorn.Config(
            guard, log_config=None, access_log=False, server_header=False, lifespan="off",
            ws="none", proxy_headers=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}: leave it out, or name one") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # Whoever gets the address may come before the server does.
        listening.listen()
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        mend = "--port 0 takes a free one" if taken else "name another"
        raise UserError(f"--host {host} --port {port}: {error.strerror}: {mend}") from None
    return listening


def _names(host: str) -> set[str]:
    return {"localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}


def _same(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), wanted.encode())


def _word(request: Request, name: str) -> str:
    word = request.query_params.get(name)
    if not word:
        raise UserError(f"{name} is missing")
    return word


def _json(value: dict[str, Any], code: int = 200) -> Response:
    return Response(encoded(value), code, media_type="application/json")


def _refusal(words: str, code: int, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{words}\n", code, headers)
