"""The local web page: serves items to raters, blind, and stores what they say.

It listens on 127.0.0.1 alone. Other web sites that the rater has open cannot reach it: a foreign
Host (DNS rebinding) or Origin is refused, and what is posted must be JSON, which a browser asks
leave for first.
"""

import pathlib

import flask
import werkzeug.exceptions
import werkzeug.serving

from jaxllm.errors import InputError
from jaxllm.feedback.labels import rater_name

HOST = '127.0.0.1'
PAGE = pathlib.Path(__file__).parent / 'page'
_HEADERS = {'Content-Security-Policy': "default-src 'self'; img-src data:; frame-ancestors 'none'",
            'X-Content-Type-Options': 'nosniff', 'Cache-Control': 'no-store',
            'Referrer-Policy': 'no-referrer', 'Cross-Origin-Resource-Policy': 'same-origin'}


def make_app(labels):
    """The Flask application of a Labels."""
    app = flask.Flask(__name__, static_folder=None)
    app.config['MAX_CONTENT_LENGTH'] = 200_000

    @app.before_request
    def only_from_here():
        port = flask.request.environ['SERVER_PORT']
        ours = {f'{name}:{port}'.removesuffix(':80') for name in (HOST, 'localhost')}
        if flask.request.environ.get('HTTP_HOST', '') not in ours:
            flask.abort(403, 'this page is at 127.0.0.1 alone')
        origin = flask.request.headers.get('Origin')
        if origin is not None and origin.removeprefix('http://') not in ours:
            flask.abort(403, 'not from another web site')

    @app.after_request
    def headers(response):
        response.headers.update(_HEADERS)
        return response

    @app.errorhandler(InputError)
    def bad_input(error):
        return {'error': str(error)}, 400

    @app.errorhandler(werkzeug.exceptions.HTTPException)
    def refused(error):
        return {'error': error.description}, error.code

    @app.errorhandler(OSError)
    def not_stored(error):
        return {'error': f'not stored: {error.strerror}; it will be sent again'}, 507

    @app.get('/')
    def page():
        return flask.send_from_directory(PAGE, 'index.html')

    @app.get('/<any("label.css","label.js","ranking.js","outbox.js"):name>')
    def asset(name):
        return flask.send_from_directory(PAGE, name)

    @app.get('/api/session')
    def session():
        rater = rater_name(flask.request.args.get('rater', ''))
        return {'rater': rater, 'items': list(labels.items), 'criteria': list(labels.criteria),
                'directory': str(labels.workdir.resolve()), 'done': _done(labels, rater)}

    @app.get('/api/item')
    def item():
        rater, name = rater_name(flask.request.args.get('rater', '')), flask.request.args.get('id')
        if name not in labels.items:
            raise InputError(f'item {name!r:.80} is unknown')
        found, order = labels.items[name], labels.shown(rater, name)
        answers = {criterion: {'ranks': [answer.ranks[i] for i in order],
                               'all_bad': answer.all_bad, 'comment': answer.comment}
                   for (other, criterion), answer in labels.of_rater(rater).items()
                   if other == name}
        # Neither the sources nor the order in the file: the rater is blind.
        return {'id': name, 'prompt': list(found.prompt),
                'responses': [found.responses[i] for i in order], 'answers': answers}

    @app.post('/api/answer')
    def answer():
        return store(labels.rate, {'key', 'rater', 'item', 'criterion', 'ranks', 'all_bad',
                                   'comment', 'seconds'})

    @app.post('/api/withdraw')
    def withdraw():
        return store(labels.withdraw, {'key', 'rater', 'item', 'criterion'})

    def store(how, names):
        sent = flask.request.get_json()
        if not isinstance(sent, dict) or sent.keys() != names:
            raise InputError(f'expected a JSON object with {", ".join(sorted(names))}')
        return {'stored': how(**sent), 'done': _done(labels, sent['rater'])}
    return app


def _done(labels, rater):
    """{criterion: ids of the items that a rater has answered}."""
    answers = labels.of_rater(rater)
    return {criterion: [item for item, other in answers if other == criterion]
            for criterion in labels.criteria}


def make_server(labels, port):
    """A server of the page that answers several raters at once; port 0 takes a free one.

    Raises:
        InputError: the port is taken.
    """
    try:
        return werkzeug.serving.make_server(HOST, port, make_app(labels), threaded=True,
                                            request_handler=_Quiet)
    except (OSError, SystemExit) as error:
        raise InputError(f'port {port} of {HOST} is taken or not allowed; use --port=0 for a free '
                         'one') from error


class _Quiet(werkzeug.serving.WSGIRequestHandler):
    """Logs no requests."""

    def log_request(self, *args):
        pass
