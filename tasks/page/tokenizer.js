/* Tokenizers: SentencePiece's byte-pair encoding with byte fallback (Kudo and Richardson 2018; Sennrich et al. 2016),
   and the adder's characters. Both have encode, decode, and label (a token's own text). */
"use strict";

const WORD_START = "\u2581"; // SentencePiece's visible space
const PIECE = { NORMAL: 1, UNKNOWN: 2, CONTROL: 3, BYTE: 6 };

/* A binary heap; before(a, b) says whether a comes out first. */
class Heap {
  constructor(before) {
    this.before = before;
    this.items = [];
  }
  push(item) {
    const items = this.items;
    let at = items.length;
    items.push(item);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.before(item, items[parent])) break;
      items[at] = items[parent];
      at = parent;
    }
    items[at] = item;
  }
  pop() {
    const items = this.items,
      top = items[0],
      last = items.pop();
    if (!items.length) return top;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && this.before(items[child + 1], items[child])) child += 1;
      if (!this.before(items[child], last)) break;
      items[at] = items[child];
      at = child;
    }
    items[at] = last;
    return top;
  }
}

class SentencePiece {
  constructor({ pieces, scores, types, prefix, bos, eos }) {
    Object.assign(this, { pieces, scores, types, prefix, bos, eos });
    this.ids = new Map();
    this.byteIds = [];
    pieces.forEach((piece, id) => {
      if (types[id] === PIECE.NORMAL && !this.ids.has(piece)) this.ids.set(piece, id);
      if (types[id] === PIECE.BYTE) this.byteIds[parseInt(piece.slice(3, 5), 16)] = id;
    });
  }

  /* Ids of a text, without BOS: characters, merged pair by pair, the highest score first and then the leftmost. */
  encode(text) {
    const clean = text.replace(/\p{Surrogate}/gu, "\ufffd"); // half an emoji has no UTF-8
    if (!clean) return [];
    const symbols = [...((this.prefix ? " " : "") + clean).replaceAll(" ", WORD_START)].map((piece, at, all) => ({
      piece,
      before: at - 1,
      after: at + 1 < all.length ? at + 1 : -1,
    }));
    const heap = new Heap((a, b) => a.score > b.score || (a.score === b.score && a.left < b.left));
    const offer = (left, right) => {
      if (left < 0 || right < 0) return;
      const merged = symbols[left].piece + symbols[right].piece,
        id = this.ids.get(merged);
      if (id !== undefined) heap.push({ left, right, merged, score: this.scores[id] });
    };
    for (let at = 1; at < symbols.length; at++) offer(at - 1, at);
    while (heap.items.length) {
      const { left, right, merged } = heap.pop(),
        a = symbols[left],
        b = symbols[right];
      if (!a.piece || !b.piece || a.piece + b.piece !== merged || a.after !== right) continue; // merged meanwhile
      a.piece = merged;
      b.piece = "";
      a.after = b.after;
      if (b.after >= 0) symbols[b.after].before = left;
      offer(a.before, left);
      offer(left, a.after);
    }
    return symbols.filter((symbol) => symbol.piece).flatMap((symbol) => this.idsOf(symbol.piece));
  }

  idsOf(piece) {
    const id = this.ids.get(piece);
    return id !== undefined ? [id] : [...new TextEncoder().encode(piece)].map((byte) => this.byteIds[byte]);
  }

  /* The text of ids, without control pieces and the space that encode puts first. */
  decode(ids) {
    let text = "",
      bytes = [],
      atStart = true;
    const flush = () => {
      text += decodeBytes(bytes);
      bytes = [];
    };
    for (const id of ids) {
      if (this.types[id] === PIECE.BYTE) {
        bytes.push(parseInt(this.pieces[id].slice(3, 5), 16));
        continue;
      }
      flush();
      if (text) atStart = false;
      if (this.types[id] === PIECE.CONTROL) continue;
      let piece = this.types[id] === PIECE.UNKNOWN ? " \u2047 " : this.pieces[id];
      if (atStart && this.prefix && piece.startsWith(WORD_START)) {
        piece = piece.slice(1);
        atStart = false;
      }
      text += piece.replaceAll(WORD_START, " ");
    }
    flush();
    return text;
  }

  /* A token's own text, as a reader wants to see it: spaces stay, a lone byte is written in hexadecimal. */
  label(id) {
    if (this.types[id] === PIECE.CONTROL)
      return id === this.bos ? "⟨start⟩" : id === this.eos ? "⟨end⟩" : this.pieces[id];
    if (this.types[id] === PIECE.BYTE) {
      const byte = parseInt(this.pieces[id].slice(3, 5), 16);
      return byte === 10
        ? "↵"
        : byte > 31 && byte < 127
          ? String.fromCharCode(byte)
          : `‹${this.pieces[id].slice(3, 5)}›`;
    }
    return this.pieces[id].replaceAll(WORD_START, " ");
  }
}

/* UTF-8 to text; each byte that is not part of a character becomes U+FFFD, as in SentencePiece. */
function decodeBytes(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length;) {
    const first = bytes[at];
    const length = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc0 ? 2 : 1;
    try {
      text += new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
        Uint8Array.from(bytes.slice(at, at + length)),
      );
      at += length;
    } catch {
      text += "\ufffd";
      at += 1;
    }
  }
  return text;
}

/* The adder's tokenizer: id 0 starts and ends a problem, 1 to 12 are the characters. */
class Characters {
  constructor(characters) {
    this.characters = ["", ...characters];
    this.bos = this.eos = 0;
  }
  encode(text) {
    return [...text].map((character) => {
      const id = this.characters.indexOf(character);
      if (id < 1) throw new Error(`the adder does not know the character ${character}`);
      return id;
    });
  }
  decode(ids) {
    return ids.map((id) => this.characters[id]).join("");
  }
  label(id) {
    return id === 0 ? "⟨end⟩" : this.characters[id];
  }
}
