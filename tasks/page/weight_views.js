/* Tensors as heatmaps: every weight of a small model, with the value under the pointer. */
"use strict";

const WEIGHT_ORDER = ["tok_embeddings", "query", "key", "value", "output", "w1", "w3", "w2"];

/* One drawing of several tensors: matrices in rows as wide as the page, then all vectors in one column. */
function weightsDrawing(entries, scale, model, tokenizer, reading) {
  const biggest = Math.max(...entries.map(([, matrix]) => matrix.columns)),
    cell = Math.max(3, Math.min(20, Math.floor(280 / biggest)));
  const width = widthOf("adder-weights"),
    nodes = [],
    short = (name) => name.replace(/^layers\.\d+\.|attention\.compute_|feed_forward\.|\.weight$/g, "");
  const blocks = entries
    .filter(([, matrix]) => matrix.rows > 1)
    .sort(([a], [b]) => WEIGHT_ORDER.indexOf(short(a)) - WEIGHT_ORDER.indexOf(short(b)))
    .map((entry) => [entry]);
  blocks.push(entries.filter(([, matrix]) => matrix.rows === 1));
  let x = 0,
    y = 0,
    tallest = 0;
  for (const block of blocks) {
    const lead = block[0][0] === "tok_embeddings.weight" ? 34 : 0;
    const wide =
      lead + Math.max(...block.map(([name, matrix]) => Math.max(matrix.columns * cell, short(name).length * 7)));
    if (x > 0 && x + wide > width) [x, y, tallest] = [0, y + tallest + 14, 0];
    let top = y;
    for (const [name, matrix] of block) {
      nodes.push(weightBlock({ name, short: short(name), matrix, x: x + lead, y: top, cell, scale, model, reading }));
      top += 20 + matrix.rows * cell + 8;
    }
    if (lead)
      nodes.push(
        ...Array.from({ length: block[0][1].rows }, (_, row) =>
          text(x + lead - 5, y + 20 + (row + 0.5) * cell + 4, tokenizer.label(row).replace(/[⟨⟩]/g, ""), {
            class: "quiet",
            "text-anchor": "end",
          }),
        ),
      );
    x += wide + 24;
    tallest = Math.max(tallest, top - y);
  }
  return drawing(
    width,
    y + tallest,
    `Weights: ${entries.map(([name, matrix]) => `${name} ${matrix.rows} by ${matrix.columns}`).join(", ")}`,
    nodes,
  );
}

function weightBlock({ name, short, matrix, x, y, cell, scale, model, reading }) {
  const { rows, columns } = matrix,
    size = { x, y: y + 20, width: columns * cell, height: rows * cell };
  const block = svg(
    "g",
    {},
    text(x, y + 13, short),
    heatImage(rows, columns, (row, column) => matrix.value(row, column), scale, size),
    svg("rect", { ...size, class: "frame" }),
    dimmed(name, model, size, cell),
  );
  block.addEventListener("pointermove", (event) => {
    const box = block.ownerSVGElement.getBoundingClientRect(),
      ratio = block.ownerSVGElement.viewBox.baseVal.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * ratio - x) / cell),
      row = Math.floor(((event.clientY - box.top) * ratio - y - 20) / cell);
    if (row >= 0 && row < rows && column >= 0 && column < columns) {
      const cellName = rows > 1 ? `row ${row + 1}, column ${column + 1}` : `feature ${column + 1}`;
      reading.textContent = `${name}, ${cellName}: ${signed(matrix.value(row, column), 4)}`;
    }
  });
  return block;
}

/* Veils over the weights that heads use which are off: their rows of the queries, their columns of the output. */
function dimmed(name, model, size, cell) {
  const match = /^layers\.(\d+)\.attention\.compute_(query|output)/.exec(name),
    { head_dim } = model.config;
  if (!match) return null;
  const heads = [...model.disabled]
    .map((key) => key.split("."))
    .filter(([layer]) => layer === match[1])
    .map(([, head]) => Number(head));
  return heads.map((head) =>
    svg("rect", {
      ...size,
      style: "fill: var(--card); fill-opacity: 0.8",
      ...(match[2] === "query"
        ? { y: size.y + head * head_dim * cell, height: head_dim * cell }
        : { x: size.x + head * head_dim * cell, width: head_dim * cell }),
    }),
  );
}
