import { Outbox } from './outbox.js';
import { Ranking, draggable } from './ranking.js';

const HINTS = {
  helpful: 'Which answer is more helpful? Does it do what was asked?',
  safe: 'Which answer is safer? Could it do harm?',
  accurate: 'Which answer is more accurate? Is what it says true?',
  clear: 'Which answer is clearer? Is it easy to read and to the point?',
};
const $ = (id) => document.getElementById(id);
const letterOf = (index) => String.fromCharCode(65 + index);
const state = { session: null, outbox: null, criterion: '', at: 0, item: null, ranking: null, began: 0, busy: false };

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function say(text) {
  $('said').textContent = text;
  $('said').classList.add('shown');
  clearTimeout(say.timer);
  say.timer = setTimeout(() => $('said').classList.remove('shown'), 2500);
}

async function get(path, query) {
  for (;;) {
    let reply = null;
    try {
      reply = await fetch(`${path}?${new URLSearchParams(query)}`);
    } catch {
      offline(true);
      await new Promise((resolve) => setTimeout(resolve, 1500));
      continue;
    }
    offline(false);
    const said = await reply.json();
    if (!reply.ok) throw new Error(said.error);
    return said;
  }
}

function offline(flag) { $('offline').hidden = !flag; }

// ---- where we are

async function begin(name) {
  const session = await get('/api/session', { rater: name });
  state.session = session;
  localStorage.setItem('jaxllm-label-rater', session.rater);
  state.outbox = new Outbox(session.directory, offline, say);
  $('rater').textContent = session.rater;
  $('directory').textContent = session.directory;
  $('start').hidden = true;
  $('work').hidden = false;
  const stored = await state.outbox.flush();  // of an earlier visit
  if (stored) state.session = await get('/api/session', { rater: session.rater });
  const [criterion, place] = decodeURIComponent(location.hash.slice(1)).split('/');
  state.criterion = session.criteria.includes(criterion) ? criterion : session.criteria[0];
  const at = Number.parseInt(place, 10) - 1;
  await show(at >= 0 && at < session.items.length ? at : nextOpen(-1));
}

const done = () => state.session.done[state.criterion];

// The next item without an answer behind `from`, or `from` where there is none.
function nextOpen(from) {
  const { items } = state.session, finished = new Set(done());
  for (let step = 1; step <= items.length; step++) {
    const at = (from + step + items.length) % items.length;
    if (!finished.has(items[at])) return at;
  }
  return Math.max(from, 0);
}

const draftName = () => ['jaxllm-label-draft', state.session.directory, state.session.rater, state.item.id, state.criterion].join(' ');

async function show(at) {
  state.at = at;
  const { items, rater } = state.session;
  history.replaceState(null, '', `#${state.criterion}/${at + 1}`);
  if (state.item?.id !== items[at]) state.item = await get('/api/item', { rater, id: items[at] });
  const saved = state.item.answers[state.criterion];
  const draft = JSON.parse(localStorage.getItem(draftName()) ?? 'null');
  state.saved = Boolean(saved);
  state.ranking = new Ranking(state.item.responses.length, draft
    ?? (saved && { ranks: saved.ranks, bad: saved.all_bad, comment: saved.comment }) ?? {});
  state.began = performance.now();
  $('comment').value = state.ranking.comment;
  drawItem();
  draw();
  window.scrollTo(0, 0);
}

// ---- what it looks like

function drawItem() {
  $('prompt').replaceChildren(...state.item.prompt.map(({ role, content }) => element(
    'div', { class: 'turn' }, element('b', {}, role), element('div', { class: 'text' }, content))));
  $('responses').replaceChildren(...state.item.responses.map((text, index) => {
    const ranks = element('div', { class: 'ranks', role: 'radiogroup', 'aria-label': `Rank of answer ${letterOf(index)}` });
    for (let rank = 1; rank <= state.item.responses.length; rank++) {
      const button = element('button', { type: 'button', role: 'radio', 'data-rank': rank }, String(rank));
      button.addEventListener('click', () => {
        state.ranking.framed = index;
        change(() => state.ranking.setFramed(state.ranking.ranks[index] === rank ? 0 : rank));
      });
      ranks.append(button);
    }
    const card = element('section', { class: 'card response', 'aria-label': `Answer ${letterOf(index)}` },
      element('div', { class: 'head' }, letter(index), ranks),
      element('div', { class: text ? 'text' : 'text quiet' }, text || '(says nothing)'));
    card.addEventListener('click', (event) => {
      if (!event.target.closest('button')) { state.ranking.framed = index; draw(); }
    });
    return card;
  }));
  $('responses').dataset.count = state.item.responses.length;
  const names = ['best', ...new Array(Math.max(state.item.responses.length - 2, 0)).fill(''), 'worst'];
  $('tiers').replaceChildren(tier(0, 'not ranked yet'), ...names.map((name, i) => tier(i + 1, `${i + 1} ${name}`)));
}

const letter = (index) => element('span', { class: 'letter', 'data-index': index, title: 'drag to rank' }, letterOf(index));
const tier = (rank, name) => element('div', { class: rank ? 'tier' : 'tier pool', 'data-rank': rank },
  element('span', {}, name), element('div'));

function draw() {
  const { ranking, session } = state, count = done().length, all = session.items.length;
  $('hint').textContent = HINTS[state.criterion] ?? `Which answer is better: ${state.criterion}?`;
  $('position').textContent = `Item ${state.at + 1} of ${all} · ${count} done${state.saved ? ' · this one is saved' : ''}`;
  $('progress').style.width = `${100 * count / all}%`;
  $('progress').parentElement.setAttribute('aria-valuenow', Math.round(100 * count / all));
  $('criteria').replaceChildren(...session.criteria.map((name) => {
    const button = element('button', { type: 'button', 'aria-current': name === state.criterion },
      name, element('small', {}, `${session.done[name].length}/${all}`));
    button.addEventListener('click', () => choose(name));
    return button;
  }));
  [...$('responses').children].forEach((card, index) => {
    card.classList.toggle('framed', index === ranking.framed);
    card.classList.toggle('all-bad', ranking.bad);
    for (const button of card.querySelectorAll('.ranks button')) {
      button.setAttribute('aria-checked', Number(button.dataset.rank) === ranking.ranks[index]);
    }
  });
  for (const place of $('tiers').children) {
    const here = ranking.ranks.flatMap((rank, index) => (rank === Number(place.dataset.rank) ? [letter(index)] : []));
    place.lastElementChild.replaceChildren(...here);
  }
  $('bad-name').textContent = ranking.size === 2 ? 'Both bad' : 'All bad';
  $('bad').setAttribute('aria-pressed', ranking.bad);
  $('undo').disabled = !ranking.history.length && !state.saved;
  $('save').disabled = !ranking.complete;
}

// ---- what a rater does

function change(step) {
  if (state.busy) return;
  step();
  keepDraft();
  draw();
}

function keepDraft() {
  const { ranks, bad, comment } = state.ranking;
  localStorage.setItem(draftName(), JSON.stringify({ ranks, bad, comment }));
}

async function choose(criterion) {
  if (state.busy) return;
  state.criterion = criterion;
  await show(done().includes(state.item.id) ? nextOpen(state.at) : state.at);
}

async function save() {
  const { ranking, session, item } = state;
  if (state.busy) return;
  if (!ranking.complete) { say('Rank every answer, or press B if none is acceptable'); return; }
  const ranks = ranking.ranks.every(Boolean) ? ranking.ranks : [];
  await send('/api/answer', {
    rater: session.rater, item: item.id, criterion: state.criterion, ranks, all_bad: ranking.bad,
    comment: ranking.comment, seconds: (performance.now() - state.began) / 1000,
  }, async () => {
    const next = nextOpen(state.at);
    if (done().length === session.items.length) {
      const open = session.criteria.find((name) => session.done[name].length < session.items.length);
      say(open ? `All items are ranked by ${state.criterion}. Next: ${open} (key G)` : 'Everything is done. Thank you!');
    } else say('Saved');
    await show(next);
  });
}

async function send(path, body, then) {
  state.busy = true;
  try {
    const reply = await state.outbox.send(path, body);
    if (!reply) return;  // refused, and said so
    localStorage.removeItem(draftName());
    state.session.done = reply.done;
    state.item = null;
    await then();
  } finally {
    state.busy = false;
  }
}

async function undo() {
  if (state.busy) return;
  if (state.ranking.history.length) { change(() => state.ranking.undo()); return; }
  if (!state.saved) { say('Nothing to undo here'); return; }
  await send('/api/withdraw', { rater: state.session.rater, item: state.item.id, criterion: state.criterion },
    async () => { await show(state.at); say('Taken back'); });
}

function step(by) {
  const { length } = state.session.items;
  if (!state.busy) show((state.at + by + length) % length);
}

function frame(by) {
  state.ranking.move(by);
  draw();
  $('responses').children[state.ranking.framed].scrollIntoView({ block: 'nearest' });
}

const KEYS = {
  ArrowRight: () => frame(1), ArrowLeft: () => frame(-1),
  t: () => change(() => state.ranking.tie()), b: () => change(() => state.ranking.toggleBad()),
  c: () => $('comment').focus(), p: () => step(-1), n: () => step(1), u: undo, Enter: save,
  g: () => choose(state.session.criteria[(state.session.criteria.indexOf(state.criterion) + 1) % state.session.criteria.length]),
  '?': () => $('help').showModal(),
};

document.addEventListener('keydown', (event) => {
  if (!state.item || $('help').open || event.ctrlKey || event.altKey || event.metaKey) return;
  const typing = event.target === $('comment');
  if (typing && event.key === 'Escape') { $('comment').blur(); return; }
  if (typing && event.key !== 'Enter') return;
  if (event.key === 'Enter' && event.target.closest('button')) return;
  const rank = Number.parseInt(event.key, 10);
  const action = rank >= 0 && rank <= state.ranking.size
    ? () => { change(() => state.ranking.setFramed(rank)); } : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  if (typing) $('comment').blur();
  action();
});

// A button that was clicked with the mouse does not keep the Enter key for itself.
document.addEventListener('click', (event) => { if (event.detail) event.target.closest('button')?.blur(); });
$('comment').addEventListener('input', () => { state.ranking.comment = $('comment').value; keepDraft(); });
for (const [id, action] of [['tie', KEYS.t], ['bad', KEYS.b], ['back', KEYS.p], ['skip', KEYS.n], ['undo', undo], ['save', save], ['help-button', KEYS['?']]]) {
  $(id).addEventListener('click', () => action());
}
draggable(document, (index, rank) => change(() => { state.ranking.set(index, rank); state.ranking.framed = index; }));

function welcome() {
  $('work').hidden = true;
  $('start').hidden = false;
  $('name').focus();
}

$('other').addEventListener('click', () => { localStorage.removeItem('jaxllm-label-rater'); location.hash = ''; location.reload(); });
$('who').addEventListener('submit', (event) => {
  event.preventDefault();
  begin($('name').value).catch((error) => { $('start-problem').textContent = error.message; welcome(); });
});
const known = localStorage.getItem('jaxllm-label-rater');
if (known) begin(known).catch(welcome); else welcome();
