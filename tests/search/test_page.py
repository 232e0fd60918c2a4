"""The web page in a browser: Debian's Chromium, steered by Selenium."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageStat
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from asen_jax.search.indexing import index_photos
from data_builders.synthetic.garments import draw_garment
from tests.conftest import ROOT
from tests.search.conftest import ATTRIBUTES

pytestmark = pytest.mark.browser
OPTIONS = ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-sync')
OPTIONS += ('disable-background-networking', 'disable-component-update', 'window-size=1200,900')


@pytest.fixture(scope='module')
def shop(network, tmp_path_factory):
    """A gallery of drawn garments, with the length of their sleeves and the color of their season."""
    folder, lines = tmp_path_factory.mktemp('shop'), ['path,sleeve_length,season']
    seasons = itertools.cycle(['summer', 'winter'])
    for number in range(40):
        garment = draw_garment(0, number, 96)
        garment.image.save(folder / f'{number}.jpg')
        lines.append(f'{number}.jpg,{garment.labels["sleeve_length"]},{next(seasons)}')
    (folder / 'list.csv').write_text('\n'.join(lines))
    index_photos(network, folder / 'list.csv', folder / 'gallery')
    draw_garment(0, 99, 96).image.save(folder / 'upload.png')
    return folder


@pytest.fixture(scope='module')
def address(shop, workdir):
    command = [sys.executable, '-u', ROOT / 'main.py', '--mode=serve', f'--gallery={shop / "gallery"}', '--port=0']
    with subprocess.Popen([*command, f'--workdir={workdir}'], stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[-1]
        process.terminate()


@pytest.fixture
def browser(tmp_path, address):
    options = webdriver.ChromeOptions()
    options.binary_location = '/usr/bin/chromium'
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    for option in (*OPTIONS, f'user-data-dir={tmp_path / "chromium"}'):
        options.add_argument(f'--{option}')
    with webdriver.Chrome(options, webdriver.ChromeService('/usr/bin/chromedriver')) as browser:
        browser.get(address)
        wait(browser, lambda: ranking(browser))
        yield browser
        assert browser.get_log('browser') == []  # no error, and nothing that the page's policy blocks


def wait(browser, condition):
    return WebDriverWait(browser, 30).until(lambda _: condition())


def ranking(browser):
    """The paths of the photos on the page, best first."""
    script = "return [...document.querySelectorAll('#results button')].map(b => b.title.split('\\n')[0])"
    return [Path(path).name for path in browser.execute_script(script)]


def status(browser):
    return browser.find_element(By.ID, 'status').text


def after(browser, action):
    """The ranking once `action` has changed it."""
    before = ranking(browser)
    action()
    return wait(browser, lambda: ranking(browser) != before and ranking(browser))


def test_a_visitor_uploads_a_photo_switches_attributes_filters_and_shares(browser, shop, tmp_path):
    assert len(browser.find_elements(By.CSS_SELECTOR, '#examples li')) == 12
    upload = browser.find_element(By.ID, 'file')
    after(browser, lambda: upload.send_keys(str(shop / 'upload.png')))
    assert f'24 photos most similar in {ATTRIBUTES[0].replace("_", " ")}' in status(browser)
    assert not browser.find_element(By.ID, 'share').is_displayed()
    first = browser.find_element(By.CSS_SELECTOR, 'input[name=attribute]')
    after(browser, lambda: first.send_keys(Keys.ARROW_RIGHT))  # by keyboard alone
    assert 'in neckline' in status(browser)

    browser.find_element(By.CSS_SELECTOR, '#filter summary').click()
    season = Select(browser.find_element(By.NAME, 'season'))
    winter = after(browser, lambda: season.select_by_value('winter'))
    assert len(winter) == 20
    assert all(int(name.split('.')[0]) % 2 for name in winter)

    after(browser, browser.find_element(By.CSS_SELECTOR, '#results button').click)
    assert winter[0] not in ranking(browser)
    assert browser.find_element(By.ID, 'share').is_displayed()
    link, found = browser.current_url, ranking(browser)
    assert 'filter.season=winter' in link
    browser.get(link)
    assert wait(browser, lambda: ranking(browser)) == found

    wait(browser, lambda: browser.execute_script('return [...document.images].every(image => image.complete)'))
    screenshot = Path(os.environ.get('SCREENSHOTS', tmp_path)) / 'page.png'
    assert browser.save_screenshot(str(screenshot))
    with Image.open(screenshot) as image:
        assert ImageStat.Stat(image.convert('L')).stddev[0] > 5  # not an empty page


def test_a_file_that_is_no_photo_is_explained_and_the_ranking_stays(browser, tmp_path):
    (tmp_path / 'script.jpg').write_text('#!/bin/sh')
    before = ranking(browser)
    browser.find_element(By.ID, 'file').send_keys(str(tmp_path / 'script.jpg'))
    wait(browser, lambda: 'not a readable picture' in status(browser))
    assert ranking(browser) == before
    assert [line['message'] for line in browser.get_log('browser') if '400' not in line['message']] == []


def test_back_returns_to_an_uploaded_photo_and_more_can_be_shown(browser, shop):
    upload = browser.find_element(By.ID, 'file')
    uploaded = after(browser, lambda: upload.send_keys(str(shop / 'upload.png')))
    clicked = after(browser, browser.find_element(By.CSS_SELECTOR, '#results button').click)
    assert browser.execute_script('return document.activeElement.id') == 'found-title'
    assert after(browser, browser.find_element(By.ID, 'more').click)[:24] == clicked
    assert len(ranking(browser)) == 39
    assert not browser.find_element(By.ID, 'more').is_displayed()
    assert after(browser, browser.back) == uploaded
    assert not browser.find_element(By.ID, 'share').is_displayed()
    assert after(browser, browser.forward) == clicked


@pytest.mark.parametrize(
    ('link', 'says'), [('?photo=x', 'does not name a photo'), (f'?photo={"0" * 16}', 'no photo with this id')]
)
def test_links_to_no_photo_are_explained(browser, address, link, says):
    browser.get(f'{address}/{link}')
    wait(browser, lambda: says in status(browser))
    assert [line['message'] for line in browser.get_log('browser') if '404' not in line['message']] == []


@pytest.mark.parametrize(('width', 'scheme'), [(360, 'light'), (360, 'dark'), (1600, 'dark')])
def test_the_page_fits_its_window_and_follows_the_color_scheme(browser, width, scheme):
    size = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    media = {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    color = browser.execute_script('return getComputedStyle(document.body).backgroundColor')
    assert (color == 'rgb(255, 255, 255)') == (scheme == 'light')


def test_everything_that_can_be_used_has_a_name(browser):
    unnamed = browser.execute_script("""
        return [...document.querySelectorAll('button, input, select, summary, a')]
            .filter((e) => !(e.ariaLabel || (e.matches('input, select') ? e.labels[0] : e)?.textContent.trim()))
            .map((e) => e.outerHTML)
    """)
    assert unnamed == []
