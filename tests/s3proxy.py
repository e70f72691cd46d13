"""A proxy before a real S3 server that spoils chosen answers, as networks and servers do."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>planted</Message></Error>"
REFUSALS = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
}


class Proxy:
    """``fault(method, key, number)`` names what happens to the number-th request for a key.

    ``503``, ``500``, ``expired``, ``denied``: refused. ``cut``: half of the answer's body, then the
    connection ends. ``stall``: half of it, then silence. ``slow``: all of it, in small pieces with
    pauses. ``lost``: the request reaches the server, the answer is lost. ``torn``: half of the
    request's body reaches the server.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.asked: list[tuple[str, str, str]] = []  # method, key, range
        self.fault: Callable[[str, str, int], str] = lambda method, key, number: ""
        self.lock, self.over = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def any(self) -> None:
                outer.serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = any

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, to: BaseHTTPRequestHandler) -> None:
        key = urlsplit(to.path).path.lstrip("/")
        with self.lock:
            self.asked.append((to.command, key, to.headers.get("Range", "")))
            number = sum(a[:2] == (to.command, key) for a in self.asked)
        kind = self.fault(to.command, key, number)
        body = _request_body(to)
        if kind in REFUSALS:
            _refuse(to, *REFUSALS[kind])
        else:
            self._forward(to, body, kind)

    def _forward(self, to: BaseHTTPRequestHandler, body: bytes, kind: str) -> None:
        host, port = self.target.hostname or "", self.target.port
        upstream = http.client.HTTPConnection(host, port, timeout=30)
        try:
            sent = body[: len(body) // 2] if kind == "torn" else body
            upstream.putrequest(to.command, to.path, skip_host=True, skip_accept_encoding=True)
            for name, value in to.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(sent)
            if kind == "torn":
                upstream.close()
                _hang_up(to)
                return
            answer = upstream.getresponse()
            self._answer(to, answer, answer.read(), kind)
        finally:
            upstream.close()

    def _answer(
        self, to: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, body: bytes, kind: str
    ) -> None:
        if kind == "lost":
            _hang_up(to)
            return
        to.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                to.send_header(name, value)
        length = answer.getheader("Content-Length") if to.command == "HEAD" else len(body)
        to.send_header("Content-Length", str(length))
        to.end_headers()
        if kind in ("cut", "stall"):
            to.wfile.write(body[: len(body) // 2])
            to.wfile.flush()
            if kind == "stall":
                self.over.wait(60)
            _hang_up(to)
        elif kind == "slow":
            step = max(1, len(body) // 8)
            for start in range(0, len(body), step):
                to.wfile.write(body[start : start + step])
                to.wfile.flush()
                time.sleep(0.05)
        else:
            to.wfile.write(body)

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def _request_body(to: BaseHTTPRequestHandler) -> bytes:
    return to.rfile.read(int(to.headers.get("Content-Length") or 0))


def _refuse(to: BaseHTTPRequestHandler, status: int, code: str) -> None:
    body = ERROR.format(code).encode()
    to.send_response(status)
    to.send_header("Content-Type", "application/xml")
    to.send_header("Content-Length", str(len(body)))
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(body)


def _hang_up(to: BaseHTTPRequestHandler) -> None:
    to.close_connection = True
    with contextlib.suppress(OSError):
        to.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def running(target: str) -> Iterator[Proxy]:
    """A proxy before ``target``, an address of scheme http."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
