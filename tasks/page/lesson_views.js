/* The five lessons, in the order of the course's handout. Each is a function of the session and of what is looked at:
   {position, layer, head}. The token at `position` was written by the model standing at position − 1. */
"use strict";

const MOST_ROWS = 96; // positions in an attention map

function widthOf(id) {
  return Math.max(260, Math.floor(byId(id).clientWidth));
}

function names(session, from, to) {
  return session.ids.slice(from, to).map((id) => session.tokenizer.label(id).trim() || "␣");
}

/* 1. LayerNorm: the residual stream at a layer's input, before and after its norm. */
function drawNorm(session, { position, layer }) {
  const { model } = session, before = Float64Array.from(model.residual(layer, position - 1));
  const after = model.norm(before, model.layers[layer].attentionNorm, new Float64Array(before.length));
  const strip = (values, title) => {
    const width = widthOf("norm-figures"), height = 96, mean = average(values), spread = Math.sqrt(average(values.map((value) => (value - mean) ** 2)));
    const most = Math.max(...values.map(Math.abs)) || 1, y = (value) => height / 2 - (value / most) * (height / 2 - 4);
    const step = (width - 46) / values.length, path = Array.from(values, (value, at) => `M${46 + (at + 0.5) * step} ${height / 2}V${y(value)}`).join("");
    const label = `${title}: mean ${signed(mean)}, standard deviation ${signed(spread)}`;
    const picture = drawing(width, height, label,
      svg("path", { d: path, stroke: "var(--accent)", "stroke-width": Math.max(1, step * 0.7) }),
      svg("line", { x1: 46, x2: width, y1: height / 2, y2: height / 2, class: "rule" }),
      text(40, 12, signed(most, 1), { class: "quiet", "text-anchor": "end" }),
      text(40, height / 2 + 4, "0", { class: "quiet", "text-anchor": "end" }),
      text(40, height - 3, signed(-most, 1), { class: "quiet", "text-anchor": "end" }));
    return html("div", {}, figure(title, picture),
      html("p", { class: "note" }, `mean ${signed(mean)}, standard deviation ${signed(spread)}, ${values.length} features`));
  };
  byId("norm-figures").replaceChildren(
    strip(before, layer === 0 ? "Residual stream before layer 1: the embedding" : `Residual stream before layer ${layer + 1}`),
    strip(after, `What the attention of layer ${layer + 1} reads, after its norm`));
}

function average(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

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
  const { model } = session, { from, end } = span(session, look.position), { n_heads, n_kv_heads } = model.config;
  const rows = attentionRows(model, look.layer, look.head, from, end), query = look.position - 1 - from;
  const title = `Layer ${look.layer + 1}, head ${look.head + 1}`, labels = names(session, from, end);
  const beside = n_heads <= 6 && matchMedia("(min-width: 70rem)").matches, room = widthOf("attention-figures") - (beside ? 345 : 0);
  const map = attentionMap({ names: labels, weights: rows, row: query, width: Math.min(room, 620),
    label: `${title}: attention of ${labels.length} positions to each other. ${strongest(labels, rows[query])}`,
    pick: (row) => select({ position: from + row + 1 }) });
  byId("groups").textContent = n_kv_heads === n_heads ? `Each of the ${n_heads} query heads has keys and values of its own.`
    : `Grouped queries: the ${n_heads} query heads share ${n_kv_heads} sets of keys and values, ${n_heads / n_kv_heads} heads each. `
      + "The cache is smaller by that factor.";
  byId("attention-figures").replaceChildren(
    html("div", { class: `heads-and-map${beside ? " beside" : ""}` }, headGrid(session, look, from, end, select),
      figure(`${title}: where each position looks`, map)),
    figure(`${title}: from “${labels[query]}”`, textLines(session, look, from, rows[query])));
}

function strongest(labels, weights) {
  const at = argmax(weights);
  return `“${labels[weights.length - 1]}” looks most at “${labels[at]}”, with weight ${weights[at].toFixed(2)}.`;
}

function headGrid(session, look, from, end, select) {
  const { model } = session, { n_layers, n_heads } = model.config, n = end - from, columns = `3.2rem repeat(${n_heads}, minmax(0, 4.6rem))`;
  const button = (layer, head) => {
    const rows = attentionRows(model, layer, head, from, end);
    return html("button", { type: "button", "aria-pressed": String(layer === look.layer && head === look.head),
      "aria-label": `Layer ${layer + 1}, head ${head + 1}`, onclick: () => select({ layer, head }) },
    svg("svg", { viewBox: "0 0 64 64", "aria-hidden": "true" },
      heatImage(n, n, (i, j) => (j <= i ? rows[i][j] : undefined), HEAT, { width: 64, height: 64 })));
  };
  const heads = Array.from({ length: n_heads }, (_, head) => head), style = `grid-template-columns: ${columns}`;
  const lines = Array.from({ length: n_layers }, (_, layer) =>
    html("div", { class: "row", style }, html("span", {}, `layer ${layer + 1}`), heads.map((head) => button(layer, head))));
  const top = html("div", { class: "row", style }, html("span"), heads.map((head) => html("span", {}, `head ${head + 1}`)));
  const grid = html("div", { class: "heads" }, top, lines);
  return figure(`All heads over ${n} positions`, grid, () => headPicture(grid, n_layers, n_heads));
}

/* The grid of buttons as one drawing, to be saved. */
function headPicture(grid, layers, heads) {
  const step = 100, left = 60, top = 24, maps = [...grid.querySelectorAll("button svg")].map((map, at) =>
    fill(map.cloneNode(true), { x: left + (at % heads) * step, y: top + Math.floor(at / heads) * step, width: step - 6, height: step - 6 }, []));
  const across = Array.from({ length: heads }, (_, head) => text(left + (head + 0.5) * step - 3, 14, `head ${head + 1}`, { "text-anchor": "middle" }));
  const down = Array.from({ length: layers }, (_, layer) => text(left - 8, top + (layer + 0.5) * step, `layer ${layer + 1}`, { "text-anchor": "end" }));
  return drawing(left + heads * step, top + layers * step + 32, "", maps, across, down, legend(HEAT, left, top + layers * step + 4, 120, "weight"));
}

/* The text, each token tinted by the weight that it gets, with lines from the query's token. */
function textLines(session, look, from, weights) {
  const width = widthOf("attention-figures"), context = html("canvas").getContext("2d"), line = 46;
  context.font = '17px ui-serif, Charter, Georgia, "Liberation Serif", serif';
  let x = 4, y = 44;
  const boxes = Array.from(weights, (weight, at) => {
    const id = session.ids[from + at], label = session.tokenizer.label(id), size = context.measureText(label).width;
    if (x + size > width - 4 && x > 4) {
      x = 4;
      y += line;
    }
    const box = { x, y, size, label, weight };
    x += size;
    return box;
  });
  const query = boxes.at(-1), centre = (box) => box.x + box.size / 2, colour = colourScale("heat");
  const tints = boxes.map((box) => svg("rect", { x: box.x, y: box.y - 17, width: box.size, height: 24, rx: 4,
    fill: `rgb(${colour(HEAT.at(box.weight) * 0.62).join(" ")})`, "fill-opacity": Math.min(1, 0.15 + HEAT.at(box.weight)) }));
  const lines = boxes.slice(0, -1).filter((box) => box.weight > 0.01).map((box) => {
    const [x1, x2] = [centre(query), centre(box)], top = Math.min(query.y, box.y) - 24 - Math.min(18, Math.abs(x1 - x2) / 12);
    return svg("path", { d: `M${x1} ${query.y - 18}C${x1} ${top} ${x2} ${top} ${x2} ${box.y - 18}`, fill: "none",
      stroke: "var(--warm)", "stroke-width": 1 + 3 * box.weight, "stroke-opacity": Math.min(1, 0.2 + box.weight) });
  });
  const words = boxes.map((box) => text(box.x, box.y, box.label, { class: "story" }));
  const frame = svg("rect", { x: query.x, y: query.y - 17, width: query.size, height: 24, rx: 4, class: "mark" });
  const labels = boxes.map((box) => box.label.trim() || "␣");
  return drawing(width, y + 44, strongest(labels, weights), tints, lines, words, frame, legend(HEAT, 4, y + 18, 120, "weight"));
}

/* 3. RoPE: how far each pair turns over a distance, and the score of a query and a key as the distance changes. */
function drawRope(session, look, distance, move) {
  const { model } = session, parts = ropeParts(model, look), reach = Math.min(64, model.capacity - 1);
  const d = distance ?? parts.distance, slider = html("input", { type: "range", min: 0, max: reach, value: Math.min(d, reach),
    oninput: () => move(Number(slider.value)) });
  const query = session.tokenizer.label(session.ids[look.position - 1]), key = session.tokenizer.label(session.ids[parts.key]);
  const words = `“${query.trim()}” and “${key.trim()}”`, away = d === 1 ? "1 position" : `${d} positions`;
  const control = html("label", {}, `Distance: ${away}`, d === parts.distance ? " (as in the text)" : "", slider);
  byId("rope-figures").replaceChildren(
    control, figure(`How far each pair turns over ${away}`, dials(model, d)),
    figure(`Layer ${look.layer + 1}, head ${look.head + 1}: score of ${words} by distance`, ropeCurve(model, parts, d, reach)));
  return slider;
}

/* Query and key as complex products per pair, with the angle of their distance taken out; the key is the one with the
   largest weight beside the start token. */
function ropeParts(model, { position, layer, head }) {
  const { n_heads, n_kv_heads, head_dim } = model.config, at = position - 1, weights = model.attention(layer, head, at);
  const key = at === 0 ? 0 : 1 + argmax(weights.subarray(1)), distance = at - key;
  const q = model.queries[layer].subarray((at * n_heads + head) * head_dim), group = model.groupOf(head);
  const k = model.keys[layer].subarray((key * n_kv_heads + group) * head_dim);
  const pairs = model.frequencies.map((frequency, i) => {
    const [a, b, c, e] = [q[2 * i], q[2 * i + 1], k[2 * i], k[2 * i + 1]];
    const [re, im] = [a * c + b * e, b * c - a * e], turn = -distance * frequency; // q · conj(k)
    return [re * Math.cos(turn) - im * Math.sin(turn), re * Math.sin(turn) + im * Math.cos(turn)];
  });
  return { key, distance, pairs };
}

function ropeScore(model, { pairs }, distance) {
  const sum = pairs.reduce((total, [re, im], i) =>
    total + re * Math.cos(distance * model.frequencies[i]) - im * Math.sin(distance * model.frequencies[i]), 0);
  return sum / Math.sqrt(model.config.head_dim);
}

function dials(model, distance) {
  const width = widthOf("rope-figures"), pairs = model.frequencies.length, shown = Math.min(pairs, width < 500 ? 6 : 8);
  const step = Math.min(90, width / shown), radius = step / 2 - 9;
  const marks = Array.from({ length: shown }, (_, at) => {
    const pair = shown === 1 ? 0 : Math.round((at * (pairs - 1)) / (shown - 1)), angle = distance * model.frequencies[pair];
    const x = (at + 0.5) * step, y = radius + 4, hand = (turn) => [x + radius * Math.cos(turn), y - radius * Math.sin(turn)];
    const [x1, y1] = hand(0), [x2, y2] = hand(angle), degrees = (angle * 180) / Math.PI;
    return svg("g", {}, svg("circle", { cx: x, cy: y, r: radius, class: "frame" }),
      svg("line", { x1: x, y1: y, x2: x1, y2: y1, class: "rule", "stroke-width": 2 }),
      svg("line", { x1: x, y1: y, x2, y2, stroke: "var(--accent)", "stroke-width": 2.5 }), svg("circle", { cx: x2, cy: y2, r: 3.5, class: "solid" }),
      text(x, 2 * radius + 22, `pair ${pair + 1}`, { "text-anchor": "middle", class: "quiet" }),
      text(x, 2 * radius + 38, degrees < 1 ? `${degrees.toFixed(2)}°` : `${degrees.toFixed(0)}°`, { "text-anchor": "middle" }));
  });
  return drawing(step * shown, 2 * radius + 44, `Angles of ${shown} of ${pairs} pairs over a distance of ${distance}`, marks);
}

function ropeCurve(model, parts, distance, reach) {
  const width = widthOf("rope-figures"), height = 168, left = 46, scores = Array.from({ length: reach + 1 }, (_, d) => ropeScore(model, parts, d));
  const low = Math.min(0, ...scores), high = Math.max(0, ...scores), range = high - low || 1;
  const x = (d) => left + (d / reach) * (width - left - 12), y = (score) => 10 + ((high - score) / range) * (height - 60);
  const path = scores.map((score, d) => `${d ? "L" : "M"}${x(d).toFixed(1)} ${y(score).toFixed(1)}`).join("");
  const label = `Score by distance from 0 to ${reach}; at ${distance} it is ${signed(scores[Math.min(distance, reach)])}`;
  return drawing(width, height, label,
    svg("line", { x1: left, x2: width - 12, y1: y(0), y2: y(0), class: "rule" }), svg("path", { d: path, class: "curve" }),
    distance <= reach ? [svg("line", { x1: x(distance), x2: x(distance), y1: 8, y2: height - 46, class: "threshold" }),
      svg("circle", { cx: x(distance), cy: y(scores[distance]), r: 4.5, class: "warm" })] : null,
    text(left - 6, y(high) + 4, signed(high, 1), { "text-anchor": "end", class: "quiet" }),
    low < 0 ? text(left - 6, y(low) + 4, signed(low, 1), { "text-anchor": "end", class: "quiet" }) : null,
    [0, reach / 4, reach / 2, (3 * reach) / 4, reach].map(Math.round).map((d) => text(x(d), height - 30, String(d), { "text-anchor": "middle", class: "quiet" })),
    text(width - 12, height - 8, "positions between query and key", { "text-anchor": "end", class: "quiet" }));
}

/* 4. The logit lens: what each layer would predict. */
function drawLens(session, { position }) {
  const { model, tokenizer } = session, width = widthOf("lens-figures"), written = session.ids[position];
  byId("lens-figures").replaceChildren(figure(`Predictions at position ${position}, layer by layer`,
    lensTable({ model, position, written, width, label: (id) => tokenizer.label(id) })));
}

/* Rows: the embedding and each layer; columns: the most likely tokens, tinted by probability. */
function lensTable({ model, position, written, width, label, columns = width < 500 ? 3 : 5 }) {
  const { n_layers } = model.config, left = 84, right = 62, cell = (width - left - right) / columns, height = 30, colour = colourScale("heat");
  const rows = Array.from({ length: n_layers + 1 }, (_, layer) => {
    const probabilities = softmax(model.logits(position - 1, layer)), y = 20 + layer * height;
    const cells = largest(probabilities, columns).map((id, at) => {
      const probability = probabilities[id], x = left + at * cell, dark = HEAT.at(probability) > 0.62;
      const ink = dark ? "fill: var(--paper)" : "fill: var(--ink)";
      return svg("g", {}, svg("rect", { x: x + 1, y: y + 1, width: cell - 2, height: height - 2, rx: 4, fill: `rgb(${colour(HEAT.at(probability)).join(" ")})` }),
        id === written ? svg("rect", { x: x + 2, y: y + 2, width: cell - 4, height: height - 4, rx: 3, class: "mark" }) : null,
        text(x + 8, y + 20, clip(label(id).trim() || "␣", Math.floor((cell - 52) / 7) + 1), { style: ink }),
        text(x + cell - 7, y + 20, percent(probability), { style: ink, "text-anchor": "end" }));
    });
    const rank = written === undefined ? "" : `#${1 + probabilities.filter((other) => other > probabilities[written]).length}`;
    return svg("g", {}, text(0, y + 20, layer ? `after layer ${layer}` : "embedding", { class: "quiet" }), cells,
      text(width - 2, y + 20, rank, { "text-anchor": "end" }));
  });
  const last = argmax(model.logits(position - 1)), end = 20 + (n_layers + 1) * height;
  return drawing(width, end + 36, `The last layer's most likely token is ${label(last)}`, text(left + 2, 12, "most likely tokens", { class: "quiet" }),
    written === undefined ? null : text(width - 2, 12, "its rank", { class: "quiet", "text-anchor": "end" }), rows,
    legend(HEAT, left, end + 8, 120, "probability"));
}

/* 5. Top-p: the sorted probabilities, their running sum, and where p cuts. */
function drawTopP(session, { position }) {
  const tokens = session.candidates(position), { topP, temperature } = session.settings, width = widthOf("top-p-figures");
  const kept = tokens.filter((token) => !token.cutBy).length, count = Math.min(tokens.length, width < 500 ? 16 : 32);
  const left = 40, height = 230, bottom = 150, step = (width - left - 4) / count, y = (share) => 8 + (1 - share) * (bottom - 8);
  let sum = 0;
  const bars = tokens.slice(0, count).map((token, rank) => {
    const x = left + rank * step;
    sum += token.probability;
    return { x, sum, node: svg("g", {}, svg("rect", { x: x + 1, y: y(token.probability), width: step - 2, height: bottom - y(token.probability), class: token.cutBy ? "cut" : "solid" }),
      svg("text", { transform: `translate(${x + step / 2 - 4} ${bottom + 6}) rotate(90)`, class: token.cutBy ? "quiet" : "" },
        clip(session.tokenizer.label(token.id).trim() || "␣", 10))) };
  });
  const curve = bars.map(({ x, sum: total }, rank) => `${rank ? "L" : "M"}${x + step / 2} ${y(total)}`).join("");
  const cuts = temperature > 0 ? `${kept.toLocaleString("en")} of ${tokens.length.toLocaleString("en")} tokens stay` : "temperature 0: only the first stays";
  byId("top-p-figures").replaceChildren(figure(`The ${count} most likely tokens: ${cuts}`, drawing(width, height,
    `${cuts} at temperature ${temperature} and top-p ${topP}`, bars.map((bar) => bar.node), svg("path", { d: curve, class: "curve", style: "stroke: var(--muted)" }),
    svg("line", { x1: left, x2: width, y1: bottom, y2: bottom, class: "rule" }),
    svg("line", { x1: left, x2: width, y1: y(topP), y2: y(topP), class: "threshold" }),
    [0, 0.5, 1].map((share) => text(left - 6, y(share) + 4, String(share), { class: "quiet", "text-anchor": "end" })),
    text(width - 4, y(topP) + (topP > 0.5 ? 16 : -6), `p = ${topP.toFixed(2)}`, { "text-anchor": "end" }))),
  html("p", { class: "note" }, "Bars: probability of each token; pale ones are cut. Grey line: their running sum. Dashed line: p."));
}
