// Where the bars of a map lie: nodes whose blocks do not overlap share a lane, so that a route reads as a line.

/** `nodes`: [id, {first, last}] of one model. Returns lanes, each a list of them from left to right. */
export function lanesOf(nodes) {
  const sorted = [...nodes].sort(([a, x], [b, y]) => x.first - y.first || y.last - x.last || (a < b ? -1 : 1));
  const lanes = [];
  const end = (lane) => lane.at(-1)[1].last;
  for (const entry of sorted) {
    const { first } = entry[1];
    const lane = lanes.find((lane) => end(lane) === first - 1) ?? lanes.find((lane) => end(lane) < first);
    if (lane) lane.push(entry);
    else lanes.push([entry]);
  }
  return lanes;
}

/** The height of a lane in pixels: large where there are few, and never so small that a bar cannot be seen. */
export function laneHeight(lanes) {
  if (lanes <= 3) return 44;
  if (lanes <= 8) return 38;
  if (lanes <= 16) return 24;
  return lanes <= 40 ? 14 : lanes <= 100 ? 8 : 5;
}

/** A round step between the numbers of a ruler that are at least `gap` pixels apart. */
export function rulerStep(pixelsPerBlock, gap = 36) {
  for (let ten = 1; ; ten *= 10) {
    for (const step of [ten, 2 * ten, 5 * ten]) if (step * pixelsPerBlock >= gap) return step;
  }
}
