// Routes of running answers on a map: their colours, their lines, and the nodes that they lost.

const COLOURS = 6;
const LOST_S = 60;

/** Which colour an answer has everywhere, from when it is seen first. */
export class Colours {
  known = new Map();
  next = 0;

  of(id) {
    if (!this.known.has(id)) this.known.set(id, this.next++ % COLOURS);
    return this.known.get(id);
  }

  keep(ids) {
    for (const id of this.known.keys()) if (!ids.has(id)) this.known.delete(id);
  }
}

/** Peers that routes lost a moment ago and none has taken again. What they announced may outlive them for LOST_S. */
export function lostLately(state) {
  const now = Date.now() / 1000;
  const lost = state.items("repairs").flatMap(([, repair]) => (now - repair.at < LOST_S ? repair.lost : []));
  const used = new Set(state.items("answers").flatMap(([, answer]) => answer.hops.map(([peer]) => peer)));
  return new Set(lost.filter((peer) => !used.has(peer)));
}

/** A line along the bars of a route, which goes from lane to lane where one hop hands over to the next. */
export function routePath(hops, places, perBlock, aside) {
  const curve = Math.min(18, 2 * perBlock);
  const parts = [];
  let end = null; // of the hop before
  for (const [peer, first, last] of hops) {
    if (!places.has(peer)) continue;
    const y = places.get(peer) + aside;
    const from = first * perBlock + (end ? curve : 4);
    const to = Math.max(from, (last + 1) * perBlock - curve);
    if (end) {
      const middle = (end.x + from) / 2;
      parts.push(`C${middle} ${end.y} ${middle} ${y} ${from} ${y}`);
    } else parts.push(`M${from} ${y}`);
    parts.push(`L${to} ${y}`);
    end = { x: to, y };
  }
  return parts.join(" ");
}
