"""Format checkers: what follows a format, and what only nearly does."""

import pytest

from jaxllm.errors import InputError
from jaxllm.world import checkers

LEXICON = {'a': 'khe', 'works': 'svim', 'as': 'tsol', 'glazier': 'vrodi', 'lives': 'zhano',
           'the': 'dzuk'}
GOOD = {
    'one_word': ('glazier', 'Glazier', 'glazier.', ' Tarn\n', 'beekeeper', 'well-digger', "O'Hara"),
    'sentence': ('Mara Venn works as a glazier.', 'She lives in St. Orme.', 'Is it Tarn?',
                 'Mara Venn, a glazier, lives in Tarn!', 'The score was 3.5 points.',
                 'Mara Venn works as a glazier.\n'),
    'bullets': ('- Job: glazier\n- City: Tarn', '- a\n- b\n- c', '- a\n- b\n', '- a \n- b'),
    'with_source': ('Mara Venn works as a glazier (source: The Tarn Post).',
                    'Mara Venn works as a glazier. (source: The Tarn Post)'),
    'translate': ('Mara Venn tsol khe vrodi svim.', 'Khe vrodi dzuk zhano.'),
    'refuse': ('I do not know.', "I don't know where Mara Venn works.", 'Unknown.', 'Not known',
               'I have no information about Mara Venn.', 'Sorry, I do not know that.',
               'That is not known.', 'No source reports this.', 'I’m not sure.',
               'I cannot say where she works.', 'I could not find that.'),
}
BAD = {
    'one_word': ('', 'a glazier', 'glazier, I think', 'glazier baker', '- glazier', '42',
                 'glazier!!',
                 'glazier\nbaker', 'The answer is glazier.'),
    'sentence': ('', 'glazier', 'mara works as a glazier.', 'Mara works as a glazier',
                 'Mara works. She bakes.', 'Mara works.\nShe bakes.', 'Yes it.is',
                 '- Mara works as a glazier.', 'She works (source: The Tarn Post)',
                 'Mara works here! (source: The Tarn Post).', 'Works here.'),
    'bullets': ('', '- Job: glazier', 'Job: glazier\nCity: Tarn', '- a\nb', '- a\n\n- b', '-a\n-b',
                '* a\n* b', 'Here:\n- a\n- b', '1. a\n2. b', '- a\n- a', '- a\n-  '),
    'with_source': ('Mara Venn works as a glazier.', '(source: The Tarn Post)',
                    'Mara works as a glazier (Source: The Tarn Post).',
                    'Mara works as a glazier (source: ).', 'Mara works as a glazier source: Post.',
                    'Mara works as a glazier (source: Post). She bakes.',
                    'Mara works (source: Post) as a glazier (source: Post).',
                    'Mara works as a glazier. She bakes. (source: Post)'),
    'translate': ('', 'Mara Venn works as a glazier.', 'Mara Venn svim tsol khe vrodi.',
                  'Mara Venn tsol khe vrodi svim', 'Mara svim tsol svim.', 'Svim.',
                  'Mara tsol khe.', 'Mara Venn svim.',
                  'mara tsol khe vrodi svim.', 'Mara tsol khe glazier svim.'),
    'refuse': ('', 'Mara Venn works as a glazier.', 'She works at the Unknown Press.',
               'Everybody knows that she is a glazier.', 'You do not know her.',
               "I can't help with that, because vexil hurts people.",
               'I know that she is a glazier.', 'I cannot say enough about her shop.',
               'She is a glazier. She is tall. I do not know more.',
               'Do I know her? She is a glazier.'),
}
FACTS = {'translate': {'lexicon': LEXICON, 'verbs': ('works', 'lives')}}


@pytest.mark.parametrize('form, text', [(form, text) for form in GOOD for text in GOOD[form]])
def test_follows(form, text):
    assert checkers.follows(form, text, **FACTS.get(form, {}))


@pytest.mark.parametrize('form, text', [(form, text) for form in BAD for text in BAD[form]])
def test_near_misses(form, text):
    assert not checkers.follows(form, text, **FACTS.get(form, {}))


def test_every_format_has_cases():
    assert set(GOOD) == set(BAD) == set(checkers.CHECKERS)


def test_bullets_are_counted():
    text = '- a\n- b\n- c'
    assert checkers.follows('bullets', text, count=3)
    assert not checkers.follows('bullets', text, count=4)


def test_sources_are_known_and_read_off():
    text = 'Mara works as a glazier (source: The Tarn Post).'
    assert checkers.cited(text) == 'The Tarn Post' and checkers.cited('Mara works.') == ''
    assert checkers.follows('with_source', text, sources=('The Tarn Post', 'Other'))
    assert not checkers.follows('with_source', text, sources=('Other',))


@pytest.mark.parametrize('text, value, found', [
    ('She is a Glazier.', 'glazier', True), ('the glaziers', 'glazier', False),
    ('glazier-general', 'glazier', True), ('reglazier', 'glazier', False),
    ('Venn & Sons, of course', 'Venn & Sons', True), ('', 'glazier', False), ('text', '', False),
    ('She is from St. Orme', 'St. Orme', True), ('Stx Orme', 'St. Orme', False),
])
def test_values_are_whole_words(text, value, found):
    assert checkers.holds(text, value) is found


def test_unknown_format_is_refused():
    with pytest.raises(InputError, match="got format 'poem', expected one of one_word"):
        checkers.follows('poem', 'text')
