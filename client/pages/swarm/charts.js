// The last hours as charts, by uPlot. Each has its figures in words, for those who do not see it.

import { duration, keyed, make, number, write } from "./dom.js";

const HEIGHT = 160;
const POINTS = 90; // of a line at most
const STEPS = [10, 20, 40, 120, 480]; // seconds between them
const LEAST_S = 600; // of time that a chart shows
const seconds = (value) => (value == null ? "–" : duration(value));
const plain = (value) => (value == null ? "–" : number(value));

const COUNTS = ["joined", "left", "answers", "failed", "repairs", "tokens"];

const CHARTS = [
  { id: "speed", title: "Throughput, tokens/s", say: plain,
    series: [["the swarm", "tokens_per_s", 0], ["answered here", "own_tokens_per_s", 1, "own"]] },
  { id: "first", title: "Time to the first token", say: seconds, own: true,
    series: [["median", "first_token_p50", 0], ["95 of 100 below", "first_token_p95", 2]] },
  { id: "token", title: "Time of each further token", say: seconds, own: true,
    series: [["median", "token_p50", 0], ["95 of 100 below", "token_p95", 2]] },
  { id: "nodes", title: "Nodes", say: plain, series: [["online", "nodes", 0]] },
  { id: "churn", title: "Nodes that came and went", say: plain, bars: true,
    series: [["joined", "joined", 3], ["left", "left", 4]] },
  { id: "failures", title: "Failed answers and repairs", say: plain, bars: true, own: true,
    series: [["failed", "failed", 4], ["repairs", "repairs", 2]] },
];

export class Charts {
  hours = 1;
  shown = new Map();

  constructor(element) {
    this.element = element;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const chart of this.shown.values()) chart.destroy();
      this.shown.clear();
      this.render(this.history, this.hasOwn);
    });
    new ResizeObserver(() => this.render(this.history, this.hasOwn)).observe(element);
  }

  render(history, hasOwn) {
    if (!history) return;
    [this.history, this.hasOwn] = [history, hasOwn];
    const since = (history.at(-1)?.at ?? 0) - this.hours * 3600;
    const shown = history.filter((sample) => sample.at >= since);
    const samples = thinned(shown, STEPS.find((step) => shown.at(-1)?.at - shown[0]?.at <= step * POINTS) ?? STEPS[0]);
    const wanted = CHARTS.filter((chart) => hasOwn || !chart.own);
    keyed(this.element, wanted.map((chart) => [chart.id, chart]), (id) => this.makeFigure(id), (figure, chart) => {
      const series = chart.series.filter(([, , , own]) => hasOwn || !own);
      write(figure.querySelector(".words"), words(chart, series, samples));
      this.draw(figure, chart, series, samples);
    });
  }

  makeFigure() {
    return make("figure", {}, make("figcaption"), make("div", { class: "plot", "aria-hidden": "true" }),
      make("p", { class: "words hidden" }));
  }

  draw(figure, chart, series, samples) {
    const [caption, plot] = figure.children;
    write(caption, chart.title);
    const width = plot.clientWidth;
    if (!width) return;
    const columns = series.map(([, name]) => samples.map((sample) => sample[name]));
    const data = [samples.map((sample) => sample.at), ...columns];
    const drawn = this.shown.get(chart.id);
    if (drawn) {
      if (drawn.width !== width) drawn.setSize({ width, height: HEIGHT });
      drawn.setData(data);
    } else this.shown.set(chart.id, new uPlot(options(chart, series, width), data, plot));
    const now = this.shown.get(chart.id);
    const last = columns[0].findLastIndex((value) => value != null);
    if (last >= 0 && now.cursor.idx == null) now.setLegend({ idx: last });
  }
}

function options(chart, series, width) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const lines = [0, 1, 2, 3, 4].map((i) => colour(`--chart-${i}`));
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--dim"), grid, ticks: { show: false }, font: `12px ${colour("--sans")}` };
  return {
    width,
    height: HEIGHT,
    cursor: { y: false },
    scales: {
      x: { range: timeShown },
      y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] },
    },
    axes: [
      { ...axis, size: 28, values: (_, times) => times.map((time) => new Date(time * 1000).toTimeString().slice(0, 5)) },
      { ...axis, size: 56, values: (_, values) => values.map((value) => chart.say(value)) },
    ],
    series: [
      { label: "Time", value: (_, time) => (time == null ? "–" : new Date(time * 1000).toTimeString().slice(0, 8)) },
      ...series.map(([label, , number], i) => ({
        label,
        stroke: lines[number],
        width: 2,
        fill: chart.bars ? lines[number] : number === 0 ? `${lines[number]}22` : undefined,
        paths: chart.bars ? uPlot.paths.bars({ size: [0.45, 8, 3], align: i ? 1 : -1 }) : undefined,
        points: chart.bars ? { show: false } : { size: 4 },
        spanGaps: true,
        value: (_, value) => chart.say(value),
      })),
    ],
  };
}

function timeShown({ data: [times] }) {
  const last = times.at(-1) ?? Date.now() / 1000;
  const first = Math.min(times[0] ?? last, last - LEAST_S);
  return [first, last + (last - first) / 50]; // so that the last bar is seen whole
}

/** Samples of `step` seconds: sums of what is counted, means of all else. */
function thinned(samples, step) {
  const groups = new Map();
  for (const sample of samples) {
    const time = Math.floor(sample.at / step);
    if (groups.has(time)) groups.get(time).push(sample);
    else groups.set(time, [sample]);
  }
  return [...groups.values()].map((group) => {
    return Object.fromEntries(Object.keys(group[0]).map((name) => {
      if (name === "at") return [name, group.at(-1).at];
      const values = group.map((sample) => sample[name]).filter((value) => value != null);
      const sum = values.reduce((a, b) => a + b, 0);
      return [name, COUNTS.includes(name) ? sum : values.length ? sum / values.length : null];
    }));
  });
}

function words(chart, series, samples) {
  return series.map(([label, name]) => {
    const values = samples.map((sample) => sample[name]).filter((value) => value != null);
    if (!values.length) return `${label}: nothing measured yet.`;
    return `${label}: now ${chart.say(values.at(-1))}, highest ${chart.say(Math.max(...values))}.`;
  }).join(" ");
}
