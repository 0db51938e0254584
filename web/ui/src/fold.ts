/**
 * Events and messages in, the conversation out. No DOM, no clock, no network, so that every rule of it is tested by
 * feeding it events.
 *
 * An item is never changed once it was handed out: a change puts a new object in its place, so a view compares by
 * identity. The one exception is `parts`, which grows in place: a delta costs one push, never a copy of the text.
 */

import type {
  Approval,
  CodexItem,
  CodexParams,
  FileChange,
  Message,
  MessageKind,
  PlanStep,
  ServiceEvent,
  Session,
} from "./protocol";

/** How loud a notice is. */
export type Tone = "quiet" | "good" | "warn" | "bad";

/** One entry of the chat. Which of the optional members are there depends on `kind`. */
export interface ChatItem {
  /** Unique in its conversation and the same for an event and a message about the same thing. */
  readonly key: string;
  readonly kind: MessageKind | "gap";
  readonly seq: number;
  readonly turn: string | null;
  readonly at: string | null;
  readonly status: string | null;
  /** The authoritative text; while `streaming`, `parts` has it instead. */
  readonly text: string;
  readonly streaming: boolean;
  /** The deltas so far. Grows in place, and only at its end. */
  readonly parts: string[];
  /** Characters in `parts`. */
  readonly size: number;
  /** True when a command's live output passed {@link LIVE_OUTPUT_LIMIT}; the rest comes with its end. */
  readonly cut?: boolean;
  readonly tone?: Tone;
  readonly link?: string;
  readonly command?: string | string[];
  readonly cwd?: string | null;
  readonly exitCode?: number | null;
  readonly durationMs?: number | null;
  readonly changes?: FileChange[];
  readonly plan?: PlanStep[];
  readonly approval?: Approval;
  /** Of a message that was sent from this page and has not come back yet: how it was delivered. */
  readonly sent?: string;
}

/** A command's live output is kept up to this many characters; a screen shows less, and its end brings the whole. */
const LIVE_OUTPUT_LIMIT = 262_144;

/** What an {@link Fold.apply} did. */
export interface Change {
  /** Items came, went or moved: the list is another one. */
  list: boolean;
  /** The item that was added or replaced. */
  key: string | null;
}

const NOTHING: Change = { list: false, key: null };

const KINDS: Record<string, MessageKind> = {
  userMessage: "user",
  agentMessage: "assistant",
  reasoning: "reasoning",
  commandExecution: "command",
  fileChange: "file_change",
  plan: "plan",
};

/** The conversation of one session, folded from its journal. */
export class Fold {
  #items: ChatItem[] = [];
  readonly #positions = new Map<string, number>();
  /** The items whose end has not come. */
  readonly #open = new Set<string>();
  #through = 0;
  #unnumbered = 0;

  /** The items, oldest first. */
  get items(): readonly ChatItem[] {
    return this.#items;
  }

  /** The newest event that is folded in; a stream continues after it. */
  get through(): number {
    return this.#through;
  }

  get(key: string): ChatItem | undefined {
    const position = this.#positions.get(key);
    return position === undefined ? undefined : this.#items[position];
  }

  /** Puts a page of older messages, newest first as the service gives them, before everything else. */
  prepend(newestFirst: readonly Message[]): void {
    const older: ChatItem[] = [];
    const keys = new Set(this.#positions.keys());
    for (const message of newestFirst) {
      const item = fromMessage(message);
      this.#through = Math.max(this.#through, message.seq);
      if (keys.has(item.key)) continue;
      keys.add(item.key);
      older.push(item);
      if (item.streaming) this.#open.add(item.key);
    }
    this.#items = [...older.reverse(), ...this.#items];
    this.#number(0);
  }

  /** Adds open approvals that the messages do not have, and brings those they have up to date. */
  addApprovals(approvals: readonly Approval[]): void {
    for (const approval of approvals) {
      const known = this.#positions.has(approvalKey(approval.id));
      // An answered one that is not here stands further up, on a page that has not been loaded.
      if (known || approval.state === "pending") this.#approval(approval, this.#through);
    }
  }

  /** Shows a message that the service has taken but Codex has not repeated yet. */
  sent(text: string, deliveredAs: string, at: string): Change {
    return this.#put({ ...blank(`sent:${(this.#unnumbered += 1)}`, "user"), text, at, sent: deliveredAs });
  }

  /** Folds one event in. An event that was folded in before changes nothing. */
  apply(event: ServiceEvent): Change {
    if (event.type !== "reset" && event.seq <= this.#through) return NOTHING;
    this.#through = Math.max(this.#through, event.seq);
    const codex = event.codex;
    switch (event.type) {
      case "item.started":
        return codex?.item ? this.#item(event, codex, codex.item, false) : NOTHING;
      case "item.completed":
        return codex?.item ? this.#item(event, codex, codex.item, true) : NOTHING;
      case "item.delta":
        return codex ? this.#delta(event, codex) : NOTHING;
      case "plan.updated":
        return codex?.plan ? this.#plan(event, codex, codex.plan) : NOTHING;
      case "turn.completed":
        return this.#turnCompleted(event, codex);
      case "approval.requested":
      case "approval.resolved":
        return event.approval ? this.#approval(event.approval, event.seq) : NOTHING;
      case "gap":
        return this.#put({
          ...blank(`gap:${event.seq}`, "gap"),
          seq: event.seq,
          at: event.ts ?? null,
          text: gapText(event),
        });
      case "codex.error":
        return this.#error(event, codex);
      default:
        return this.#notice(event);
    }
  }

  #item(event: ServiceEvent, codex: CodexParams, codexItem: CodexItem, completed: boolean): Change {
    const key = codexItem.id;
    const before = this.get(key);
    // A journal may repeat a start (a reconnect asks Codex again); what has ended stays ended.
    if (!completed && before !== undefined && !before.streaming) return NOTHING;

    const said = textOf(codexItem);
    const parts = before?.parts ?? [];
    const kind = KINDS[codexItem.type] ?? "other";
    const item: ChatItem = {
      ...blank(key, kind),
      ...shownOf(codexItem),
      seq: event.seq,
      turn: codex.turnId ?? event.turn ?? null,
      at: before?.at ?? event.ts,
      status: codexItem.status ?? (completed ? "completed" : "inProgress"),
      // An empty final text does not take back what was streamed (S-371).
      text: said === "" && completed ? parts.join("") : said,
      streaming: !completed && kind !== "user",
      parts: completed ? [] : parts,
      size: completed ? 0 : (before?.size ?? 0),
    };
    if (item.streaming) this.#open.add(key);
    else this.#open.delete(key);
    const arrived = kind === "user" && before === undefined ? this.#dropSent(item.text) : false;
    const change = this.#put(item);
    return arrived ? { ...change, list: true } : change;
  }

  #delta(event: ServiceEvent, codex: CodexParams): Change {
    const { itemId, delta } = codex;
    if (itemId === undefined || typeof delta !== "string") return NOTHING;
    const before = this.get(itemId);
    if (before === undefined) {
      // Its start was trimmed; an item that only streams text is an answer until its end says otherwise.
      const item = { ...blank(itemId, "assistant"), turn: codex.turnId ?? null, at: event.ts, seq: event.seq };
      this.#open.add(itemId);
      return this.#put({ ...item, status: "inProgress", streaming: true, parts: [delta], size: delta.length });
    }
    if (!before.streaming) return NOTHING;
    const size = before.size + delta.length;
    if (before.kind === "command" && size > LIVE_OUTPUT_LIMIT) {
      return before.cut ? NOTHING : this.#put({ ...before, seq: event.seq, cut: true });
    }
    before.parts.push(delta);
    return this.#put({ ...before, seq: event.seq, size });
  }

  #plan(event: ServiceEvent, codex: CodexParams, plan: PlanStep[]): Change {
    const turn = codex.turnId ?? event.turn ?? null;
    const key = `plan:${turn ?? ""}`;
    return this.#put({
      ...blank(key, "plan"),
      seq: event.seq,
      turn,
      at: this.get(key)?.at ?? event.ts,
      text: codex.explanation ?? "",
      plan,
    });
  }

  #turnCompleted(event: ServiceEvent, codex: CodexParams | undefined): Change {
    const turn = codex?.turn?.id ?? codex?.turnId ?? event.turn ?? null;
    const status = codex?.turn?.status ?? "completed";
    const settled = this.#settle(turn, status);
    let notice = NOTHING;
    if (status === "failed") {
      const why = codex?.turn?.error?.message ?? "Codex gave no reason.";
      notice = this.#say(`error:${turn ?? event.seq}`, event, "bad", `The turn failed: ${why}`);
    } else if (status === "interrupted") {
      notice = this.#say(`interrupted:${turn ?? event.seq}`, event, "warn", "The turn was interrupted.");
    }
    return settled ? { list: true, key: notice.key } : notice;
  }

  /** Ends what a turn left open: nothing on the page may stream for ever. */
  #settle(turn: string | null, status: string): boolean {
    let settled = false;
    for (const key of [...this.#open]) {
      const item = this.get(key);
      if (item === undefined || (turn !== null && item.turn !== null && item.turn !== turn)) continue;
      const text = item.text === "" ? item.parts.join("") : item.text;
      this.#put({ ...item, text, status, streaming: false });
      this.#open.delete(key);
      settled = true;
    }
    return settled;
  }

  #approval(approval: Approval, seq: number): Change {
    const key = approvalKey(approval.id);
    const before = this.get(key)?.approval;
    // The answer is final: a replayed or repeated request never opens the card again.
    if (before !== undefined && before.state !== "pending" && approval.state === "pending") return NOTHING;
    const about = typeof approval.raw?.itemId === "string" ? this.get(approval.raw.itemId) : undefined;
    const changes = approval.changes ?? before?.changes ?? about?.changes;
    return this.#put({
      ...blank(key, "approval"),
      seq,
      at: approval.asked_at,
      status: approval.state,
      approval: { ...approval, ...(changes ? { changes } : {}) },
    });
  }

  #error(event: ServiceEvent, codex: CodexParams | undefined): Change {
    const message = codex?.error?.message ?? codex?.message ?? "Codex reported an error without a message.";
    const retried = codex?.willRetry === true;
    const text = retried ? `${message} Codex tries again.` : message;
    // One line a turn: "Reconnecting… 1/5" to "5/5" and the turn's end would otherwise say the same six times.
    return this.#say(`error:${codex?.turnId ?? event.seq}`, event, retried ? "warn" : "bad", text);
  }

  #notice(event: ServiceEvent): Change {
    const told = noticeOf(event);
    if (event.type === "session.ended") this.#settle(null, "interrupted");
    if (told === null) return NOTHING;
    const [tone, text] = told;
    return this.#say(`event:${event.seq}`, event, tone, text, event.url ?? undefined);
  }

  #say(key: string, event: ServiceEvent, tone: Tone, text: string, link?: string): Change {
    return this.#put({
      ...blank(key, "notice"),
      seq: event.seq,
      at: event.ts,
      tone,
      text,
      ...(link === undefined ? {} : { link }),
    });
  }

  #dropSent(text: string): boolean {
    const position = this.#items.findIndex((item) => item.sent !== undefined && item.text.trim() === text.trim());
    if (position === -1) return false;
    const [gone] = this.#items.splice(position, 1);
    if (gone) this.#positions.delete(gone.key);
    this.#number(position);
    return true;
  }

  #put(item: ChatItem): Change {
    const position = this.#positions.get(item.key);
    if (position !== undefined) {
      this.#items[position] = item;
      return { list: false, key: item.key };
    }
    this.#positions.set(item.key, this.#items.length);
    this.#items.push(item);
    return { list: true, key: item.key };
  }

  #number(from: number): void {
    for (let position = from; position < this.#items.length; position += 1) {
      this.#positions.set(this.#items[position]!.key, position);
    }
  }
}

/** The key of an approval's card. */
export const approvalKey = (id: string): string => `approval:${id}`;

/** What an event changes of a session, so that a page shows it before it has asked again. */
export function applyToSession(session: Session, event: ServiceEvent): Session {
  if (event.session !== session.id) return session;
  const changed: Session = { ...session };
  if (event.type.startsWith("session.")) {
    if (event.state !== undefined) changed.state = event.state;
    else if (event.type === "session.stopping") changed.state = "stopping";
    else if (event.type === "session.ended") changed.state = "ended";
    if (event.reason !== undefined) changed.reason = event.reason;
    if (event.waiting !== undefined) changed.waiting = event.waiting;
    if (event.outcome !== undefined) changed.outcome = event.outcome;
    changed.updated_at = event.ts;
  } else if (event.type === "host.down") {
    changed.host_down = { since: event.since ?? event.ts, code: event.code ?? "", reason: event.reason ?? "" };
  } else if (event.type === "host.up") {
    changed.host_down = null;
  } else if (event.type === "progress") {
    changed.progress = { percent: event.percent ?? null, message: event.message ?? "" };
  } else if (event.type === "teardown.step" && event.step !== undefined) {
    const step = event.step;
    const known = session.teardown.some((other) => other.step === step.step);
    changed.teardown = known
      ? session.teardown.map((other) => (other.step === step.step ? step : other))
      : [...session.teardown, step];
  } else {
    return session;
  }
  changed.last_event = Math.max(session.last_event ?? 0, event.seq);
  return changed;
}

function blank(key: string, kind: ChatItem["kind"]): ChatItem {
  return { key, kind, seq: 0, turn: null, at: null, status: null, text: "", streaming: false, parts: [], size: 0 };
}

function fromMessage(message: Message): ChatItem {
  const detail = (typeof message.detail === "object" && message.detail !== null ? message.detail : {}) as Partial<CodexItem>;
  const running = message.status === "inProgress" && message.kind !== "user";
  const item: ChatItem = {
    ...blank(message.kind === "plan" ? planKey(message) : message.id, message.kind),
    ...shownOf({ id: message.id, type: "", ...detail }),
    seq: message.seq,
    turn: message.turn,
    at: message.at,
    status: message.status,
    text: message.text ?? textOf({ id: message.id, type: "", ...detail }),
    streaming: running,
  };
  if (message.kind === "approval" && "asked_at" in detail) {
    const approval = detail as unknown as Approval;
    return { ...item, key: approvalKey(approval.id), status: approval.state, approval };
  }
  if (message.kind === "notice") return { ...item, tone: message.status === "failed" ? "bad" : "quiet" };
  if (running && item.text !== "") return { ...item, parts: [item.text], size: item.text.length, text: "" };
  return item;
}

const planKey = (message: Message): string => (message.turn === null ? message.id : `plan:${message.turn}`);

/** The text of an item, in the place where its type keeps it. */
function textOf(item: CodexItem): string {
  if (typeof item.text === "string") return item.text;
  if (typeof item.aggregatedOutput === "string") return item.aggregatedOutput;
  const paragraphs = item.summary?.length ? item.summary : (item.content ?? []);
  const texts = paragraphs.map((part) => {
    if (typeof part === "string") return part;
    return part.text ?? `[${part.type}]`;
  });
  if (texts.length > 0) return texts.join("\n\n");
  return item.type === "" || item.type in KINDS ? "" : otherText(item);
}

/** A line for an item the page has no place of its own for. */
function otherText(item: CodexItem): string {
  const words = item.type.replace(/([A-Z])/g, " $1").toLowerCase();
  const named = [item["server"], item["tool"], item["query"], item["path"], item["url"]].filter(
    (value) => typeof value === "string" && value !== "",
  );
  return named.length === 0 ? words : `${words}: ${named.join(" · ")}`;
}

/** The members of an item that the chat shows beside its text. */
function shownOf(item: CodexItem): Partial<ChatItem> {
  return {
    ...(item.command ? { command: item.command, cwd: item.cwd ?? null } : {}),
    ...(item.exitCode === undefined ? {} : { exitCode: item.exitCode }),
    ...(item.durationMs === undefined ? {} : { durationMs: item.durationMs }),
    ...(Array.isArray(item.changes) ? { changes: item.changes } : {}),
    ...(Array.isArray(item["plan"]) ? { plan: item["plan"] as PlanStep[] } : {}),
  };
}

function gapText(event: ServiceEvent): string {
  const range = event.from === undefined || event.to === undefined ? "Some events" : `Events ${event.from}–${event.to}`;
  return `${range} are no longer stored.${event.reason ? ` (${event.reason})` : ""}`;
}

const leftOut = (event: ServiceEvent): string =>
  event.left_out === undefined ? "" : `(${event.left_out} messages left out) `;

/** What the chat says about an event that is not an item; none for one that it leaves out. */
function noticeOf(event: ServiceEvent): [Tone, string] | null {
  const because = event.reason ? ` ${event.reason}` : "";
  switch (event.type) {
    case "session.adopted":
      return ["quiet", `The service was restarted and took this session over.${because}`];
    case "session.stopping":
      return ["quiet", `The session is stopping.${because}`];
    case "session.ended":
      return [event.outcome === "failed" ? "bad" : "quiet", `The session ended.${because}`];
    case "progress":
      return event.message ? ["quiet", `${leftOut(event)}${event.message}`] : null;
    case "attention":
      return ["warn", `Codex asks for your attention.${event.message ? ` ${event.message}` : because}`];
    case "deliverable":
      return event.accepted === false
        ? ["warn", `Deliverable ${event.path ?? "(no name)"}: ${event.reply ?? "not accepted"}`]
        : ["good", `Deliverable: ${event.path ?? event.message ?? "(no name)"}`];
    case "browser.requested":
      return ["warn", "Codex asks you to open a page:"];
    case "seed.rotated":
      return ["quiet", "Codex rotated the login."];
    case "seed.saved":
      return ["quiet", "The login was saved back to its seed."];
    case "seed.lost":
      return ["bad", `The lease of the seed was lost.${because}`];
    case "snapshot.captured":
      return ["good", "A snapshot was captured."];
    case "host.down":
      return ["bad", `Host ${event.host ?? ""} cannot be reached.${because} The session goes on when it is back.`];
    case "host.up":
      return ["good", `Host ${event.host ?? ""} is back.`];
    case "child.restarted":
      return ["warn", `A part of the session was restarted.${because}`];
    case "codex.warning":
    case "codex.deprecationNotice":
      return ["warn", event.codex?.message ?? event.codex?.summary ?? "Codex gave a warning."];
    default:
      return null;
  }
}
