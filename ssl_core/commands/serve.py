"""``headwater serve``: the champion behind HTTP."""

from __future__ import annotations

import importlib
import importlib.util
import signal
from typing import Annotated, Any

import typer

from ..errors import HeadwaterError


def command(
    model: Annotated[
        str, typer.Option(help="champion, followed as it changes; or an id, which stays")
    ] = "champion",
    host: Annotated[str, typer.Option(help="0.0.0.0: all interfaces")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 8000,
    max_images: Annotated[int, typer.Option(min=1, help="of one request")] = 32,
    max_mib: Annotated[float, typer.Option(min=0.01, help="of one request")] = 32.0,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="of one image, by its header")
    ] = 50_000_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds of one request")] = 30.0,
    max_requests: Annotated[int, typer.Option(min=1, help="at a time")] = 32,
) -> None:
    """Answer /embed and /predict over HTTP, with /health, /ready and /metrics (Prometheus).

    The answers are those of `headwater predict`. SIGTERM ends it after the requests at work.
    There is no login and no TLS: put it behind a proxy that has them. Examples:

        headwater serve --port 8000

        curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' localhost:8000/predict

        curl -F file=@cat.jpg -F file=@dog.png localhost:8000/embed
    """
    uvicorn = _uvicorn()
    from ..config import Paths
    from ..serve._limits import Limits
    from ..serve._model import Holder
    from ..serve.app import create

    limits = Limits(max_images, int(max_mib * 2**20), max_pixels, timeout, max_requests)
    holder = Holder(Paths(), "" if model == "champion" else model, max_pixels)
    config = uvicorn.Config(
        create(holder, limits),
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(timeout) + 1,
    )
    # uvicorn sends itself the signal again when all is done; by then it is only a farewell.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(config)
    server.run()
    if not server.started:
        rule, fix = "could not be taken", "give another --host or --port"
        raise HeadwaterError(f"{host}:{port}", rule, fix)


def _uvicorn() -> Any:
    """The server, if the extra ``serve`` is whole.

    Raises:
        HeadwaterError: it is not installed.
    """
    for name in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            fix = "pip install 'headwater[serve]'"
            raise HeadwaterError("headwater serve", f"needs {name}", fix)
    return importlib.import_module("uvicorn")
