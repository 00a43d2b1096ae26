// The answers that this server makes now, each with its route.

import { blocks, duration, keyed, make, number, plural, write } from "./dom.js";
import { nodeName } from "./labels.js";

export function renderAnswers(list, state, colours) {
  const answers = state.items("answers");
  colours.keep(new Set(answers.map(([id]) => id)));
  keyed(list, answers.slice(0, 50), () => makeAnswer(), (line, answer, id) => {
    const [head, hops, wait] = line.children;
    line.className = `answer colour-${colours.of(id)}`;
    write(head.firstChild, answer.model);
    const parts = [plural(answer.tokens, "token"), `${number(answer.tokens_per_s)} tokens/s`,
      duration(Math.max(0, Math.round(Date.now() / 1000 - answer.began)))];
    if (answer.repairs) parts.push(plural(answer.repairs, "repair"));
    write(head.lastChild, parts.join(" · "));
    keyed(hops, answer.hops.map(([peer, first, last]) => [`${peer} ${first}`, { peer, first, last }]),
      () => make("li"), (hop, { peer, first, last }) =>
        write(hop, `${nodeName(peer, state.item("nodes", peer))} ${blocks(first, last)}`));
    write(wait, answer.waiting || (answer.hops.length ? "" : "choosing a route"));
  });
  return answers.length;
}

function makeAnswer() {
  return make("li", {},
    make("p", { class: "answer-head" }, make("strong"),
      make("span", { class: "dim" })),
    make("ol", { class: "plain hops", "aria-label": "Route" }), make("p", { class: "waiting" }));
}
