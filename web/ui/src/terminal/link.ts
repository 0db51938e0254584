/** The connection to the session's terminal: a token, a socket, and another try when it breaks. */

import { AWAY, NO_TROUBLE, afterClose, afterNoToken, type Next, type Trouble } from "./again";
import * as wire from "./wire";

/** A token that does not come within this is given up, in ms. */
const TOKEN_LIMIT_MS = 15_000;

/**
 * Bytes that are not drawn yet: above the first the service is asked to pause, below the second to go on. A screen is
 * a few KiB, so that half a MiB is behind by no more than a blink, and the browser's memory stays small.
 */
export const HIGH_WATER = 512 * 1024;
export const LOW_WATER = 128 * 1024;

/** How the connection stands; the page says it in words. */
export type Standing =
  | { is: "connecting"; say: string | null }
  | { is: "seated"; seat: wire.Seat }
  | { is: "waiting"; say: string }
  | { is: "stopped"; say: string };

/** What the link needs of the page. */
export interface Screen {
  /** The window that this pane would like. */
  size(): wire.Size;
  /** Another connection begins: what is drawn is of the old one. */
  clear(): void;
  /** Draws, and calls back when it is drawn. */
  draw(bytes: Uint8Array, drawn: () => void): void;
  title(title: string): void;
  seat(seat: wire.Seat, size: wire.Size): void;
  standing(standing: Standing): void;
}

export class Link {
  readonly #screen: Screen;
  #socket: WebSocket | null = null;
  #trouble: Trouble = { ...NO_TROUBLE };
  #timer: ReturnType<typeof setTimeout> | undefined;
  #seat: wire.Seat | null = null;
  #seatedAt = 0;
  #behind = 0;
  #paused = false;

  constructor(screen: Screen) {
    this.#screen = screen;
  }

  /** Connects; from here on the link looks after itself. */
  start(): void {
    this.#screen.standing({ is: "connecting", say: null });
    void this.#connect();
  }

  /** Does not wait any longer. Without a wait it does nothing. */
  now(): void {
    if (this.#timer === undefined) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    void this.#connect();
  }

  /** Sends what was typed. Nothing is kept for later: keys that arrive in another screen than they were meant for do harm. */
  keys(messages: Uint8Array<ArrayBuffer>[]): void {
    if (this.#seat === null || this.#seat === "viewer") return;
    for (const message of messages) this.#send(message);
  }

  /** Only the owner's window gives the size. */
  resized(size: wire.Size): void {
    if (this.#seat === "owner") this.#send(wire.resized(size));
  }

  #send(message: Uint8Array<ArrayBuffer>): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(message);
  }

  async #connect(): Promise<void> {
    let token: string;
    try {
      token = await fetchToken();
    } catch (thrown) {
      const { status, detail } = thrown instanceof NoToken ? thrown : new NoToken(0, AWAY);
      this.#next(afterNoToken(this.#trouble, status, detail));
      return;
    }
    this.#open(token);
  }

  #open(token: string): void {
    // A token is good once, so it is in the first message and in no address, which is logged.
    const url = new URL("ws", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url, [wire.PROTOCOL]);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#seatedAt = 0;
    this.#behind = 0;
    this.#paused = false;
    socket.onopen = () => {
      this.#screen.clear();
      socket.send(wire.hello(token, this.#screen.size()));
    };
    socket.onmessage = (event: MessageEvent<unknown>) => {
      if (event.data instanceof ArrayBuffer) this.#hear(socket, wire.read(event.data));
    };
    socket.onclose = (event) => {
      const servedMs = this.#seatedAt === 0 ? 0 : performance.now() - this.#seatedAt;
      this.#socket = null;
      this.#seat = null;
      this.#next(afterClose(this.#trouble, { code: event.code, reason: event.reason, servedMs }));
    };
  }

  #hear(socket: WebSocket, heard: wire.Heard): void {
    switch (heard.kind) {
      case "output":
        this.#draw(socket, heard.bytes);
        break;
      case "title":
        this.#screen.title(heard.title);
        break;
      case "seat":
        if (this.#seatedAt === 0) this.#seatedAt = performance.now();
        this.#seat = heard.seat;
        this.#screen.standing({ is: "seated", seat: heard.seat });
        this.#screen.seat(heard.seat, heard.size);
        break;
      case "other":
        break;
    }
  }

  #draw(socket: WebSocket, bytes: Uint8Array): void {
    this.#behind += bytes.length;
    if (!this.#paused && this.#behind > HIGH_WATER) {
      this.#paused = true;
      this.#send(wire.pause());
    }
    this.#screen.draw(bytes, () => {
      // What an earlier connection said is not this one's.
      if (this.#socket !== socket) return;
      this.#behind -= bytes.length;
      if (this.#paused && this.#behind < LOW_WATER) {
        this.#paused = false;
        this.#send(wire.resume());
      }
    });
  }

  #next(next: Next): void {
    this.#trouble = next.trouble;
    if (next.then === "stop") {
      this.#screen.standing({ is: "stopped", say: next.say });
      return;
    }
    this.#screen.standing(
      next.say === null ? { is: "connecting", say: null } : { is: "waiting", say: next.say },
    );
    this.#timer = setTimeout(() => this.now(), next.inMs);
  }
}

/** Why there is no token. */
class NoToken extends Error {
  readonly status: number;
  readonly detail: string;

  constructor(status: number, detail: string) {
    super(detail);
    this.status = status;
    this.detail = detail;
  }
}

async function fetchToken(): Promise<string> {
  const response = await fetch("token", {
    credentials: "same-origin",
    headers: { accept: "application/json" },
    cache: "no-store",
    signal: AbortSignal.timeout(TOKEN_LIMIT_MS),
  });
  // A proxy in between may answer with a page of its own; the status then says enough.
  const body = (await response.json().catch(() => null)) as { token?: unknown; detail?: unknown; title?: unknown } | null;
  if (!response.ok) {
    const words = [body?.detail, body?.title].find((text) => typeof text === "string" && text !== "");
    throw new NoToken(response.status, typeof words === "string" ? words : "");
  }
  if (typeof body?.token !== "string") throw new NoToken(0, AWAY);
  return body.token;
}
