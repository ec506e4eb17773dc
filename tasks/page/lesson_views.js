/* The five lessons, in the order of the course's handout. Each is a function of the session and of what is looked at:
   {position, layer, head}. The token at `position` was written by the model standing at position − 1. */
"use strict";

function widthOf(id) {
  return Math.max(260, Math.floor(byId(id).clientWidth));
}

function names(session, from, to) {
  return session.ids.slice(from, to).map((id) => session.tokenizer.label(id).trim() || "␣");
}

/* 1. LayerNorm: the residual stream at a layer's input, before and after its norm. */
function drawNorm(session, { position, layer }) {
  const { model } = session,
    before = Float64Array.from(model.residual(layer, position - 1));
  const after = model.norm(before, model.layers[layer].attentionNorm, new Float64Array(before.length));
  const strip = (values, title) => {
    const width = widthOf("norm-figures"),
      height = 96,
      mean = average(values),
      spread = Math.sqrt(average(values.map((value) => (value - mean) ** 2)));
    const most = Math.max(...values.map(Math.abs)) || 1,
      y = (value) => height / 2 - (value / most) * (height / 2 - 4);
    const step = (width - 46) / values.length,
      path = Array.from(values, (value, at) => `M${46 + (at + 0.5) * step} ${height / 2}V${y(value)}`).join("");
    const label = `${title}: mean ${signed(mean)}, standard deviation ${signed(spread)}`;
    const picture = drawing(
      width,
      height,
      label,
      svg("path", { d: path, stroke: "var(--accent)", "stroke-width": Math.max(1, step * 0.7) }),
      svg("line", { x1: 46, x2: width, y1: height / 2, y2: height / 2, class: "rule" }),
      text(40, 12, signed(most, 1), { class: "quiet", "text-anchor": "end" }),
      text(40, height / 2 + 4, "0", { class: "quiet", "text-anchor": "end" }),
      text(40, height - 3, signed(-most, 1), { class: "quiet", "text-anchor": "end" }),
    );
    return html(
      "div",
      {},
      figure(title, picture),
      html(
        "p",
        { class: "note" },
        `mean ${signed(mean)}, standard deviation ${signed(spread)}, ${values.length} features`,
      ),
    );
  };
  byId("norm-figures").replaceChildren(
    strip(
      before,
      layer === 0 ? "Residual stream before layer 1: the embedding" : `Residual stream before layer ${layer + 1}`,
    ),
    strip(after, `What the attention of layer ${layer + 1} reads, after its norm`),
  );
}

function average(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/* 4. The logit lens: what each layer would predict. */
function drawLens(session, { position }) {
  const { model, tokenizer } = session,
    width = widthOf("lens-figures"),
    written = session.ids[position];
  byId("lens-figures").replaceChildren(
    figure(
      `Predictions at position ${position}, layer by layer`,
      lensTable({ model, position, written, width, label: (id) => tokenizer.label(id) }),
    ),
  );
}

/* Rows: the embedding and each layer; columns: the most likely tokens, tinted by probability. */
function lensTable({ model, position, written, width, label, columns = width < 500 ? 2 : 5 }) {
  const { n_layers } = model.config,
    left = 84,
    right = 62,
    cell = (width - left - right) / columns,
    height = 30,
    colour = colourScale("heat");
  const rows = Array.from({ length: n_layers + 1 }, (_, layer) => {
    const probabilities = softmax(model.logits(position - 1, layer)),
      y = 20 + layer * height;
    const cells = largest(probabilities, columns).map((id, at) => {
      const probability = probabilities[id],
        x = left + at * cell,
        tint = colour(HEAT.at(probability)),
        ink = `fill: ${inkOn(tint)}`;
      return svg(
        "g",
        {},
        svg("rect", {
          x: x + 1,
          y: y + 1,
          width: cell - 2,
          height: height - 2,
          rx: 4,
          fill: `rgb(${tint.join(" ")})`,
        }),
        id === written
          ? svg("rect", { x: x + 2, y: y + 2, width: cell - 4, height: height - 4, rx: 3, class: "mark" })
          : null,
        text(x + 8, y + 20, clip(label(id).trim() || "␣", Math.floor((cell - 52) / 7)), { style: ink }),
        text(x + cell - 7, y + 20, percent(probability), { style: ink, "text-anchor": "end" }),
      );
    });
    const rank =
      written === undefined ? "" : `#${1 + probabilities.filter((other) => other > probabilities[written]).length}`;
    return svg(
      "g",
      {},
      text(0, y + 20, layer ? `after layer ${layer}` : "embedding", { class: "quiet" }),
      cells,
      text(width - 2, y + 20, rank, { "text-anchor": "end" }),
    );
  });
  const last = argmax(model.logits(position - 1)),
    end = 20 + (n_layers + 1) * height;
  return drawing(
    width,
    end + 36,
    `The last layer's most likely token is ${label(last)}`,
    text(left + 2, 12, "most likely tokens", { class: "quiet" }),
    written === undefined ? null : text(width - 2, 12, "its rank", { class: "quiet", "text-anchor": "end" }),
    rows,
    legend(HEAT, left, end + 8, 120, "probability"),
  );
}

/* 5. Top-p: the sorted probabilities, their running sum, and where p cuts. */
function drawTopP(session, { position }) {
  const tokens = session.candidates(position),
    { topP, temperature } = session.settings,
    width = widthOf("top-p-figures");
  const kept = tokens.filter((token) => !token.cutBy).length,
    count = Math.min(tokens.length, width < 500 ? 16 : 32);
  const left = 40,
    height = 230,
    bottom = 150,
    step = (width - left - 4) / count,
    y = (share) => 8 + (1 - share) * (bottom - 8);
  let sum = 0;
  const bars = tokens.slice(0, count).map((token, rank) => {
    const x = left + rank * step;
    sum += token.probability;
    return {
      x,
      sum,
      node: svg(
        "g",
        {},
        svg("rect", {
          x: x + 1,
          y: y(token.probability),
          width: step - 2,
          height: bottom - y(token.probability),
          class: token.cutBy ? "cut" : "solid",
        }),
        svg(
          "text",
          { transform: `translate(${x + step / 2 - 4} ${bottom + 6}) rotate(90)`, class: token.cutBy ? "quiet" : "" },
          clip(session.tokenizer.label(token.id).trim() || "␣", 10),
        ),
      ),
    };
  });
  const curve = bars.map(({ x, sum: total }, rank) => `${rank ? "L" : "M"}${x + step / 2} ${y(total)}`).join("");
  const cuts =
    temperature > 0
      ? `${kept.toLocaleString("en")} of ${tokens.length.toLocaleString("en")} tokens stay`
      : "temperature 0: only the first stays";
  byId("top-p-figures").replaceChildren(
    figure(
      `The ${count} most likely tokens: ${cuts}`,
      drawing(
        width,
        height,
        `${cuts} at temperature ${temperature} and top-p ${topP}`,
        bars.map((bar) => bar.node),
        svg("path", { d: curve, class: "curve", style: "stroke: var(--muted)" }),
        svg("line", { x1: left, x2: width, y1: bottom, y2: bottom, class: "rule" }),
        svg("line", { x1: left, x2: width, y1: y(topP), y2: y(topP), class: "threshold" }),
        [0, 0.5, 1].map((share) =>
          text(left - 6, y(share) + 4, String(share), { class: "quiet", "text-anchor": "end" }),
        ),
        text(width - 4, y(topP) + (topP > 0.5 ? 16 : -6), `p = ${topP.toFixed(2)}`, { "text-anchor": "end" }),
      ),
    ),
    html(
      "p",
      { class: "note" },
      "Bars: probability of each token; pale ones are cut. Grey line: their running sum. Dashed line: p.",
    ),
  );
}
