"""The interface of the page: blind, from this machine alone, nothing stored that does not fit."""

import errno
import functools
import http.client
import json

import pytest
from label_dirs import make, rate, serve, stop

from jaxllm.errors import InputError
from jaxllm.feedback import server
from jaxllm.feedback.labels import Labels

GOOD = {'key': 'k1', 'rater': 'Ann', 'item': 'item0', 'criterion': 'helpful', 'ranks': [2, 1, 2],
        'all_bad': False, 'comment': 'c', 'seconds': 1.5}


@pytest.fixture
def labels(tmp_path):
    return Labels(make(tmp_path))


@pytest.fixture
def client(labels):
    app = server.make_app(labels)
    app.testing = True
    client = app.test_client()
    client.open = functools.partial(client.open, base_url='http://127.0.0.1:8000',
                                    buffered=True)
    return client


def test_an_answer_comes_back(client, labels):
    reply = client.post('/api/answer', json=GOOD)
    assert reply.json == {'stored': True, 'done': {'helpful': ['item0'], 'safe': []}}
    assert client.post('/api/answer', json=GOOD).json['stored'] is False
    session = client.get('/api/session?rater=Ann').json
    assert session['items'] == ['item0', 'item1', 'item2'] and session['done']['helpful'] == [
        'item0']
    item = client.get('/api/item?rater=Ann&id=item0').json
    assert item['answers'] == {'helpful': {'ranks': [2, 1, 2], 'all_bad': False, 'comment': 'c'}}
    order = labels.shown('Ann', 'item0')
    assert item['responses'] == [f'0-{i}' for i in order]
    assert client.get('/api/item?rater=Bob&id=item0').json['answers'] == {}
    gone = {name: GOOD[name] for name in ('rater', 'item', 'criterion')} | {'key': 'k2'}
    assert client.post('/api/withdraw', json=gone).json['done']['helpful'] == []


def test_raters_are_blind(client, labels):
    rate(labels, 'Bob', 'item0', [1, 2, 3])
    for path in ('/api/session?rater=Ann', '/api/item?rater=Ann&id=item0'):
        text = client.get(path).get_data(as_text=True)
        assert all(f'"{source}"' not in text for source in ('m0', 'm1', 'm2', 'Bob'))


@pytest.mark.parametrize('host', ['evil.example', 'evil.example:8000', '192.168.0.1:8000',
                                  '127.0.0.1.evil.example:8000', '127.0.0.1:81', ''])
def test_other_hosts_are_refused(client, host):
    for path in ('/', '/label.js', '/api/session?rater=Ann'):
        assert client.get(path, environ_overrides={'HTTP_HOST': host}).status_code == 403
    assert client.get('/', environ_overrides={'HTTP_HOST': 'localhost:8000'}).status_code == 200


def test_other_web_sites_cannot_post(client, labels):
    assert client.post('/api/answer', json=GOOD,
                       headers={'Origin': 'http://evil.example'}).status_code == 403
    assert client.post('/api/answer', json=GOOD, headers={'Origin': 'null'}).status_code == 403
    assert client.post('/api/answer', data=json.dumps(GOOD),
                       content_type='text/plain').status_code == 415
    assert labels.answers() == []
    assert client.post('/api/answer', json=GOOD,
                       headers={'Origin': 'http://127.0.0.1:8000'}).status_code == 200


@pytest.mark.parametrize('sent, status', [
    (GOOD | {'ranks': [1]}, 400), (GOOD | {'item': 'x'}, 400), (GOOD | {'rater': ''}, 400),
    ([1], 400), ({}, 400), (GOOD | {'more': 1}, 400), (GOOD | {'comment': 'x' * 300_000}, 413)])
def test_what_does_not_fit_is_refused_with_a_reason(client, labels, sent, status):
    reply = client.post('/api/answer', json=sent)
    assert reply.status_code == status and reply.json['error']
    assert labels.answers() == []


def test_paths(client):
    assert client.get('/api/item?rater=Ann&id=zzz').status_code == 400
    assert client.get('/api/session').status_code == 400
    for path in ('/label.py', '/../server.py', '/static/label.js', '/index.html'):
        assert client.get(path).status_code == 404
    page = client.get('/')
    assert "default-src 'self'" in page.headers['Content-Security-Policy']
    text = ''.join(path.read_text() for path in server.PAGE.iterdir())
    assert 'http:' not in text.replace('http://www.w3.org', '') and 'https:' not in text


def test_a_full_disk_is_said(client, labels, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(labels.store, 'append', full)
    reply = client.post('/api/answer', json=GOOD)
    assert reply.status_code == 507 and 'No space left' in reply.json['error']


def test_what_was_acknowledged_survives_kill_9_of_the_server(tmp_path):
    workdir = make(tmp_path)

    def post(port, key, ranks):
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
        connection.request('POST', '/api/answer', json.dumps(GOOD | {'key': key, 'ranks': ranks}),
                           {'Content-Type': 'application/json'})
        status = connection.getresponse().status
        connection.close()
        return status
    process, port = serve(workdir)
    try:
        assert post(port, 'a', [1, 2, 3]) == 200 and post(port, 'b', [3, 2, 1]) == 200
        with pytest.raises(InputError, match=f'port {port} of 127.0.0.1 is taken'):
            server.make_server(Labels(workdir), port)
    finally:
        stop(process)
    with open(workdir / 'answers.jsonl', 'a') as file:
        file.write('{"action": "rate", "key": "c"')  # as if the kill had come in the middle
    process, port = serve(workdir, port)
    try:
        assert post(port, 'b', [3, 2, 1]) == 200 and post(port, 'c', [2, 1, 3]) == 200
    finally:
        stop(process)
    lines = [json.loads(line) for line in (workdir / 'answers.jsonl').read_text().splitlines()]
    assert [line['key'] for line in lines] == ['a', 'b', 'c']
