"""Fetches DARN's photos from the published list of URLs, politely; the same command resumes an interrupted run.

Many of the photos, which belong to shops, are gone by now, and so are whole hosts. README.md describes the rules.
"""

import http.client
import logging
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from requests.utils import requote_uri
from tqdm import tqdm
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Retry, parse_url

from asen_jax import files
from asen_jax.data.images import decode
from asen_jax.errors import InputError
from data_builders import annotations

USER_AGENT = 'asen_jax (research; fetches the photos of the published DARN list)'
MAX_BYTES, MAX_REDIRECTS = 20_000_000, 5  # per photo
BODY_TIMEOUTS = 3  # how many timeouts a photo may take in all: each part that arrives restarts the timeout
MAX_RETRY_AFTER = 60.0  # seconds; a host that asks for a longer wait is abandoned
GIVE_UP_AFTER = 7  # photos in a row for which a host gives no answer or is busy
NOT_AN_IMAGE, TOO_LARGE = 'not an image', f'more than {MAX_BYTES // 1_000_000} MB'
REASONS = {
    requests.TooManyRedirects: 'redirected too often',
    requests.exceptions.InvalidSchema: 'redirected to an address that is not HTTP',
    TimeoutError: 'timed out',
    http.client.IncompleteRead: 'cut short',
}
FINAL = ('HTTP 404', 'HTTP 410', NOT_AN_IMAGE, TOO_LARGE, *list(REASONS.values())[:2])  # never requested again
ERRORS = (requests.RequestException, HTTPError, TimeoutError, ValueError, OverflowError)  # the last two: odd headers
LOST_FILE, LOCK_FILE = 'lost.txt', '.fetch.lock'
DECODING = threading.Lock()  # one photo's pixels in memory at a time


class LostError(Exception):
    """Why a photo could not be fetched, and how many failures of its host it counts as."""

    def __init__(self, why: str, failures: int = 0):
        super().__init__(why)
        self.failures = failures


class PatientRetry(Retry):
    """Waits for as long as Retry-After asks, unless that is too long."""

    def increment(self, *args, **kwargs):
        response = kwargs.get('response')  # urllib3 passes it by name
        if response is not None and (self.get_retry_after(response) or 0) > MAX_RETRY_AFTER:
            response.close()
            raise LostError(f'HTTP {response.status}', failures=GIVE_UP_AFTER)
        return super().increment(*args, **kwargs)


class PoliteAdapter(HTTPAdapter):
    """Sends `per_host` requests to a host at a time, redirected ones included, each after a pause."""

    def __init__(self, per_host: int, pause: float, **kwargs):
        super().__init__(**kwargs)
        self.per_host, self.pause, self.slots = per_host, pause, {}

    def send(self, request, *args, **kwargs):
        with self.slots.setdefault(host_of(request.url), threading.Semaphore(self.per_host)):
            time.sleep(self.pause)
            return super().send(request, *args, **kwargs)


class Host:
    """One host's queue, which its workers share, and how often in a row it has failed."""

    def __init__(self, photos: list[tuple[str, str]]):
        self.photos, self.failures, self.given_up = iter(photos), 0, ''


def fetch(
    urls_file: Path,
    folder: Path,
    *,
    workers: int = 16,
    per_host: int = 2,
    pause: float = 0.4,
    timeout: float = 20.0,
    backoff: float = 2.0,
) -> dict[str, int | str | dict[str, int]]:
    """Fetch the photos of `urls_file` that are not in `folder` (data/DARN) yet; returns counts for `summary`.

    At most `workers` requests run at a time, and `per_host` at one host, each after a `pause`. Times are in seconds.
    """
    urls = read_urls(urls_file)
    _check_names(urls, urls_file, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder / LOCK_FILE, f'Another process is fetching photos into {folder}; wait for it or stop it.'):
        absent = [name for name in urls if not (folder / name).is_file()]
        lost = {name: loss for name, loss in _read_lost(folder).items() if not (folder / name).is_file()}
        wanted = {name: urls[name] for name in absent if lost.get(name) not in [(urls[name], why) for why in FINAL]}
        _write_lost(folder, lost)
        try:
            with open_session(workers, per_host, pause, backoff) as session:
                _fetch_all(partial(_fetch_one, session, timeout), wanted, folder, lost, workers, per_host)
        finally:
            _write_lost(folder, lost)
    reasons = Counter(sorted(why for name, (_, why) in lost.items() if name in urls))
    return {
        'fetched': sum(name not in lost for name in wanted),
        'there': len(urls) - len(absent),
        'not_asked': len(absent) - len(wanted),
        'lost': dict(reasons.most_common()),
        'lost_file': str(folder / LOST_FILE),
    }


def summary(result: dict) -> str:
    """The result of `fetch` as a sentence."""
    lost, known = sum(result['lost'].values()), result['not_asked']
    text = f'{result["fetched"]:,} photos fetched, {result["there"]:,} already present, {lost:,} lost'
    if lost:
        text += f' ({", ".join(f"{count:,} {why}" for why, count in result["lost"].items())})'
        text += f', {known:,} of them in an earlier run and not requested again' if known else ''
        text += f'; {result["lost_file"]} lists them'
    return text + '.'


def read_urls(path: Path) -> dict[str, str]:
    """Photos (`pic/ID/NAME.jpg`) and URLs from lines `ID/NAME URL`, with or without `pic/` and `.jpg`; the first counts."""
    urls = {}
    for number, line in enumerate(annotations.read_lines(path), 1):
        if not line:
            continue
        name, *rest = line.split(None, 1)
        match = re.fullmatch(r'(?:pic/)?(\w[\w.-]*/\w[\w.-]*?)(?:\.jpg)?', name, re.ASCII | re.IGNORECASE)
        url = requote_uri(''.join(rest))
        if not match or not host_of(url):
            raise InputError(
                f'{path}, line {number}: {line[:80]!r} is not "ID/NAME URL" of a photo, with an HTTP address; correct the line '
                'or delete it.'
            )
        annotations.check_relative(name, f'{path}, line {number}')
        urls.setdefault(f'pic/{match[1]}.jpg', url)
    return urls


def host_of(url: str) -> str:
    """The host of an http or https address; '' for any other address."""
    try:
        parts = parse_url(url)
    except LocationParseError:
        return ''
    return (parts.host or '') if parts.scheme in ('http', 'https') else ''


def open_session(workers: int, per_host: int, pause: float, backoff: float) -> requests.Session:
    """A session that tries a request up to three times, the last time after `backoff` seconds or the Retry-After.

    It tries again if the host gives no answer, is busy, or reports an error of its own.
    """
    logging.getLogger('urllib3').setLevel(logging.ERROR)  # a warning about each retry would break the progress bar
    statuses = (408, 429, *range(500, 600))
    retry = PatientRetry(2, status_forcelist=statuses, backoff_factor=backoff / 2, raise_on_status=False)
    session = requests.Session()
    session.headers['User-Agent'], session.max_redirects = USER_AGENT, MAX_REDIRECTS
    adapter = PoliteAdapter(per_host, pause, pool_connections=workers, pool_maxsize=workers, max_retries=retry)
    for scheme in ('http://', 'https://'):
        session.mount(scheme, adapter)
    return session


def _fetch_all(
    fetch_one: Callable[[str, Path], None],
    urls: dict[str, str],
    folder: Path,
    lost: dict[str, tuple[str, str]],
    workers: int,
    per_host: int,
) -> None:
    """Fetch every photo, and record in `lost` and lost.txt what could not be fetched.

    After an error or Ctrl-C, waits for the requests that are under way and makes no others.
    """
    recording, stop = threading.Lock(), threading.Event()

    def serve(host: Host) -> None:
        for name, url in host.photos:
            if stop.is_set():
                return
            why = ''
            try:
                if host.given_up:
                    raise LostError(f'host given up: {host.given_up}')
                fetch_one(url, folder / name)
                host.failures = 0
            except LostError as error:
                why = str(error)
                host.failures = host.failures + error.failures if error.failures else 0
                if host.failures >= GIVE_UP_AFTER:
                    host.given_up = why
            with recording:
                lost.pop(name, None)
                if why:
                    lost[name] = url, why
                    lost_file.write(f'{name}\t{url}\t{why}\n')
                    lost_file.flush()  # a killed run loses nothing
                bar.update()

    queues = defaultdict(list)
    for name, url in urls.items():
        queues[host_of(url)].append((name, url))
    for queue in queues.values():
        random.shuffle(queue)  # a host that is given up is asked for other photos in the next run
    hosts = [Host(queue) for queue in sorted(queues.values(), key=len)]  # short queues first, so that few hosts wait
    with (
        (folder / LOST_FILE).open('a', encoding='utf-8') as lost_file,
        tqdm(total=len(urls), desc='Fetching', unit='photo', disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for worker in as_completed([pool.submit(serve, host) for host in hosts * per_host]):
                worker.result()
        finally:
            stop.set()


def _fetch_one(session: requests.Session, timeout: float, url: str, path: Path) -> None:
    """Write the photo at `url` to `path` once it is whole and known to decode."""
    try:
        with session.get(url, timeout=timeout, stream=True) as response:
            status, data, deadline = response.status_code, bytearray(), time.monotonic() + BODY_TIMEOUTS * timeout
            if status != 200:
                raise LostError(f'HTTP {status}', failures=int(status in (429, 503)))
            while part := response.raw.read1(65536, decode_content=True):
                data += part
                if len(data) > MAX_BYTES:
                    raise LostError(TOO_LARGE)
                if time.monotonic() > deadline:
                    raise TimeoutError
    except ERRORS as error:
        why = _describe(error)
        raise LostError(why, failures=int(why not in FINAL)) from error
    try:
        with DECODING:
            decode(bytes(data))
    except ValueError as error:  # the page that a shop shows in place of a photo
        raise LostError(NOT_AN_IMAGE) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.write_atomically(path) as file:
        file.write(data)


def _describe(error: BaseException) -> str:
    """The root of a network error in words that do not differ between hosts, so that equal reasons can be counted."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for kind, reason in REASONS.items():
        if any(isinstance(link, kind) for link in chain):
            return reason
    return getattr(chain[-1], 'strerror', None) or f'no valid HTTP response ({type(chain[-1]).__name__})'


def _check_names(urls: dict[str, str], urls_file: Path, folder: Path) -> None:
    """Refuse URLs of photos that no list of file names contains: fetching them would be pointless."""
    paths = sorted(folder.glob('filenames_*.txt'))
    known = [name for path in paths for name in annotations.read_filenames(path)]
    if known and urls.keys().isdisjoint(known):
        raise InputError(
            f'{urls_file}: none of its photos (the first is {next(iter(urls))}) is in {paths[0]} (the first is '
            f'{known[0]}) or another such list; use URLs and lists of the same release.'
        )


def _read_lost(folder: Path) -> dict[str, tuple[str, str]]:
    """URL and reason of each photo in lost.txt; a killed run may have cut the last line short."""
    path = folder / LOST_FILE
    text = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else ''
    rows = [line.split('\t') for line in text.split('\n')]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def _write_lost(folder: Path, lost: dict[str, tuple[str, str]]) -> None:
    files.write_text(folder / LOST_FILE, ''.join(f'{name}\t{url}\t{why}\n' for name, (url, why) in lost.items()))
