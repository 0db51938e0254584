/** All sessions of the service, live. One for the whole page: the list, the title and the favicon read it. */

import * as api from "./api";
import { EventStream, type Connection } from "./events";
import { applyToSession } from "./fold";
import { SESSION_EVENTS, type ServiceEvent, type Session } from "./protocol";

/** How often the list is asked for while the stream is down. */
const POLL_MS = 5_000;

/** How often it is asked for anyway: an event says what changed, not everything that can (a lease, an agent's pid). */
const REFRESH_MS = 60_000;

/** Events come in bursts; the sessions they concern are asked for once, after this. */
const SETTLE_MS = 250;

/**
 * A browser opens six connections to one origin over HTTP/1.1, over all tabs. A tab that has been out of sight for
 * this long gives its streams back and polls.
 */
export const HIDDEN_MS = 60_000;

class Sessions {
  /** None until the first answer. */
  all = $state.raw<readonly Session[] | null>(null);
  connection = $state.raw<Connection>({ state: "connecting" });
  /** Why the last request for the list failed, none when it did not. */
  problem = $state.raw<string | null>(null);
  /** True after a 401: nothing works until the person logs in. */
  loginNeeded = $state(false);
  /** The clock that ages are shown by; ticks each second. */
  now = $state(Date.now());

  waiting = $derived((this.all ?? []).filter((session) => needsPerson(session)).length);

  #stream: EventStream | null = null;
  #stale = new Set<string>();
  #settle: ReturnType<typeof setTimeout> | undefined;
  #loading = false;
  /** Asked for while a request was under way, whose answer may be older than what the asker knows of. */
  #again = false;
  #hidden: ReturnType<typeof setTimeout> | undefined;

  start(): void {
    api.whenUnauthenticated(() => {
      this.loginNeeded = true;
    });
    void this.refresh();
    this.#stream = new EventStream({
      url: "/v1/events",
      names: SESSION_EVENTS,
      onEvent: (event) => this.#heard(event),
      onConnection: (connection) => {
        // What happened while the stream was down is in the list, not in the stream.
        if (connection.state === "live" && this.connection.state !== "replaying") void this.refresh();
        this.connection = connection;
      },
      onFailure: () => void this.refresh(),
    });
    setInterval(() => {
      this.now = Date.now();
    }, 1_000);
    setInterval(() => {
      if (this.connection.state !== "live") void this.refresh();
    }, POLL_MS);
    setInterval(() => void this.refresh(), REFRESH_MS);
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.#hidden);
      if (document.hidden) this.#hidden = setTimeout(() => this.#stream?.pause(), HIDDEN_MS);
      else this.#stream?.resume();
    });
  }

  async refresh(): Promise<void> {
    if (this.#loading) {
      this.#again = true;
      return;
    }
    this.#loading = true;
    try {
      this.all = await api.listSessions();
      this.problem = null;
      this.loginNeeded = false;
    } catch (thrown) {
      this.problem = api.explain(thrown);
    } finally {
      this.#loading = false;
    }
    if (this.#again) {
      this.#again = false;
      await this.refresh();
    }
  }

  /** Puts a session's newest form into the list. */
  put(session: Session): void {
    const all = this.all ?? [];
    const known = all.some((other) => other.id === session.id);
    this.all = known ? all.map((other) => (other.id === session.id ? session : other)) : [session, ...all];
  }

  remove(id: string): void {
    this.all = (this.all ?? []).filter((session) => session.id !== id);
  }

  #heard(event: ServiceEvent): void {
    // Some events are about no session: a seed that came from a login, a host that is down for all on it.
    if (event.session === "") {
      if (event.type.startsWith("host.")) void this.refresh();
      return;
    }
    const known = this.all?.find((session) => session.id === event.session);
    // The stream may begin in the past; an old state must not overwrite a newer answer.
    if (known && Date.parse(event.ts) >= Date.parse(known.updated_at)) this.put(applyToSession(known, event));
    this.#stale.add(event.session);
    this.#settle ??= setTimeout(() => void this.#freshen(), SETTLE_MS);
  }

  async #freshen(): Promise<void> {
    this.#settle = undefined;
    const stale = [...this.#stale];
    this.#stale.clear();
    // Asking for each of many is worse than asking for all at once.
    if (stale.length > 5) return this.refresh();
    await Promise.all(
      stale.map((id) =>
        api.getSession(id).then(
          (session) => this.put(session),
          (thrown: unknown) => {
            if (thrown instanceof api.Problem && thrown.status === 404) this.remove(id);
            else this.problem = api.explain(thrown);
          },
        ),
      ),
    );
  }
}

/** True when a session cannot go on without a person. */
export function needsPerson(session: Session): boolean {
  return session.state !== "ended" && (session.state === "waiting" || session.waiting.length > 0);
}

export const sessions = new Sessions();
