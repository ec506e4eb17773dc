/* Sampling: the distribution after temperature, top-k, top-p and min-p, in the order of engine.decode.sampling. */
"use strict";

function softmax(logits) {
  const probabilities = new Float64Array(logits.length); // loops: ten times as fast as Float64Array.from here
  let most = -Infinity,
    sum = 0;
  for (let i = 0; i < logits.length; i++) most = Math.max(most, logits[i]);
  for (let i = 0; i < logits.length; i++) sum += probabilities[i] = Math.exp(logits[i] - most);
  for (let i = 0; i < logits.length; i++) probabilities[i] /= sum;
  return probabilities;
}

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/* The indices of the k largest values, in descending order, ties by index. */
function largest(values, k) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (best.length === k && values[i] <= values[best[k - 1]]) continue;
    if (best.length === k) best.pop();
    let at = best.length;
    while (at > 0 && values[best[at - 1]] < values[i]) at -= 1;
    best.splice(at, 0, i);
  }
  return best;
}

/* All tokens, most likely first: [{id, probability, cutBy, share}]. `probability` is after the temperature; `share` is
   the chance to be drawn, 0 for a token that top-k, top-p or min-p cuts. At temperature 0 only the first stays. */
function distribution(logits, { temperature, topP, topK, minP }) {
  const probabilities = softmax(temperature > 0 ? logits.map((logit) => logit / temperature) : logits);
  const order = new Uint32Array(probabilities.keys());
  order.sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const tokens = Array.from(order, (id) => ({ id, probability: probabilities[id], cutBy: "" }));
  const cut = (reason, refuses) => {
    let before = 0,
      total = 0;
    for (const token of tokens) if (!token.cutBy) total += token.probability;
    tokens.forEach((token, rank) => {
      if (token.cutBy) return;
      const probability = token.probability / total; // renormalised after the cuts so far
      if (rank > 0 && refuses(rank, before, probability, tokens[0].probability / total)) token.cutBy = reason;
      before += probability;
    });
  };
  if (!(temperature > 0)) cut("greedy", () => true);
  if (topK > 0) cut("top-k", (rank) => rank >= topK);
  if (topP < 1) cut("top-p", (_, before) => before >= topP);
  if (minP > 0) cut("min-p", (_, before, probability, most) => probability < minP * most);
  let total = 0;
  for (const token of tokens) if (!token.cutBy) total += token.probability;
  for (const token of tokens) token.share = token.cutBy ? 0 : token.probability / total;
  return tokens;
}

/* A number in [0, 1) for a seed and a position (a 32-bit mix of both, after Steele et al. 2014), so that a text keeps
   its luck up to the point where a slider changes it. */
function uniform(seed, position) {
  let z = (Math.imul(seed + 1, 0x9e3779b9) + Math.imul(position + 1, 0x85ebca6b)) | 0;
  z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
  z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
  return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
}

/* The token at a point u in [0, 1) of the cumulative shares. */
function draw(tokens, u) {
  let sum = 0;
  for (const token of tokens) {
    sum += token.share;
    if (u < sum) return token.id;
  }
  return tokens[0].id;
}

/* The next token: the largest logit at temperature 0, else a draw. */
function choose(logits, settings, position) {
  if (!(settings.temperature > 0)) return argmax(logits);
  return draw(distribution(logits, settings), uniform(settings.seed, position));
}
