/** The words of ttyd's WebSocket (LAB §6), as far as the service's gateway speaks them: a byte that says what, then it. */

/** A window, in character cells. */
export interface Size {
  columns: number;
  rows: number;
}

/** Who somebody is at a terminal: the owner's window gives the size, a guest types too, a viewer looks on. */
export type Seat = "owner" | "guest" | "viewer";

/** What the service says. */
export type Heard =
  | { kind: "output"; bytes: Uint8Array }
  | { kind: "title"; title: string }
  | { kind: "seat"; seat: Seat; size: Size }
  /** Settings of ttyd's own pages, and whatever a later service says: left alone. */
  | { kind: "other" };

/** The subprotocol of the socket. */
export const PROTOCOL = "tty";

/** What the service takes as a window; anything else ends the connection (`web/src/terminal/wire.rs`). */
const SMALLEST: Size = { columns: 2, rows: 2 };
const LARGEST: Size = { columns: 1000, rows: 500 };

/** Keys a message: the service takes one MiB, and a paste may be longer. */
export const KEYS_LIMIT = 256 * 1024;

const KEYS = "0".charCodeAt(0);
const OUTPUT = "0".charCodeAt(0);
const TITLE = "1".charCodeAt(0);
const SETTINGS = "2".charCodeAt(0);

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The size as the service takes it. */
export function within(size: Size): Size {
  const clamp = (value: number, low: number, high: number): number =>
    Number.isFinite(value) ? Math.min(Math.max(Math.floor(value), low), high) : low;
  return {
    columns: clamp(size.columns, SMALLEST.columns, LARGEST.columns),
    rows: clamp(size.rows, SMALLEST.rows, LARGEST.rows),
  };
}

/** The first message. */
export function hello(token: string, size: Size): string {
  return JSON.stringify({ AuthToken: token, ...within(size) });
}

/** What was typed or pasted, as UTF-8, in messages that are not too long. A character may lie across two of them. */
export function keys(text: string): Uint8Array<ArrayBuffer>[] {
  return framed(encoder.encode(text));
}

/** A report that is bytes, not text (the old form of mouse reports): one byte a character. */
export function binary(text: string): Uint8Array<ArrayBuffer>[] {
  return framed(Uint8Array.from(text, (character) => character.charCodeAt(0) & 0xff));
}

function framed(bytes: Uint8Array): Uint8Array<ArrayBuffer>[] {
  const messages: Uint8Array<ArrayBuffer>[] = [];
  for (let at = 0; at < bytes.length; at += KEYS_LIMIT) {
    const part = bytes.subarray(at, at + KEYS_LIMIT);
    const message = new Uint8Array(part.length + 1);
    message[0] = KEYS;
    message.set(part, 1);
    messages.push(message);
  }
  return messages;
}

/** The window has another size. */
export function resized(size: Size): Uint8Array<ArrayBuffer> {
  return encoder.encode(`1${JSON.stringify(within(size))}`);
}

/** Say nothing more until {@link resume}: the screen is behind. */
export const pause = (): Uint8Array<ArrayBuffer> => encoder.encode("2");

/** Go on. */
export const resume = (): Uint8Array<ArrayBuffer> => encoder.encode("3");

/** Reads a message of the service. What it cannot read is `other`: a page that is older than the service goes on. */
export function read(data: ArrayBuffer): Heard {
  const bytes = new Uint8Array(data);
  const rest = bytes.subarray(1);
  switch (bytes[0]) {
    case OUTPUT:
      return { kind: "output", bytes: rest };
    case TITLE:
      return { kind: "title", title: decoder.decode(rest) };
    case SETTINGS:
      return seatOf(decoder.decode(rest));
    default:
      return { kind: "other" };
  }
}

function seatOf(text: string): Heard {
  let settings: unknown;
  try {
    settings = JSON.parse(text);
  } catch {
    return { kind: "other" };
  }
  const ours = (settings as { optio?: { seat?: unknown; columns?: unknown; rows?: unknown } } | null)?.optio;
  if (typeof ours?.columns !== "number" || typeof ours.rows !== "number") return { kind: "other" };
  if (ours.seat !== "owner" && ours.seat !== "guest" && ours.seat !== "viewer") return { kind: "other" };
  return { kind: "seat", seat: ours.seat, size: within({ columns: ours.columns, rows: ours.rows }) };
}
