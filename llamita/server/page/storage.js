// What the browser keeps for the page. A browser may refuse: the page works without.

/** What was stored under a name, or null. */
export function stored(storage, name) {
  try {
    return JSON.parse(storage.getItem(name));
  } catch {
    return null;
  }
}

/** Store a value; false where it is too large, or the browser refuses. */
export function store(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
