import { describe, expect, it } from "vitest";
import { Fold, applyToSession, approvalKey } from "./fold";
import type { Approval, CodexItem, Message, ServiceEvent, Session } from "./protocol";

const AT = "2026-01-02T03:04:05Z";

function event(seq: number, type: string, members: Partial<ServiceEvent> = {}): ServiceEvent {
  return { v: 1, seq, ts: AT, session: "ses_1", type, ...members };
}

const item = (seq: number, type: "item.started" | "item.completed", it: CodexItem): ServiceEvent =>
  event(seq, type, { codex: { turnId: "t1", item: it } });

const delta = (seq: number, itemId: string, text: string): ServiceEvent =>
  event(seq, "item.delta", { codex: { turnId: "t1", itemId, delta: text } });

const user = (id: string, text: string): CodexItem => ({ id, type: "userMessage", content: [{ type: "text", text }] });

const turnEnds = (seq: number, status: string, message?: string): ServiceEvent =>
  event(seq, "turn.completed", {
    codex: { turn: { id: "t1", status, error: message === undefined ? null : { message } } },
  });

function message(seq: number, members: Partial<Message> = {}): Message {
  return { id: `m${seq}`, seq, turn: "t0", kind: "assistant", text: `text ${seq}`, status: "completed", at: AT, detail: null, ...members };
}

function approval(members: Partial<Approval> = {}): Approval {
  return {
    id: "apr_1",
    session: "ses_1",
    kind: "command",
    state: "pending",
    command: "ls",
    cwd: "/w",
    reason: null,
    raw: null,
    asked_at: AT,
    ...members,
  };
}

describe("answers", () => {
  it("streams deltas in order and ends with the authoritative text", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.started", { id: "a", type: "agentMessage", text: "" }));
    fold.apply(delta(2, "a", "Hel"));
    fold.apply(delta(3, "a", "lo"));
    expect(fold.get("a")).toMatchObject({ streaming: true, parts: ["Hel", "lo"], size: 5 });
    fold.apply(item(4, "item.completed", { id: "a", type: "agentMessage", text: "Hello!" }));
    expect(fold.items).toHaveLength(1);
    expect(fold.get("a")).toMatchObject({ streaming: false, text: "Hello!", parts: [], status: "completed" });
  });

  it("keeps what was streamed when the final text is empty", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.started", { id: "a", type: "agentMessage", text: "" }));
    fold.apply(delta(2, "a", "kept"));
    fold.apply(item(3, "item.completed", { id: "a", type: "agentMessage", text: "" }));
    expect(fold.get("a")?.text).toBe("kept");
  });

  it("hands out a new object for each delta but never copies the parts", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.started", { id: "a", type: "agentMessage", text: "" }));
    const before = fold.get("a");
    expect(fold.apply(delta(2, "a", "x"))).toEqual({ list: false, key: "a" });
    expect(fold.get("a")).not.toBe(before);
    expect(fold.get("a")?.parts).toBe(before?.parts);
  });

  it("takes a delta whose start was trimmed as an answer", () => {
    const fold = new Fold();
    expect(fold.apply(delta(9, "a", "tail"))).toEqual({ list: true, key: "a" });
    expect(fold.get("a")).toMatchObject({ kind: "assistant", streaming: true, parts: ["tail"] });
  });

  it("ignores an event it has seen, so that a replay doubles nothing", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.started", { id: "a", type: "agentMessage", text: "" }));
    fold.apply(delta(2, "a", "once"));
    expect(fold.apply(delta(2, "a", "once"))).toEqual({ list: false, key: null });
    expect(fold.get("a")?.parts).toEqual(["once"]);
    expect(fold.through).toBe(2);
  });

  it("does not open an item again that has ended", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.completed", { id: "a", type: "agentMessage", text: "done" }));
    fold.apply(item(2, "item.started", { id: "a", type: "agentMessage", text: "" }));
    fold.apply(delta(3, "a", "again"));
    expect(fold.get("a")).toMatchObject({ streaming: false, text: "done" });
  });
});

describe("the end of a turn", () => {
  it("settles what is still open and says that it was interrupted", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.started", { id: "a", type: "agentMessage", text: "" }));
    fold.apply(delta(2, "a", "half an ans"));
    fold.apply(turnEnds(3, "interrupted"));
    expect(fold.get("a")).toMatchObject({ streaming: false, text: "half an ans", status: "interrupted" });
    expect(fold.items.at(-1)).toMatchObject({ kind: "notice", tone: "warn", text: "The turn was interrupted." });
  });

  it("says once why a turn failed, however often Codex tried", () => {
    const fold = new Fold();
    for (const attempt of [1, 2, 3]) {
      fold.apply(
        event(attempt, "codex.error", {
          codex: { turnId: "t1", error: { message: `Reconnecting... ${attempt}/3` }, willRetry: true },
        }),
      );
    }
    expect(fold.items.map((entry) => entry.text)).toEqual(["Reconnecting... 3/3 Codex tries again."]);
    fold.apply(turnEnds(4, "failed", "401 Unauthorized"));
    expect(fold.items).toHaveLength(1);
    expect(fold.items[0]).toMatchObject({ tone: "bad", text: "The turn failed: 401 Unauthorized" });
  });

  it("says nothing after a turn that went well", () => {
    const fold = new Fold();
    expect(fold.apply(turnEnds(1, "completed"))).toEqual({ list: false, key: null });
  });

  it("settles an open item when the session ends without the turn's end", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.started", { id: "c", type: "commandExecution", command: "sleep 9", cwd: "/w" }));
    fold.apply(event(2, "session.ended", { reason: "Stopped.", outcome: "stopped" }));
    expect(fold.get("c")?.streaming).toBe(false);
    expect(fold.items.at(-1)?.text).toBe("The session ended. Stopped.");
  });
});

describe("commands, changes and plans", () => {
  it("shows a command with its directory, output, exit code and duration", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.started", { id: "c", type: "commandExecution", command: "ls", cwd: "/w", exitCode: null }));
    fold.apply(delta(2, "c", "a\n"));
    expect(fold.get("c")).toMatchObject({ kind: "command", command: "ls", cwd: "/w", parts: ["a\n"] });
    fold.apply(
      item(3, "item.completed", {
        id: "c",
        type: "commandExecution",
        command: "ls",
        cwd: "/w",
        status: "failed",
        exitCode: 2,
        aggregatedOutput: "a\nb\n",
        durationMs: 12,
      }),
    );
    expect(fold.get("c")).toMatchObject({ exitCode: 2, durationMs: 12, text: "a\nb\n", status: "failed", parts: [] });
  });

  it("bounds a command's live output and says that it did", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.started", { id: "c", type: "commandExecution", command: "yes", cwd: "/w" }));
    const block = "y".repeat(100_000);
    for (const seq of [2, 3, 4, 5]) fold.apply(delta(seq, "c", block));
    expect(fold.get("c")).toMatchObject({ size: 200_000, cut: true });
    expect(fold.get("c")?.parts).toHaveLength(2);
  });

  it("keeps one plan a turn, in its first place", () => {
    const fold = new Fold();
    fold.apply(event(1, "plan.updated", { codex: { turnId: "t1", plan: [{ step: "a", status: "pending" }] } }));
    fold.apply(item(2, "item.completed", { id: "x", type: "agentMessage", text: "…" }));
    fold.apply(event(3, "plan.updated", { codex: { turnId: "t1", plan: [{ step: "a", status: "completed" }] } }));
    expect(fold.items.map((entry) => entry.kind)).toEqual(["plan", "assistant"]);
    expect(fold.items[0]?.plan).toEqual([{ step: "a", status: "completed" }]);
  });

  it("names an item it does not know", () => {
    const fold = new Fold();
    fold.apply(item(1, "item.completed", { id: "w", type: "mcpToolCall", server: "files", tool: "read" }));
    expect(fold.get("w")).toMatchObject({ kind: "other", text: "mcp tool call: files · read" });
  });
});

describe("what the person sent", () => {
  it("stands until Codex repeats it, then once", () => {
    const fold = new Fold();
    fold.sent("hello", "new", AT);
    expect(fold.items).toHaveLength(1);
    const change = fold.apply(item(1, "item.started", user("u1", "hello")));
    expect(change.list).toBe(true);
    fold.apply(item(2, "item.completed", user("u1", "hello")));
    expect(fold.items.map((entry) => entry.key)).toEqual(["u1"]);
    expect(fold.items[0]?.text).toBe("hello");
  });

  it("is taken off one by one when the same was sent twice", () => {
    const fold = new Fold();
    fold.sent("go", "new", AT);
    fold.sent("go", "steer", AT);
    fold.apply(item(1, "item.completed", user("u1", "go")));
    expect(fold.items.map((entry) => entry.sent ?? entry.key)).toEqual(["steer", "u1"]);
    expect(fold.get("u1")?.text).toBe("go");
  });
});

describe("approvals", () => {
  it("stay after the answer and are never opened again", () => {
    const fold = new Fold();
    fold.apply(event(1, "approval.requested", { approval: approval() }));
    fold.apply(event(2, "approval.resolved", { approval: approval({ state: "declined", answered_by: "operator" }) }));
    fold.apply(event(3, "approval.requested", { approval: approval() }));
    expect(fold.items).toHaveLength(1);
    expect(fold.get(approvalKey("apr_1"))?.approval).toMatchObject({ state: "declined", answered_by: "operator" });
  });

  it("show the files of the item they belong to", () => {
    const fold = new Fold();
    const changes = [{ path: "a.txt", kind: { type: "add" }, diff: "x\n" }];
    fold.apply(item(1, "item.started", { id: "f", type: "fileChange", changes }));
    fold.apply(event(2, "approval.requested", { approval: approval({ kind: "file_change", command: null, raw: { itemId: "f" } }) }));
    expect(fold.get(approvalKey("apr_1"))?.approval?.changes).toEqual(changes);
  });

  it("that were answered on a page further up are not put at the end", () => {
    const fold = new Fold();
    fold.addApprovals([approval({ id: "old", state: "accepted" }), approval({ id: "open" })]);
    expect(fold.items.map((entry) => entry.key)).toEqual([approvalKey("open")]);
  });
});

describe("messages", () => {
  it("come newest first and are shown oldest first, earlier pages before later ones", () => {
    const fold = new Fold();
    fold.prepend([message(6), message(5)]);
    fold.prepend([message(4), message(3)]);
    expect(fold.items.map((entry) => entry.seq)).toEqual([3, 4, 5, 6]);
    expect(fold.through).toBe(6);
  });

  it("join with the stream without a double", () => {
    const fold = new Fold();
    fold.prepend([message(5, { id: "a", status: "inProgress", text: "Hel" })]);
    fold.apply(delta(5, "a", "l"));
    fold.apply(delta(6, "a", "lo"));
    expect(fold.get("a")).toMatchObject({ streaming: true, parts: ["Hel", "lo"] });
    fold.prepend([message(5, { id: "a", text: "Hel" }), message(2)]);
    expect(fold.items.map((entry) => entry.key)).toEqual(["m2", "a"]);
    fold.apply(item(7, "item.completed", { id: "a", type: "agentMessage", text: "Hello" }));
    expect(fold.items.map((entry) => entry.text)).toEqual(["text 2", "Hello"]);
  });

  it("of an approval take its events", () => {
    const fold = new Fold();
    fold.prepend([message(3, { id: "apr_1", kind: "approval", text: null, detail: approval() })]);
    fold.apply(event(4, "approval.resolved", { approval: approval({ state: "accepted" }) }));
    expect(fold.items).toHaveLength(1);
    expect(fold.items[0]?.approval?.state).toBe("accepted");
  });
});

it("marks a gap with its range", () => {
  const fold = new Fold();
  fold.apply(event(911, "gap", { from: 17, to: 911, reason: "retention" }));
  expect(fold.items[0]).toMatchObject({ kind: "gap", text: "Events 17–911 are no longer stored. (retention)" });
});

it("folds a hundred thousand deltas in far less than a person notices", () => {
  const fold = new Fold();
  fold.apply(item(1, "item.started", { id: "a", type: "agentMessage", text: "" }));
  const started = performance.now();
  for (let seq = 2; seq < 100_002; seq += 1) fold.apply(delta(seq, "a", "word "));
  // Copying the parts at each delta takes minutes; the bound only tells the two apart.
  expect(performance.now() - started).toBeLessThan(2_000);
  expect(fold.get("a")?.size).toBe(500_000);
});

describe("a session's own events", () => {
  const session: Session = {
    id: "ses_1",
    name: null,
    labels: null,
    mode: "conversation",
    host: "local",
    state: "working",
    reason: "Codex works.",
    created_at: AT,
    updated_at: AT,
    run: null,
    waiting: [],
    teardown: [],
    has_snapshot: false,
    workdir_kept: null,
    last_event: 4,
  };

  it("change its state, reason and what it waits for", () => {
    const waiting = [{ kind: "approval" as const, id: "apr_1", since: AT }];
    const changed = applyToSession(session, event(5, "session.waiting", { state: "waiting", reason: "Asks.", waiting }));
    expect(changed).toMatchObject({ state: "waiting", reason: "Asks.", waiting, last_event: 5 });
    expect(session.state).toBe("working");
  });

  it("keep the outcome of its end", () => {
    const changed = applyToSession(session, event(5, "session.ended", { outcome: "failed", reason: "Lost." }));
    expect(changed).toMatchObject({ state: "ended", outcome: "failed" });
  });

  it("bring each teardown step up to date in its place", () => {
    const step = { step: "close" as const, state: "running" as const, started_at: AT, ended_at: null, detail: null };
    const running = applyToSession(session, event(5, "teardown.step", { step }));
    const next = applyToSession(running, event(6, "teardown.step", { step: { ...step, step: "stop_agent" } }));
    const done = applyToSession(next, event(7, "teardown.step", { step: { ...step, state: "done", ended_at: AT } }));
    expect(done.teardown.map(({ step: name, state }) => `${name} ${state}`)).toEqual(["close done", "stop_agent running"]);
  });

  it("show how far the agent is", () => {
    const far = applyToSession(session, event(5, "progress", { percent: 40, message: "comparing" }));
    expect(far.progress).toEqual({ percent: 40, message: "comparing" });
  });

  it("tell that its host is out of reach, and that it is back", () => {
    const cut = { host: "box", since: "2026-01-02T03:00:00Z", code: "host_unreachable", reason: "No route." };
    const down = applyToSession(session, event(5, "host.down", cut));
    expect(down.host_down).toEqual({ since: cut.since, code: "host_unreachable", reason: "No route." });
    expect(down.state).toBe("working");
    expect(applyToSession(down, event(6, "host.up", { host: "box" })).host_down).toBeNull();

    const fold = new Fold();
    fold.apply(event(5, "host.down", cut));
    fold.apply(event(6, "host.up", { host: "box" }));
    expect(fold.items.map((said) => said.text)).toEqual([
      "Host box cannot be reached. No route. The session goes on when it is back.",
      "Host box is back.",
    ]);
  });

  it("of another session change nothing", () => {
    expect(applyToSession(session, { ...event(5, "session.state", { state: "idle" }), session: "ses_2" })).toBe(session);
  });
});
