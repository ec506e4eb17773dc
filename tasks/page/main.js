/* Starts the page: reads its data, connects the views, and keeps the state in the address's fragment. */
"use strict";

const THEMES = ["system", "light", "dark"];
const page = {
  look: { position: Infinity, layer: 0, head: 0 },
  distance: undefined,
  saving: 0, // the timer of saveFragment
  session: null,
  text: null,
  adder: null,
};

/* A model of the page, by its role; the text of its weights leaves the document. */
function readModel(role, described) {
  const holder = byId(`weights-${role}`),
    packed = { ...described.model, bytes: holder.textContent };
  holder.remove();
  return new Llama(packed);
}

function startLanguage(described) {
  const model = readModel("language", described),
    session = new Session(model, new SentencePiece(described.vocabulary));
  const { config } = model,
    { n_layers, n_heads, n_kv_heads } = config;
  page.session = session;
  byId("facts").textContent =
    `${described.name}: ${(model.parameters / 1e6).toFixed(1)} million parameters, ${n_layers} layers, ` +
    `${n_heads} heads with ${n_kv_heads} sets of keys and values, width ${config.dim}. It runs in this page, offline.`;
  for (const node of document.querySelectorAll("[data-norm]"))
    node.toggleAttribute("hidden", node.dataset.norm !== config.norm_type);
  readFragment();
  page.text = new TextView(session, { select: look, changed });
  const options = (count) => Array.from({ length: count }, (_, at) => html("option", { value: at }, String(at + 1)));
  byId("layer").append(...options(n_layers));
  byId("head").append(...options(n_heads));
  byId("layer").addEventListener("change", () => look({ layer: Number(byId("layer").value) }));
  byId("head").addEventListener("change", () => look({ head: Number(byId("head").value) }));
  byId("earlier").addEventListener("click", () => look({ position: page.look.position - 1 }));
  byId("later").addEventListener("click", () => look({ position: page.look.position + 1 }));
}

function startAdder(described) {
  page.adder = new AdderView(readModel("adder", described), described, changed);
  if (!page.session) {
    byId("title").textContent = "The adder opened";
    document.title = "The adder opened";
    byId("adder-title").textContent = "A Llama that adds";
    byId("facts").textContent = "A whole language model on one screen. It runs in this page, offline.";
    byId("adder-lens").closest(".lesson").querySelector("h3").textContent = "Layer by layer";
  }
  readFragment();
}

/* Looks at another token, layer or head, and draws all that shows it. */
function look(change) {
  const { session } = page,
    next = Math.min(session.ids.length, session.model.length);
  if ("position" in change || "layer" in change || "head" in change) page.distance = undefined;
  Object.assign(page.look, change);
  const most = Number.isFinite(page.look.position) ? next : next - 1; // at first the last token is looked at
  page.look.position = Math.max(1, Math.min(page.look.position, most));
  drawLanguage();
  saveFragment();
}

function drawLanguage() {
  const { session, look: at } = page;
  if (!(session.model.length >= at.position)) return; // not read yet
  const written = session.ids[at.position];
  byId("layer").value = at.layer;
  byId("head").value = at.head;
  byId("selected").replaceChildren(
    `Token ${at.position} of ${session.ids.length - 1}: `,
    html("b", {}, written === undefined ? "the next" : session.tokenizer.label(written)),
  );
  page.text.draw(at.position);
  drawNorm(session, at);
  drawAttention(session, at, look);
  drawDistance();
  drawLens(session, at);
  drawTopP(session, at);
}

function drawDistance() {
  const focused = document.activeElement?.closest?.("#rope-figures input");
  const slider = drawRope(page.session, page.look, page.distance, (distance) => {
    page.distance = distance;
    drawDistance();
  });
  if (focused) slider.focus();
}

/* A setting has changed: what depends on it only is drawn now. */
function changed() {
  const { session, text: view, look: at } = page;
  if (session && view && session.model.length >= at.position) {
    view.drawAlternatives(at.position);
    drawTopP(session, at);
  }
  saveFragment();
}

/* Browsers limit how often the address may change: a slider that moves is saved when it rests. */
function saveFragment() {
  clearTimeout(page.saving);
  page.saving = setTimeout(writeFragment, 100);
}

function writeFragment() {
  const fields = page.session ? page.session.toFragment() : new URLSearchParams();
  if (page.session) for (const [name, value] of Object.entries(page.look)) fields.set(name, value);
  if (page.adder) {
    fields.set("sum", `${byId("first").value}+${byId("second").value}`);
    fields.set("digit", page.adder.digit);
    if (page.adder.model.disabled.size) fields.set("off", [...page.adder.model.disabled].join(","));
  }
  history.replaceState(null, "", `#${fields}`);
}

function readFragment() {
  const fields = new URLSearchParams(opened),
    { session, adder } = page;
  if (session) {
    session.fromFragment(fields);
    const most = {
      position: session.model.capacity,
      layer: session.model.config.n_layers - 1,
      head: session.model.config.n_heads - 1,
    };
    for (const name of Object.keys(most)) {
      const value = Math.floor(Number(fields.get(name)));
      if (fields.has(name) && value >= 0) page.look[name] = Math.min(value, most[name]);
    }
  }
  if (adder) {
    const [, a, b] = /^(\d{0,4})\+(\d{0,4})$/.exec(fields.get("sum") ?? "") ?? [null, "1234", "5678"];
    byId("first").value = a;
    byId("second").value = b;
    adder.digit = Math.min(4, Math.max(0, Math.floor(Number(fields.get("digit")) || 0)));
    const { n_layers, n_heads } = adder.model.config;
    adder.model.disabled = new Set(
      [...(fields.get("off") ?? "").matchAll(/(\d+)\.(\d+)/g)]
        .filter(([, layer, head]) => layer < n_layers && head < n_heads)
        .map(([key]) => key),
    );
    adder.drawSwitches();
  }
}

async function share() {
  writeFragment();
  const address = location.href;
  try {
    await navigator.clipboard.writeText(address);
    byId("shared").textContent = "Copied.";
  } catch {
    byId("shared").textContent = "Copy the page's address: it holds the state.";
  }
  setTimeout(() => (byId("shared").textContent = ""), 4000);
}

function drawAll() {
  if (page.session) drawLanguage();
  if (page.adder) page.adder.draw();
}

function applyTheme() {
  const chosen = THEMES.find((theme) => byId("theme").textContent.endsWith(theme));
  const dark = chosen === "dark" || (chosen === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  drawAll();
}

function startPage() {
  byId("theme").addEventListener("click", () => {
    const at = THEMES.findIndex((theme) => byId("theme").textContent.endsWith(theme));
    byId("theme").textContent = `Theme: ${THEMES[(at + 1) % THEMES.length]}`;
    applyTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  byId("share").addEventListener("click", share);
  let width = innerWidth,
    timer = 0;
  addEventListener("resize", () => {
    // a phone's bar that comes and goes changes the height only
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(drawAll, 100);
  });
  addEventListener("hashchange", () => {
    opened = location.hash.slice(1);
    readFragment();
    if (page.text) {
      page.text.refreshControls();
      page.text.start();
    }
    page.adder?.ask();
  });
}

function drawSections() {
  const links = [...document.querySelectorAll("main > section")]
    .filter((section) => !section.hidden)
    .map((section) =>
      html(
        "a",
        {
          href: `#${section.id}`,
          onclick: (event) => {
            event.preventDefault(); // the fragment is the state
            section.scrollIntoView();
            section.querySelector("h2").setAttribute("tabindex", "-1");
            section.querySelector("h2").focus({ preventScroll: true });
          },
        },
        section.querySelector("h2").innerText.replace(/^\d\. /, ""),
      ),
    );
  byId("sections").replaceChildren(...links);
  byId("sections").hidden = links.length < 2;
}

let opened = location.hash.slice(1);

function boot() {
  const described = JSON.parse(byId("data").textContent);
  byId("data").remove();
  for (const role of ["language", "adder"]) {
    for (const node of document.querySelectorAll(`.${role}`)) node.hidden = !described[role];
  }
  startPage();
  if (described.language) startLanguage(described.language);
  if (described.adder) startAdder(described.adder);
  drawSections();
  page.adder?.ask();
  page.text?.start();
  window.ready = true;
}

boot();
