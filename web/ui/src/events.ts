/**
 * One stream of events, kept open. Wraps `EventSource` because a person wants to see *when* it reconnects and how much
 * it still replays, and because its own retry never says that the login has run out.
 */

import type { ServiceEvent } from "./protocol";

/** How a stream stands; what the connection line says. */
export type Connection =
  | { state: "connecting" }
  | { state: "replaying"; left: number }
  | { state: "live" }
  | { state: "reconnecting"; at: number }
  | { state: "paused" };

/** The first wait before a reconnect, as the service's own `retry:` line says. */
const FIRST_RETRY_MS = 2_000;

/** The longest wait between two reconnects: a person who restarts the service sees the page come back soon. */
const LONGEST_RETRY_MS = 30_000;

/**
 * A replay this long without an event is over. The newest event may be one this stream does not listen to, so its
 * number alone would leave the line saying "replaying" for ever.
 */
const QUIET_MS = 1_000;

/** The part of `EventSource` that is used, so that a test can hand in its own. */
export interface Source {
  onopen: ((event: Event) => void) | null;
  onerror: ((event: Event) => void) | null;
  addEventListener(name: string, listener: (event: MessageEvent<string>) => void): void;
  close(): void;
}

export interface StreamOptions {
  /** The stream's address without `after`. */
  url: string;
  /** The events to hear. */
  names: readonly string[];
  /** Continue after this event; absent: from where the service starts by itself. */
  after?: number;
  onEvent: (event: ServiceEvent) => void;
  onConnection: (connection: Connection) => void;
  /** Called after each failure, to learn why (a 401 shows up there). */
  onFailure?: () => void;
  /** Called at each open, to learn the newest event there is; until that one the stream is replaying. */
  head?: () => Promise<number | null>;
  open?: (url: string) => Source;
}

/**
 * Reads one event frame; none for a frame that is not an event of ours. A `gap` stands for events that are gone, so
 * without a number of its own it has the number of the last of them.
 */
export function parseEvent(name: string, data: string): ServiceEvent | null {
  let event: Partial<ServiceEvent> | null;
  try {
    event = JSON.parse(data) as Partial<ServiceEvent> | null;
  } catch {
    return null;
  }
  if (typeof event !== "object" || event === null) return null;
  const seq = event.seq ?? (name === "gap" ? event.to : undefined);
  return typeof seq === "number" ? ({ ...event, seq, type: event.type ?? name } as ServiceEvent) : null;
}

/** A stream that reconnects until it is closed, and never hands out an event twice. */
export class EventStream {
  readonly #options: StreamOptions;
  #source: Source | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #failures = 0;
  #last: number | undefined;
  #head: number | null = null;
  /** Tells answers of `head()` that belong to a former connection. */
  #generation = 0;
  #connection: Connection = { state: "connecting" };

  constructor(options: StreamOptions) {
    this.#options = options;
    this.#last = options.after;
    this.#connect();
  }

  /** The newest event that was handed out. */
  get last(): number | undefined {
    return this.#last;
  }

  /** Lets the connection go; {@link resume} continues after the last event. */
  pause(): void {
    this.#disconnect();
    this.#say({ state: "paused" });
  }

  resume(): void {
    if (this.#connection.state === "paused") this.#connect();
  }

  /** Tries again at once instead of waiting for the next reconnect. */
  retryNow(): void {
    if (this.#connection.state === "reconnecting") this.#connect();
  }

  close(): void {
    this.#disconnect();
  }

  #say(connection: Connection): void {
    this.#connection = connection;
    this.#options.onConnection(connection);
  }

  #disconnect(): void {
    this.#generation += 1;
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #connect(): void {
    this.#disconnect();
    this.#say({ state: "connecting" });
    const { url, names, open = (address: string) => new EventSource(address) as Source } = this.#options;
    const address = this.#last === undefined ? url : `${url}?after=${this.#last}`;
    const source = open(address);
    this.#source = source;
    source.onopen = () => this.#opened();
    source.onerror = () => this.#failed();
    for (const name of names) source.addEventListener(name, (frame) => this.#received(name, frame.data));
  }

  #opened(): void {
    this.#failures = 0;
    this.#head = null;
    this.#say({ state: "live" });
    const generation = this.#generation;
    void this.#options.head?.().then(
      (head) => {
        if (generation !== this.#generation) return;
        this.#head = head;
        this.#caughtUp();
      },
      () => {
        // Without the head the line says "live" during a replay; the events themselves are not affected.
      },
    );
  }

  #failed(): void {
    this.#disconnect();
    const wait = Math.min(FIRST_RETRY_MS * 2 ** this.#failures, LONGEST_RETRY_MS);
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#connect(), wait);
    this.#say({ state: "reconnecting", at: Date.now() + wait });
    this.#options.onFailure?.();
  }

  #received(name: string, data: string): void {
    const event = parseEvent(name, data);
    if (event === null) return;
    // A `reset` starts the numbering anew; everything else at or below the last number was seen before.
    if (event.type !== "reset" && this.#last !== undefined && event.seq <= this.#last) return;
    this.#last = event.seq;
    this.#options.onEvent(event);
    if (this.#head !== null) this.#caughtUp();
  }

  #caughtUp(): void {
    clearTimeout(this.#timer);
    const left = (this.#head ?? 0) - (this.#last ?? 0);
    if (left > 0) {
      this.#say({ state: "replaying", left });
      this.#timer = setTimeout(() => this.#live(), QUIET_MS);
    } else {
      this.#live();
    }
  }

  #live(): void {
    this.#head = null;
    if (this.#connection.state !== "live") this.#say({ state: "live" });
  }
}
