// @vitest-environment jsdom
import { flushSync, mount, unmount } from "svelte";
import { afterEach, expect, it } from "vitest";
import Composer from "./Composer.svelte";
import type { Conversation } from "./conversation.svelte";
import HostDown from "./HostDown.svelte";
import type { Session } from "./protocol";

const shown: Record<string, unknown>[] = [];

afterEach(async () => {
  for (const each of shown.splice(0)) await unmount(each);
  sessionStorage.clear();
  document.body.replaceChildren();
});

const session = (members: Partial<Session>): Session => ({
  id: "ses_1",
  name: null,
  labels: null,
  mode: "conversation",
  host: "box",
  state: "idle",
  reason: null,
  created_at: "2026-01-02T03:04:05Z",
  updated_at: "2026-01-02T03:04:05Z",
  run: null,
  waiting: [],
  teardown: [],
  has_snapshot: false,
  workdir_kept: null,
  last_event: 1,
  ...members,
});

const down = { since: "2026-01-02T03:04:05Z", code: "host_unreachable", reason: "no route" };

function compose(members: Partial<Session>): { field: HTMLTextAreaElement; send: HTMLButtonElement } {
  const conversation = { id: "ses_1" } as Conversation;
  shown.push(mount(Composer, { target: document.body, props: { conversation, session: session(members) } }));
  flushSync();
  return { field: document.querySelector("textarea")!, send: document.querySelector("button")! };
}

function write(field: HTMLTextAreaElement): void {
  field.value = "go on";
  field.dispatchEvent(new Event("input", { bubbles: true }));
  flushSync();
}

it("while the host is away a message is written but not sent, and the composer says why", () => {
  const { field, send } = compose({ host_down: down });
  expect(field.disabled).toBe(false);
  write(field);
  expect(send.disabled).toBe(true);
  expect(document.body.textContent).toContain("Host box cannot be reached.");
  expect(document.body.textContent).toContain("Your draft is kept.");
});

it("a host that is there hinders nobody, and a session that is over takes nothing", async () => {
  const there = compose({ host_down: null });
  write(there.field);
  expect(there.send.disabled).toBe(false);
  await unmount(shown.pop()!);
  sessionStorage.clear();
  document.body.replaceChildren();
  expect(compose({ state: "ended", host_down: down }).field.disabled).toBe(true);
});

it("the banner shows what the far side's words hide, and leads to the key when it is the key", () => {
  const banner = (host_down: Session["host_down"] & object): void => {
    shown.push(mount(HostDown, { target: document.body, props: { session: session({ host_down }) } }));
    flushSync();
  };
  banner({ ...down, reason: "no \u202eroute" });
  expect(document.querySelector('[role="alert"]')?.textContent).toContain("no ⟨U+202E⟩route");
  expect(document.body.textContent).toContain("The session goes on when it is back.");
  expect(document.querySelector("a")).toBeNull();
  banner({ ...down, code: "host_key_changed" });
  expect(document.querySelector("a")?.getAttribute("href")).toBe("#/hosts");
});
