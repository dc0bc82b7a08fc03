// What was said is kept in the browser until the server has stored it: nothing is lost when either
// of them stops. The server stores a key once, so that sending again is harmless.
const NAME = 'jaxllm-label-outbox';
const RETRY_MS = 1500;

export class Outbox {
  // offline(flag): called when the server stops or begins to answer. refused(message): it does not
  // take an answer, which is dropped.
  constructor(directory, offline, refused) {
    this.name = `${NAME} ${directory}`;
    this.offline = offline;
    this.refused = refused;
    this.sending = null;
  }

  read() { return JSON.parse(localStorage.getItem(this.name) ?? '[]'); }
  write(list) { localStorage.setItem(this.name, JSON.stringify(list)); }

  // Resolves, with the server's last reply, when everything is stored.
  send(path, body) {
    this.write([...this.read(), { path, body: { key: crypto.randomUUID(), ...body } }]);
    return this.flush();
  }

  flush() {
    this.sending ??= this.empty().finally(() => { this.sending = null; });
    return this.sending;
  }

  async empty() {
    let reply = null;
    for (let list = this.read(); list.length; list = this.read()) {
      const { path, body } = list[0];
      let answer, said;
      try {
        answer = await fetch(path, {
          method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body),
        });
        said = await answer.json();
      } catch {
        answer = null;
      }
      if (!answer || answer.status >= 500) {
        this.offline(true);
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
        continue;
      }
      this.offline(false);
      this.write(this.read().filter((entry) => entry.body.key !== body.key));
      if (answer.ok) reply = said;
      else this.refused(said.error);
    }
    return reply;
  }
}
