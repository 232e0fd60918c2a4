"""Fetching DARN's photos from a server of our own: what it serves, loses, delays and cuts short."""

import email.utils
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from asen_jax.errors import InputError
from data_builders.darn import download
from data_builders.darn import fetch as fetching
from tests.conftest import ROOT
from tests.data_builders.shop_server import PHOTO, Handler, Shop, files_in, lost_in


@pytest.fixture
def shop(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(fetching, 'RETRY_PAUSES', (0.01, 0.02))
    with Shop() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def listed(shop, tmp_path):
    """Writes a list of URLs: names and paths of the server."""

    def write(entries, host='127.0.0.1'):
        lines = [f'{name} http://{host}:{shop.server_port}/{path}\n' for name, path in entries.items()]
        with (tmp_path / 'darn_url.txt').open('a') as file:
            file.writelines(lines)
        return tmp_path / 'darn_url.txt'

    return write


def run(urls_file, **options):
    options = {'pause': 0.0, 'timeout': 2.0, **options}
    return fetching.fetch(urls_file, urls_file.parent / 'DARN', **options)


def test_whole_photos_land_and_lost_ones_are_listed(shop, listed, tmp_path):
    urls_file = listed({'1/a': 'photo/a', 'pic/1/b.jpg': 'moved/b', '2/c': 'page/c', '2/d.jpg': 'gone/d'})
    result = run(urls_file, per_host=1)  # one after the other: the reasons are sorted all the same
    folder = tmp_path / 'DARN'
    assert files_in(folder) == ['pic/1/a.jpg', 'pic/1/b.jpg']
    assert (folder / 'pic/1/a.jpg').read_bytes() == (folder / 'pic/1/b.jpg').read_bytes() == PHOTO
    assert lost_in(folder) == {'pic/2/c.jpg': 'not an image', 'pic/2/d.jpg': 'HTTP 404'}
    address = f'http://127.0.0.1:{shop.server_port}/gone/d'  # as listed
    assert f'pic/2/d.jpg\t{address}\tHTTP 404\n' in (folder / 'lost.txt').read_text()
    assert result == {
        'listed': 4, 'fetched': 2, 'there': 0, 'not_asked': 0, 'lost': {'HTTP 404': 1, 'not an image': 1},
        'lost_file': f'{folder}/lost.txt',
    }  # fmt: skip
    assert fetching.summary(result) == (
        '2 photos fetched, 0 were there, 2 are lost (1 HTTP 404, 1 not an image); ' + f'{folder}/lost.txt lists them.'
    )
    assert len(shop.agents) == 1 and 'asen_jax' in shop.agents.pop()


def test_a_second_run_asks_only_for_what_may_have_come_back(shop, listed, tmp_path, monkeypatch):
    urls_file = listed(
        {'1/a': 'photo/a', '1/b': 'gone/b', '1/c': 'page/c', '1/d': 'forbidden/d', '1/e': 'slow/e', '1/f': 'file/f'}
    )
    first = run(urls_file, timeout=0.3)
    assert first['lost'] == {
        'HTTP 404': 1, 'not an image': 1, 'HTTP 403': 1, 'timed out': 1, 'redirected to no http address': 1
    }  # fmt: skip
    shop.asked.clear()
    monkeypatch.setattr(Handler, 'serve_slow', Handler.serve_photo)
    monkeypatch.setattr(Handler, 'serve_gone', Handler.serve_photo)
    second = run(urls_file)
    assert sorted(shop.asked) == ['/forbidden/d', '/slow/e']
    assert (second['fetched'], second['there'], second['not_asked']) == (1, 1, 3)
    assert lost_in(tmp_path / 'DARN').keys() == {f'pic/1/{name}.jpg' for name in 'bcdf'}
    assert '3 of them since an earlier run and not asked for again' in fetching.summary(second)
    (tmp_path / 'DARN' / 'lost.txt').unlink()  # the way to have all of them asked for again
    assert run(urls_file)['fetched'] == 1
    shop.asked.clear()
    urls_file.write_text(urls_file.read_text().replace('page/c', 'photo/c'))  # the list has another URL now
    assert run(urls_file)['fetched'] == 1
    assert '/photo/c' in shop.asked


@pytest.mark.parametrize(
    ('kind', 'why', 'requests'),
    [
        ('slow', 'timed out', 3),
        ('drip', 'timed out', 3),
        ('broken', 'HTTP 500', 3),
        ('cut', 'cut short', 3),
        ('chunks/cut', 'cut short', 3),
        ('gone', 'HTTP 404', 1),
        ('forbidden', 'HTTP 403', 1),
        ('file', 'redirected to no http address', 1),
        ('ftp', 'redirected to no http address', 1),
        ('round', 'redirected too often', fetching.MAX_MOVES + 1),
        ('large', 'more than 20 MB', 1),
    ],
)
def test_tries_again_where_that_may_help(shop, listed, tmp_path, monkeypatch, kind, why, requests):
    monkeypatch.setattr(download, 'MAX_BYTES', 4000)
    monkeypatch.setattr(download, 'BODY_TIMEOUTS', 1)
    result = run(listed({'1/a': kind, '1/b': 'photo/b'}), timeout=0.3)
    assert lost_in(tmp_path / 'DARN') == {'pic/1/a.jpg': why} and result['lost'] == {why: 1}
    assert shop.asked.count(f'/{kind}') == requests
    assert files_in(tmp_path / 'DARN') == ['pic/1/b.jpg']


def test_a_second_try_may_bring_the_photo(shop, listed, tmp_path):
    result = run(listed({'1/a': 'busy', '1/b': 'once_cut', '1/c': 'chunks/whole'}), per_host=1)
    assert files_in(tmp_path / 'DARN') == ['pic/1/a.jpg', 'pic/1/b.jpg', 'pic/1/c.jpg'] and not result['lost']
    assert (tmp_path / 'DARN' / 'lost.txt').read_text() == ''
    # the whole host was left alone for the second of its Retry-After
    times = shop.times['127.0.0.1']
    assert times[1] - times[0] >= 1
    assert Counter(shop.asked) == {'/busy': 2, '/once_cut': 2, '/chunks/whole': 1}


def test_a_host_that_asks_for_more_patience_than_we_have_is_left_alone(shop, listed):
    result = run(listed({'1/a': 'closed/a', '1/b': 'photo/b', '1/c': 'photo/c'}), per_host=1)
    assert shop.asked == ['/closed/a']
    assert result['lost'] == {'host given up: HTTP 429': 2, 'HTTP 429': 1}


def test_a_dead_host_is_given_up_and_another_is_not_held_up(shop, listed, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, 'GIVE_UP_AFTER', 4)
    urls_file = listed({f'1/{i}': f'slow/{i}' for i in range(40)})
    listed({f'2/{i}': f'photo/{i}' for i in range(5)}, 'localhost')
    with urls_file.open('a') as file:
        file.write('3/a http://127.0.0.1:1/refused\n4/a http://no..host/x\n')
    result = run(urls_file, timeout=0.3, workers=4)
    assert result['fetched'] == 5
    assert sum(path.startswith('/slow') for path in shop.asked) <= 5
    lost = Counter(lost_in(tmp_path / 'DARN').values())
    assert lost['host given up: timed out'] >= 35 and sum(lost.values()) == 42
    assert lost_in(tmp_path / 'DARN')['pic/4/a.jpg'] == 'no name that a host can have'


def test_refused_connections_are_tried_again_in_the_next_run(shop, tmp_path):
    (tmp_path / 'list').write_text('1/a http://127.0.0.1:1/a\n')
    assert run(tmp_path / 'list')['lost'] == {'Connection refused': 1}
    (tmp_path / 'list').write_text(f'1/a http://127.0.0.1:{shop.server_port}/photo\n')
    assert run(tmp_path / 'list')['lost'] == {}


def test_few_requests_run_at_one_host_and_they_start_apart(shop, listed):
    urls_file = listed({f'1/{i}': f'brief/{i}' for i in range(12)})
    listed({f'2/{i}': f'brief/{i}' for i in range(12)}, 'localhost')
    assert run(urls_file, per_host=3)['fetched'] == 24
    assert 1 < shop.most['127.0.0.1'] <= 3 and 1 < shop.most['localhost'] <= 3 < shop.most['all'] <= 6
    shop.most.clear()
    urls_file.write_text('')
    listed({f'3/{i}': f'brief/{i}' for i in range(8)})
    listed({f'4/{i}': f'brief/{i}' for i in range(8)}, 'localhost')
    run(urls_file, workers=2, per_host=2)
    assert shop.most['all'] == 2
    shop.times.clear()
    urls_file.write_text('')
    listed({f'5/{i}': f'photo/{i}' for i in range(6)})
    run(urls_file, pause=0.05)
    times = shop.times['127.0.0.1']
    assert times[-1] - times[0] > 0.2


def test_photos_that_moved_to_one_host_share_its_turns(shop, listed):
    result = run(listed({f'1/{i}': f'away/{i}' for i in range(10)}), per_host=2, workers=8)
    assert result['fetched'] == 10
    assert shop.most['localhost'] == 2


def test_only_what_may_be_asked_is_handed_to_the_threads(shop, listed, monkeypatch):
    """With 300,000 photos nothing else would be bounded."""
    sizes, submit = [], fetching.ThreadPoolExecutor.submit

    def counted(pool, *arguments):
        sizes.append(pool._work_queue.qsize())
        return submit(pool, *arguments)

    monkeypatch.setattr(fetching.ThreadPoolExecutor, 'submit', counted)
    assert run(listed({f'1/{i}': f'photo/{i}' for i in range(60)}), workers=4, per_host=60)['fetched'] == 60
    assert max(sizes) <= 4


def test_the_list_may_look_in_several_ways(tmp_path):
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
    ('line', 'says'),
    [
        ('1/b', '\'1/b\' is not "ID/NAME URL"'),
        ('/1/b http://x/b', "'/1/b' is an absolute path"),
        ('../b http://x/b', "'../b' leaves the folder"),
        ('pic/../../b http://x/b', 'leaves the folder'),
        ('b http://x/b', '"ID/NAME"'),
        ('1/2/3/b http://x/b', '"ID/NAME"'),
        ('1/.b http://x/b', '"ID/NAME"'),
        ('1/b file:///etc/passwd', "'file:///etc/passwd' is not a http or https address"),
        ('1/b ftp://x/b.jpg', 'is not a http'),
        ('1/b x/b.jpg', 'is not a http'),
        ('1/b http:///b.jpg', 'is not a http'),
        ('1/b http://x:port/b.jpg', 'is not a http'),
        ('1/b http://[x/b.jpg', 'is not a http'),
    ],
)
def test_a_malformed_line_is_named_before_anything_is_fetched(shop, listed, tmp_path, line, says):
    urls_file = listed({'1/a': 'photo/a'})
    urls_file.write_text(f'{urls_file.read_text()}{line}\n')
    with pytest.raises(InputError) as caught:
        run(urls_file)
    assert str(caught.value).startswith(f'{urls_file}, line 2: ') and says in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not shop.asked and not (tmp_path / 'DARN').exists()


def test_urls_of_other_photos_than_the_lists_are_refused(shop, listed, tmp_path):
    urls_file = listed({'1/a': 'photo/a'})
    (tmp_path / 'DARN').mkdir()
    (tmp_path / 'DARN' / 'filenames_test.txt').write_text('pic/1/a_1.jpg\n')
    with pytest.raises(InputError, match=r'none of its photos \(the first, pic/1/a\.jpg\) is in .*filenames_test\.txt'):
        run(urls_file)
    (tmp_path / 'DARN' / 'filenames_valid.txt').write_text('pic/1/a.jpg\n')
    assert run(urls_file)['fetched'] == 1


def test_a_missing_list_and_a_second_process_are_said(shop, listed, tmp_path):
    with pytest.raises(InputError, match=r'no\.txt cannot be read'):
        run(tmp_path / 'no.txt')
    urls_file = listed({'1/a': 'photo/a'})
    (tmp_path / 'DARN').mkdir()
    with fetching._lock(tmp_path / 'DARN'), pytest.raises(InputError, match='Another process fetches photos into'):
        run(urls_file)


def test_a_full_disk_is_no_lost_photo(shop, listed, tmp_path):
    (tmp_path / 'DARN').mkdir()
    (tmp_path / 'DARN' / 'pic').touch()  # nothing can be written below it
    with pytest.raises(OSError, match='pic'):
        run(listed({'1/a': 'photo/a'}))
    assert lost_in(tmp_path / 'DARN') == {}


def test_ctrl_c_waits_for_what_runs_and_keeps_it(shop, listed, tmp_path, monkeypatch):
    settle = fetching.Fetcher._settle

    def interrupt(fetcher, futures):
        settle(fetcher, futures)
        if fetcher.fetched >= 3 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    interrupted = []
    monkeypatch.setattr(fetching.Fetcher, '_settle', interrupt)
    urls_file = listed({f'1/{i}': f'{"slowly_gone" if i % 2 else "brief"}/{i}' for i in range(30)})
    with pytest.raises(KeyboardInterrupt):
        run(urls_file, workers=4, per_host=4)
    folder = tmp_path / 'DARN'
    photos, lost, asked = files_in(folder), lost_in(folder), set(shop.asked)
    assert len(photos) + len(lost) == len(asked) < 20  # what ran was waited for and settled, nothing else was asked
    assert all(path.endswith('.jpg') and (folder / path).read_bytes() == PHOTO for path in photos)
    assert not any(thread.name.startswith('ThreadPoolExecutor') for thread in threading.enumerate())
    shop.asked.clear()
    assert run(urls_file)['fetched'] == 15 - len(photos)
    assert len(shop.asked) == 30 - len(asked) and not asked & set(shop.asked)


def test_a_killed_run_goes_on(shop, listed, tmp_path):
    urls_file = listed({f'1/{i}': f'{"gone" if i % 2 else "photo"}/{i}' for i in range(200)})
    code = (
        f'from data_builders.darn import fetch; fetch.fetch({str(urls_file)!r}, {str(tmp_path / "DARN")!r}, pause=0.02)'
    )
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'no_proxy': '*'})
    while len(shop.asked) < 20 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    folder = tmp_path / 'DARN'
    lost, there = lost_in(folder), [path for path in files_in(folder) if not path.endswith('.part')]
    assert 5 < len(lost) < 100 and 5 < len(there) < 100
    assert all((folder / path).read_bytes() == PHOTO for path in there)
    with (folder / 'lost.txt').open('a') as file:
        file.write('pic/1/199.jpg\thttp://x')  # cut short
    shop.asked.clear()
    result = run(urls_file)
    assert len(shop.asked) == 200 - len(lost) - len(there)
    assert result['lost'] == {'HTTP 404': 100} and len(files_in(folder)) == 100


def test_retry_after_is_seconds_or_a_date():
    assert download._seconds('7') == 7 and download._seconds('-7') == 0
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 55 < download._seconds(date) <= 60
    assert download._seconds(email.utils.formatdate(0, usegmt=True)) == 0
    for nonsense in (None, '', 'soon', '1e9', 'inf', '٣', 'Mon, 99 Foo 2020'):
        assert download._seconds(nonsense) in (0, 3)
