// The API key of this server, which a person gave: of this tab only, and of all pages in it.

const KEY = "swarm-node key";

export const key = () => sessionStorage.getItem(KEY);
export const keepKey = (given) => sessionStorage.setItem(KEY, given);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** Headers of a request. */
export const authorization = () => (key() ? { Authorization: `Bearer ${key()}` } : {});
