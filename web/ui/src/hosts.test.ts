import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import {
  addressOf,
  cautionOf,
  closedBecause,
  downWords,
  isNamed,
  isRemovable,
  isSameKey,
  optionOf,
  reapTasks,
  reasonBeside,
} from "./hosts";
import type { Host, Leftover, Session } from "./protocol";

beforeEach(() => {
  vi.useFakeTimers({ now: new Date(2026, 0, 2, 12, 30) });
});

afterEach(() => {
  vi.useRealTimers();
});

const TODAY = new Date(2026, 0, 2, 12, 3).toISOString();

function host(members: Partial<Host> = {}): Host {
  return { name: "box", kind: "ssh", source: "config", state: "up", sessions: 0, ...members };
}

function session(members: Partial<Session> = {}): Session {
  return {
    id: "ses_1",
    name: null,
    labels: null,
    mode: "conversation",
    host: "box",
    state: "working",
    reason: null,
    created_at: TODAY,
    updated_at: TODAY,
    run: null,
    waiting: [],
    teardown: [],
    has_snapshot: false,
    workdir_kept: null,
    last_event: 1,
    ...members,
  };
}

const down = { since: TODAY, code: "host_unreachable", reason: "no route to host" };

describe("a host that is down", () => {
  it("is said to be in the choice, with its reason, and one that is not is left alone", () => {
    const away = host({ state: "down", since: TODAY, code: "host_unreachable", reason: "no route to host" });
    expect(optionOf(away)).toBe("box (down)");
    expect(cautionOf(away)).toMatch(/^box is down since .*12.*03.*: no route to host$/);
    for (const fine of [host(), host({ state: "untried" }), undefined]) expect(cautionOf(fine)).toBeNull();
    expect(optionOf(host({ state: "untried" }))).toBe("box");
  });

  it("is told on its session with the time and the reason, and no longer when it is back", () => {
    expect(downWords(session({ host_down: down }))).toMatch(/^host box: down since .*12.*03.*: no route to host$/);
    expect(downWords(session({ host_down: null }))).toBeNull();
    // What the session itself says of it is not said twice; why it stops is.
    const said = "host box: down since 2026-01-02T12:03:00Z";
    expect(reasonBeside(session({ host_down: down, reason: said }))).toBeNull();
    expect(reasonBeside(session({ host_down: down, reason: "stopped on request" }))).toBe("stopped on request");
    expect(reasonBeside(session({ host_down: null, reason: said }))).toBe(said);
    expect(downWords(session())).toBeNull();
  });

  it("is told with the day when it went down on another one", () => {
    const since = new Date(2026, 0, 1, 12, 3);
    expect(downWords(session({ host_down: { ...down, since: since.toISOString() } }))).toContain(
      since.toLocaleDateString(),
    );
  });

  it("is no matter of a session that is over", () => {
    for (const state of ["ended", "lost"] as const) expect(downWords(session({ state, host_down: down }))).toBeNull();
  });

  it("is why its session takes no message, unless the session is over anyway", () => {
    expect(closedBecause(session({ host_down: down }))).toContain("Host box cannot be reached");
    expect(closedBecause(session({ host_down: down, state: "ended" }))).toBe("This session has ended.");
    expect(closedBecause(session())).toBeNull();
  });
});

it("an address is written as people write it", () => {
  expect(addressOf(host({ address: "box.example", port: 22, user: "dev" }))).toBe("dev@box.example");
  expect(addressOf(host({ address: "::1", port: 2222, user: "dev" }))).toBe("dev@[::1]:2222");
  expect(addressOf(host({ name: "local", kind: "local" }))).toBe("");
});

it("only what was not configured can be taken away here, and only what has a name is a way to others", () => {
  const sources = ["built_in", "config", "api", "inline"] as const;
  expect(sources.filter((source) => isRemovable(host({ source })))).toEqual(["api", "inline"]);
  expect(sources.filter((source) => isNamed(host({ source })))).toEqual(["config", "api"]);
  expect(isNamed(host({ kind: "local" }))).toBe(false);
});

it("a fingerprint is the same with what ssh-keygen puts around it, and not when it is a part of it", () => {
  const print = "SHA256:uNiVztksCsDhcc0u9e8BrrQXVUpKZIDTMczCvj3tD2s";
  expect(isSameKey(print, print)).toBe(true);
  expect(isSameKey(`256 ${print} root@box (ED25519)\n`, print)).toBe(true);
  expect(isSameKey(print.slice(0, -1), print)).toBe(false);
  expect(isSameKey(print.toLowerCase(), print)).toBe(false);
  expect(isSameKey("", print)).toBe(false);
  expect(isSameKey("", "")).toBe(false);
});

describe("what is removed", () => {
  function leftover(id: string, members: Partial<Leftover> = {}): Leftover {
    return {
      id,
      path: `/t/${id}`,
      age_seconds: 1,
      bytes: 1,
      agent: null,
      mark: null,
      has_login: false,
      ...members,
    };
  }
  const agent = { pid: 7, start_time: 99 };
  const there = [leftover("a"), leftover("b", { agent }), leftover("c", { has_login: true })];

  it("is what was chosen, each with the agent that was seen in it", () => {
    expect(reapTasks(there, new Set(["a", "b", "gone"]), new Set())).toEqual({
      tasks: [
        { id: "a", agent: null },
        { id: "b", agent },
      ],
      held: 0,
    });
    expect(reapTasks(there, new Set(), new Set()).tasks).toEqual([]);
  });

  it("has no login in it without the login's own tick, and the tick alone removes nothing", () => {
    expect(reapTasks(there, new Set(["a", "c"]), new Set())).toEqual({ tasks: [{ id: "a", agent: null }], held: 1 });
    expect(reapTasks(there, new Set(["c"]), new Set(["c"]))).toEqual({
      tasks: [{ id: "c", agent: null, discard_login: true }],
      held: 0,
    });
    expect(reapTasks(there, new Set(["a"]), new Set(["a", "c"]))).toEqual({
      tasks: [{ id: "a", agent: null }],
      held: 0,
    });
  });
});
