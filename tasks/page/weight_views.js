/* Tensors as heatmaps: every weight of a small model, with the value of the cell under the pointer or the keys. */
"use strict";

const WEIGHT_ORDER = ["tok_embeddings", "query", "key", "value", "output", "w1", "w3", "w2"];
const TOKEN_NAMES = 34; // room left of the embedding for the names of its rows

/* One drawing of several tensors, at most `width` wide: matrices in rows, then all vectors in one column. */
function weightsDrawing(entries, { scale, model, tokenizer, width, read }) {
  const blocks = layOut(entries, width),
    height = Math.max(...blocks.map((block) => block.y + block.height)) + 8,
    mark = svg("rect", { class: "mark", visibility: "hidden" });
  const show = ({ name, matrix, x, y, cell }, row, column) => {
    fill(mark, { x: x + column * cell, y: y + row * cell, width: cell, height: cell, visibility: "visible" }, []);
    const at = matrix.rows > 1 ? `row ${row + 1}, column ${column + 1}` : `feature ${column + 1}`;
    read(`${name}, ${at}: ${signed(matrix.value(row, column), 4)}`);
  };
  const picture = drawing(
    width,
    height,
    `Weights: ${entries.map(([name, matrix]) => `${name} ${matrix.rows} by ${matrix.columns}`).join(", ")}`,
    blocks.map((block) => weightBlock(block, scale, model, tokenizer, show)),
    mark,
  );
  readByKeys(picture, blocks, show);
  return picture;
}

function shortName(name) {
  return name.replace(/^layers\.\d+\.|attention\.compute_|feed_forward\.|\.weight$/g, "");
}

function cellSize(entries) {
  const biggest = Math.max(...entries.map(([, matrix]) => matrix.columns));
  return Math.max(3, Math.min(16, Math.floor(280 / biggest)));
}

/* The place of every tensor: x and y of its first cell, and the size of a cell. */
function layOut(entries, width) {
  const cell = cellSize(entries),
    order = ([name]) => WEIGHT_ORDER.indexOf(shortName(name)),
    matrices = entries.filter(([, matrix]) => matrix.rows > 1).sort((a, b) => order(a) - order(b));
  const columns = [...matrices.map((entry) => [entry]), entries.filter(([, matrix]) => matrix.rows === 1)];
  const blocks = [];
  let x = 0,
    y = 0,
    tallest = 0;
  for (const column of columns.filter((each) => each.length)) {
    const lead = column[0][0] === "tok_embeddings.weight" ? TOKEN_NAMES : 0;
    const wide =
      lead + Math.max(...column.map(([name, matrix]) => Math.max(matrix.columns * cell, shortName(name).length * 7)));
    if (x > 0 && x + wide > width) [x, y, tallest] = [0, y + tallest + 14, 0];
    let top = y;
    for (const [name, matrix] of column) {
      const height = matrix.rows * cell;
      blocks.push({ name, matrix, cell, x: x + lead, y: top + 20, width: matrix.columns * cell, height });
      top += 20 + height + 8;
    }
    x += wide + 20;
    tallest = Math.max(tallest, top - y);
  }
  return blocks;
}

function weightBlock(block, scale, model, tokenizer, show) {
  const { name, matrix, cell, x, y, width, height } = block,
    size = { x, y, width, height };
  const rowNames =
    name === "tok_embeddings.weight"
      ? Array.from({ length: matrix.rows }, (_, row) =>
          text(x - 5, y + (row + 0.5) * cell + 4, tokenizer.label(row).replace(/[⟨⟩]/g, ""), {
            class: "quiet",
            "text-anchor": "end",
          }),
        )
      : [];
  const group = svg(
    "g",
    {},
    text(x, y - 7, shortName(name)),
    rowNames,
    heatImage(matrix.rows, matrix.columns, (row, column) => matrix.value(row, column), scale, size),
    svg("rect", { ...size, class: "frame" }),
    dimmed(name, model, size, cell),
  );
  group.addEventListener("pointermove", (event) => {
    const box = group.ownerSVGElement.getBoundingClientRect(),
      ratio = group.ownerSVGElement.viewBox.baseVal.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * ratio - x) / cell),
      row = Math.floor(((event.clientY - box.top) * ratio - y) / cell);
    if (row >= 0 && row < matrix.rows && column >= 0 && column < matrix.columns) show(block, row, column);
  });
  return group;
}

/* Arrow keys go from cell to cell, and past the edge of a tensor to the first cell of its neighbour. */
function readByKeys(picture, blocks, show) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  let at = 0,
    row = 0,
    column = 0;
  picture.setAttribute("tabindex", 0);
  picture.addEventListener("focus", () => show(blocks[at], row, column));
  picture.addEventListener("keydown", (event) => {
    if (!steps[event.key]) return;
    event.preventDefault();
    row += steps[event.key][0];
    column += steps[event.key][1];
    const { rows, columns } = blocks[at].matrix,
      step = row >= rows || column >= columns ? 1 : row < 0 || column < 0 ? -1 : 0;
    if (step) [at, row, column] = [(at + step + blocks.length) % blocks.length, 0, 0];
    show(blocks[at], row, column);
  });
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
