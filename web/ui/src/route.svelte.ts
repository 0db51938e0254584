/** Which view is open: the address's hash. */

export type Route =
  | { view: "list" }
  | { view: "new" }
  | { view: "seeds" }
  | { view: "hosts" }
  | { view: "session"; id: string };

/** Reads a hash; an address nobody knows is the session list. */
export function parseRoute(hash: string): Route {
  const [view, id] = hash.replace(/^#\/?/, "").split("/");
  if (view === "s" && id) {
    try {
      return { view: "session", id: decodeURIComponent(id) };
    } catch {
      return { view: "list" };
    }
  }
  if (view === "new") return { view: "new" };
  if (view === "seeds") return { view: "seeds" };
  if (view === "hosts") return { view: "hosts" };
  return { view: "list" };
}

export const sessionHref = (id: string): string => `#/s/${encodeURIComponent(id)}`;

export const route = $state<{ now: Route }>({ now: parseRoute(location.hash) });

addEventListener("hashchange", () => {
  route.now = parseRoute(location.hash);
});
