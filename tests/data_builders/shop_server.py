"""A server of photos on this machine, for the tests of fetching: what it serves, loses, delays and cuts short."""

import io
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from data_builders.darn import fetch

HTML = b'<html>This item is sold out</html>'


def jpeg(color='red', size=(8, 8)):
    buffer = io.BytesIO()
    Image.new('RGB', size, color).save(buffer, 'JPEG')
    return buffer.getvalue()


PHOTO = jpeg()


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path, /photo/1 like /photo/2, and keeps count."""

    def do_GET(self):
        shop, kind, host = self.server, self.path.split('/')[1], self.headers['Host'].split(':')[0]
        with shop.lock:
            shop.asked.append(self.path)
            shop.agents.add(self.headers['User-Agent'])
            shop.times.setdefault(host, []).append(time.monotonic())
            shop.active[host] += 1
            shop.most[host] = max(shop.most[host], shop.active[host])
            shop.most['all'] = max(shop.most['all'], sum(shop.active.values()))
            count = shop.asked.count(self.path)
        self.host, self.is_active = host, True
        try:
            getattr(self, f'serve_{kind}')(count)
        finally:
            self.end()

    def end(self):
        """Count the request as over, before its client can see the end of it and ask for the next."""
        if self.is_active:
            self.is_active = False
            with self.server.lock:
                self.server.active[self.host] -= 1

    def send(self, body=b'', status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        if length is None:
            self.end()
        self.end_headers()
        self.wfile.write(body)

    def serve_photo(self, count):
        self.send(PHOTO)

    def serve_brief(self, count):
        time.sleep(0.03)
        self.send(PHOTO)

    def serve_slowly_gone(self, count):
        time.sleep(0.03)
        self.send(b'gone', 404)

    def serve_gone(self, count):
        self.send(b'gone', 404)

    def serve_forbidden(self, count):
        self.send(b'no', 403)

    def serve_page(self, count):
        self.send(HTML)

    def serve_slow(self, count):
        self.server.closing.wait(5)
        self.close_connection = True

    def serve_drip(self, count):
        self.send(PHOTO[:1], length=len(PHOTO))
        for byte in PHOTO[1:]:
            if self.server.closing.wait(0.05):
                break
            self.wfile.write(bytes([byte]))

    def serve_busy(self, count):
        if count == 1:
            self.send(b'', 503, Retry_After='1')
        else:
            self.send(PHOTO)

    def serve_closed(self, count):
        self.send(b'', 429, Retry_After='86400')

    def serve_broken(self, count):
        self.send(b'', 500)

    def serve_cut(self, count):
        self.send(PHOTO[:-100], length=len(PHOTO))

    def serve_chunks(self, count):
        self.protocol_version = 'HTTP/1.1'
        self.send_response(200)
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        self.wfile.write(b'%x\r\n%s\r\n' % (len(PHOTO), PHOTO) + (b'' if self.path.endswith('cut') else b'0\r\n\r\n'))
        self.close_connection = True

    def serve_once_cut(self, count):
        self.serve_cut(count) if count == 1 else self.send(PHOTO)

    def serve_moved(self, count):
        self.send(b'moved', 302, Location=f'/photo/{self.path.split("/")[-1]}')

    def serve_away(self, count):
        self.send(b'moved', 301, Location=f'http://localhost:{self.server.server_port}/brief/{self.path[-1]}')

    def serve_file(self, count):
        self.send(b'moved', 302, Location='file:///etc/hostname')

    def serve_ftp(self, count):
        self.send(b'moved', 302, Location='ftp://127.0.0.1/photo.jpg')

    def serve_round(self, count):
        self.send(b'moved', 302, Location=self.path)

    def serve_large(self, count):
        self.send(PHOTO + b'\0' * 5000)

    def log_message(self, *arguments):
        pass


class Shop(ThreadingHTTPServer):
    """The server, and what it saw."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.asked, self.agents, self.times = [], set(), {}
        self.active, self.most = Counter(), Counter()
        self.lock, self.closing = threading.Lock(), threading.Event()

    def handle_error(self, request, client_address):
        pass  # a client that went away


def files_in(folder):
    """Every file but the lock and lost.txt."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()]
    return sorted(path for path in paths if path not in (fetch.LOST_FILE, fetch.LOCK_FILE))


def lost_in(folder):
    return {line.split('\t')[0]: line.split('\t')[2] for line in (folder / 'lost.txt').read_text().splitlines()}
