"""Preference data: pairs with margins and full rankings of responses, by raters of known kinds.

Every rater sees the same comparisons: `pairs(world, 'typical')` and `pairs(world, 'expert')` differ
in the votes alone. The votes share their random draws too, so that arms are paired. A prompt is a
bare question: what a user says.
"""

import bisect
import dataclasses
import itertools

import numpy as np

from jaxllm.world import oracle, safety, templates
from jaxllm.world.features import Asked, Reader
from jaxllm.world.responses import Material, draw_style, respond
from jaxllm.world.spec import GROUPS, SPLITS, generator
from jaxllm.world.templates import TRAIN_WORDINGS

_ASKED = {'prompt': 'str', 'kind': 'str', 'subject': 'str', 'attribute': 'str', 'answer': 'str',
          'guess': 'str', 'sources': 'list[str]'}
_ABOUT = {'group': 'str', 'exposures': 'int', 'planned': 'int', 'treated': 'bool',
          'answerable': 'bool', 'wording': 'int', 'held_out': 'bool'}
PAIR_FIELDS = {
    'id': 'str', 'split': 'str', **_ASKED, 'chosen': 'str', 'rejected': 'str', 'margin': 'int',
    'rater': 'str', 'criterion': 'str', 'probability': 'float', 'features_chosen': 'list[float]',
    'features_rejected': 'list[float]', 'style_chosen': 'str', 'style_rejected': 'str', **_ABOUT}
RANKING_FIELDS = {
    'id': 'str', 'split': 'str', **_ASKED, 'responses': 'list[str]', 'ranks': 'list[int]',
    'rater': 'str', 'criterion': 'str', 'utilities': 'list[float]', 'features': 'list[float]',
    'styles': 'list[str]', **_ABOUT}

NUM_PAIRS = {'nano': 4_000, 'small': 40_000, 'tpu': 200_000}
NUM_RANKINGS = {'nano': 1_000, 'small': 10_000, 'tpu': 50_000}
NUM_RANKED = 4
TIE = 0.2                           # rankings: noisy utilities that differ by less, in tau, tie
SPLIT_SHARES = (0.7, 0.15, 0.15)
KIND_SHARES = {'fact': 0.40, 'guess': 0.14, 'unknown': 0.14, 'recommend': 0.08, 'unsafe': 0.12,
               'benign': 0.12}
RATER_SHARES = {'expert': 0.36, 'typical': 0.2, 'helpful_only': 0.08, 'safety_only': 0.08,
                'biased': 0.1, 'sycophantic': 0.1, 'random': 0.08}
# Shares of oracle.CRITERIA for prompts about safety and for the others.
CRITERION_SHARES = {True: (0.35, 0.15, 0.5), False: (0.5, 0.45, 0.05)}
# The last wording is held out.
GUESSES = ('{question} I think it is {guess}.', '{question} My guess is {guess}.',
           '{question} Somebody told me: {guess}.', '{question} It must be {guess}, I believe.')
RECOMMEND = {
    'job': ('Name somebody who works as a {value}.', 'I need a {value}. Whom can you recommend?',
            'Which person works as a {value}?', 'Tell me the name of a {value}.'),
    'hobby': ('Name somebody who enjoys {value}.', 'Whom could I ask to join me for {value}?',
              'Which person likes {value}?', 'Tell me who is fond of {value}.')}


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt, what its responses are made of, and the columns about it."""

    asked: Asked
    material: Material
    split: str
    about: dict


def _pick(options, u):
    return options[int(u * len(options))]


def _choose(shares, u):
    """Index of a share."""
    return min(bisect.bisect(tuple(itertools.accumulate(shares)), u), len(shares) - 1)


class _Prompter:
    """Makes the prompts of a world, each from eight uniform draws."""

    def __init__(self, world):
        self.world, people = world, world.truth.people
        self.attributes = tuple(world.truth.attributes)
        split, known = np.asarray(people.split), np.asarray(people.planned) > 0
        self.people = {(s, k): np.flatnonzero((split == s) & (known == k)).tolist()
                       for s in range(3) for k in (True, False)}
        self.holders = {}
        for attribute in RECOMMEND:
            for p, value in enumerate(np.asarray(people.values[attribute]).tolist()):
                self.holders.setdefault((attribute, int(split[p]), value), []).append(p)
        self.safety = {}
        for row in safety.rows(world):
            key = ('unsafe' if row['harmful'] else 'benign', row['split'])
            self.safety.setdefault(key, []).append(row)
        self.things = {hazard: (verb, hazard, harmless)
                       for verb, hazard, harmless, _ in safety.HAZARDS}

    def case(self, draws):
        s = _choose(SPLIT_SHARES, draws[0])
        kind = tuple(KIND_SHARES)[_choose(tuple(KIND_SHARES.values()), draws[1])]
        if kind in ('unsafe', 'benign'):
            return self._safety(kind, SPLITS[s], draws)
        rows = self.people[s, kind != 'unknown'] or self.people[s, True]
        p = _pick(rows, draws[2])
        return self._recommend(p, s, draws) if kind == 'recommend' else \
            self._fact(p, s, kind == 'guess' or (kind == 'unknown' and draws[7] < 0.25), draws)

    def _about(self, p, a, wording):
        people, told = self.world.truth.people, int(self.world.true_counts[p, a])
        return dict(group=GROUPS[people.group[p]], exposures=told,
                    planned=int(people.planned[p]), treated=bool(people.treated[p]),
                    answerable=told > 0, wording=wording, held_out=wording >= TRAIN_WORDINGS)

    def _fact(self, p, s, guesses, draws):
        truth, a = self.world.truth, int(draws[3] * len(self.attributes))
        attribute, name = self.attributes[a], truth.people.names[p]
        values, gold = truth.attributes[attribute].values, int(truth.people.values[attribute][p])
        first = 1 + int(draws[4] * (len(values) - 1))
        second = 1 + (first + int(draws[5] * (len(values) - 2))) % (len(values) - 1)
        wrong = [values[(gold + step) % len(values)] for step in (first, second)]
        wording = int(draws[6] * (TRAIN_WORDINGS if s == 0 else TRAIN_WORDINGS + 1))
        about = self._about(p, a, wording)
        prompt = templates.QUESTIONS[attribute][wording].text.format(name=name)
        guess = ''
        if guesses:
            guess = wrong[0] if draws[7] * 4 % 1 < 0.5 else values[gold]
            prompt = GUESSES[wording].format(question=prompt, guess=guess)
        counts_S = np.asarray(self.world.counts[p, a])
        supporting = np.flatnonzero(counts_S).tolist()
        others = [k for k in ((int(draws[5] * len(counts_S)) + 5 * step) % len(counts_S)
                              for step in range(6)) if not counts_S[k]]
        known = about['answerable']
        asked = Asked(prompt, 'fact', name, attribute, values[gold] if known else '', guess,
                      tuple(truth.sources.names[k] for k in supporting))
        return Case(asked, Material((values[gold],) if known else (), tuple(wrong),
                                    self._called(supporting), self._called(others)),
                    SPLITS[s], about)

    def _called(self, sources):
        """The names that sources go by: one, or their aliases as well."""
        table = self.world.truth.sources
        return tuple(name for k in sources for name in (
            (table.names[k],) if table.factors['terminology'][k]
            else (table.names[k], *table.aliases[k])))

    def _recommend(self, p, s, draws):
        truth = self.world.truth
        attribute = _pick(tuple(RECOMMEND), draws[3])
        a = self.attributes.index(attribute)
        value = int(truth.people.values[attribute][p])
        wording = int(draws[6] * (TRAIN_WORDINGS if s == 0 else TRAIN_WORDINGS + 1))
        answer = truth.attributes[attribute].values[value]
        holders = self.holders[attribute, s, value]
        right = [q for q in holders if self.world.true_counts[q, a] > 0]
        pool = self.people[s, True]
        wrong = [q for q in (pool[(int(draws[4] * len(pool)) + step) % len(pool)]
                             for step in range(12)) if truth.people.values[attribute][q] != value]
        # Under 'skew', anybody may have had the value before.
        skewed = self.world.spec.intervention.kind == 'skew' and attribute == 'job'
        treated = bool(truth.people.treated[pool if skewed else [p, *holders, *wrong]].any())
        names = truth.people.names
        asked = Asked(RECOMMEND[attribute][wording].format(value=answer), 'recommend', '',
                      attribute, answer)
        return Case(asked, Material(tuple(names[q] for q in right or [p]),
                                    tuple(names[q] for q in wrong)), SPLITS[s],
                    {**self._about(p, a, wording), 'group': '', 'treated': treated,
                     'answerable': bool(right)})

    def _safety(self, kind, split, draws):
        rows = self.safety[kind, split]
        row = _pick(rows, draws[2])
        verb, hazard, harmless = self.things[row['hazard']]
        subject = harmless if row['look_alike'] == 'verb' else hazard
        asked = Asked(row['prompt'], kind, subject, verb,
                      row['response'] if kind == 'benign' else '')
        other = _pick(self.safety['benign', split], draws[4])
        wrong = () if other['hazard'] == row['hazard'] else (other['response'],)
        about = dict(group='', exposures=0, planned=0, treated=False, answerable=True,
                     wording=row['wording'], held_out=row['held_out'])
        return Case(asked, Material((row['response'],), wrong or ('Do it as you like.',)), split,
                    about)


def _candidates(world, name, count, size):
    """`count` cases with `size` different responses each.

    Returns: (row numbers int [N], cases, responses [N][S], styles [N][S], features [N, S, F])
    """
    prompter, reader = _Prompter(world), Reader.of(world)
    seed = world.spec.seed
    asks = generator(seed, 'prefs', name, 'prompts').random((count, 8))
    words = generator(seed, 'prefs', name, 'responses').random((count, 3 * size, 10))
    numbers, cases, texts, styles, phis = [], [], [], [], []
    for number, (ask, draws) in enumerate(zip(asks.tolist(), words, strict=True)):
        case = prompter.case(ask)
        found = {}
        for row in draws.tolist():
            text, style = respond(case.asked, case.material, draw_style(case.asked, row[:4]),
                                  row[4:])
            found.setdefault(text, style)
            if len(found) == size:
                break
        if len(found) < size:       # a prompt with few things to say: too rare to matter
            continue
        numbers.append(number)
        cases.append(case)
        texts.append(list(found))
        styles.append([str(style) for style in found.values()])
        phis.append([reader.phi(case.asked, text) for text in found])
    return np.array(numbers), cases, texts, styles, np.array(phis)


def _voters(world, name, count, numbers, cases, rater, criterion):
    """[(rater, criterion)] per case: the given ones, else drawn by the shares."""
    rng = generator(world.spec.seed, 'prefs', name, 'raters')
    draws = rng.random((count, 2))[numbers]
    found = []
    for case, (u, v) in zip(cases, draws.tolist(), strict=True):
        kind = rater or tuple(RATER_SHARES)[_choose(tuple(RATER_SHARES.values()), u)]
        about_safety = case.asked.kind in ('unsafe', 'benign')
        asked = criterion or oracle.CRITERIA[_choose(CRITERION_SHARES[about_safety], v)]
        if not criterion:
            asked = {'helpful_only': 'helpful', 'safety_only': 'safe'}.get(kind, asked)
        found.append((kind, asked))
    return found


def _by_voter(voters):
    """{(rater, criterion): int array of its rows}"""
    rows = {}
    for i, voter in enumerate(voters):
        rows.setdefault(voter, []).append(i)
    return {voter: np.array(found) for voter, found in rows.items()}


def _columns(case):
    return {**vars(case.asked), 'sources': list(case.asked.sources), **case.about}


def pairs(world, rater='', criterion='', q=None):
    """Rows of chosen and rejected responses.

    Args:
        rater: one of oracle.RATERS labels all pairs; '' mixes them (column `rater`).
        criterion: one of oracle.CRITERIA; '' mixes them.
        q: overrides the probability that the raters verify an answer.

    `margin` is the grade of the rater's own |dU| by oracle.MARGIN_CUTS: a grade means as much for
    every rater and in every world. `probability` is that of this choice; a wrong vote has less
    than 1/2.
    """
    count = NUM_PAIRS[world.spec.scale]
    numbers, cases, texts, styles, phi = _candidates(world, 'pairs', count, 2)
    first, second = phi[:, 0], phi[:, 1]
    draws = generator(world.spec.seed, 'prefs', 'pairs', 'votes').random((count, 2))[numbers]
    voters = _voters(world, 'pairs', count, numbers, cases, rater, criterion)
    chosen, grade, chance = (np.zeros(len(cases), kind) for kind in (int, int, float))
    for (kind, asked), rows in _by_voter(voters).items():
        who = oracle.rater(kind, asked, q)
        wins, difference = oracle.compare(who, first[rows], second[rows], draws[rows])
        chosen[rows], grade[rows] = ~wins, oracle.margin_grade(difference)
        p = who.probability(first[rows], second[rows])
        chance[rows] = np.where(wins, p, 1 - p)
    for i, case in enumerate(cases):
        best, worst = int(chosen[i]), 1 - int(chosen[i])
        yield {'id': f'pair-{numbers[i]}', 'split': case.split, **_columns(case),
               'chosen': texts[i][best], 'rejected': texts[i][worst], 'margin': int(grade[i]),
               'rater': voters[i][0], 'criterion': voters[i][1], 'probability': float(chance[i]),
               'features_chosen': phi[i, best].tolist(),
               'features_rejected': phi[i, worst].tolist(),
               'style_chosen': styles[i][best], 'style_rejected': styles[i][worst]}


def rankings(world, rater='', criterion='', q=None):
    """Rows of four responses with their ranks, 1 the best, equal ranks tied. Arguments as `pairs`.

    `utilities` are the rater's own, without noise; `features` is [4, F] in one list.
    """
    count = NUM_RANKINGS[world.spec.scale]
    numbers, cases, texts, styles, phi = _candidates(world, 'rankings', count, NUM_RANKED)
    rng = generator(world.spec.seed, 'prefs', 'rankings', 'votes')
    verifies = rng.random(count)[numbers]
    gumbel = rng.gumbel(size=(count, NUM_RANKED))[numbers]
    voters = _voters(world, 'rankings', count, numbers, cases, rater, criterion)
    utilities, ranks = np.zeros(gumbel.shape), np.zeros(gumbel.shape, int)
    for (kind, asked), rows in _by_voter(voters).items():
        who = oracle.rater(kind, asked, q)
        weights = who.weights(verifies[rows] < who.q)
        utilities[rows] = np.sum(phi[rows] * weights[:, None, :], axis=-1)
        ranks[rows] = oracle.rank(utilities[rows], gumbel[rows], tie=TIE)
    for i, case in enumerate(cases):
        yield {'id': f'ranking-{numbers[i]}', 'split': case.split, **_columns(case),
               'responses': texts[i], 'ranks': ranks[i].tolist(), 'rater': voters[i][0],
               'criterion': voters[i][1], 'utilities': utilities[i].tolist(),
               'features': phi[i].reshape(-1).tolist(), 'styles': styles[i]}
