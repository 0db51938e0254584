/** What to do when the terminal's connection is over, or could not be made: pure, so that each case can be tested. */

/** The first wait before another try, in ms; it doubles up to {@link LONGEST_MS}. */
export const FIRST_MS = 500;
export const LONGEST_MS = 10_000;

/** A connection that lasted so long was a good one, in ms: what failed before it no longer counts. */
export const STEADY_MS = 2_000;

/** So often in a row a seat may be moved without a wait; more is two windows pushing each other. */
export const MOVES_LIMIT = 3;

/** What went wrong since the last good connection. */
export interface Trouble {
  failures: number;
  /** Tokens that were not taken. */
  refusals: number;
  moves: number;
}

export const NO_TROUBLE: Readonly<Trouble> = { failures: 0, refusals: 0, moves: 0 };

/** How a connection ended. */
export interface End {
  code: number;
  reason: string;
  /** How long the service served it, in ms; 0 if it never did. */
  servedMs: number;
}

/** What comes next: another try, or nothing until a person reloads. */
export type Next =
  | { then: "again"; inMs: number; say: string | null; trouble: Trouble }
  | { then: "stop"; say: string; trouble: Trouble };

export const AWAY = "The service is away, trying again.";
export const LOG_IN = "Log in again with the service's login link, then reload.";
export const ENDED = "The terminal has ended";

/** The wait before try number `failures` (from 1). */
export function backOff(failures: number): number {
  return Math.min(FIRST_MS * 2 ** Math.min(Math.max(failures - 1, 0), 16), LONGEST_MS);
}

function later(trouble: Trouble, say: string): Next {
  const failures = trouble.failures + 1;
  return { then: "again", inMs: backOff(failures), say, trouble: { ...trouble, failures } };
}

/** After a socket was closed. */
export function afterClose(before: Trouble, end: End): Next {
  const trouble = end.servedMs >= STEADY_MS ? { ...NO_TROUBLE } : before;
  switch (end.code) {
    case 4000:
      return { then: "stop", say: endedSentence(end.reason), trouble };
    case 4001: {
      const moves = trouble.moves + 1;
      if (moves > MOVES_LIMIT) return later(trouble, "The seat moves between windows, trying again.");
      return { then: "again", inMs: 0, say: null, trouble: { ...trouble, moves } };
    }
    case 4002:
      // The session starts, or its line to the terminal broke; the service itself is there.
      return later(trouble, sentence(end.reason || "the terminal cannot be met now").replace(/\.$/, ", trying again."));
    case 4401:
      if (trouble.refusals > 0) return { then: "stop", say: LOG_IN, trouble };
      return { then: "again", inMs: 0, say: null, trouble: { ...trouble, refusals: trouble.refusals + 1 } };
    case 1008:
      // The service did not like what we said; its reason helps whoever reports it.
      return later(trouble, end.reason === "" ? AWAY : `The service refused a message (${end.reason}), trying again.`);
    default:
      return later(trouble, AWAY);
  }
}

/** After no token was to be had. `status` is the answer's, 0 when there was none; `detail` the service's words. */
export function afterNoToken(trouble: Trouble, status: number, detail: string): Next {
  if (status === 401) return { then: "stop", say: LOG_IN, trouble };
  if (status === 0 || status === 429 || status >= 500) return later(trouble, AWAY);
  return { then: "stop", say: sentence(detail || `the service answered ${status}`), trouble };
}

function endedSentence(reason: string): string {
  if (reason === "") return `${ENDED}.`;
  return sentence(reason.toLowerCase().startsWith(ENDED.toLowerCase()) ? reason : `${ENDED}: ${reason}`);
}

function sentence(text: string): string {
  const trimmed = text.trim();
  const capital = trimmed.slice(0, 1).toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
