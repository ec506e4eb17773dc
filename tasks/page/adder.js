/* The adder at work: problems, answers, and what goes wrong when heads are switched off. No drawing here. */
"use strict";

class Adder {
  constructor(model, tokenizer) {
    Object.assign(this, { model, tokenizer });
  }

  /* The tokens of `a+b=` after the start token. */
  question(a, b) {
    return [this.tokenizer.bos, ...this.tokenizer.encode(`${a}+${b}=`)];
  }

  /* The model's greedy answer, as text; at most five digits. Position 10 (`=`) predicts the first. */
  answer(a, b) {
    const { model, tokenizer } = this;
    model.truncate(0);
    for (const id of this.question(a, b)) model.feed(id);
    const digits = [];
    while (digits.length < 5) {
      const id = argmax(model.logits());
      if (id === tokenizer.eos) break;
      digits.push(id);
      model.feed(id);
    }
    return tokenizer.decode(digits);
  }

  /* Sets what a head that is off gives: its outputs at each position, averaged over problems with their right answers
     (mean ablation; Wang et al. 2022). All sums must have five digits. */
  averageHeads(problems) {
    const { model, tokenizer } = this,
      { n_layers, n_heads, head_dim } = model.config;
    model.averages.clear();
    for (const [a, b] of problems) {
      model.truncate(0);
      for (const id of [...this.question(a, b), ...tokenizer.encode(String(a + b))]) model.feed(id);
      for (let layer = 0; layer < n_layers; layer++) {
        for (let head = 0; head < n_heads; head++) {
          const key = `${layer}.${head}`,
            sums = model.averages.get(key) ?? new Float64Array(model.length * head_dim);
          for (let at = 0; at < model.length; at++) model.addValues(layer, head, at, sums, at * head_dim);
          model.averages.set(key, sums);
        }
      }
    }
    for (const sums of model.averages.values()) sums.forEach((sum, i) => (sums[i] = sum / problems.length));
  }

  /* For five-digit sums and the digits c3, c2, c1, given the right digits before each: of those where no carry comes in
     the shares that are right and one too large; where one does, those that are right and one too small. */
  carryReport(problems) {
    const { model, tokenizer } = this,
      counts = { plain: 0, plainRight: 0, large: 0, carried: 0, carriedRight: 0, small: 0 };
    for (const [a, b] of problems) {
      const digits = String(a + b);
      model.truncate(0);
      for (const id of this.question(a, b)) model.feed(id);
      for (let at = 0; at < 4; at++) {
        const column = 4 - at,
          right = Number(digits[at]),
          carry = carryInto(a, b, column);
        if (at > 0) {
          const given = Number(tokenizer.label(argmax(model.logits()))),
            isRight = given === right;
          counts[carry ? "carried" : "plain"] += 1;
          if (isRight) counts[carry ? "carriedRight" : "plainRight"] += 1;
          if (!carry && given === (right + 1) % 10) counts.large += 1;
          if (carry && given === (right + 9) % 10) counts.small += 1;
        }
        model.feed(tokenizer.encode(digits[at])[0]);
      }
    }
    return {
      without: counts.plainRight / counts.plain,
      oneTooLarge: counts.large / counts.plain,
      with: counts.carriedRight / counts.carried,
      oneTooSmall: counts.small / counts.carried,
    };
  }
}

/* The carry that enters a column (0: units) of a + b. */
function carryInto(a, b, column) {
  const power = 10 ** column;
  return (a % power) + (b % power) >= power ? 1 : 0;
}

/* n problems, the same for the same seed; with five-digit sums only, if asked. */
function sampleProblems(n, seed, fiveDigits = false) {
  const problems = [],
    number = (draw) => 1000 + Math.floor(uniform(seed, draw) * 9000);
  for (let draw = 0; problems.length < n; draw += 2) {
    const a = number(draw),
      b = number(draw + 1);
    if (!fiveDigits || a + b >= 10000) problems.push([a, b]);
  }
  return problems;
}

/* Names of the positions of a problem: the start, a3 … a0, +, b3 … b0, =, and the digits of the answer. */
function positionNames(answerLength) {
  const number = (name, digits) => Array.from({ length: digits }, (_, at) => name + (digits - 1 - at));
  return ["start", ...number("a", 4), "+", ...number("b", 4), "=", ...number("c", answerLength)];
}
