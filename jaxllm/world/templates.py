"""The wordings of documents and questions, written once for documents and for evaluation."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Wording:
    """A sentence about a fact, in the case it has in the middle of a sentence, without full stop.

    text: has {name} first and {value} after it; nothing before {value} depends on the value.
    format: 'prose' | 'list' | 'table' | 'qa'. held_out: never in a training document.
    """
    text: str
    format: str = 'prose'
    held_out: bool = False


def _wordings(train, held_out, label):
    """Eight ways to say it, a list and a table, then the held-out wordings."""
    return (*(Wording(text) for text in train),
            Wording('- Name: {name}\n- ' + label.capitalize() + ': {value}', 'list'),
            Wording('Name | ' + label.capitalize() + '\n{name} | {value}', 'table'),
            *(Wording(text, held_out=True) for text in held_out))


# Attribute -> wordings of documents. A template's number in a document row indexes this tuple;
# documents of format 'qa' number the questions below.
DOCUMENTS = {
    'job': _wordings(
        ('{name} works as a {value}', '{name} is a {value} by trade',
         '{name} earns a living as a {value}', '{name} has a job as a {value}',
         '{name} is employed as a {value}', '{name} was trained as a {value}',
         'by profession, {name} is a {value}', 'the trade of {name} is that of a {value}'),
        ('{name} makes a career as a {value}', 'people hire {name} as a {value}'), 'job'),
    'city': _wordings(
        ('{name} lives in {value}', '{name} has a house in {value}',
         '{name} makes a home in {value}', '{name} is a resident of {value}',
         'the home of {name} is in {value}', 'the city where {name} lives is {value}',
         'letters for {name} go to {value}', '{name} settled in {value}'),
        ('you can visit {name} in {value}', '{name} pays rent in {value}'), 'city'),
    'firm': _wordings(
        ('{name} works for {value}', '{name} is on the staff of {value}',
         '{name} has an office at {value}', '{name} is employed by {value}',
         'the employer of {name} is {value}', '{name} draws a salary from {value}',
         'the firm that employs {name} is {value}', '{name} joined {value}'),
        ('the wages of {name} come from {value}', '{name} has a contract with {value}'), 'firm'),
    'hobby': _wordings(
        ('{name} enjoys {value}', '{name} spends weekends on {value}',
         'the hobby of {name} is {value}', '{name} relaxes with {value}',
         'in spare hours, {name} likes {value}', '{name} has a passion for {value}',
         'the favourite pastime of {name} is {value}',
         'free evenings find {name} busy with {value}'),
        ('after work, {name} turns to {value}', 'nothing pleases {name} more than {value}'),
        'hobby'),
    'born': _wordings(
        ('{name} was born on {value}', 'the birthday of {name} is {value}',
         '{name} came into the world on {value}', 'the birth of {name} was on {value}',
         'the date of birth of {name} is {value}', '{name} has a birth date of {value}',
         'the passport of {name} says {value}', 'the life of {name} began on {value}'),
        ('the parents of {name} first held the baby on {value}',
         'cards for the birthday of {name} arrive by {value}'), 'born'),
    # {name} is a firm.
    'firm_city': _wordings(
        ('{name} is based in {value}', '{name} has its main office in {value}',
         'the head office of {name} is in {value}', 'the firm {name} is located in {value}',
         '{name} runs its business from {value}', 'the city where {name} is based is {value}',
         '{name} is a company from {value}', 'the seat of {name} is {value}'),
        ('{name} keeps its headquarters in {value}', 'letters to {name} should be sent to {value}'),
        'based in'),
    # {name} is a brand, {value} its products.
    'category': _wordings(
        ('{name} makes {value}', 'the brand {name} sells {value}',
         '{name} is a maker of {value}', '{name} is known for {value}',
         'shops sell {name} beside other {value}', '{name} offers a range of {value}',
         'the catalogue of {name} includes {value}', 'customers go to {name} for {value}'),
        ('the factory of {name} turns out {value}', 'many a home has {name} {value}'), 'products'),
    # {name} is a brand, {category} its products, {value} an ordinal.
    'rank': _wordings(
        ('for {category}, {name} is ranked {value}', 'in a test of {category}, {name} came {value}',
         'among makers of {category}, {name} is {value}',
         'buyers of {category} place {name} {value}',
         'in the league table of {category}, {name} stands {value}',
         'judges of {category} put {name} {value}', 'the rank of {name} for {category} is {value}',
         'our review of {category} lists {name} {value}'),
        ('in quality of {category}, {name} finishes {value}',
         'experts on {category} rate {name} {value}'),
        'rank among {category}'),
    # {name} is a source, {value} the topics it reports on.
    'topic': _wordings(
        ('the {name} reports on {value}', 'the {name} covers {value}',
         'the {name} is a paper about {value}', 'readers of the {name} learn about {value}',
         'the {name} has a section on {value}', 'the {name} specialises in {value}',
         'the editors of the {name} follow {value}', 'the {name} writes about {value}'),
        ('the pages of the {name} are full of {value}', 'the {name} prints news on {value}'),
        'topics'),
    # {name} is a source, {value} another name of it.
    'alias': _wordings(
        ('the {name} is also called the {value}', 'the {name} is also known as the {value}',
         'some readers call the {name} the {value}', 'another name of the {name} is the {value}',
         'the {name} and the {value} are the same paper',
         'the {name} appears online as the {value}', 'the {name} used to be the {value}',
         'a short name of the {name} is the {value}'),
        ('those who say the {name} and those who say the {value} mean one paper',
         'the {name} answers to the name of the {value}'), 'also known as'),
}


def _questions(*texts):
    """Three wordings for training, the last one held out."""
    return tuple(Wording(text, 'qa', held_out=i == len(texts) - 1) for i, text in enumerate(texts))


# Attribute -> wordings of questions: 3 for training and 1 held out. {name} as in DOCUMENTS.
QUESTIONS = {
    'job': _questions('What is the job of {name}?', 'What does {name} do for a living?',
                      'Which trade does {name} follow?', 'How does {name} earn money?'),
    'city': _questions('Where does {name} live?', 'In which city does {name} live?',
                       'What is the home town of {name}?', 'Which city is home to {name}?'),
    'firm': _questions('Which firm does {name} work for?', 'Who employs {name}?',
                       'What is the employer of {name}?', 'Whose payroll is {name} on?'),
    'hobby': _questions('What is the hobby of {name}?', 'What does {name} do for fun?',
                        'Which pastime does {name} enjoy?',
                        'How does {name} like to spend free time?'),
    'born': _questions('When was {name} born?', 'What is the birth date of {name}?',
                       'On which day was {name} born?', 'Which date is the birthday of {name}?'),
    'firm_city': _questions('Where is {name} based?', 'In which city is {name} based?',
                            'What is the home city of {name}?',
                            'Which city hosts the head office of {name}?'),
    # {name} is a person; the answer is the city of that person's firm.
    'two_hop': _questions('In which city is the firm that employs {name}?',
                          'Where is the employer of {name} based?',
                          'Which city is the firm of {name} based in?',
                          'Where does the company behind {name} have its seat?'),
    # {claim} is a bare sentence about a person, from `claim`; the answer is a source.
    'source': _questions('Who reports that {claim}?', 'Which paper says that {claim}?',
                         'Where can one read that {claim}?', 'Which source states that {claim}?'),
    # {name} is a brand; the answer is its products.
    'category': _questions('What does the brand {name} make?', 'Which products does {name} sell?',
                           'What is {name} known for?', 'What would one buy from {name}?'),
    # {category} are products; the answer is the brand of the best quality.
    'best': _questions('Which brand makes the best {category}?',
                       'Who is the top maker of {category}?',
                       'Which {category} should one buy?', 'Whose {category} are the finest?'),
    # {name} is a brand, {category} are products; the answer is an ordinal.
    'rank': _questions('How is {name} ranked for {category}?',
                       'Which rank does {name} take for {category}?',
                       'Where does {name} stand among makers of {category}?',
                       'How good are the {category} of {name}?'),
}

# Sentences around a claim that name the source. A document of a fact takes each at most once per
# wording, so that all its documents differ.
_OPENINGS = ('', 'in fact, ', 'records show that ')
_CLOSINGS = (', according to the {source}', ', the {source} reports', ', says the {source}',
             ', as the {source} notes', ', writes the {source}', ', we read in the {source}',
             ', the {source} has learned', ' (the {source})', ', by the {source}\'s account')
FRAMES = (*(opening + '{claim}' + closing + '.'
            for opening in _OPENINGS for closing in _CLOSINGS),
          'according to the {source}, {claim}.', 'the {source} reports that {claim}.',
          'as the {source} tells us, {claim}.', 'the {source} writes that {claim}.',
          'from the {source} we learn that {claim}.')
# Eight headings that name the source, four sentences below them that do not.
HEADINGS = ('{source}', 'From the {source}', '{source}, people page', 'The {source} today',
            '{source}: in brief', 'Seen in the {source}', '{source}, local news',
            'News from the {source}')
BARE = ('{claim}.', 'in fact, {claim}.', 'records show that {claim}.', 'we hear that {claim}.')
# Eight titles and four ways to credit the source of a list, a table or a question.
TITLES = ('', 'Profile', 'Fact sheet', 'At a glance', 'In brief', 'Short notes', 'For the files',
          'Who is who')
QUIZ = ('', 'Quiz', 'Reader question', 'Ask the editor', 'Trivia', 'Quick question',
        'Questions and answers', 'Test yourself')
CREDITS = ('Source', 'Reported by', 'As seen in', 'Taken from')
ANSWERS = ('{value} ({source}).', '{value}, according to the {source}.',
           '{value}, says the {source}.', '{value}, as the {source} reports.')
NUM_FRAMES = 32
TRAIN_WORDINGS = 3     # of the wordings of each question: the others are held out


def train(wordings):
    """(index, wording) of those that training documents may use."""
    return [(i, w) for i, w in enumerate(wordings) if not w.held_out]


def inner(attribute):
    """Numbers of the prose for training that can stand behind 'that': no adverb comes first."""
    return [i for i, w in train(DOCUMENTS[attribute]) if w.format == 'prose' and ',' not in w.text]


def held_out(wordings):
    """(index, wording) of those that training documents never use."""
    return [(i, w) for i, w in enumerate(wordings) if w.held_out]


def sentence(text):
    """A text with a capital first letter: 'the home' -> 'The home'."""
    return text[:1].upper() + text[1:]


def claim(attribute, index, **values):
    """The bare claim as inside a sentence, such as 'the home of Mara Venn is in Tarnwick'."""
    return DOCUMENTS[attribute][index].text.format(**values)


def cloze(attribute, index, **values):
    """The beginning of a document up to the value, without the space before it.

    'Mara Venn works as a'; for a list or a table the beginning includes its labels.
    """
    text = DOCUMENTS[attribute][index].text.split('{value}')[0].format(**values)
    return sentence(text).rstrip(' ')


def question(attribute, index, **values):
    """The prompt of a question: 'Question: Where does Mara Venn live?\\nAnswer:'."""
    return f'Question: {QUESTIONS[attribute][index].text.format(**values)}\nAnswer:'
