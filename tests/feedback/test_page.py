"""The page in a real browser: keys, dragging, reloading, a server that dies; what is stored."""

import json
import shutil

import pytest
from label_dirs import make, serve, stop

from jaxllm.feedback import items, server
from jaxllm.feedback.labels import Labels

FLAGS = ('--no-sandbox', '--disable-gpu', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--no-first-run')


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    path = shutil.which('chromium') or shutil.which('google-chrome')
    assert path, 'no Chromium; install it, e.g. apt-get install chromium'
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """(directory, process, port); items of three, two and two responses."""
    workdir = make(tmp_path_factory.mktemp('labels'))
    found = [workdir, *serve(workdir)]
    yield found
    stop(found[1])


@pytest.fixture
def page(browser, served):
    """A page of a rater who was never here, and what went wrong in it."""
    context = browser.new_context()
    context.set_default_timeout(10_000)
    page, errors = context.new_page(), []
    page.on('pageerror', lambda error: errors.append(str(error)))
    outside = []
    page.on('request', lambda request: outside.append(request.url) if not request.url.startswith(
        (f'http://127.0.0.1:{served[2]}/', 'data:')) else None)
    page.goto(f'http://127.0.0.1:{served[2]}/')
    yield page
    assert errors == [] and outside == []
    context.close()


def begin(page, name):
    page.fill('#name', name)
    page.keyboard.press('Enter')
    page.wait_for_selector('.response')


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def at(page, number):
    says(page, f'Item {number} of 3')


def says(page, text):
    page.wait_for_selector(f'#position:has-text("{text}")')


def ranks(page):
    """The checked rank of each answer on the screen, 0 = none."""
    return page.evaluate("""[...document.querySelectorAll('.response')].map((card) =>
        Number(card.querySelector('[aria-checked=true]')?.dataset.rank ?? 0))""")


def answers(workdir, rater):
    """{(item, criterion): Answer} with its ranks in the order shown."""
    labels = Labels(workdir)
    found = {at: (answer, [answer.ranks[i] for i in answer.shown])
             for at, answer in labels.of_rater(rater).items()}
    labels.store.close()
    return found


def drag(page, letter, rank):
    start = page.locator(f'.tiers .letter[data-index="{letter}"]').bounding_box()
    end = page.locator(f'.tier[data-rank="{rank}"]').bounding_box()
    page.mouse.move(start['x'] + start['width'] / 2, start['y'] + start['height'] / 2)
    page.mouse.down()
    page.mouse.move(end['x'] + 30, end['y'] + 30, steps=5)
    page.mouse.up()


def test_keys_alone(page, served):
    begin(page, 'Keys')
    labels = Labels(served[0])
    shown = [f'0-{i}' for i in labels.shown('Keys', 'item0')]
    labels.store.close()
    assert page.locator('.response .text').all_text_contents() == shown
    press(page, '2', '1')
    page.keyboard.press('Enter')    # not all are ranked
    assert 'Rank every answer' in page.locator('#said').text_content()
    assert ranks(page) == [2, 1, 0] and answers(served[0], 'Keys') == {}
    press(page, '2', 'c')
    page.keyboard.type('2 is fine')
    press(page, 'Enter')
    at(page, 2)
    press(page, '1', '2', 'u', 'u', 't', 'Enter')           # undone twice, then tied
    at(page, 3)
    press(page, 'b', 'Enter')                               # both bad, the last one of this kind
    says(page, '3 done')
    found = answers(served[0], 'Keys')
    assert [(on_screen, a.all_bad, a.comment) for a, on_screen in found.values()] == [
        ([2, 1, 2], False, '2 is fine'), ([1, 1], False, ''), ([1, 1], True, '')]
    press(page, 'g')                                        # the next criterion
    page.wait_for_selector('#criteria button[aria-current=true]:has-text("safe")')
    assert 'safer' in page.locator('#hint').text_content()
    press(page, 'n', 'p')


def test_dragging_reloading_and_going_back(page, served):
    begin(page, 'Mouse')
    drag(page, 2, 1)
    drag(page, 0, 2)
    drag(page, 1, 2)
    assert ranks(page) == [2, 2, 1]
    drag(page, 1, 3)
    page.reload()                                           # a draft is not lost either
    page.wait_for_selector('.response')
    assert ranks(page) == [2, 3, 1] and answers(served[0], 'Mouse') == {}
    page.click('#save')
    at(page, 2)
    assert answers(served[0], 'Mouse')['item0', 'helpful'][1] == [2, 3, 1]
    page.reload()
    page.wait_for_selector('.response')
    at(page, 2)
    page.click('#back')
    at(page, 1)
    assert ranks(page) == [2, 3, 1]
    assert 'this one is saved' in page.locator('#position').text_content()
    page.locator('.response').nth(0).locator('[data-rank="1"]').click()
    page.click('#save')                                     # changed: the last word counts
    at(page, 2)
    assert answers(served[0], 'Mouse')['item0', 'helpful'][1] == [1, 2, 1]
    page.click('#back')
    at(page, 1)
    page.click('#undo')                                     # taken back
    says(page, '0 done')
    assert answers(served[0], 'Mouse') == {}


def test_a_server_that_is_killed_in_between(page, served):
    begin(page, 'Crash')
    workdir, process, port = served
    stop(process)
    press(page, '1', '2', '3', 'Enter')
    page.wait_for_selector('#offline:visible')
    served[1], _ = serve(workdir, port)
    at(page, 2)
    page.wait_for_selector('#offline', state='hidden')
    assert answers(workdir, 'Crash')['item0', 'helpful'][1] == [1, 2, 3]
    lines = [json.loads(x) for x in (workdir / 'answers.jsonl').read_text().splitlines()]
    assert len({line['key'] for line in lines}) == len(lines)


def test_markup_is_shown_as_text(browser, tmp_path):
    evil = '<img src=x onerror="document.title=1"><b>bold</b>'
    workdir = make(tmp_path)
    items.write_items(workdir, [items.Item('x', ({'role': 'user', 'content': evil},), (evil, ''),
                                           (('a',), ('b',)))])
    labels = Labels(workdir)
    client = server.make_app(labels).test_client()
    context = browser.new_context()
    page = context.new_page()

    def answer(route):   # without a server of its own
        path = route.request.url.removeprefix('http://127.0.0.1:8000')
        reply = client.get(path, base_url='http://127.0.0.1:8000', buffered=True)
        route.fulfill(status=reply.status_code, body=reply.data, headers=dict(reply.headers))
    page.route('**/*', answer)
    page.goto('http://127.0.0.1:8000/')
    begin(page, 'Eve')
    assert page.locator('#prompt .text').text_content() == evil
    assert sorted(page.locator('.response .text').all_text_contents()) == ['(says nothing)', evil]
    assert page.locator('main img, main b:has-text("bold")').count() == 0
    context.close()
    labels.store.close()


def test_a_bad_name(page):
    page.fill('#name', '   ')
    page.keyboard.press('Enter')
    page.wait_for_selector('#start-problem:has-text("expected a name")')
