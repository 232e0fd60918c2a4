"""`--mode serve`: a web page over a gallery, with a JSON API beside it."""

import functools
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi import Path as InUrl
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from asen_jax.errors import InputError, StoppedError
from asen_jax.search.finder import MAX_RESULTS, Finder
from asen_jax.search.gallery import Gallery
from asen_jax.search.location import DamageError
from asen_jax.search.searching import load_embedder

PAGE = Path(__file__).with_name('page')
MAX_UPLOAD = 20 * 2**20  # bytes of a request
SEARCHES_PER_MINUTE = 1200  # by one client
AT_ONCE = min(4, os.cpu_count() or 1)  # searches; each may hold a decoded photo, up to 0.8 GB
MAX_CONNECTIONS = 500
DRAIN_SECONDS = 30  # for running searches, after SIGTERM
POLICY = {'Content-Security-Policy': "default-src 'self'; img-src 'self' blob: data:"}  # of the page
HEADERS = {'X-Content-Type-Options': 'nosniff', 'X-Frame-Options': 'DENY', 'Referrer-Policy': 'no-referrer'}

Responses = dict[int | str, dict[str, Any]]  # what OpenAPI says about each status
BUSY: Responses = {429: {'description': 'Too many searches in a minute'}}
LARGE: Responses = {413: {'description': f'More than {MAX_UPLOAD:,} bytes'}}
MISSING: Responses = {404: {'description': 'The gallery has no photo with this id'}}
JPEG: Responses = {200: {'content': {'image/jpeg': {}}}}
WHICH = 'an attribute, or several with weights: sleeve_length:2,neckline'
CONDITION = "SQL on the columns of the CSV: color = 'red'"
Id = Annotated[str, InUrl(pattern='^[0-9a-f]{16}$')]


class Found(BaseModel, extra='allow'):
    """A photo that was found, with the columns of the CSV that listed it."""

    path: str
    score: float
    gallery_id: str


class Likely(BaseModel):
    """The most frequent value of an attribute among the nearest photos."""

    value: str
    share: float


class Answer(BaseModel):
    """The photos that were found, the likely values of the query, and where the network looks in it."""

    results: list[Found]
    likely: dict[str, Likely]
    heatmap: list[list[float]] | None


class Problem(BaseModel):
    """Why there is no answer, and what to do."""

    detail: str


class Embedding(BaseModel):
    """A photo's vector under each attribute."""

    attributes: list[str]
    embeddings: list[list[float]]


def serve(folder: Path | str, host: str, port: int, workdir: Path | None = None) -> None:
    """`--mode serve`: serve the gallery in `folder` until a signal, which lets running requests finish.

    The network is that of the gallery's workdir, or of `workdir` if it has moved. Raises InputError if there is none, or if
    the address cannot be used.
    """
    gallery = Gallery.open(folder)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
    except OSError as error:
        why = (error.strerror or str(error)).partition(' (while')[0]
        raise InputError(f'{host}:{port} cannot be used ({why}); choose another --port or --host.') from error
    with listener:
        app = create_app(Finder(gallery, load_embedder(gallery, workdir)), allowed_hosts(host))
        logging.getLogger('python_multipart').setLevel('ERROR')  # malformed uploads are the client's fault
        config = uvicorn.Config(
            app,
            log_level='error',
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        address = f'[{host}]' if ':' in host else host
        print(f'{folder}: {len(gallery):,} photos on http://{address}:{listener.getsockname()[1]}', flush=True)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            raise StoppedError('The server has stopped.', signal.SIGINT) from None


def allowed_hosts(host: str) -> list[str]:
    """The host names that requests may carry: on loopback only its own, so that no other site can pose as the page."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == 'localhost'
    return ['localhost', '127.0.0.1', '[::1]', host] if loopback else ['*']


def create_app(finder: Finder, hosts: list[str]) -> FastAPI:
    """The page and the API."""
    app = FastAPIOffline(
        title='Fashion search by attribute',
        version='1',
        redoc_url=None,
        max_body_size=MAX_UPLOAD,
        responses={400: {'model': Problem, 'description': 'The request cannot be answered'}},
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.mount('/page', StaticFiles(directory=PAGE), name='page')
    limiter, rate = FixedWindowRateLimiter(MemoryStorage()), RateLimitItemPerMinute(SEARCHES_PER_MINUTE)
    run = functools.partial(to_thread.run_sync, limiter=CapacityLimiter(AT_ONCE))

    @app.middleware('http')
    async def limit(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse a client's searches above SEARCHES_PER_MINUTE with status 429, and add HEADERS."""
        client = request.client.host if request.client else ''
        if request.url.path.endswith(('/embed', '/search', '/similar')) and not limiter.hit(rate, client):
            message = f'More than {SEARCHES_PER_MINUTE} searches in a minute; wait a moment.'
            response: Response = JSONResponse({'detail': message}, 429, headers={'Retry-After': '60'})
        else:
            response = await answer(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(InputError)
    async def refuse(request: Request, error: InputError) -> JSONResponse:
        if not isinstance(error, DamageError):
            return JSONResponse({'detail': str(error)}, 400)
        print(error, file=sys.stderr, flush=True)  # for the operator; visitors need not know where the gallery is
        return JSONResponse({'detail': 'The gallery cannot be read; the log of the server says why.'}, 503)

    @app.get('/', include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / 'index.html', headers=POLICY)

    @app.get('/healthz')
    async def health() -> dict[str, Any]:
        """Whether searches can be answered, and the number of photos."""
        return {'status': 'ok', 'photos': await to_thread.run_sync(finder.count)}

    @app.get('/facts')
    async def facts() -> dict[str, Any]:
        """The attributes, the values of each column, and the ids of some photos."""
        return await to_thread.run_sync(finder.facts) | {'max_bytes': MAX_UPLOAD}

    @app.post('/embed', responses=BUSY | LARGE)
    async def embed(photo: UploadFile) -> Embedding:
        """A photo's vector under each attribute."""
        result = await run(lambda: finder.embed(photo.file.read()))
        return Embedding(attributes=list(finder.gallery.attributes), embeddings=result.vectors.tolist())

    @app.post('/search', responses=BUSY | LARGE)
    async def search(
        photo: UploadFile,
        attribute: Annotated[str, Form(description=WHICH)],
        k: Annotated[int, Form(ge=1, le=MAX_RESULTS)] = 20,
        where: Annotated[str | None, Form(description=CONDITION)] = None,
    ) -> Answer:
        """The photos most like an uploaded one. Nothing of the photo is kept."""
        return await run(lambda: finder.search_upload(photo.file.read(), attribute, k, where))

    @app.get('/photos/{photo}/similar', responses=BUSY | MISSING)
    async def similar(
        photo: Id,
        attribute: Annotated[str, Query(description=WHICH)],
        k: Annotated[int, Query(ge=1, le=MAX_RESULTS)] = 20,
        where: Annotated[str | None, Query(description=CONDITION)] = None,
    ) -> Answer:
        """The photos most like one of the gallery."""
        return or_404(await run(finder.search_photo, photo, attribute, k, where))

    @app.get('/photos/{photo}/thumbnail', response_class=Response, responses=MISSING | JPEG)
    async def thumbnail(photo: Id) -> Response:
        """A small picture of a photo of the gallery."""
        picture = or_404(await to_thread.run_sync(finder.thumbnail, photo))
        return Response(picture, media_type='image/jpeg', headers={'Cache-Control': 'private, max-age=600'})

    return app


def or_404(answer: Any) -> Any:
    """`answer`, or status 404 if it is None."""
    if answer is None:
        raise HTTPException(404, 'The gallery has no photo with this id.')
    return answer
