// The ranking of one item: what number each answer has, and how to go back.
export class Ranking {
  // ranks: of a saved answer or a draft; 0 is unranked.
  constructor(size, { ranks = [], bad = false, comment = '' } = {}) {
    this.ranks = ranks.length === size ? [...ranks] : new Array(size).fill(0);
    this.bad = bad;
    this.comment = comment;
    this.framed = 0;
    this.history = [];
  }

  get size() { return this.ranks.length; }
  get complete() { return this.ranks.every(Boolean) || (this.bad && !this.ranks.some(Boolean)); }

  remember() { this.history.push({ ranks: [...this.ranks], bad: this.bad, framed: this.framed }); }

  // Gives an answer a rank; 0 puts it back.
  set(index, rank) {
    this.remember();
    this.ranks[index] = rank;
  }

  // The same for the framed answer; the frame goes on to the next without a rank.
  setFramed(rank) {
    this.set(this.framed, rank);
    for (let step = 1; step < this.size; step++) {
      const next = (this.framed + step) % this.size;
      if (!this.ranks[next]) { this.framed = next; return; }
    }
  }

  tie() {
    this.remember();
    this.ranks.fill(1);
  }

  toggleBad() {
    this.remember();
    this.bad = !this.bad;
  }

  move(step) { this.framed = (this.framed + step + this.size) % this.size; }

  undo() {
    const last = this.history.pop();
    if (last) Object.assign(this, last);
    return Boolean(last);
  }
}

// Lets letters be dragged onto tiers, with a mouse, a pen or a finger.
// dropped(index, rank) is called with what they carry in data-index and data-rank.
export function draggable(root, dropped) {
  root.addEventListener('pointerdown', (down) => {
    const letter = down.target.closest('.letter');
    if (!letter || down.button !== 0) return;
    down.preventDefault();
    let ghost = null, over = null;
    const move = (event) => {
      if (!ghost && Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < 5) return;
      if (!ghost) {
        ghost = letter.cloneNode(true);
        ghost.classList.add('ghost');
        letter.classList.add('lifted');
        document.body.append(ghost);
      }
      ghost.style.left = `${event.clientX}px`;
      ghost.style.top = `${event.clientY}px`;
      const found = document.elementFromPoint(event.clientX, event.clientY)?.closest('.tier') ?? null;
      if (found !== over) {
        over?.classList.remove('over');
        found?.classList.add('over');
        over = found;
      }
    };
    const end = (event) => {
      for (const [name, handler] of [['pointermove', move], ['pointerup', end], ['pointercancel', end]]) {
        window.removeEventListener(name, handler);
      }
      ghost?.remove();
      letter.classList.remove('lifted');
      over?.classList.remove('over');
      if (ghost && over && event.type === 'pointerup') {
        dropped(Number(letter.dataset.index), Number(over.dataset.rank));
      }
    };
    window.addEventListener('pointermove', move);
    window.addEventListener('pointerup', end);
    window.addEventListener('pointercancel', end);
  });
}
