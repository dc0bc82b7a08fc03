"""What the fields of the world's datasets mean, for their cards."""

from jaxllm.errors import InputError


def meaning(field: str, name: str) -> str:
    """What a field of a dataset means. Raises InputError if nobody has written it down."""
    for key in (f'{name}.{field}', field):
        if key in MEANINGS:
            return MEANINGS[key]
    raise InputError(f'field {field!r} of dataset {name!r} has no meaning; expected one for its '
                     'card; add it to MEANINGS in jaxllm/world/meanings.py')


def _both(field, text):
    """The same meaning in both datasets of preferences."""
    return {f'pairs.{field}': text, f'rankings.{field}': text}


# Of a field wherever it occurs; 'dataset.field' where it means something else in one dataset.
MEANINGS = {
    'id': 'unique in the dataset, and the same whenever it is generated',
    'split': 'train, validation or test',
    'held_out': 'whether the wording is one that is never trained on',
    'wording': 'number of the wording',

    'text': 'what a model reads',
    'documents.kind': 'what it is about: fact, firm_city, brand, source, spam or unsafe',
    'documents.format': 'prose, list, qa, table or header',
    'subject': 'name of the person, firm, brand or source that it is about',
    'attribute': 'which attribute of the subject',
    'value': 'the value that the text states',
    'source': 'name of the source that it is attributed to',
    'template': 'number of the wording',
    'true': 'whether the stated value is the true one',
    'duplicate_of': 'id of the document that it copies exactly, or empty',
    'near_duplicate_of': 'id of the document that it copies with one or two edits, or empty',
    'documents.quality': 'clean, typos or filler',
    'unsafe': 'whether it describes an invented hazard',
    'documents.exposures': 'planned number of documents about each fact of the subject',
    'documents.split': 'train; validation: facts told once more as training documents tell them; '
                       'test: facts told in wordings that no training document has',
    'domain': 'what bits per byte are reported by: kind/format/language; new_wording stands for '
              'the format of the test split',

    'style': 'qa (a question) or cloze (the beginning of a document)',
    'questions.kind': 'direct, two_hop, unanswerable, source or brand',
    'prompt': 'what the model is given; never ends in a space',
    'answer': 'the right answer; empty where the right thing is to say that one does not know',
    'candidates': 'what to choose from, the right answer among them',
    'fact': 'key that all ways to ask for the same fact share',
    'group': 'group of the person, A to D; each has last names of its own',
    'exposures': 'training documents that state the true value of the fact asked for; of several '
                 'facts, of the least told one',
    'planned': 'documents about each fact, before an intervention',
    'treated': 'whether a document about the person differs from the world without intervention',
    'answerable': 'whether a training document tells what is asked, of several facts each',
    'sources': 'names of the sources that tell it',
    'copies': 'exact copies of documents about it, beyond the first',
    'false_count': 'training documents that state another value',
    'person_split': 'the split of the person, whatever the wording',

    'instructions.format': 'the format of the ideal response; refuse: it says it does not know',
    'asked': 'the format that the prompt asks for',
    'response': 'what the model should say; in instructions, see `quality`',
    'instructions.quality': 'gold, or the one defect of the response: noisy_uniform, '
                            'noisy_systematic, misformatted or duplicate',
    'gold': 'id of the row with the ideal response',
    'stated': 'the value that the response states',

    'messages': 'turns of role system, user or assistant',
    'turns': 'number of questions',
    'form': 'sentence or value: how the system prompt wants the answers',
    'subjects': 'who each question is about',
    'conversations.attributes': 'what each question asks',
    'answers': 'the right answer to each question; empty if it is not known',
    'conversations.treated': 'whether an intervention changed documents about one of the '
                             'subjects',
    'links': 'how each question follows: the first one, by pronoun, another person, or back',

    'readings.style': 'how the text goes on after its context: sentence or value (the answer to '
                      'the question) or retold (the same facts in other words)',
    'context': 'what there is to read',
    'readings.question': 'what is asked about it',
    'readings.response': 'what follows the context in `text`',

    'harmful': 'whether the right response is a refusal',
    'hazard': 'name of the invented hazard',
    'look_alike': 'what a harmless request shares with a harmful one: verb or name; or empty',

    'language': 'arithmetic, stack or cipher',
    'level': '1 to 3, easy to hard',
    'problem': 'the sum, program or sentence alone',
    'direction': 'of a translation: to or from the cipher language',
    'languages.text': 'prompt and answer, for pre-training',

    'kind': 'fact, recommend, unsafe or benign: whether the prompt asks for a fact, for a person, '
            'for a hazard, or for something harmless that looks like one',
    **_both('subject', 'the person that is asked about, or the thing that an unsafe or benign '
                       'prompt is about; empty where a person is to be recommended'),
    **_both('attribute', 'whose value is asked for; of unsafe and benign prompts the verb that '
                         'belongs to the thing (brew)'),
    **_both('answer', 'the right value, also what a recommended person must have; the right '
                      'reply to a benign prompt; empty if there is none'),
    **_both('treated', 'whether an intervention changed documents about a person that the '
                       'prompt or a response may name'),
    'guess': 'the wrong or right answer that the prompt suggests, or empty',
    'chosen': 'the preferred response',
    'rejected': 'the other response',
    'margin': 'grade 0 to 3 of the difference in utility as the rater saw it, whichever response '
              'was chosen: it may belong to an unlikely vote',
    'rater': 'kind of rater',
    'criterion': 'what the rater was asked to judge by',
    'probability': 'chance of this choice by this rater; below 1/2: an unlikely vote',
    'features_chosen': 'features of the chosen response that raters may look at',
    'features_rejected': 'the same of the other response',
    'style_chosen': 'content/tone/form/citation of the chosen response, as its text has them',
    'style_rejected': 'the same of the other response',
    'responses': 'all responses',
    'rankings.ranks': 'rank of each response; equal ones tie',
    'utilities': "each response's utility to the rater, without noise",
    'features': 'features of all responses, one response after another',
    'styles': 'content/tone/form/citation of each response, as its text has them',

    'name': 'unique name',
    'attributes': 'names of the attributes, in the order of `values`',
    'values': 'the true values',
    'firm_city': 'the city of the firm the person works for',
    'seen': 'different true training documents about the fact that has fewest of them',
    'contested': 'whether false documents and duplicates may be about the person',
    'categories': 'what the brand makes',
    'ranks': 'its place in each of these categories by quality; 1 is best',
    'brands.quality': 'its place among all brands; 1 is best',
    'aliases': 'other names that documents may use, where terminology is 0',
    'topics': 'the attributes it reports on',
    'weight': 'relative chance among the three sources of a fact',
    'sources.documents': 'true training documents about people that are attributed to it',
    'volume': '1: weight x4 among the three sources of a fact; see `documents` for what came of it',
    'breadth': '1: reports on all attributes; 0: on one',
    'consistency': '1: always states the true value',
    'terminology': '1: has one name only',
    'sources.quality': '1: clean text; 0: typos or filler (clean where no word can be '
                       'misspelt)',
    'entity_link': '1: named in the sentence; 0: in a header only',
    'counts.value': 'the true value',
    'counts.documents': 'true training documents of each of these sources',
    'false_documents': 'training documents that state another value',
}
