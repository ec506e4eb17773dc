/* The model: llama.Llama in plain JavaScript, one token at a time with a key/value cache. It keeps what the views show:
   queries, keys, values, and the residual stream before and after every layer, at every position. */
"use strict";

/* Base64 to bytes, in slices, so that no second copy of the text is made. */
function decodeBase64(text) {
  const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  const bytes = new Uint8Array((text.length / 4) * 3 - padding),
    slice = 1 << 16; // a multiple of 4
  for (let from = 0, at = 0; from < text.length; from += slice) {
    const binary = atob(text.slice(from, from + slice));
    for (let i = 0; i < binary.length; i++) bytes[at++] = binary.charCodeAt(i);
  }
  return bytes;
}

/* A matrix of int8 rows with a scale each, or of float32 (scales undefined). */
class Matrix {
  constructor(rows, columns, data, scales) {
    Object.assign(this, { rows, columns, data, scales });
  }

  /* out[row] = row · x, for all rows. */
  multiply(x, out) {
    return (this.scales ? multiplyInt8 : multiplyFloat32)(this, x, out);
  }

  value(row, column) {
    return this.data[row * this.columns + column] * (this.scales ? this.scales[row] : 1);
  }
}

/* Four rows at a time, so that each x is read once for four products. */
function multiplyInt8({ rows, columns, data, scales }, x, out) {
  let row = 0;
  for (; row + 3 < rows; row += 4) {
    let a = 0,
      b = 0,
      c = 0,
      d = 0;
    const first = row * columns,
      second = first + columns,
      third = second + columns,
      fourth = third + columns;
    for (let i = 0; i < columns; i++) {
      const value = x[i];
      a += data[first + i] * value;
      b += data[second + i] * value;
      c += data[third + i] * value;
      d += data[fourth + i] * value;
    }
    out[row] = a * scales[row];
    out[row + 1] = b * scales[row + 1];
    out[row + 2] = c * scales[row + 2];
    out[row + 3] = d * scales[row + 3];
  }
  for (; row < rows; row++) {
    let sum = 0;
    for (let i = 0, at = row * columns; i < columns; i++, at++) sum += data[at] * x[i];
    out[row] = sum * scales[row];
  }
  return out;
}

/* A function of its own: one that saw both kinds of arrays would be compiled for both, and slower. */
function multiplyFloat32({ rows, columns, data }, x, out) {
  for (let row = 0, at = 0; row < rows; row++) {
    let sum = 0;
    for (let i = 0; i < columns; i++, at++) sum += data[at] * x[i];
    out[row] = sum;
  }
  return out;
}

function readTensors(packed) {
  const buffer = decodeBase64(packed.bytes).buffer,
    tensors = new Map();
  for (const { name, shape, type, offset, scales } of packed.tensors) {
    const [rows, columns] = shape.length === 2 ? shape : [1, shape[0]],
      count = rows * columns;
    const data = type === "int8" ? new Int8Array(buffer, offset, count) : new Float32Array(buffer, offset, count);
    tensors.set(
      name,
      new Matrix(rows, columns, data, scales === undefined ? undefined : new Float32Array(buffer, scales, rows)),
    );
  }
  return tensors;
}

const MOST_POSITIONS = 1024; // bounds the memory of the cache

class Llama {
  constructor(packed) {
    const config = (this.config = packed.config);
    this.parameters = packed.parameters;
    this.tensors = readTensors(packed);
    this.embedding = this.tensors.get("tok_embeddings.weight");
    this.output = config.tie_embeddings ? this.embedding : this.tensors.get("output.weight");
    this.layers = Array.from({ length: config.n_layers }, (_, layer) => this.layerTensors(layer));
    this.capacity = Math.min(config.max_seq_len, MOST_POSITIONS);
    this.disabled = new Set(); // "layer.head" of heads that are switched off: each gives its average instead
    this.averages = new Map(); // of "layer.head": its outputs, averaged over many texts, position after position
    this.length = 0; // positions in the cache
    this.tokens = [];
    this.allocate();
    this.grow(Math.min(128, this.capacity));
  }

  layerTensors(layer) {
    const get = (name) => this.tensors.get(`layers.${layer}.${name}`);
    return {
      attentionNorm: [get("attention_norm.weight"), get("attention_norm.bias")],
      query: get("attention.compute_query.weight"),
      key: get("attention.compute_key.weight"),
      value: get("attention.compute_value.weight"),
      output: get("attention.compute_output.weight"),
      ffnNorm: [get("ffn_norm.weight"), get("ffn_norm.bias")],
      w1: get("feed_forward.w1.weight"),
      w2: get("feed_forward.w2.weight"),
      w3: get("feed_forward.w3.weight"),
    };
  }

  allocate() {
    const { dim, n_heads, n_kv_heads, head_dim, ffn_dim, rope_theta } = this.config;
    const row = (width) => new Float64Array(width);
    this.x = row(dim);
    this.normed = row(dim);
    this.branch = row(dim);
    this.attended = row(n_heads * head_dim);
    this.gate = row(ffn_dim);
    this.inner = row(ffn_dim);
    this.scores = row(this.capacity);
    this.q = row(n_heads * head_dim);
    this.k = row(n_kv_heads * head_dim);
    this.v = row(n_kv_heads * head_dim);
    this.frequencies = Array.from({ length: head_dim / 2 }, (_, pair) => rope_theta ** ((-2 * pair) / head_dim));
  }

  /* Makes room for a number of positions; what is cached stays. */
  grow(positions) {
    const { dim, n_layers, n_heads, n_kv_heads, head_dim } = this.config;
    const grown = (caches, width) =>
      Array.from({ length: n_layers }, (_, layer) => {
        const cache = new Float32Array(positions * width);
        if (caches) cache.set(caches[layer]);
        return cache;
      });
    this.queries = grown(this.queries, n_heads * head_dim);
    this.keys = grown(this.keys, n_kv_heads * head_dim);
    this.values = grown(this.values, n_kv_heads * head_dim);
    const end = new Float32Array(positions * dim);
    if (this.residuals) end.set(this.residuals[n_layers]);
    this.residuals = [...grown(this.residuals, dim), end]; // [layer]: its input; last: the output of all
    this.room = positions;
  }

  /* Forgets all but the first `length` positions. */
  truncate(length) {
    this.length = Math.min(this.length, length);
    this.tokens.length = this.length;
  }

  /* Takes one token in; predictions follow with logits(). */
  feed(token) {
    if (this.length >= this.capacity) throw new Error(`the context of ${this.capacity} tokens is full`);
    if (this.length === this.room) this.grow(Math.min(2 * this.room, this.capacity));
    const { dim, n_layers } = this.config,
      position = this.length,
      x = this.x;
    for (let i = 0; i < dim; i++) x[i] = this.embedding.value(token, i);
    for (let layer = 0; layer < n_layers; layer++) {
      this.residuals[layer].set(x, position * dim);
      this.attend(layer, position);
      for (let i = 0; i < dim; i++) x[i] += this.branch[i];
      this.feedForward(layer);
      for (let i = 0; i < dim; i++) x[i] += this.branch[i];
    }
    this.residuals[n_layers].set(x, position * dim);
    this.tokens.push(token);
    this.length += 1;
  }

  /* LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019), with gain and bias. */
  norm(x, [gain, bias], out) {
    const n = x.length,
      centred = this.config.norm_type === "layernorm";
    let mean = 0,
      variance = 0;
    if (centred) for (let i = 0; i < n; i++) mean += x[i] / n;
    for (let i = 0; i < n; i++) variance += (x[i] - mean) ** 2 / n;
    const scale = 1 / Math.sqrt(variance + this.config.layer_norm_eps);
    for (let i = 0; i < n; i++) out[i] = (x[i] - mean) * scale * gain.data[i] + (bias ? bias.data[i] : 0);
    return out;
  }

  /* Grouped-query attention of one position over all before it; the result is in this.branch. */
  attend(layer, position) {
    const { n_heads, n_kv_heads, head_dim } = this.config,
      weights = this.layers[layer];
    this.norm(this.x, weights.attentionNorm, this.normed);
    this.rotate(weights.query.multiply(this.normed, this.q), position);
    this.rotate(weights.key.multiply(this.normed, this.k), position);
    weights.value.multiply(this.normed, this.v);
    this.queries[layer].set(this.q, position * n_heads * head_dim);
    this.keys[layer].set(this.k, position * n_kv_heads * head_dim);
    this.values[layer].set(this.v, position * n_kv_heads * head_dim);
    this.attended.fill(0);
    for (let head = 0; head < n_heads; head++) {
      const to = head * head_dim,
        key = `${layer}.${head}`;
      if (this.disabled.has(key)) {
        const from = position * head_dim;
        this.attended.set(this.averages.get(key).subarray(from, from + head_dim), to);
      } else this.addValues(layer, head, position, this.attended, to);
    }
    weights.output.multiply(this.attended, this.branch);
  }

  /* Adds one head's output, the values that it attends to at one position, to `out` from `to` on. */
  addValues(layer, head, position, out, to) {
    const { n_kv_heads, head_dim } = this.config,
      stride = n_kv_heads * head_dim,
      from = this.groupOf(head) * head_dim,
      values = this.values[layer],
      probabilities = this.attention(layer, head, position, this.scores);
    for (let key = 0; key <= position; key++) {
      const weight = probabilities[key],
        at = key * stride + from;
      for (let i = 0; i < head_dim; i++) out[to + i] += weight * values[at + i];
    }
  }

  /* The key/value head that a query head shares with its group (Ainslie et al. 2023). */
  groupOf(head) {
    return Math.floor(head / (this.config.n_heads / this.config.n_kv_heads));
  }

  /* softmax(query · keys / √head_dim) of one head at one position: a weight for each position up to it. */
  attention(layer, head, position, out = new Float64Array(position + 1)) {
    const { n_heads, n_kv_heads, head_dim } = this.config,
      stride = n_kv_heads * head_dim;
    const query = this.queries[layer],
      keys = this.keys[layer],
      scale = 1 / Math.sqrt(head_dim);
    const from = (position * n_heads + head) * head_dim,
      offset = this.groupOf(head) * head_dim;
    let most = -Infinity,
      sum = 0;
    for (let key = 0; key <= position; key++) {
      let score = 0;
      for (let i = 0, at = key * stride + offset; i < head_dim; i++, at++) score += query[from + i] * keys[at];
      out[key] = score * scale;
      if (out[key] > most) most = out[key];
    }
    for (let key = 0; key <= position; key++) sum += out[key] = Math.exp(out[key] - most);
    for (let key = 0; key <= position; key++) out[key] /= sum;
    return out;
  }

  /* Rotary positions (Su et al. 2021): the pair (2i, 2i + 1) of every head turns by position · theta^(−2i/head_dim). */
  rotate(x, position) {
    const pairs = this.frequencies.length;
    for (let pair = 0; pair < pairs; pair++) {
      const angle = position * this.frequencies[pair],
        cos = Math.cos(angle),
        sin = Math.sin(angle);
      for (let at = 2 * pair; at < x.length; at += 2 * pairs) {
        const even = x[at],
          odd = x[at + 1];
        x[at] = even * cos - odd * sin;
        x[at + 1] = even * sin + odd * cos;
      }
    }
  }

  /* SwiGLU (Shazeer 2020): w2 · (silu(w1 · x) ⊙ (w3 · x)); the result is in this.branch. */
  feedForward(layer) {
    const { ffnNorm, w1, w2, w3 } = this.layers[layer],
      { gate, inner } = this;
    this.norm(this.x, ffnNorm, this.normed);
    w1.multiply(this.normed, gate);
    w3.multiply(this.normed, inner);
    for (let i = 0; i < gate.length; i++) inner[i] *= gate[i] / (1 + Math.exp(-gate[i]));
    w2.multiply(inner, this.branch);
  }

  /* The residual stream at a position: the input of `layer`, or the last layer's output for layer = n_layers. */
  residual(layer, position) {
    const { dim } = this.config;
    return this.residuals[layer].subarray(position * dim, (position + 1) * dim);
  }

  /* Logits of the token after `position`, read from the stream at `layer` (default: the end) by the final norm. */
  logits(position = this.length - 1, layer = this.config.n_layers) {
    const final = [this.tensors.get("norm.weight"), this.tensors.get("norm.bias")];
    const normed = this.norm(this.residual(layer, position), final, new Float64Array(this.config.dim));
    return this.output.multiply(normed, new Float64Array(this.config.vocab_size));
  }
}
