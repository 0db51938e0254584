/** A new login by a code, followed until it is over. */

import { Problem, explain, getLogin } from "./api";
import type { SeedLogin } from "./protocol";

/** A person takes a while to enter a code, and wants to see at once that it worked. */
export const POLL_MS = 2_000;

/** True when a login will not change any more. */
export function isOver(login: SeedLogin): boolean {
  return login.state === "done" || login.state === "failed" || login.state === "cancelled";
}

/** What is shown of a login, and what is wrong with the way to it at the moment. */
export type Shown = (login: SeedLogin | null, problem: string | null) => void;

/** Asks for a login again and again until it is over or `signal` says that nobody looks any more. */
export async function follow(first: SeedLogin, shown: Shown, signal: AbortSignal): Promise<void> {
  let login = first;
  shown(login, null);
  while (!isOver(login)) {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, POLL_MS);
      signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
    if (signal.aborted) return;
    try {
      const answer = await getLogin(login.id);
      if (signal.aborted) return;
      login = answer;
      shown(login, null);
    } catch (thrown) {
      if (signal.aborted) return;
      // A service that was started again may not know it; one that is away is asked again.
      const gone = thrown instanceof Problem && thrown.status === 404;
      shown(gone ? null : login, gone ? "The service does not know this login any more; see the seeds, or begin anew." : explain(thrown));
      if (gone) return;
    }
  }
}
