"""One request for one photo, by the standard library alone: bounded in bytes and time, http and https only."""

import email.utils
import http.client
import re
import ssl
import string
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

from asen_jax.data.images import decode

USER_AGENT = 'asen_jax/0.1 (research; fetches the photos of the published DARN list)'
MAX_BYTES = 20_000_000  # of a photo
BODY_TIMEOUTS = 3  # a photo may take so many timeouts altogether, as each part that arrives starts the timeout anew
NOT_AN_IMAGE, TOO_LARGE = 'not an image', f'more than {MAX_BYTES // 1_000_000} MB'
BAD_MOVE = 'redirected to no http address'
DECODING = threading.Lock()  # one photo's pixels in memory at a time


class Answer(NamedTuple):
    """What became of a request: fetched, lost, moved; or to be tried again: failed, busy (the host), silent."""

    kind: str
    why: str = ''
    address: str = ''  # moved: where to
    wait: float = 0.0  # busy: seconds that the host asks for


def ask(opener: urllib.request.OpenerDirector, address: str, path: Path, timeout: float) -> Answer:
    """One request; what comes is at `path` only once it is whole and decodes as a photo."""
    try:
        with opener.open(address, timeout=timeout) as response:
            if (answer := _judge(response, address)) is not None:
                return answer
            data = _read_body(response, time.monotonic() + BODY_TIMEOUTS * timeout)
    except http.client.HTTPException as error:
        cut = isinstance(error, http.client.IncompleteRead)
        return Answer('failed', 'cut short' if cut else f'no HTTP ({type(error).__name__})')
    except OSError as error:
        return Answer('silent', _say(error))
    except ValueError:
        return Answer('failed', 'no name that a host can have')
    if len(data) > MAX_BYTES:
        return Answer('lost', TOO_LARGE)
    try:
        with DECODING:
            decode(data)
    except ValueError:  # the page that a shop shows in the place of a photo
        return Answer('lost', NOT_AN_IMAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)
    return Answer('fetched')


def _say(error: OSError) -> str:
    """Why there was no answer, in words that count well: without what differs from one host to another."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return 'timed out'
    if isinstance(reason, ssl.SSLError):
        return 'TLS error'
    return getattr(reason, 'strerror', None) or str(reason)


def _judge(response: http.client.HTTPResponse, address: str) -> Answer | None:
    """What status and headers say; None where a photo may follow."""
    status, location = response.status, response.headers['Location']
    if status in (301, 302, 303, 307, 308) and location:
        target = urllib.parse.urljoin(address, quote(location, 'iso-8859-1'))  # as http.client decoded it
        return Answer('moved', address=target) if host_of(target) else Answer('lost', BAD_MOVE)
    if status in (429, 503):
        return Answer('busy', f'HTTP {status}', wait=_seconds(response.headers['Retry-After']))
    if status == 408 or status >= 500:
        return Answer('failed', f'HTTP {status}')
    return None if status == 200 else Answer('lost', f'HTTP {status}')


def host_of(url: str) -> str:
    """The host that a http or https address names; '' for any other address."""
    try:
        parts = urllib.parse.urlsplit(url)
        return (parts.hostname or '') if parts.scheme in ('http', 'https') and parts.port != 0 else ''
    except ValueError:  # a port or an IPv6 address that is none
        return ''


def _read_body(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body; a byte more than MAX_BYTES of a larger one."""
    parts, size = [], 0
    while size <= MAX_BYTES and (part := response.read1(min(65536, MAX_BYTES + 1 - size))):
        if time.monotonic() > deadline:  # a drop now and then never runs into the timeout itself
            raise TimeoutError
        parts.append(part)
        size += len(part)
    if size <= MAX_BYTES and response.length:  # what Content-Length still promises
        raise http.client.IncompleteRead(b'', response.length)
    return b''.join(parts)


def _seconds(retry_after: str | None) -> float:
    """Retry-After, which is a number of seconds or a date; 0 where it says nothing that can be read."""
    text = (retry_after or '0').strip()
    try:
        if re.fullmatch(r'[+-]?[\d_]+', text):
            return max(0.0, float(int(text)))
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def quote(url: str, encoding: str = 'utf-8') -> str:
    """`url` with what may not stand in a request as %XX; what is written so already stays."""
    return urllib.parse.quote(url, safe=string.punctuation, encoding=encoding, errors='replace')


def make_opener() -> urllib.request.OpenerDirector:
    """An opener that knows http and https only, no file or ftp, and that leaves redirects and statuses to us."""
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [('User-Agent', USER_AGENT)]
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()):
        opener.add_handler(handler)
    return opener


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is never seen half-written."""
    part = path.with_name(f'.{path.name}.part')
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
