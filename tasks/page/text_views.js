/* The bench: prompt, buttons, sliders, the text as tokens to click, and what could have stood in a token's place. */
"use strict";

const SLIDERS = [
  // setting, name, low, high, step, how it reads
  ["temperature", "Temperature", 0, 2, 0.05, (value) => value.toFixed(2)],
  ["topP", "Top-p", 0.01, 1, 0.01, (value) => value.toFixed(2)],
  ["topK", "Top-k", 0, 100, 1, (value) => (value ? String(value) : "off")],
  ["minP", "Min-p", 0, 0.5, 0.01, (value) => (value ? value.toFixed(2) : "off")],
  ["seed", "Seed", 0, 99, 1, String],
  ["length", "New tokens", 0, 400, 5, String],
];
const SHOWN = 12; // alternatives in the list

/* Gives the browser a moment, in which it paints, whenever 24 ms have passed, without the delay of a timer. */
function pauser() {
  const channel = new MessageChannel(),
    waiting = [];
  let since = performance.now();
  channel.port1.onmessage = () => {
    since = performance.now();
    waiting.shift()();
  };
  return () => {
    if (performance.now() - since < 24) return undefined;
    return new Promise((resolve) => {
      waiting.push(resolve);
      channel.port2.postMessage(null);
    });
  };
}

class TextView {
  /* select({position}) looks at another token; changed() tells that a setting is another. */
  constructor(session, { select, changed }) {
    Object.assign(this, { session, select, changed, position: 1, drawn: 0, pause: pauser(), timer: 0 });
    byId("prompt").value = session.prompt;
    byId("prompt").addEventListener("input", () => this.edit());
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.start();
    });
    byId("write").addEventListener("click", () => this.start());
    byId("stop").addEventListener("click", () => this.session.stop());
    byId("reroll").addEventListener("click", () => this.set("seed", (session.settings.seed + 1) % 100));
    byId("tokens").addEventListener("click", (event) => {
      const token = event.target.closest(".token");
      if (token) this.select({ position: Number(token.dataset.position) });
    });
    byId("tokens").addEventListener("keydown", (event) => this.move(event));
    byId("sliders").append(...SLIDERS.map((slider) => this.slider(slider)));
    byId("more-sliders").append(...SLIDERS.slice(0, 2).map((slider) => this.slider(slider)));
  }

  slider([name, title, min, max, step, read]) {
    const { settings } = this.session,
      reading = html("output", {}, read(settings[name]));
    const input = html("input", {
      type: "range",
      min,
      max,
      step,
      value: settings[name],
      "data-setting": name,
      oninput: () => this.set(name, Number(input.value)),
    });
    input.addEventListener("setting", () => {
      // another control has set it
      input.value = settings[name];
      reading.textContent = read(settings[name]);
    });
    return html("label", {}, title, reading, input);
  }

  /* Takes a setting over: the views that depend on it change now, the text follows when the slider rests. */
  set(name, value) {
    this.session.settings[name] = value;
    this.refreshControls();
    this.restart();
    this.changed();
  }

  refreshControls() {
    for (const input of document.querySelectorAll("[data-setting]")) input.dispatchEvent(new Event("setting"));
    byId("prompt").value = this.session.prompt;
  }

  edit() {
    this.session.prompt = byId("prompt").value;
    this.session.forced.clear();
    this.restart();
    this.changed();
  }

  restart() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start(), 150);
  }

  /* Writes the text anew with the present settings; the position looked at stays. Returns when it is done. */
  async start() {
    clearTimeout(this.timer);
    const { session } = this;
    const started = performance.now();
    this.drawn = 0; // buttons that are known to show this run's tokens
    byId("stop").disabled = false;
    byId("status").ariaBusy = true; // a screen reader speaks the last status only, not one for each token
    byId("status").textContent = "reading the prompt …";
    const reason = await session.generate({ pause: this.pause, show: () => this.show(started) });
    if (reason !== "overtaken") this.finish(started, reason);
  }

  show(started) {
    const { session } = this,
      written = session.ids.length - session.promptLength;
    this.drawTokens();
    if (written > 0) byId("status").textContent = `${written} tokens, ${speed(written, started)} per second`;
  }

  finish(started, reason) {
    const { session } = this,
      written = session.ids.length - session.promptLength;
    byId("stop").disabled = true;
    this.drawTokens(true);
    const parts = [session.notice, `${written} tokens, ${speed(written, started)} per second`, reason];
    byId("status").textContent = parts.filter(Boolean).join(" · ");
    byId("status").ariaBusy = false;
    this.select({});
  }

  /* Brings the buttons in line with the tokens that came since the last call: what is the same stays, so that nothing
     flickers. */
  drawTokens(complete = false) {
    const { ids, promptLength, forced } = this.session,
      box = byId("tokens");
    const cutAfter = (count) => {
      while (box.children.length > count) box.lastChild.remove();
    };
    for (; this.drawn < ids.length - 1; this.drawn++) {
      const position = this.drawn + 1;
      if (Number(box.children[this.drawn]?.dataset.id) !== ids[position]) {
        cutAfter(this.drawn);
        box.append(this.token(ids[position], position));
      }
      const { classList } = box.children[this.drawn];
      classList.toggle("given", position < promptLength);
      classList.toggle("forced", forced.has(position) && position >= promptLength);
    }
    if (complete) cutAfter(this.drawn);
  }

  token(id, position) {
    const label = this.session.tokenizer.label(id),
      small = /^‹..›$|^↵$/.test(label);
    return html(
      "button",
      {
        type: "button",
        class: `token${small ? " small" : ""}`,
        "data-position": position,
        "data-id": id,
        tabindex: -1,
        "aria-label": `token ${position}: ${label}`,
      },
      label === "↵" ? "↵\n" : label,
    );
  }

  move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.select({ position: this.position + step });
    byId("tokens").querySelector("[aria-current=true]")?.focus();
  }

  /* Marks the token that is looked at, and lists what could have stood there. */
  draw(position) {
    this.position = position;
    for (const node of byId("tokens").children) {
      const current = Number(node.dataset.position) === position;
      if (current) node.setAttribute("aria-current", "true");
      else node.removeAttribute("aria-current");
      node.tabIndex = current ? 0 : -1;
    }
    if (!byId("tokens").querySelector("[tabindex='0']")) byId("tokens").lastChild?.setAttribute("tabindex", 0);
    this.drawAlternatives(position);
  }

  drawAlternatives(position) {
    const { session } = this,
      tokens = session.candidates(position),
      written = session.ids[position],
      word = written === undefined ? "" : session.tokenizer.label(written).trim() || "␣";
    const kept = tokens.filter((token) => !token.cutBy).length,
      list = tokens.slice(0, SHOWN);
    const shown = tokens.findIndex((token) => token.id === written);
    if (shown >= SHOWN) list[SHOWN - 1] = tokens[shown];
    byId("alternatives-note").textContent =
      written === undefined
        ? "What the model would write next."
        : `What the model expected where “${word}” stands. Click one to write it instead.`;
    const most = list[0].probability;
    byId("alternatives").replaceChildren(
      ...list.map((token) => html("li", {}, this.alternative(token, token.probability / most, position))),
    );
    const rest =
      tokens.reduce((sum, token) => sum + token.probability, 0) -
      list.reduce((sum, token) => sum + token.probability, 0);
    byId("alternatives-rest").textContent =
      `All other tokens together: ${percent(rest)}. ` +
      `${kept.toLocaleString("en")} of ${tokens.length.toLocaleString("en")} can be drawn.`;
  }

  alternative(token, length, position) {
    const { session } = this,
      label = session.tokenizer.label(token.id),
      current = session.ids[position] === token.id;
    return html(
      "button",
      {
        type: "button",
        class: `alternative${token.cutBy && " cut"}`,
        "aria-current": current && "true",
        title: token.cutBy ? `cut by ${token.cutBy}` : undefined,
        onclick: () => this.force(position, token.id),
      },
      html("span", { class: "bar", style: `width: ${Math.max(0.5, 100 * length)}%` }),
      html("span", { class: "word" }, label),
      html("span", { class: "number" }, `${token.cutBy && "cut · "}${percent(token.probability)}`),
    );
  }

  /* Writes another token at a position, and lets the model go on from there. */
  force(position, id) {
    const { session } = this;
    if (position < session.promptLength) {
      // within the prompt: the text up to there becomes the prompt
      session.prompt = session.tokenizer.decode([...session.ids.slice(1, position), id]);
      session.forced.clear();
      byId("prompt").value = session.prompt;
    } else session.force(position, id);
    this.changed();
    this.start();
  }
}

function speed(tokens, started) {
  return ((tokens * 1000) / (performance.now() - started)).toFixed(0);
}
