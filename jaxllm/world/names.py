"""Ordinary words for values, and invented names that are easy to say."""

import re

from jaxllm.errors import InputError

# Each takes the article 'a', so that the article before a job says nothing about it.
JOBS = tuple('''
baker glazier tailor plumber surgeon nurse dentist lawyer judge miller weaver florist
gardener barber butcher carpenter roofer mason welder blacksmith jeweller watchmaker shoemaker
printer bookbinder librarian teacher tutor historian geologist chemist physicist biologist
botanist zoologist mathematician translator journalist reporter photographer sculptor painter
musician pianist violinist drummer singer dancer choreographer puppeteer juggler clown
pilot sailor fisher farmer shepherd beekeeper brewer winemaker waiter bartender
receptionist secretary cashier banker broker treasurer bookkeeper locksmith detective soldier
firefighter lifeguard ranger forester logger driver conductor signaller mechanic toolmaker
designer draughtsman surveyor cartographer meteorologist veterinarian pharmacist midwife
paramedic psychologist therapist coach referee jockey boxer wrestler model hairdresser
tanner saddler cooper thatcher chimneysweep gamekeeper curator restorer playwright
novelist lecturer professor programmer statistician diplomat
'''.split())
HOBBIES = tuple('''
chess rowing sailing knitting sewing pottery hiking climbing cycling swimming fencing archery
bowling skating skiing surfing diving fishing birdwatching stargazing gardening baking cooking
painting sketching calligraphy woodcarving whittling origami embroidery crochet quilting
basketry candlemaking photography filmmaking blogging reading poetry storytelling juggling
magic puppetry drumming singing dancing yoga pilates karate judo boxing wrestling running
jogging caving canoeing kayaking ballooning gliding golf tennis
badminton squash cricket hockey rugby football basketball volleyball darts billiards dominoes
backgammon crosswords puzzles bridge poker genealogy astronomy mycology beekeeping foraging
geocaching orienteering camping snorkelling trampolining gymnastics tango ballet
opera theatre improvisation ventriloquism philately metalwork glassblowing soapmaking
winemaking cheesemaking homebrewing topiary bonsai falconry equestrianism
'''.split())
CATEGORIES = tuple('''
kettles lamps bicycles boots clocks blankets umbrellas pencils violins tents saddles candles
mirrors teapots carpets scissors ladders helmets gloves compasses telescopes mattresses
wardrobes lanterns hammocks notebooks backpacks toasters blenders heaters keyboards headphones
curtains cushions skateboards kayaks trumpets spectacles thermometers wheelbarrows shovels
hammers drills pianos bathtubs radiators fridges ovens bookcases suitcases raincoats sweaters
trousers sandals bracelets earrings perfumes soaps shampoos biscuits
'''.split())
MONTHS = ('January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September',
          'October', 'November', 'December')
_ORDINALS = ('first', 'second', 'third', 'fourth', 'fifth', 'sixth', 'seventh', 'eighth', 'ninth',
             'tenth')
TOPICS = {'job': 'careers', 'city': 'housing', 'firm': 'business', 'hobby': 'leisure',
          'born': 'anniversaries'}
PAPERS = ('Post', 'Gazette', 'Herald', 'Courier', 'Tribune', 'Chronicle', 'Bulletin', 'Monitor',
          'Observer', 'Mirror', 'Sentinel', 'Examiner')
ALIASES = ('{root} Daily', '{root} Press', '{paper} of {root}')

_ONSETS = tuple('b c d f g h j k l m n p r s t v w b d f h k l m n r s t v '
                'br cl dr gr pl st th'.split())
_VOWELS = ('a', 'e', 'i', 'o', 'u')
_MIDDLES = tuple('l r n m d s v b g ll nn rr th nd rl lv rn'.split())
_CODAS = tuple('l r n m d s nd rn ll nt rd v th'.split())
_HARSH = re.compile(r'[^aeiouy]{4}|(.)\1\1|[td]h?[td]|ss|dc|[dv]h|v[^aeiouy]|ngg')
_ENDS = {
    'first': tuple('a en in is o ia el an on ette y ra na us eth ina or ika'.split()),
    'last': tuple('sen ley ner den ford man shaw mont well cott low ridge ham croft gate wood son '
                  'strom quist beck stein'.split()),
    'city': tuple('port mouth stead haven bury dale mere burgh crest ton wick minster bridge field '
                  'pool cester'.split()),
    'firm': tuple('dex vanta corp tronic sys line worth tech fin gen max plex'.split()),
    'brand': tuple('ora iza elle ix ano ova eo ique ara uma ello isto'.split()),
    'source': tuple('er on ow ley ane ell and ing ston more'.split()),
}
# Real words that the syllables can spell and that would not read as names.
REAL = ('murder', 'murderer', 'sucker', 'bastard', 'butler', 'rapist', 'mother', 'father', 'sister',
        'corner', 'border', 'render', 'tender', 'lender', 'winter', 'summer', 'number', 'member',
        'sudan', 'vermouth', 'perplex', 'fintech', 'hosing', 'filling', 'gather', 'stunting',
        'droning', 'fusing', 'bentley', 'turner', 'nano')
# Strings that no invented word may contain.
_VULGAR = re.compile(
    'anal|anus|arse|bitch|boob|cock|coon|crap|cum|cunt|dick|dyke|fag|fuck|gook|hitler|homo|idiot|'
    'jap|kike|moron|nazi|negr|nigg|paki|penis|porn|pube|rape|rapist|rectum|semen|sex|shag|'
    'shit|slag|slut|spast|sperm|suck|teat|tit|turd|twat|vagin|vulv|wank|whor|kunt|wog|put[ho]|pubo|'
    'tard|sod|clunt|cunc|pis[os]|kill|nonce|gyp|chink|poof')
_SHORT = ('first', 'brand')     # onset, vowel, middle, end; the others: onset, vowel, coda, end


def ordinal(place):
    """0 -> 'first', 9 -> 'tenth', 10 -> '11th'."""
    if place < len(_ORDINALS):
        return _ORDINALS[place]
    last = 'th' if (place + 1) // 10 % 10 == 1 else {1: 'st', 2: 'nd', 3: 'rd'}.get(
        (place + 1) % 10, 'th')
    return f'{place + 1}{last}'


def _columns(kind):
    """The syllables of a kind of word, one tuple per place."""
    return (_ONSETS, _VOWELS, _MIDDLES if kind in _SHORT else _CODAS, _ENDS[kind])


def _sayable(word):
    return not _HARSH.search(word) and not _VULGAR.search(word)


def invent(rng, kind, known):
    """A new word of a kind ('first', 'last', ...), none of the lower-case words in `known`.

    Unlike those of a Book, two words may be the same or one be part of the other.
    """
    while True:
        word = ''.join(column[rng.integers(len(column))] for column in _columns(kind))
        if _sayable(word) and word not in known and word not in REAL:
            return word.capitalize()


class Book:
    """The invented words of one world: none contains another, nor an ordinary value."""

    def __init__(self, rng, reserved, forbidden):
        """No word contains or is part of a `reserved` string, none equals a `forbidden` one."""
        self.rng, self.forbidden = rng, forbidden
        self.words, self.parts = set(), set()
        for word in reserved:
            self._take(word.lower())

    def _take(self, word):
        self.words.add(word)
        self.parts.update(word[i:j] for i in range(len(word)) for j in range(i + 1, len(word) + 1))

    def _free(self, word):
        return (_sayable(word)
                and word not in self.parts
                and word not in self.forbidden
                and not any(word[i:j] in self.words
                            for i in range(len(word)) for j in range(i + 3, len(word) + 1)))

    def draw(self, kind, count):
        """`count` new names of a kind ('first', 'last', 'city', 'firm', 'brand', 'source')."""
        columns, found = _columns(kind), []
        for _ in range(100):
            picks = [[column[i] for i in self.rng.integers(len(column), size=2 * count)]
                     for column in columns]
            for parts in zip(*picks):
                word = ''.join(parts)
                if len(found) < count and self._free(word):
                    self._take(word)
                    found.append(word.capitalize())
            if len(found) == count:
                return tuple(found)
        raise InputError(f'only {len(found)} distinct names of kind {kind!r} exist, {count} are '
                         'needed; use a smaller scale')
