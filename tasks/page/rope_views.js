/* Lesson 3, rotary positions: how far each pair turns, and a score by distance. */
"use strict";

/* 3. RoPE: how far each pair turns over a distance, and the score of a query and a key as the distance changes. */
function drawRope(session, look, distance, move) {
  const { model } = session,
    parts = ropeParts(model, look),
    reach = Math.min(64, model.capacity - 1);
  const d = distance ?? parts.distance,
    slider = html("input", {
      type: "range",
      min: 0,
      max: reach,
      value: Math.min(d, reach),
      oninput: () => move(Number(slider.value)),
    });
  const query = session.tokenizer.label(session.ids[look.position - 1]),
    key = session.tokenizer.label(session.ids[parts.key]);
  const words = `“${query.trim()}” and “${key.trim()}”`,
    away = d === 1 ? "1 position" : `${d} positions`;
  const control = html("label", {}, `Distance: ${away}`, d === parts.distance ? " (as in the text)" : "", slider);
  byId("rope-figures").replaceChildren(
    control,
    figure(`How far each pair turns over ${away}`, dials(model, d)),
    figure(
      `Layer ${look.layer + 1}, head ${look.head + 1}: score of ${words} by distance`,
      ropeCurve(model, parts, d, reach),
    ),
  );
  return slider;
}

/* Query and key as complex products per pair, with the angle of their distance taken out; the key is the one with the
   largest weight beside the start token. */
function ropeParts(model, { position, layer, head }) {
  const { n_heads, n_kv_heads, head_dim } = model.config,
    at = position - 1,
    weights = model.attention(layer, head, at);
  const key = at === 0 ? 0 : 1 + argmax(weights.subarray(1)),
    distance = at - key;
  const q = model.queries[layer].subarray((at * n_heads + head) * head_dim),
    group = model.groupOf(head);
  const k = model.keys[layer].subarray((key * n_kv_heads + group) * head_dim);
  const pairs = model.frequencies.map((frequency, i) => {
    const [a, b, c, e] = [q[2 * i], q[2 * i + 1], k[2 * i], k[2 * i + 1]];
    const [re, im] = [a * c + b * e, b * c - a * e],
      turn = -distance * frequency; // q · conj(k)
    return [re * Math.cos(turn) - im * Math.sin(turn), re * Math.sin(turn) + im * Math.cos(turn)];
  });
  return { key, distance, pairs };
}

function ropeScore(model, { pairs }, distance) {
  const sum = pairs.reduce(
    (total, [re, im], i) =>
      total + re * Math.cos(distance * model.frequencies[i]) - im * Math.sin(distance * model.frequencies[i]),
    0,
  );
  return sum / Math.sqrt(model.config.head_dim);
}

function dials(model, distance) {
  const width = widthOf("rope-figures"),
    pairs = model.frequencies.length,
    shown = Math.min(pairs, width < 500 ? 6 : 8);
  const step = Math.min(90, width / shown),
    radius = step / 2 - 9;
  const marks = Array.from({ length: shown }, (_, at) => {
    const pair = shown === 1 ? 0 : Math.round((at * (pairs - 1)) / (shown - 1)),
      angle = distance * model.frequencies[pair];
    const x = (at + 0.5) * step,
      y = radius + 4,
      hand = (turn) => [x + radius * Math.cos(turn), y - radius * Math.sin(turn)];
    const [x1, y1] = hand(0),
      [x2, y2] = hand(angle),
      degrees = (angle * 180) / Math.PI;
    return svg(
      "g",
      {},
      svg("circle", { cx: x, cy: y, r: radius, class: "frame" }),
      svg("line", { x1: x, y1: y, x2: x1, y2: y1, class: "rule", "stroke-width": 2 }),
      svg("line", { x1: x, y1: y, x2, y2, stroke: "var(--accent)", "stroke-width": 2.5 }),
      svg("circle", { cx: x2, cy: y2, r: 3.5, class: "solid" }),
      text(x, 2 * radius + 22, `pair ${pair + 1}`, { "text-anchor": "middle", class: "quiet" }),
      text(x, 2 * radius + 38, degrees < 1 ? `${degrees.toFixed(2)}°` : `${degrees.toFixed(0)}°`, {
        "text-anchor": "middle",
      }),
    );
  });
  return drawing(
    step * shown,
    2 * radius + 44,
    `Angles of ${shown} of ${pairs} pairs over a distance of ${distance}`,
    marks,
  );
}

function ropeCurve(model, parts, distance, reach) {
  const width = widthOf("rope-figures"),
    height = 168,
    left = 46,
    scores = Array.from({ length: reach + 1 }, (_, d) => ropeScore(model, parts, d));
  const low = Math.min(0, ...scores),
    high = Math.max(0, ...scores),
    range = high - low || 1;
  const x = (d) => left + (d / reach) * (width - left - 12),
    y = (score) => 10 + ((high - score) / range) * (height - 60);
  const path = scores.map((score, d) => `${d ? "L" : "M"}${x(d).toFixed(1)} ${y(score).toFixed(1)}`).join("");
  const score = signed(scores[Math.min(distance, reach)]);
  const label = `Score by distance from 0 to ${reach}; at ${distance} it is ${score}`;
  return drawing(
    width,
    height,
    label,
    svg("line", { x1: left, x2: width - 12, y1: y(0), y2: y(0), class: "rule" }),
    svg("path", { d: path, class: "curve" }),
    distance <= reach
      ? [
          svg("line", { x1: x(distance), x2: x(distance), y1: 8, y2: height - 46, class: "threshold" }),
          svg("circle", { cx: x(distance), cy: y(scores[distance]), r: 4.5, class: "warm" }),
        ]
      : null,
    text(left - 6, y(high) + 4, signed(high, 1), { "text-anchor": "end", class: "quiet" }),
    low < 0 ? text(left - 6, y(low) + 4, signed(low, 1), { "text-anchor": "end", class: "quiet" }) : null,
    [0, reach / 4, reach / 2, (3 * reach) / 4, reach]
      .map(Math.round)
      .map((d) => text(x(d), height - 30, String(d), { "text-anchor": "middle", class: "quiet" })),
    text(width - 12, height - 8, "positions between query and key", { "text-anchor": "end", class: "quiet" }),
  );
}
