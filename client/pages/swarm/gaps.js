// Blocks of a model that nobody serves, or one node alone, with the commands that help.

import { blocks, commandBox, keyed, make, write } from "./dom.js";

const MOST = 8; // of either kind

export const listed = (stretches) => stretches.map(([first, last]) => blocks(first, last)).join(", ");

export class Gaps {
  constructor() {
    this.missing = make("ul", { class: "plain gaps" });
    this.single = make("details", { class: "singles" }, make("summary"), make("ul", { class: "plain gaps" }));
    this.element = make("div", {}, this.missing, this.single);
  }

  /** `missing` and `single`: stretches, as [first, last]. */
  render(model, missing, single) {
    const lines = (stretches, servers) => stretches
      .map(([first, last]) => [`${first}-${last}`, { first, last, servers, command: model.commands[`${first}-${last}`] }])
      .filter(([, { command }]) => command)
      .slice(0, MOST);
    keyed(this.missing, lines(missing, 0), makeLine, updateLine);
    this.single.hidden = !single.length;
    const one = `Blocks ${listed(single)} have one server: if it leaves, answers stop`;
    const several = `${single.length} stretches of blocks have one server each: if it leaves, answers stop`;
    write(this.single.firstChild, single.length === 1 ? one : several);
    keyed(this.single.lastChild, lines(single, 1), makeLine, updateLine);
  }
}

function makeLine() {
  const line = make("li", {}, make("span"));
  line.box = commandBox();
  line.append(line.box);
  return line;
}

function updateLine(line, { first, last, servers, command }) {
  const what = servers ? "Only one node serves" : "Nobody serves";
  write(line.firstChild, `${what} blocks ${blocks(first, last)}. ${servers ? "One more:" : "Start a node for them:"}`);
  line.classList.toggle("missing", !servers);
  line.box.show(command);
}
