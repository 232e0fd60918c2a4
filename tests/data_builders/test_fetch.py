"""Fetching DARN's photos from a server on this machine: what it serves, loses, delays and cuts short."""

import email.utils
import io
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from asen_jax import files
from asen_jax.errors import InputError
from data_builders.darn import fetch as fetching
from tests.conftest import ROOT

BUFFER = io.BytesIO()
Image.new('RGB', (8, 8), 'red').save(BUFFER, 'JPEG')
PHOTO = BUFFER.getvalue()
ANSWERS = {  # by the first part of the path: status, headers, body
    'photo': (200, {}, PHOTO),
    'brief': (200, {}, PHOTO),  # after a moment
    'page': (200, {}, b'<html>This item is sold out</html>'),
    'large': (200, {}, PHOTO + bytes(5000)),
    'cut': (200, {'Content-Length': len(PHOTO) + 1}, PHOTO),
    'cut_chunk': (200, {'Transfer-Encoding': 'chunked'}, b'%x\r\n%s\r\n' % (len(PHOTO), PHOTO)),
    'drip': (200, {'Content-Length': 10_000}, PHOTO),
    'slow': (200, {}, PHOTO),
    'gone': (404, {}, b'gone'),
    'forbidden': (403, {}, b'no'),
    'broken': (500, {}, b''),
    'busy': (429, {'Retry-After': email.utils.formatdate(0, usegmt=True)}, b''),
    'odd_wait': (503, {'Retry-After': 'Mon, 1 Jan 99999 00:00:00 GMT'}, b''),
    'closed': (429, {'Retry-After': '86400'}, b''),
    'moved': (302, {'Location': '/photo'}, b''),
    'away': (301, {'Location': 'http://localhost:{port}/brief'}, b''),
    'round': (302, {'Location': '/round'}, b''),
    'file': (302, {'Location': 'file:///etc/hostname'}, b''),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        shop, kind, host = self.server, self.path.split('/')[1], self.headers['Host'].split(':')[0]
        with shop.lock:
            shop.asked.append(self.path)
            shop.times.append(time.monotonic())
            shop.active[host] += 1
            shop.most[host] = max(shop.most[host], shop.active[host])
            shop.most['all'] = max(shop.most['all'], shop.active.total())
            if kind == 'recovers':
                kind = 'broken' if shop.asked.count(self.path) == 1 else 'photo'
        if kind in ('brief', 'slow'):
            shop.closing.wait(0.03 if kind == 'brief' else 5)
        status, headers, body = ANSWERS[kind]
        with shop.lock:  # before the client can see the answer and send its next request
            shop.active[host] -= 1
        self.send_response(status)
        for name, value in {'Content-Length': len(body), 'Connection': 'close', **headers}.items():
            if name != 'Content-Length' or 'Transfer-Encoding' not in headers:
                self.send_header(name, str(value).format(port=shop.server_port))
        self.end_headers()
        self.wfile.write(body)
        while kind == 'drip' and not shop.closing.wait(0.02):
            self.wfile.write(b'.')

    def log_message(self, *arguments):
        pass


class Shop(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.asked, self.times, self.active, self.most = [], [], Counter(), Counter()
        self.lock, self.closing = threading.Lock(), threading.Event()

    def handle_error(self, request, client_address):
        pass  # the client went away


@pytest.fixture
def shop(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with Shop() as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def listed(shop, tmp_path):
    """Appends photos and paths on the server to the list of URLs."""

    def write(entries, host='127.0.0.1'):
        with (tmp_path / 'darn_url.txt').open('a') as file:
            file.writelines(f'{name} http://{host}:{shop.server_port}/{path}\n' for name, path in entries.items())
        return tmp_path / 'darn_url.txt'

    return write


def run(urls_file, **options):
    options = {'pause': 0.0, 'backoff': 0.02, 'timeout': 2.0, **options}
    return fetching.fetch(urls_file, urls_file.parent / 'DARN', **options)


def photos_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.jpg'))


def lost_in(folder):
    return {line.split('\t')[0]: line.split('\t')[2] for line in (folder / 'lost.txt').read_text().splitlines()}


def test_whole_photos_are_kept_and_lost_ones_are_listed(shop, listed, tmp_path):
    urls_file = listed({'1/a': 'photo/a', 'pic/1/b.jpg': 'moved/b', '2/c': 'page/c', '2/d.jpg': 'gone/d'})
    result, folder = run(urls_file), tmp_path / 'DARN'
    assert photos_in(folder) == ['pic/1/a.jpg', 'pic/1/b.jpg']
    assert {(folder / path).read_bytes() for path in photos_in(folder)} == {PHOTO}
    lines = (folder / 'lost.txt').read_text().splitlines()
    address = f'http://127.0.0.1:{shop.server_port}'
    assert sorted(lines) == [f'pic/2/c.jpg\t{address}/page/c\tnot an image', f'pic/2/d.jpg\t{address}/gone/d\tHTTP 404']
    assert fetching.summary(result) == (
        f'2 photos fetched, 0 already present, 2 lost (1 HTTP 404, 1 not an image); {folder}/lost.txt lists them.'
    )


def test_a_second_run_asks_only_for_photos_that_may_have_come_back(shop, listed, tmp_path, monkeypatch):
    paths = {'1/a': 'photo/a', '1/b': 'gone/b', '1/c': 'page/c', '1/d': 'forbidden/d', '1/e': 'cut/e', '1/f': 'file/f'}
    urls_file = listed(paths)
    urls_file.write_text(urls_file.read_text() + '2/a http://127.0.0.1:1/a\n2/b http://no..host/b\n')
    first = {'HTTP 403', 'HTTP 404', 'Connection refused', 'cut short', 'not an image'}
    assert first < run(urls_file)['lost'].keys()
    shop.asked.clear()
    monkeypatch.setitem(ANSWERS, 'cut', ANSWERS['photo'])
    second = run(urls_file)
    assert sorted(shop.asked) == ['/cut/e', '/forbidden/d']
    assert (second['fetched'], second['there'], second['not_asked']) == (1, 1, 3)
    lost = {f'pic/{name}.jpg' for name in ('1/b', '1/c', '1/d', '1/f', '2/a', '2/b')}
    assert lost_in(tmp_path / 'DARN').keys() == lost
    assert '3 of them in an earlier run and not requested again' in fetching.summary(second)
    urls_file.write_text(urls_file.read_text().replace('page/c', 'photo/c'))  # another URL is another chance
    assert run(urls_file)['fetched'] == 1


@pytest.mark.parametrize(
    ('kind', 'why', 'requests'),
    [
        ('slow', 'timed out', 3),
        ('broken', 'HTTP 500', 3),
        ('busy', 'HTTP 429', 3),
        ('closed', 'HTTP 429', 1),
        ('odd_wait', 'no valid HTTP response (ValueError)', 1),
        ('drip', 'timed out', 1),
        ('cut', 'cut short', 1),
        ('cut_chunk', 'cut short', 1),
        ('forbidden', 'HTTP 403', 1),
        ('file', 'redirected to an address that is not HTTP', 1),
        ('round', 'redirected too often', fetching.MAX_REDIRECTS + 1),
        ('large', 'more than 20 MB', 1),
    ],
)
def test_one_lost_photo_costs_no_other(shop, listed, tmp_path, monkeypatch, kind, why, requests):
    monkeypatch.setattr(fetching, 'MAX_BYTES', 4000)
    listed({'1/a': kind})
    result = run(listed({'2/b': 'recovers/b'}, 'localhost'), timeout=0.1)
    assert lost_in(tmp_path / 'DARN') == {'pic/1/a.jpg': why} and result['lost'] == {why: 1}
    assert shop.asked.count(f'/{kind}') == requests
    assert photos_in(tmp_path / 'DARN') == ['pic/2/b.jpg']


def test_a_host_is_given_up_when_it_fails_repeatedly_or_asks_for_a_long_wait(shop, listed, monkeypatch):
    monkeypatch.setattr(fetching, 'GIVE_UP_AFTER', 3)
    urls_file = listed({f'1/{i}': f'busy/{i}' for i in range(30)})
    listed({f'2/{i}': f'closed/{i}' for i in range(30)}, 'localhost')
    result = run(urls_file, per_host=1)
    assert result['lost'] == {'host given up: HTTP 429': 27 + 29, 'HTTP 429': 3 + 1}
    assert len(shop.asked) == 3 * 3 + 1


def test_few_requests_run_at_a_time_redirected_ones_included(shop, listed):
    urls_file = listed({f'1/{i}': f'{"away" if i % 2 else "brief"}/{i}' for i in range(24)})
    listed({f'2/{i}': f'brief/{i}' for i in range(12)}, 'localhost')
    assert run(urls_file, per_host=3)['fetched'] == 36
    assert 1 < shop.most['127.0.0.1'] <= 3 and 1 < shop.most['localhost'] <= 3 < shop.most['all'] <= 6
    shop.most.clear()
    shop.times.clear()
    assert run(listed({f'3/{i}': f'brief/{i}' for i in range(4)}), workers=1, pause=0.05)['fetched'] == 4
    assert shop.most['all'] == 1 and shop.times[-1] - shop.times[0] > 3 * 0.05


def test_every_way_to_write_the_list_is_read(tmp_path):
    path = tmp_path / 'darn_url.txt'
    path.write_bytes(
        b'\xef\xbb\xbf1/a.jpg http://x/a?b=1&c=%20\r\npic/1/b\thttps://x:8080/\xe6\x97\xa5 1\r\n\r\n'
        b'1/a http://x/other\r\npic/1/c.JPG  HTTP://X/c'
    )
    assert fetching.read_urls(path) == {
        'pic/1/a.jpg': 'http://x/a?b=1&c=%20',
        'pic/1/b.jpg': 'https://x:8080/%E6%97%A5%201',
        'pic/1/c.jpg': 'HTTP://X/c',
    }


@pytest.mark.parametrize(
    'line',
    [
        '1/b',
        '/1/b http://x/b',
        'pic/../../b http://x/b',
        'b http://x/b',
        '1/.b http://x/b',
        '1/b file:///etc/passwd',
        '1/b x/b.jpg',
        '1/b http:///b.jpg',
        '1/b http://[x/b.jpg',
    ],
)
def test_a_malformed_line_is_reported_before_anything_is_fetched(shop, listed, tmp_path, line):
    urls_file = listed({'1/a': 'photo/a'})
    urls_file.write_text(f'{urls_file.read_text()}{line}\n')
    with pytest.raises(InputError) as caught:
        run(urls_file)
    assert str(caught.value).startswith(f'{urls_file}, line 2: {line!r} is not "ID/NAME URL"')
    assert not shop.asked and not (tmp_path / 'DARN').exists()


def test_urls_of_another_release_and_a_second_process_are_refused(shop, listed, tmp_path):
    urls_file, folder = listed({'1/a': 'photo/a'}), tmp_path / 'DARN'
    folder.mkdir()
    (folder / 'filenames_test.txt').write_text('pic/1/a_1.jpg\n')
    with pytest.raises(
        InputError, match=r'none of its photos \(the first is pic/1/a\.jpg\) is in .*filenames_test\.txt'
    ):
        run(urls_file)
    (folder / 'filenames_valid.txt').write_text('pic/1/a.jpg\n')
    with files.lock(folder / fetching.LOCK_FILE, ''), pytest.raises(InputError, match='Another process is fetching'):
        run(urls_file)
    assert run(urls_file)['fetched'] == 1


def test_a_full_disk_is_an_error_and_not_a_lost_photo(shop, listed, tmp_path):
    (tmp_path / 'DARN').mkdir()
    (tmp_path / 'DARN/pic').touch()  # so that no folder can be made
    with pytest.raises(OSError, match='pic'):
        run(listed({'1/a': 'photo/a'}))
    assert lost_in(tmp_path / 'DARN') == {}


@pytest.mark.parametrize(('number', 'most'), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
def test_a_killed_or_interrupted_run_resumes(shop, listed, tmp_path, number, most):
    urls_file, folder = listed({f'1/{i}': f'{"gone" if i % 2 else "photo"}/{i}' for i in range(200)}), tmp_path / 'DARN'
    code = (
        'import pathlib, signal; from data_builders.darn import fetch; '
        'signal.signal(signal.SIGINT, signal.default_int_handler); '  # background jobs start with it ignored
        f'fetch.fetch(pathlib.Path({str(urls_file)!r}), pathlib.Path({str(folder)!r}), pause=0.02)'
    )
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while len(shop.asked) < 20 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
    lost, photos = lost_in(folder), photos_in(folder)
    assert 2 < len(lost) < 100 and 2 < len(photos) < 100
    assert len(shop.asked) - len(lost) - len(photos) <= 2 * most  # the photos that were under way
    with (folder / 'lost.txt').open('a') as file:
        file.write('pic/1/199.jpg\thttp://x')  # cut short
    shop.asked.clear()
    assert run(urls_file)['lost'] == {'HTTP 404': 100}
    assert len(shop.asked) == 200 - len(lost) - len(photos) and len(photos_in(folder)) == 100
