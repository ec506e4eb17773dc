/* The adder opened: the written sum, heads to switch off, where they look, and every weight. */
"use strict";

const REPORTED = 300; // five-digit sums behind the report

class AdderView {
  constructor(model, { name, characters, heads }, changed) {
    const tokenizer = new Characters(characters);
    Object.assign(this, { model, tokenizer, heads, changed, adder: new Adder(model, tokenizer), digit: 0, seed: 1 });
    this.problems = sampleProblems(REPORTED, 7, true);
    this.adder.averageHeads(this.problems);
    const { n_layers, n_heads, n_kv_heads, dim } = model.config;
    byId("adder-facts").textContent =
      `A Llama of ${model.parameters.toLocaleString("en")} parameters that adds two four-digit numbers, ` +
      `digit by digit from the left: ${n_layers} layers, ${n_heads} query heads, ` +
      `${n_kv_heads} key/value head${n_kv_heads > 1 ? "s" : ""}, ` +
      `width ${dim} (${name}). It runs here at every key press.`;
    for (const id of ["first", "second"]) byId(id).addEventListener("input", () => this.ask());
    byId("random").addEventListener("click", () => this.fill(...sampleProblems(1, (this.seed += 1))[0]));
    byId("chain").addEventListener("click", () => this.fill(4999 + 1000 * (this.seed++ % 3), 5001));
    this.drawSwitches();
  }

  fill(a, b) {
    byId("first").value = a;
    byId("second").value = b;
    this.ask();
  }

  drawSwitches() {
    const { n_layers, n_heads } = this.model.config,
      switches = [];
    for (let layer = 0; layer < n_layers; layer++) {
      for (let head = 0; head < n_heads; head++) {
        const key = `${layer}.${head}`,
          id = `switch-${layer}-${head}`;
        const box = html("input", {
          type: "checkbox",
          id,
          "data-head": key,
          checked: !this.model.disabled.has(key),
          onchange: () => this.toggle(key, box.checked),
        });
        switches.push(
          html(
            "div",
            { class: "switch" },
            box,
            html("label", { for: id }, `Layer ${layer + 1}, head ${head + 1}`),
            html("p", { "data-sees": key }),
            this.heads[key] ? html("p", {}, this.heads[key]) : null,
          ),
        );
      }
    }
    byId("switches").replaceChildren(...switches);
  }

  toggle(key, on) {
    if (on) this.model.disabled.delete(key);
    else this.model.disabled.add(key);
    this.ask();
  }

  /* Answers the problem of the two fields and draws everything. */
  ask() {
    const [a, b] = ["first", "second"].map((id) => Number(byId(id).value));
    const valid = [a, b].every((number) => Number.isInteger(number) && number >= 1000 && number <= 9999);
    byId("verdict").className = "";
    if (!valid) {
      byId("verdict").textContent = "Both numbers need four digits, from 1000 to 9999.";
      return;
    }
    const report = this.adder.carryReport(this.problems);
    Object.assign(this, { a, b, answer: this.adder.answer(a, b) }); // last, so that the cache holds this problem
    this.digit = Math.max(0, Math.min(this.digit, this.answer.length - 1));
    this.drawReport(report);
    this.draw();
    this.changed();
  }

  draw() {
    if (this.answer === undefined) return;
    this.drawSum();
    this.drawSights();
    this.drawAttention();
    this.drawLens();
    this.drawWeights();
  }

  /* The sum as it is written on paper: carries, operands, the model's answer, and the right one under a wrong one. */
  drawSum() {
    const { a, b, answer } = this,
      right = String(a + b),
      isRight = answer === right,
      width = Math.max(5, right.length);
    const column = answer.length - 1 - this.digit; // the power of ten of the chosen digit
    const cells = (content, kind, sign = "") => {
      const filled = String(content).padStart(width, " ");
      return [
        html("span", { class: "sign" }, sign),
        ...[...filled].map((character, at) =>
          html("span", { class: `${kind}${width - 1 - at === column ? " lit" : ""}` }, character),
        ),
      ];
    };
    const carries = Array.from({ length: width }, (_, at) =>
      carryInto(a, b, width - 1 - at) && width - 1 - at > 0 ? "1" : " ",
    ).join("");
    const written = [
      html("span", { class: "sign" }, "="),
      ...[...answer.padStart(width, " ")].map((character, at) => {
        const digit = at - (width - answer.length);
        if (digit < 0) return html("span");
        const wrong = right.at(digit - answer.length) !== character;
        return html(
          "button",
          {
            type: "button",
            class: wrong ? "wrong" : "",
            "aria-pressed": String(digit === this.digit),
            "aria-label": `Digit ${digit + 1} of the answer: ${character}${wrong ? ", wrong" : ""}`,
            onclick: () => this.pick(digit),
          },
          character,
        );
      }),
    ];
    byId("sum").replaceChildren(
      ...cells(carries, "carry"),
      ...cells(a, ""),
      ...cells(b, "", "+"),
      html("span", { class: "bar" }),
      ...written,
      ...(isRight ? [] : cells(right, "true", "")),
    );
    const verdict = isRight ? "right" : answer ? `wrong: the sum is ${right}` : `no answer: the sum is ${right}`;
    byId("verdict").replaceChildren(
      `${a} + ${b} = ${answer} is `,
      html("span", { class: isRight ? "good" : "bad" }, verdict),
    );
  }

  /* At each switch: where the head looks while it writes the chosen digit. */
  drawSights() {
    const { model, answer } = this,
      labels = positionNames(answer.length),
      query = Math.min(10 + this.digit, model.length - 1);
    for (const node of document.querySelectorAll("[data-sees]")) {
      const [layer, head] = node.dataset.sees.split(".").map(Number),
        weights = model.attention(layer, head, query);
      const seen = largest(weights, 4).filter((at) => weights[at] >= 0.1);
      const list = seen.map((at) => `${labels[at]} (${percent(weights[at])})`).join(", ");
      node.textContent = model.disabled.has(node.dataset.sees)
        ? "Off."
        : `For ${labels[query + 1] ?? "the first digit"} it looks at ${list}.`;
    }
  }

  pick(digit) {
    this.digit = digit;
    this.draw();
    byId("sum").querySelector("[aria-pressed=true]")?.focus();
    this.changed();
  }

  drawReport({ without, oneTooLarge, with: carried, oneTooSmall }) {
    const off = [...this.model.disabled].map((key) => key.split(".").map((part) => Number(part) + 1));
    const which = off.length
      ? `With ${off.map(([layer, head]) => `layer ${layer} head ${head}`).join(", ")} off`
      : "With all heads on";
    const share = (name, value) => html("div", {}, html("dt", {}, name), html("dd", {}, value.toFixed(3)));
    byId("report").replaceChildren(
      html("p", {}, `${which}, over ${REPORTED} random sums of five digits, of the digits c3, c2 and c1:`),
      html(
        "dl",
        {},
        share("right where no carry comes in", without),
        share("one too large where no carry comes in", oneTooLarge),
        share("right where a carry comes in", carried),
        share("one too small where a carry comes in", oneTooSmall),
      ),
    );
  }

  drawAttention() {
    const { model, answer } = this,
      labels = positionNames(answer.length).slice(0, model.length),
      { n_layers, n_heads } = model.config;
    const query = 10 + this.digit,
      maps = [],
      width = Math.min(330, widthOf("adder-attention"));
    const title = (layer, head) =>
      `Layer ${layer + 1}, head ${head + 1}${model.disabled.has(`${layer}.${head}`) ? " (off)" : ""}`;
    for (let layer = 0; layer < n_layers; layer++) {
      for (let head = 0; head < n_heads; head++) {
        const weights = attentionRows(model, layer, head, 0, labels.length);
        maps.push(
          figure(
            title(layer, head),
            attentionMap({
              names: labels,
              weights,
              row: query,
              width,
              label: `${title(layer, head)}: ${weights[query] ? strongest(labels, weights[query]) : "no answer"}`,
              pick: (row) => row >= 10 && row - 10 < answer.length && this.pick(row - 10),
            }),
          ),
        );
      }
    }
    byId("adder-attention").replaceChildren(html("div", { class: "pair" }, maps));
  }

  drawLens() {
    const { model, tokenizer, digit, answer } = this,
      written = answer ? tokenizer.encode(answer[digit])[0] : undefined;
    byId("adder-lens").replaceChildren(
      figure(
        `Predictions of ${positionNames(answer.length)[11 + digit] ?? "the first digit"}, layer by layer`,
        lensTable({
          model,
          position: 11 + digit,
          written,
          width: Math.min(640, widthOf("adder-lens")),
          label: (id) => tokenizer.label(id),
        }),
      ),
    );
  }

  /* Every tensor as a heatmap, all on one scale; in a wide window the embedding stands beside the layers. */
  drawWeights() {
    const { model, tokenizer } = this,
      tensors = [...model.tensors],
      sizes = tensors.map(([, { data }]) => data.reduce((most, value) => Math.max(most, Math.abs(value)), 0)),
      limit = Math.max(...sizes),
      scale = diverging(limit);
    const groups = new Map();
    for (const [name, matrix] of tensors) {
      const layer = /^layers\.(\d+)/.exec(name)?.[1],
        title = layer === undefined ? "Embedding, norm" : `Layer ${Number(layer) + 1}`;
      groups.set(title, [...(groups.get(title) ?? []), [name, matrix]]);
    }
    const room = widthOf("adder-weights"),
      [[, first]] = groups,
      narrow = Math.max(190, TOKEN_NAMES + model.config.dim * cellSize(first)),
      beside = room > 1000 && narrow < 250;
    const reading = html("p", { class: "note", role: "status" }, "Point at a cell, or use the arrow keys."),
      read = (words) => (reading.textContent = words);
    const figures = [...groups].map(([title, entries], at) => {
      const width = !beside ? room : at ? room - narrow - 32 : narrow;
      return figure(title, weightsDrawing(entries, { scale, model, tokenizer, width, read }));
    });
    if (beside) figures[0].style.gridRow = `span ${model.config.n_layers}`;
    const bar = drawing(
      330,
      28,
      `Colours from ${signed(-limit, 1)} to ${signed(limit, 1)}`,
      legend(scale, 4, 2, 260, "weight"),
    );
    byId("adder-weights").replaceChildren(
      html("div", { class: "reading" }, bar, reading),
      html("div", { class: "weights", style: beside && `grid-template-columns: ${narrow}px minmax(0, 1fr)` }, figures),
    );
  }
}
