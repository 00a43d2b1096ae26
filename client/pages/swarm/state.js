// What the server told: sections of items by their ids, and what follows from them.

export class State {
  sections = {};

  apply(name, data) {
    if (name === "state") {
      this.sections = data;
      return;
    }
    for (const [section, { set, gone }] of Object.entries(data)) {
      const items = { ...this.sections[section], ...set };
      for (const id of gone) delete items[id];
      this.sections[section] = items;
    }
  }

  get swarm() {
    return this.sections.swarm ?? {};
  }

  items(section) {
    return Object.entries(this.sections[section] ?? {});
  }

  item(section, id) {
    return this.sections[section]?.[id];
  }

  /** [digest, model], those with most nodes first. */
  get models() {
    return this.items("models").sort(([, a], [, b]) => b.nodes - a.nodes || (a.name < b.name ? -1 : 1));
  }

  nodesOf(digest) {
    return this.items("nodes").filter(([, node]) => node.model === digest);
  }

  /** The samples that are kept, oldest first, each as an object by the columns' names. */
  get history() {
    const columns = this.swarm.columns ?? [];
    return Object.values(this.sections.history ?? {})
      .sort((a, b) => a[0] - b[0])
      .map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  }
}

/** Stretches of a model that `servers` nodes serve, as [first, last]. */
export const servedBy = (model, servers) =>
  model.coverage.filter(([, , count]) => count === servers).map(([first, last]) => [first, last]);
