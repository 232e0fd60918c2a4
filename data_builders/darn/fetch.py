"""Fetches DARN's photos from the published list of URLs, politely, and again from where a run stopped.

The photos are shops' of 2015 and before: many are gone, and whole hosts are. Each host has a queue of its own, so that a
slow one holds up no other; a photo that moved joins the queue of its new host. `lost.txt` says what could not be had.
"""

import contextlib
import fcntl
import heapq
import random
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from asen_jax.errors import InputError
from data_builders import annotations
from data_builders.darn import download
from data_builders.darn.download import Answer, host_of

RETRY_PAUSES = (2.0, 10.0)  # seconds before the second and the third try
LONGEST_WAIT = 120.0  # seconds; a host that asks for more is left alone until the next run
GIVE_UP_AFTER = 20  # times in a row that a host gives no answer or is busy: then it is left alone as well
MAX_MOVES = 5
TOO_MANY_MOVES = 'redirected too often'
# lost for good: the next run does not ask for these again
FINAL = ('HTTP 404', 'HTTP 410', download.NOT_AN_IMAGE, download.TOO_LARGE, download.BAD_MOVE, TOO_MANY_MOVES)
LOST_FILE, LOCK_FILE = 'lost.txt', '.fetch.lock'


@dataclass
class Job:
    """A photo to fetch; times are of time.monotonic()."""

    name: str
    url: str  # as listed
    address: str  # where to ask: another after a redirect
    tries: int = 0
    moves: int = 0
    not_before: float = 0.0


@dataclass
class Host:
    """The photos still to be asked of one host, and how it has been answering."""

    jobs: deque[Job] = field(default_factory=deque)
    running: int = 0
    waiting: bool = False  # has its place in Fetcher.turns
    not_before: float = 0.0
    failures: int = 0  # in a row
    given_up: str = ''  # why


def fetch(
    urls_file: Path, folder: Path, *, workers: int = 16, per_host: int = 2, pause: float = 0.2, timeout: float = 20.0
) -> dict:
    """Fetch the photos of `urls_file` that are not in `folder` (data/DARN) yet; counts, for `summary`.

    At most `workers` requests run at a time, `per_host` of them at one host, where they start `pause` seconds apart.
    Ctrl-C and kill leave whole photos only, and the next call goes on.
    """
    urls, folder = read_urls(Path(urls_file)), Path(folder)
    _check_names(urls, Path(urls_file), folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        lost = {name: loss for name, loss in _read_lost(folder).items() if not (folder / name).is_file()}
        there = sum((folder / name).is_file() for name in urls)
        jobs = _plan(urls, folder, lost)
        _write_lost(folder, lost)
        try:
            with (folder / LOST_FILE).open('a', encoding='utf-8') as lost_file, _bar(len(jobs)) as bar:
                fetcher = Fetcher(folder, lost, lost_file, bar, workers, per_host, pause, timeout)
                fetcher.run(jobs)
        finally:
            _write_lost(folder, lost)
    reasons = Counter(why for name, (_, why) in lost.items() if name in urls)
    commonest_first = sorted(reasons.items(), key=lambda reason: (-reason[1], reason[0]))
    return {
        'listed': len(urls), 'fetched': fetcher.fetched, 'there': there, 'not_asked': len(urls) - there - len(jobs),
        'lost': dict(commonest_first), 'lost_file': str(folder / LOST_FILE),
    }  # fmt: skip


def summary(result: dict) -> str:
    """The result of `fetch` as a sentence."""
    lost, before = sum(result['lost'].values()), result['not_asked']
    text = f'{result["fetched"]:,} photos fetched, {result["there"]:,} were there, {lost:,} are lost'
    if lost:
        text += f' ({", ".join(f"{count:,} {why}" for why, count in result["lost"].items())})'
        known = f', {before:,} of them since an earlier run and not asked for again' if before else ''
        text += f'{known}; {result["lost_file"]} lists them'
    return text + '.'


def read_urls(path: Path) -> dict[str, str]:
    """Photo (`pic/ID/NAME.jpg`) and URL of lines `ID/NAME URL`, with or without `pic/` and `.jpg`; a photo's first URL."""
    urls = {}
    for number, line in enumerate(annotations.read_lines(path), 1):
        if not line:
            continue
        where, parts = f'{path}, line {number}', line.split(None, 1)
        if len(parts) != 2:
            raise InputError(f'{where}: {line[:80]!r} is not "ID/NAME URL"; correct the line or delete it.')
        annotations.check_relative(parts[0], where)
        name = re.fullmatch(r'(?:pic/)?(\w[\w.-]*/\w[\w.-]*?)(?:\.jpg)?', parts[0], re.ASCII | re.IGNORECASE)
        if not name:
            raise InputError(f'{where}: {parts[0][:80]!r} is no photo\'s "ID/NAME"; correct the line or delete it.')
        if not host_of(url := download.quote(parts[1])):
            raise InputError(
                f'{where}: {parts[1][:80]!r} is not a http or https address; correct the line or delete it.'
            )
        urls.setdefault(f'pic/{name[1]}.jpg', url)
    return urls


def _check_names(urls: dict[str, str], urls_file: Path, folder: Path) -> None:
    """Refuse URLs whose photos no list of file names knows: they would all be fetched in vain."""
    paths = sorted(folder.glob('filenames_*.txt'))
    known = [name for path in paths for name in annotations.read_filenames(path)]
    if known and urls.keys().isdisjoint(known):
        raise InputError(
            f'{urls_file}: none of its photos (the first, {next(iter(urls))}) is in {paths[0]} (the first, {known[0]}) '
            'or another such list; take URLs and lists of one release.'
        )


def _plan(urls: dict[str, str], folder: Path, lost: dict[str, tuple[str, str]]) -> list[Job]:
    """The photos to ask for: those that are neither there nor lost for good."""
    new, again = [], []
    for name, url in urls.items():
        before, why = lost.get(name, ('', ''))
        if not (folder / name).is_file() and not (before == url and why in FINAL):
            (again if before else new).append(Job(name, url, url))
    random.shuffle(again)  # the next time, a host that is given up soon is asked for others
    return new + again


class Fetcher:
    """Gives every host its turns, and settles what comes back; `run` is all there is to call, and from one thread."""

    def __init__(
        self, folder: Path, lost: dict, lost_file: TextIO, bar: tqdm, workers: int, per_host: int, pause: float,
        timeout: float,
    ):  # fmt: skip
        self.folder, self.lost, self.lost_file, self.bar = folder, lost, lost_file, bar
        self.workers, self.per_host, self.pause, self.timeout = workers, per_host, pause, timeout
        self.fetched = 0
        self.opener = download.make_opener()
        self.hosts: dict[str, Host] = {}
        self.turns: list[tuple[float, str]] = []  # a heap: when a host with jobs may be asked next
        self.running: dict[Future, tuple[Job, Host]] = {}

    def run(self, jobs: list[Job]) -> None:
        """Ask for every job; however this ends, what was running then is waited for and settled."""
        for job in jobs:
            self._queue(job)
        try:
            with ThreadPoolExecutor(self.workers) as pool:
                while self.turns or self.running:
                    self._start(pool)
                    self._settle(self._wait())
        finally:
            self._settle([future for future in self.running if future.done() and not future.exception()])

    def _queue(self, job: Job) -> None:
        name = host_of(job.address)
        host = self.hosts.setdefault(name, Host())
        if host.given_up:
            self._lose(job, f'host given up: {host.given_up}')
        else:
            host.jobs.append(job)
            self._take_turn(name)

    def _take_turn(self, name: str) -> None:
        host = self.hosts[name]
        if host.jobs and host.running < self.per_host and not host.waiting:
            host.waiting = True
            heapq.heappush(self.turns, (max(host.not_before, host.jobs[0].not_before), name))

    def _start(self, pool: ThreadPoolExecutor) -> None:
        """Hand to the threads what may be asked now, and no more: what waits, waits in the hosts' queues."""
        while self.turns and len(self.running) < self.workers and self.turns[0][0] <= time.monotonic():
            _, name = heapq.heappop(self.turns)
            host, now = self.hosts[name], time.monotonic()
            host.waiting = False
            if host.jobs and max(host.not_before, host.jobs[0].not_before) <= now:  # else it was busy since
                job = host.jobs.popleft()
                host.running, host.not_before = host.running + 1, now + self.pause
                future = pool.submit(download.ask, self.opener, job.address, self.folder / job.name, self.timeout)
                self.running[future] = job, host
            self._take_turn(name)

    def _wait(self) -> list[Future]:
        """The requests that are done, once there are some, or none when another host's turn has come."""
        turn = self.turns[0][0] - time.monotonic() if self.turns and len(self.running) < self.workers else None
        if not self.running:
            time.sleep(max(0.0, turn or 0.0))
            return []
        return list(wait(self.running, None if turn is None else max(0.0, turn), FIRST_COMPLETED).done)

    def _settle(self, futures: list[Future]) -> None:
        for future in futures:
            job, host = self.running.pop(future)
            host.running -= 1
            name, answer = host_of(job.address), future.result()
            host.failures = host.failures + 1 if answer.kind in ('busy', 'silent') else 0
            if answer.kind == 'fetched':
                self.fetched += 1
                self.lost.pop(job.name, None)
                self.bar.update()
            elif answer.kind == 'lost':
                self._lose(job, answer.why)
            elif answer.kind == 'moved':
                job.address, job.moves, job.not_before = answer.address, job.moves + 1, 0.0
                self._lose(job, TOO_MANY_MOVES) if job.moves > MAX_MOVES else self._queue(job)
            else:
                self._try_again(job, host, answer)
            self._take_turn(name)

    def _try_again(self, job: Job, host: Host, answer: Answer) -> None:
        """Put the job behind the host's others, unless it or the whole host has had its chances."""
        job.tries += 1
        if answer.wait > LONGEST_WAIT or host.failures >= GIVE_UP_AFTER:
            host.given_up = host.given_up or answer.why
            while host.jobs:
                self._lose(host.jobs.popleft(), f'host given up: {host.given_up}')
        if host.given_up or job.tries > len(RETRY_PAUSES):
            self._lose(job, answer.why)
            return
        job.not_before = time.monotonic() + max(answer.wait, RETRY_PAUSES[job.tries - 1])
        if answer.kind == 'busy':
            host.not_before = max(host.not_before, job.not_before)
        host.jobs.append(job)

    def _lose(self, job: Job, why: str) -> None:
        self.lost[job.name] = job.url, why
        self.lost_file.write(_lost_line(job.name, job.url, why))
        self.lost_file.flush()  # a killed run loses nothing
        self.bar.update()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Two runs at once would ask each host twice as fast; the lock ends with its process, however that ends."""
    with (folder / LOCK_FILE).open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f'Another process fetches photos into {folder}; wait for it, or stop it.') from error
        yield


def _read_lost(folder: Path) -> dict[str, tuple[str, str]]:
    """Photo: URL and why, of lost.txt; a killed run may have cut its last line short."""
    path = folder / LOST_FILE
    lines = path.read_text(encoding='utf-8', errors='replace').split('\n') if path.is_file() else []
    rows = [line.split('\t') for line in lines]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def _write_lost(folder: Path, lost: dict[str, tuple[str, str]]) -> None:
    download.write_whole(folder / LOST_FILE, ''.join(_lost_line(name, *rest) for name, rest in lost.items()).encode())


def _lost_line(name: str, url: str, why: str) -> str:
    return f'{name}\t{url}\t{" ".join(why.split())}\n'


def _bar(total: int) -> tqdm:
    return tqdm(total=total, desc='Fetching', unit='photo', disable=None)
