/** How values become words: times, durations, commands, and text that nobody here vouches for. */

/** A piece of text; `control` marks a character that would not show, or would show as something it is not. */
export interface Piece {
  text: string;
  control: boolean;
}

// C0, DEL and C1 without newline and tab; zero-width characters; and the marks that turn the writing direction around,
// with which a command can be made to read as another one.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

const NAMES: Record<number, string> = { 0: "NUL", 7: "BEL", 8: "BS", 11: "VT", 12: "FF", 13: "CR", 27: "ESC", 127: "DEL" };

/** Splits text so that every control character has a visible stand-in: `⟨ESC⟩`, `⟨U+202E⟩`. */
export function visible(text: string): Piece[] {
  const pieces: Piece[] = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > from) pieces.push({ text: text.slice(from, match.index), control: false });
    pieces.push({ text: standIn(match[0]), control: true });
    from = match.index + match[0].length;
  }
  if (from < text.length) pieces.push({ text: text.slice(from), control: false });
  return pieces;
}

function standIn(character: string): string {
  const code = character.charCodeAt(0);
  // Unicode has pictures for these, but few fonts do.
  return `⟨${NAMES[code] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`}⟩`;
}

/** Writes an argv as one line; a word with anything but plain characters is quoted, so that word borders show. */
export function commandLine(command: string | readonly string[]): string {
  if (typeof command === "string") return command;
  return command.map((word) => (/^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(" ");
}

/** Takes the colour sequences out of program output; everything else a terminal would obey stays, to be made visible. */
export function withoutColours(output: string): string {
  return output.replace(/\u001b\[[0-9;:]*m/g, "");
}

/** The last `limit` characters of a text, and how many were left out before them. */
export function tailOf(text: string, limit: number): { left: number; tail: string } {
  return text.length <= limit ? { left: 0, tail: text } : { left: text.length - limit, tail: text.slice(-limit) };
}

/** An age in the largest unit that fits: `now`, `12 s`, `5 min`, `3 h`, `2 d`. */
export function age(from: string | null | undefined, now: number): string {
  const seconds = Math.floor((now - Date.parse(from ?? "")) / 1000);
  return seconds < 5 ? "now" : span(seconds);
}

/** A span of whole seconds in the largest unit that fits: `12 s`, `5 min`, `3 h`, `2 d`. */
export function span(seconds: number): string {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** A length of time: `40 ms`, `1.4 s`, `2 min 5 s`. */
export function duration(ms: number): string {
  if (!Number.isFinite(ms) || ms < 0) return "";
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1_000)} s`;
}

/** A time in the reader's own place and manner, for a tooltip. */
export function absolute(time: string | null | undefined): string {
  const date = new Date(time ?? "");
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString();
}

/** The hour and minute of a time. */
export function clock(time: string | null | undefined): string {
  const date = new Date(time ?? "");
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

/** A number of bytes, as people write it. */
export function size(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let [value, at] = [bytes, 0];
  while (value >= 1000 && at < units.length - 1) [value, at] = [value / 1000, at + 1];
  return `${at === 0 || value >= 10 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

/** `save_back` as `save back`. */
export const words = (name: string): string => name.replaceAll("_", " ");
