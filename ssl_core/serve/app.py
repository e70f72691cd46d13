"""The FastAPI application: /embed, /predict, /health, /ready and /metrics.

A request holds the images themselves, raw or as multipart files; no name is ever opened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..parallel import ordered_map
from ._limits import Bounded, Limits, Refused, settings
from ._metrics import CONTENT_TYPE, Measured, Metrics, reasons
from ._model import Holder

POLL = 2.0  # seconds between looks at the registry
RAW = ("image/", "application/octet-stream", "application/x-npy")
NAME = 200  # characters of a file's name that are given back
THREADS = 2  # that decode one request
Named = tuple[str, bytes]
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
        },
    }
}


def create(holder: Holder, limits: Limits) -> FastAPI:
    """The application for one model holder."""
    metrics = Metrics()
    metrics.serving(holder.model.id)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_follow(holder, metrics))
        yield
        task.cancel()

    # No docs pages: they would load scripts from elsewhere.
    app = FastAPI(
        title="headwater", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(Bounded, limits=limits)
    app.add_middleware(Measured, metrics=metrics)  # outermost: it sees refusals too
    app.add_exception_handler(Refused, _refusal)
    app.add_exception_handler(HTTPException, _http)
    _answers(app, holder, limits, metrics)
    _signs(app, holder, limits, metrics)
    return app


async def _follow(holder: Holder, metrics: Metrics) -> None:
    """Take over each new champion."""
    while True:
        await asyncio.sleep(POLL)
        if await asyncio.to_thread(holder.refresh):
            metrics.serving(holder.model.id)
            metrics.reloads.inc()
        metrics.stuck.set(bool(holder.problem))


# ---- answers -----------------------------------------------------------------------------------


def _answers(app: FastAPI, holder: Holder, limits: Limits, metrics: Metrics) -> None:
    @app.post("/predict", openapi_extra=BODY)
    async def predict(request: Request) -> JSONResponse:
        """Class and calibrated confidence of each image."""
        return await reply(request, ("prediction", "confidence"))

    @app.post("/embed", openapi_extra=BODY)
    async def embed(request: Request) -> JSONResponse:
        """Pooled features of each image."""
        return await reply(request, ("embedding",))

    async def reply(request: Request, keys: tuple[str, ...]) -> JSONResponse:
        files = await received(request, limits)
        # Unlike Starlette's threads these can be left behind: the client has its answer in time.
        work = asyncio.to_thread(_work, holder, files, keys)
        try:
            body = await asyncio.wait_for(work, limits.seconds)
        except TimeoutError:
            rule = f"took more than {limits.seconds:g} s"
            fix = "send fewer images at a time"
            raise Refused(504, f"{len(files)} images", rule, fix) from None
        bad = reasons(body["results"])
        metrics.images.inc(len(files) - len(bad))
        for reason in bad:
            metrics.rejects.labels(reason).inc()
        return JSONResponse(body, 422 if len(bad) == len(files) else 200)


def _work(holder: Holder, files: list[Named], keys: tuple[str, ...]) -> dict[str, Any]:
    """Decode and answer; an image that cannot be read has its reason in its place."""
    model = holder.model
    seen = list(ordered_map(lambda f: holder.see(model, *f), files, THREADS, ahead=THREADS))
    rows = iter(holder.answer(model, [s for s in seen if s.pixels is not None]))
    results: list[dict[str, Any]] = []
    for one in seen:
        if one.pixels is None:
            error = {"reason": one.reason, "detail": one.detail}
            results.append({"name": one.path, "error": error})
            continue
        row = next(rows)
        values = {k: row[k].tolist() if hasattr(row[k], "tolist") else row[k] for k in keys}
        results.append({"name": one.path, "sha256": one.sha256, **values})
    return {"model": model.id, "results": results}


async def received(request: Request, limits: Limits) -> list[Named]:
    """(name, bytes) of all images in a request.

    Raises:
        Refused: another content type, no image, or too many.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            files = await _parts(request, limits)
        elif kind.startswith(RAW):
            files = [("", await request.body())]
        else:
            rule = "is not taken"
            fix = "send image/*, application/octet-stream, or multipart/form-data with files"
            raise Refused(415, f"content type '{kind[:NAME]}'", rule, fix)
    except ClientDisconnect:
        raise Refused(400, "body", "ended early: the client went away", "send it again") from None
    if not files or files == [("", b"")]:
        raise Refused(400, "body", "holds no image", "send its bytes, or multipart files")
    return files


async def _parts(request: Request, limits: Limits) -> list[Named]:
    try:
        async with request.form(max_files=limits.images, max_fields=16) as form:
            parts = [v for _, v in form.multi_items() if isinstance(v, UploadFile)]
            return [((p.filename or "")[:NAME], await p.read()) for p in parts]
    except HTTPException as error:
        many = "Too many files" in str(error.detail)
        fix = f"send at most {limits.images} files" if many else "send a well-formed form"
        raise Refused(413 if many else 400, "multipart body", str(error.detail), fix) from None


# ---- signs of life -----------------------------------------------------------------------------


def _signs(app: FastAPI, holder: Holder, limits: Limits, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The process answers; what it takes."""
        return {"status": "ok", "version": __version__, "limits": settings(limits)}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """The model answers; ``stale`` says why a newer champion does not."""
        body = {"status": "ready", "model": holder.model.id}
        return JSONResponse(body | ({"stale": holder.problem} if holder.problem else {}))

    @app.get("/metrics")
    async def scraped() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


async def _refusal(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return error.response()


async def _http(request: Request, error: Exception) -> JSONResponse:
    """404 and 405 in the same words as all else."""
    assert isinstance(error, HTTPException)
    value = f"{request.method} {request.url.path[:NAME]}"
    fix = "POST /predict or /embed; GET /health, /ready, /metrics or /openapi.json"
    return Refused(error.status_code, value, str(error.detail).lower(), fix).response()
