/* Lesson 2, attention and grouped queries: all heads small, one large, and its lines over the text. */
"use strict";

const MOST_ROWS = 96; // positions in an attention map

/* The positions of an attention map: all, or the last ones up to the one looked at. */
function span(session, position) {
  const end = Math.min(session.model.length, Math.max(position, MOST_ROWS));
  return { from: Math.max(0, end - MOST_ROWS), end };
}

function attentionRows(model, layer, head, from, end) {
  return Array.from({ length: end - from }, (_, row) => model.attention(layer, head, from + row).subarray(from));
}

/* 2. Attention: all heads small, one large, and its lines over the text. */
function drawAttention(session, look, select) {
  const { model } = session,
    { from, end } = span(session, look.position),
    { n_heads, n_kv_heads } = model.config;
  const rows = attentionRows(model, look.layer, look.head, from, end),
    query = look.position - 1 - from;
  const title = `Layer ${look.layer + 1}, head ${look.head + 1}`,
    labels = names(session, from, end);
  const beside = n_heads <= 6 && matchMedia("(min-width: 70rem)").matches,
    room = widthOf("attention-figures") - (beside ? 345 : 0);
  const map = attentionMap({
    names: labels,
    weights: rows,
    row: query,
    width: Math.min(room, 620),
    label: `${title}: attention of ${labels.length} positions to each other. ${strongest(labels, rows[query])}`,
    pick: (row) => select({ position: from + row + 1 }),
  });
  byId("groups").textContent =
    n_kv_heads === n_heads
      ? `Each of the ${n_heads} query heads has keys and values of its own.`
      : `Grouped queries: the ${n_heads} query heads share ${n_kv_heads} sets of keys and values, ` +
        `${n_heads / n_kv_heads} heads each. The cache is smaller by that factor.`;
  const focused = document.activeElement?.closest?.(".heads button");
  byId("attention-figures").replaceChildren(
    html(
      "div",
      { class: `heads-and-map${beside ? " beside" : ""}` },
      headGrid(session, look, from, end, select),
      figure(`${title}: where each position looks`, map),
    ),
    figure(`${title}: from “${labels[query]}”`, textLines(session, look, from, rows[query])),
  );
  if (focused) byId("attention-figures").querySelector("[aria-pressed=true]").focus();
}

function strongest(labels, weights) {
  const at = argmax(weights);
  return `“${labels[weights.length - 1]}” looks most at “${labels[at]}”, with weight ${weights[at].toFixed(2)}.`;
}

function headGrid(session, look, from, end, select) {
  const { model } = session,
    { n_layers, n_heads } = model.config,
    n = end - from,
    columns = `3.2rem repeat(${n_heads}, minmax(0, 4.6rem))`;
  const button = (layer, head) => {
    const rows = attentionRows(model, layer, head, from, end);
    return html(
      "button",
      {
        type: "button",
        "aria-pressed": String(layer === look.layer && head === look.head),
        "aria-label": `Layer ${layer + 1}, head ${head + 1}`,
        onclick: () => select({ layer, head }),
      },
      svg(
        "svg",
        { viewBox: "0 0 64 64", "aria-hidden": "true" },
        heatImage(n, n, (i, j) => (j <= i ? rows[i][j] : undefined), HEAT, { width: 64, height: 64 }),
      ),
    );
  };
  const heads = Array.from({ length: n_heads }, (_, head) => head),
    style = `grid-template-columns: ${columns}`;
  const lines = Array.from({ length: n_layers }, (_, layer) =>
    html(
      "div",
      { class: "row", style },
      html("span", {}, `layer ${layer + 1}`),
      heads.map((head) => button(layer, head)),
    ),
  );
  const top = html(
    "div",
    { class: "row", style },
    html("span"),
    heads.map((head) => html("span", {}, `head ${head + 1}`)),
  );
  const grid = html("div", { class: "heads" }, top, lines);
  return figure(`All heads over ${n} positions`, grid, () => headPicture(grid, n_layers, n_heads));
}

/* The grid of buttons as one drawing, to be saved. */
function headPicture(grid, layers, heads) {
  const step = 100,
    left = 60,
    top = 24,
    maps = [...grid.querySelectorAll("button svg")].map((map, at) =>
      fill(
        map.cloneNode(true),
        { x: left + (at % heads) * step, y: top + Math.floor(at / heads) * step, width: step - 6, height: step - 6 },
        [],
      ),
    );
  const across = Array.from({ length: heads }, (_, head) =>
    text(left + (head + 0.5) * step - 3, 14, `head ${head + 1}`, { "text-anchor": "middle" }),
  );
  const down = Array.from({ length: layers }, (_, layer) =>
    text(left - 8, top + (layer + 0.5) * step, `layer ${layer + 1}`, { "text-anchor": "end" }),
  );
  return drawing(
    left + heads * step,
    top + layers * step + 32,
    "",
    maps,
    across,
    down,
    legend(HEAT, left, top + layers * step + 4, 120, "weight"),
  );
}

/* The text, each token tinted by the weight that it gets, with lines from the query's token. */
function textLines(session, look, from, weights) {
  const width = widthOf("attention-figures"),
    context = html("canvas").getContext("2d"),
    line = 46;
  context.font = '17px ui-serif, Charter, Georgia, "Liberation Serif", serif';
  let x = 4,
    y = 44;
  const boxes = Array.from(weights, (weight, at) => {
    const id = session.ids[from + at],
      label = session.tokenizer.label(id),
      size = context.measureText(label).width;
    if (x + size > width - 4 && x > 4) {
      x = 4;
      y += line;
    }
    const box = { x, y, size, label, weight };
    x += size;
    return box;
  });
  const query = boxes.at(-1),
    centre = (box) => box.x + box.size / 2,
    colour = colourScale("heat");
  const tints = boxes.map((box) =>
    svg("rect", {
      x: box.x,
      y: box.y - 17,
      width: box.size,
      height: 24,
      rx: 4,
      fill: `rgb(${colour(HEAT.at(box.weight) * 0.45).join(" ")})`,
      "fill-opacity": Math.min(1, 0.15 + HEAT.at(box.weight)),
    }),
  );
  const lines = boxes
    .slice(0, -1)
    .filter((box) => box.weight > 0.01)
    .map((box) => {
      const [x1, x2] = [centre(query), centre(box)],
        top = Math.min(query.y, box.y) - 24 - Math.min(18, Math.abs(x1 - x2) / 12);
      return svg("path", {
        d: `M${x1} ${query.y - 18}C${x1} ${top} ${x2} ${top} ${x2} ${box.y - 18}`,
        fill: "none",
        stroke: "var(--warm)",
        "stroke-width": 1 + 3 * box.weight,
        "stroke-opacity": Math.min(1, 0.2 + box.weight),
      });
    });
  const words = boxes.map((box) => text(box.x, box.y, box.label, { class: "story" }));
  const frame = svg("rect", { x: query.x, y: query.y - 17, width: query.size, height: 24, rx: 4, class: "mark" });
  const labels = boxes.map((box) => box.label.trim() || "␣");
  return drawing(
    width,
    y + 44,
    strongest(labels, weights),
    tints,
    lines,
    words,
    frame,
    legend(HEAT, 4, y + 18, 120, "weight"),
  );
}
