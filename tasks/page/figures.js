/* Drawing: elements, colour scales, heatmaps, legends, captions, and saving a figure as a picture. */
"use strict";

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/* An HTML element: html("button", {class: "x", onclick: f}, "text"). */
function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/* An SVG element, in the same way. */
function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG_NAMESPACE, name), attributes, children);
}

function text(x, y, content, attributes = {}) {
  return svg("text", { x, y, ...attributes }, content);
}

function drawing(width, height, label, ...children) {
  const size = { viewBox: `0 0 ${width} ${height}`, width, height };
  return svg("svg", { ...size, role: "img", "aria-label": label }, ...children);
}

function byId(id) {
  return document.getElementById(id);
}

function percent(share) {
  return share >= 0.9995
    ? "100 %"
    : share >= 0.1
      ? `${(share * 100).toFixed(0)} %`
      : share >= 0.001
        ? `${(share * 100).toFixed(1)} %`
        : "< 0.1 %";
}

/* A number with a real minus sign. */
function signed(value, digits = 2) {
  return value.toFixed(digits).replace("-", "−");
}

const TABLES = new Map(); // colours by scale and theme

/* A colour scale of the style sheet, "heat" or "diverge", as a table of 256 [red, green, blue]. */
function colourTable(name) {
  const key = `${name} ${document.documentElement.dataset.theme}`;
  if (!TABLES.has(key)) {
    const stops = getComputedStyle(document.documentElement)
      .getPropertyValue(`--${name}`)
      .split(",")
      .map((stop) => [1, 3, 5].map((at) => parseInt(stop.trim().slice(at, at + 2), 16)));
    TABLES.set(
      key,
      Array.from({ length: 256 }, (_, step) => {
        const at = (step / 255) * (stops.length - 1),
          low = Math.min(Math.floor(at), stops.length - 2);
        return stops[low].map((channel, i) => Math.round(channel + (stops[low + 1][i] - channel) * (at - low)));
      }),
    );
  }
  return TABLES.get(key);
}

/* The scale as a function of [0, 1]. */
function colourScale(name) {
  const table = colourTable(name);
  return (t) => table[Math.round(Math.min(Math.max(t, 0), 1) * 255)];
}

/* Black or white, whichever has the higher contrast with a colour: at least 4.5 to 1 (WCAG 2.2, relative luminance). */
function inkOn(colour) {
  const [red, green, blue] = colour.map((channel) => (channel / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

/* Attention weights are shown by their square root, so that small ones are seen; the legend says so by its ticks. */
const HEAT = {
  name: "heat",
  at: Math.sqrt,
  ticks: [
    [0, "0"],
    [0.5, "0.25"],
    [1, "1"],
  ],
};

/* Values from −limit to limit, by the square root of their size. */
function diverging(limit) {
  const at = (value) => 0.5 + (Math.sign(value) * Math.sqrt(Math.abs(value) / limit)) / 2;
  return {
    name: "diverge",
    at,
    ticks: [-1, -0.25, 0, 0.25, 1].map((share) => [at(share * limit), signed(share * limit, share ? 1 : 0)]),
  };
}

const EASEL = document.createElement("canvas"); // one for all heatmaps: each canvas holds memory for long
const EASEL_CONTEXT = EASEL.getContext("2d", { willReadFrequently: true });

/* An <image> of rows × columns cells; value(row, column) may be undefined for an empty cell. */
function heatImage(rows, columns, value, scale, size) {
  const pixels = EASEL_CONTEXT.createImageData(columns, rows),
    colour = colourScale(scale.name);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, at += 4) {
      const cell = value(row, column);
      if (cell === undefined) continue;
      [pixels.data[at], pixels.data[at + 1], pixels.data[at + 2]] = colour(scale.at(cell));
      pixels.data[at + 3] = 255;
    }
  }
  fill(EASEL, { width: columns, height: rows }, []); // which also clears it
  EASEL_CONTEXT.putImageData(pixels, 0, 0);
  return svg("image", {
    href: EASEL.toDataURL(),
    ...size,
    preserveAspectRatio: "none",
    style: "image-rendering: pixelated",
  });
}

/* A colour bar with its ticks, drawn at (x, y). */
function legend(scale, x, y, width, label) {
  const bar = heatImage(1, 64, (_, column) => column / 63, { ...scale, at: (t) => t }, { x, y, width, height: 10 });
  const ticks = scale.ticks.map(([t, name]) =>
    text(x + t * width, y + 23, name, {
      class: "quiet",
      "text-anchor": t === 0 ? "start" : t === 1 ? "end" : "middle",
    }),
  );
  return svg(
    "g",
    {},
    bar,
    svg("rect", { x, y, width, height: 10, class: "frame" }),
    ticks,
    text(x + width + 10, y + 9, label, { class: "quiet" }),
  );
}

/* A figure with its caption and a button that saves its drawing, or what picture() draws for that. */
function figure(title, content, picture = () => content) {
  const button = html(
    "button",
    { type: "button", "aria-label": `Save picture: ${title}`, onclick: () => savePicture(picture(), title) },
    "Save picture",
  );
  return html("figure", {}, html("figcaption", {}, html("span", {}, title), button), content);
}

/* The drawing as an SVG file's text: with its title above, and with the style and the theme's colours inside. */
function pictureSource(picture, title) {
  const { width, height } = picture.viewBox.baseVal,
    top = 34,
    style = document.querySelector("style").textContent;
  const copy = picture.cloneNode(true);
  fill(copy, { x: 16, y: top, width, height }, []);
  const theme = document.documentElement.dataset.theme ?? "light";
  const whole = svg(
    "svg",
    {
      viewBox: `0 0 ${width + 32} ${height + top + 16}`,
      width: width + 32,
      height: height + top + 16,
      "data-theme": theme,
    },
    svg("style", {}, style),
    svg("rect", { width: "100%", height: "100%", style: "fill: var(--card)" }),
    text(16, 22, title, { style: "font-weight: 600; font-size: 14px" }),
    copy,
  );
  return new XMLSerializer().serializeToString(whole);
}

/* Draws the picture at twice its size; returns a PNG. */
async function pictureBlob(picture, title) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(pictureSource(picture, title))}`;
  await image.decode();
  const canvas = html("canvas", { width: image.width * 2, height: image.height * 2 });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function savePicture(picture, title) {
  const address = URL.createObjectURL(await pictureBlob(picture, title));
  html("a", { href: address, download: `${title.replace(/[^\p{L}\p{N}]+/gu, "-").toLowerCase()}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/* A square heatmap of attention with names at both sides; `row` is framed. pick(row, column) is called on a click. */
function attentionMap({ names, weights, row, label, width, pick }) {
  const n = names.length,
    longest = Math.max(...names.map((name) => name.length)),
    margin = Math.min(90, 14 + 7 * longest);
  const cell = Math.min(26, (width - margin - 2) / n),
    size = cell * n,
    every = Math.ceil(13 / cell);
  const image = heatImage(n, n, (i, j) => (j <= i ? weights[i][j] : undefined), HEAT, {
    x: margin,
    y: margin,
    width: size,
    height: size,
  });
  const labels = names.flatMap((name, at) =>
    at !== row && (at % every || Math.abs(at - row) < every) // the framed row's own name has room
      ? []
      : [
          text(margin - 5, margin + (at + 0.5) * cell + 4, clip(name), {
            "text-anchor": "end",
            class: at === row ? "" : "quiet",
          }),
          svg(
            "text",
            { transform: `translate(${margin + (at + 0.5) * cell + 4} ${margin - 5}) rotate(-90)`, class: "quiet" },
            clip(name),
          ),
        ],
  );
  const mark =
    row === undefined
      ? null
      : svg("rect", {
          x: margin,
          y: margin + row * cell,
          width: Math.max(cell, (row + 1) * cell),
          height: cell,
          class: "mark",
        });
  const map = drawing(
    margin + size + 2,
    margin + size + 32,
    label,
    image,
    svg("rect", { x: margin, y: margin, width: size, height: size, class: "frame" }),
    labels,
    mark,
    legend(HEAT, margin, margin + size + 6, Math.min(120, size * 0.6), "weight"),
  );
  if (pick) {
    map.style.cursor = "pointer";
    map.addEventListener("click", (event) => {
      const box = map.getBoundingClientRect(),
        ratio = (margin + size + 2) / box.width;
      const at = Math.floor(((event.clientY - box.top) * ratio - margin) / cell);
      if (at >= 0 && at < n) pick(at);
    });
  }
  return map;
}

function clip(name, most = 11) {
  return name.length > most ? `${name.slice(0, most - 1)}…` : name;
}
