"""Search in a served gallery from many clients at once, and report latency, errors, and the server's memory.

    python main.py --mode serve --gallery=DIR &
    python benchmarks/serve_load.py --images=FOLDER [--clients 32] [--seconds 120]

Each client uploads a random photo, or starts from a photo of the gallery, under a random attribute, and asks again as soon as it has
the answer. Needs the extra `dev`. Clients have loopback addresses of their own, since the server bounds the rate of each.
"""

import argparse
import collections
import random
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import numpy as np


def main(argv: Sequence[str]) -> int:
    """Run the clients; 0 if every answer had status 200."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--images', required=True, help='folder with JPEGs to upload')
    parser.add_argument('--clients', default=32, type=int)
    parser.add_argument('--seconds', default=120, type=float)
    parser.add_argument('--port', default=8000, type=int)
    args = parser.parse_args(argv)
    photos = [path.read_bytes() for path in sorted(Path(args.images).glob('*.jpg'))[:500]]
    address = f'http://127.0.0.1:{args.port}'
    facts = httpx2.get(f'{address}/facts').json()
    process = find_server(args.port)
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    statuses: list[int] = []  # 0 for a connection that failed
    stop = time.monotonic() + args.seconds

    def client(number: int) -> None:
        rng, own = random.Random(number), f'127.0.{number // 250}.{number % 250 + 2}'
        with httpx2.Client(transport=httpx2.HTTPTransport(local_address=own), base_url=address, timeout=60) as session:
            while time.monotonic() < stop:
                fields, kind = {'attribute': rng.choice(facts['attributes'])}, rng.choice(['upload', 'photo'])
                start = time.monotonic()
                try:
                    if kind == 'upload':
                        answer = session.post('/search', data=fields, files={'photo': rng.choice(photos)})
                    else:
                        answer = session.get(f'/photos/{rng.choice(facts["examples"])}/similar', params=fields)
                    statuses.append(answer.status_code)
                except httpx2.TransportError:
                    statuses.append(0)
                seconds[kind].append(time.monotonic() - start)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(args.clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(resident(process))
        time.sleep(min(5, args.seconds / 10))
    for kind, times in sorted(seconds.items()):
        percentiles = ', '.join(f'p{p} {np.percentile(times, p):.2f} s' for p in (50, 95, 99))
        print(f'{kind}: {len(times):,} searches, {percentiles}')
    counts = dict(collections.Counter(statuses))
    print(f'statuses: {counts}; {len(statuses) / args.seconds:.1f} searches per second')
    megabytes = ', '.join(f'{number:,.0f}' for number in memory[:: max(1, len(memory) // 12)])
    print(f'resident memory of the server in MB: {megabytes}')
    return 0 if set(counts) == {200} else 1


def find_server(port: int) -> Path:
    """The folder in /proc of the process that listens on `port` (Linux)."""
    lines = [line.split() for line in Path('/proc/net/tcp').read_text().splitlines()[1:]]
    [inode] = [line[9] for line in lines if line[1].endswith(f':{port:04X}') and line[3] == '0A']
    for handle in Path('/proc').glob('[0-9]*/fd/*'):
        try:
            if str(handle.readlink()) == f'socket:[{inode}]':
                return handle.parents[1]
        except OSError:  # a process that has ended, or one of another user
            continue
    raise SystemExit(f'No process of yours listens on port {port}.')


def resident(process: Path) -> float:
    """The resident memory of a process in MB."""
    [line] = [line for line in (process / 'status').read_text().splitlines() if line.startswith('VmRSS')]
    return int(line.split()[1]) / 1000


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
