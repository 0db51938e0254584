/** The page of a session's terminal: xterm.js in a pane, a line below it for what a person should know. */

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import { FONT_PX, fittingFont } from "./font";
import { Link, type Standing } from "./link";
import { allowStyles } from "./styles";
import "./terminal.css";
import * as wire from "./wire";

/** A pane whose edge is being dragged is measured once it rests for so long, in ms. */
const REST_MS = 80;

function part<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no element #${id}`);
  return found as T;
}

const pane = part("pane");
const line = part("line");
const status = part("status");
const offer = part<HTMLButtonElement>("offer");

allowStyles(document);

const terminal = new Terminal({
  fontSize: FONT_PX,
  fontFamily: 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace',
  theme: { background: "#12161d", foreground: "#e6eaf0", cursor: "#e6eaf0" },
  cursorBlink: false,
  // The multiplexer behind the terminal keeps the history and draws on the alternate screen, so that this is hardly
  // used; but with 0, xterm.js 6.0 leaves the first screen some rows off after it was made smaller.
  scrollback: 1000,
  allowProposedApi: false,
});
const fit = new FitAddon();
terminal.loadAddon(fit);
// A link's text may name another place than its address (OSC 8), and without a handler of ours xterm.js would offer to
// open it. The clipboard (OSC 52) is nobody's but the person's. Both are swallowed; only the text is shown.
for (const osc of [8, 52]) terminal.parser.registerOscHandler(osc, () => true);
terminal.open(pane);
terminal.focus();

/** Whose size the terminal has: ours, or that of the seat's owner. */
let given: wire.Size | null = null;

function holds(px: number): wire.Size | null {
  terminal.options.fontSize = px;
  const proposed = fit.proposeDimensions();
  if (proposed === undefined || Number.isNaN(proposed.cols) || Number.isNaN(proposed.rows)) return null;
  return { columns: proposed.cols, rows: proposed.rows };
}

/** Gives the terminal the size it should have in the pane, and says which. */
function settle(): wire.Size {
  if (given === null) {
    const size = holds(FONT_PX);
    // A pane without a size (an iframe that is not shown yet) leaves the terminal as it is until it has one.
    if (size !== null) shape(wire.within(size));
  } else {
    shape(given);
    terminal.options.fontSize = fittingFont(given, holds);
  }
  return { columns: terminal.cols, rows: terminal.rows };
}

function shape(size: wire.Size): void {
  if (size.columns !== terminal.cols || size.rows !== terminal.rows) terminal.resize(size.columns, size.rows);
}

const SEATS: Record<wire.Seat, string | null> = {
  owner: null,
  guest: "Sized by another window.",
  viewer: "Looking on.",
};

function say(text: string | null, action: { label: string; run: () => void } | null, trouble: boolean): void {
  status.textContent = text ?? "";
  line.hidden = text === null;
  line.classList.toggle("trouble", trouble);
  offer.hidden = action === null;
  offer.textContent = action?.label ?? "";
  offer.onclick = action?.run ?? null;
}

function show(standing: Standing): void {
  line.classList.toggle("over", standing.is !== "seated");
  switch (standing.is) {
    case "connecting":
      say("Connecting…", null, false);
      break;
    case "seated":
      say(SEATS[standing.seat], null, false);
      terminal.options.disableStdin = standing.seat === "viewer";
      return;
    case "waiting":
      say(standing.say, { label: "Try now", run: () => link.now() }, true);
      break;
    case "stopped":
      say(standing.say, { label: "Reload", run: () => location.reload() }, true);
      break;
  }
  // Keys that go nowhere should not look as if they did.
  terminal.options.disableStdin = true;
}

const link = new Link({
  size: () => {
    given = null;
    return settle();
  },
  clear: () => terminal.reset(),
  draw: (bytes, drawn) => terminal.write(bytes, drawn),
  title: (title) => {
    document.title = title === "" ? "Terminal" : title;
  },
  seat: (seat, size) => {
    given = seat === "owner" ? null : size;
    const now = settle();
    // The pane may have changed since the first message, and the line below it may have come or gone.
    if (seat === "owner" && (now.columns !== size.columns || now.rows !== size.rows)) link.resized(now);
  },
  standing: show,
});

terminal.onData((text) => link.keys(wire.keys(text)));
terminal.onBinary((text) => link.keys(wire.binary(text)));

let resting: ReturnType<typeof setTimeout> | undefined;
new ResizeObserver(() => {
  clearTimeout(resting);
  resting = setTimeout(() => {
    const before = { columns: terminal.cols, rows: terminal.rows };
    const now = settle();
    if (now.columns !== before.columns || now.rows !== before.rows) link.resized(now);
  }, REST_MS);
}).observe(pane);

addEventListener("online", () => link.now());
// Where somebody clicks or comes back to, they mean to type.
addEventListener("focus", () => terminal.focus());

link.start();
