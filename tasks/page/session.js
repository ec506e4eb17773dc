/* A text in the making: the model, its tokenizer, the settings, and the tokens so far. No drawing here. */
"use strict";

const DEFAULTS = { temperature: 0.8, topP: 0.95, topK: 0, minP: 0, seed: 1, length: 60 };
const ROOM = 64; // tokens left free where a prompt is longer than the context

class Session {
  constructor(model, tokenizer) {
    Object.assign(this, { model, tokenizer, settings: { ...DEFAULTS } });
    this.prompt = "Once upon a time";
    this.forced = new Map(); // position -> token that the reader chose in place of the model's
    this.ids = [];
    this.promptLength = 0;
    this.run = 0; // the number of the current run; an older one ends when it sees a newer
    this.stopping = false;
    this.notice = "";
  }

  /* Ids of the prompt with BOS in front. Of a prompt that does not fit, the end is kept. */
  promptIds() {
    const ids = [this.tokenizer.bos, ...this.tokenizer.encode(this.prompt)],
      { capacity } = this.model;
    const most = Math.max(1, capacity - Math.min(ROOM, capacity >> 1));
    this.notice = "";
    if (ids.length < capacity) return ids;
    this.notice = `The prompt has ${ids.length} tokens and the context ${capacity}: only its last ${most} are read.`;
    return [this.tokenizer.bos, ...ids.slice(ids.length - most + 1)];
  }

  /* Makes `position` of the model's cache hold `token`; what is cached for this very text is kept. */
  see(token, position) {
    const { model } = this;
    if (position < model.length && model.tokens[position] === token) return;
    model.truncate(position);
    model.feed(token);
  }

  /* Reads the prompt and writes up to `length` tokens after it. `pause` gives the browser a moment; `show` follows each
     token. Returns why it ended; "overtaken" by a newer run, "" at the full length. */
  async generate({ pause, show }) {
    const run = ++this.run,
      ids = this.promptIds(),
      ended = () => (run !== this.run ? "overtaken" : this.stopping ? "stopped" : "");
    this.stopping = false;
    this.ids = ids.slice(0, 1);
    this.promptLength = ids.length;
    for (let position = 0; position < ids.length; position++) {
      this.see(ids[position], position);
      if (position > 0) this.ids.push(ids[position]);
      await pause();
      if (ended()) break;
    }
    if (!ended()) show();
    const reason = ended() || (await this.continueText({ pause, show, ended }));
    if (reason !== "overtaken") this.model.truncate(this.ids.length); // what an earlier text had beyond this one
    return reason;
  }

  async continueText({ pause, show, ended }) {
    const { ids, settings, model, tokenizer } = this;
    for (let written = 0; written < settings.length; written++) {
      const position = ids.length;
      if (position >= model.capacity) return `the context of ${model.capacity} tokens is full`;
      const token = this.forced.get(position) ?? choose(model.logits(position - 1), settings, position);
      if (token === tokenizer.eos) return "the model ended the text";
      this.see(token, position);
      ids.push(token);
      show();
      await pause();
      if (ended()) return ended();
    }
    return "";
  }

  stop() {
    this.stopping = true;
  }

  /* Puts another token at a position; what came after it no longer follows from it. */
  force(position, token) {
    for (const key of this.forced.keys()) if (key > position) this.forced.delete(key);
    this.forced.set(position, token);
  }

  /* What the model thought of a position: all tokens, most likely first. */
  candidates(position) {
    return distribution(this.model.logits(position - 1), this.settings);
  }

  /* State <-> the fragment of the address. */
  toFragment() {
    const fields = new URLSearchParams({ prompt: this.prompt });
    for (const [name, value] of Object.entries(this.settings)) fields.set(name, value);
    if (this.forced.size) fields.set("forced", [...this.forced].map((pair) => pair.join(":")).join(","));
    return fields;
  }

  fromFragment(fields) {
    const number = (name, low, high) => {
      const value = Number(fields.get(name));
      if (fields.get(name) && Number.isFinite(value)) this.settings[name] = Math.min(high, Math.max(low, value));
    };
    if (fields.has("prompt")) this.prompt = fields.get("prompt");
    number("temperature", 0, 2);
    number("topP", 0.01, 1);
    number("topK", 0, 1000);
    number("minP", 0, 1);
    number("seed", 0, 2 ** 31 - 1);
    number("length", 0, 5000);
    this.forced.clear();
    for (const [, position, token] of (fields.get("forced") ?? "").matchAll(/(\d+):(\d+)/g)) {
      if (Number(token) < this.model.config.vocab_size) this.forced.set(Number(position), Number(token));
    }
  }
}
