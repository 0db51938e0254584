// @vitest-environment jsdom
import { flushSync, mount, unmount } from "svelte";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { access } from "./access.svelte";
import HostCard from "./HostCard.svelte";
import type { Host, Leftover, Probe } from "./protocol";

const PRINT = "SHA256:uNiVztksCsDhcc0u9e8BrrQXVUpKZIDTMczCvj3tD2s";
const asked = vi.fn<typeof fetch>();
let card: Record<string, unknown> | undefined;

beforeEach(() => {
  asked.mockReset();
  vi.stubGlobal("fetch", asked);
});

afterEach(async () => {
  if (card) await unmount(card);
  card = undefined;
  access.viewer = false;
  document.body.replaceChildren();
  vi.unstubAllGlobals();
});

function show(members: Partial<Host> = {}): void {
  const host: Host = { name: "box", kind: "ssh", source: "api", state: "up", sessions: 0, ...members };
  card = mount(HostCard, { target: document.body, props: { host, changed: async () => {} } });
  flushSync();
}

function answer(status: number, body: unknown): void {
  const headers = { "content-type": status < 400 ? "application/json" : "application/problem+json" };
  asked.mockResolvedValueOnce(new Response(JSON.stringify(body), { status, headers }));
}

const buttons = (): string[] => [...document.querySelectorAll("button")].map((button) => button.textContent.trim());

function button(name: string): HTMLButtonElement {
  const found = [...document.querySelectorAll("button")].find((each) => each.textContent.trim().startsWith(name));
  if (!found) throw new Error(`there is no button “${name}” among ${buttons().join(", ")}`);
  return found;
}

function tick(label: string): void {
  const boxes = [...document.querySelectorAll<HTMLInputElement>('input[type="checkbox"]')];
  const box = boxes.find((each) => (each.getAttribute("aria-label") ?? each.labels?.[0]?.textContent)?.includes(label));
  if (!box) throw new Error(`there is no tick “${label}”`);
  box.click();
  flushSync();
}

async function press(name: string): Promise<void> {
  button(name).click();
  flushSync();
  await vi.waitFor(() => expect(document.querySelector('[aria-busy="true"]')).toBeNull());
  flushSync();
}

const sent = (call: number): unknown => JSON.parse(String(asked.mock.calls[call]?.[1]?.body));

function probe(orphans: Leftover[] = [], members: Partial<Probe> = {}): Probe {
  return {
    name: "box",
    latency_ms: 12,
    os: "Debian",
    kernel: "Linux 6.1",
    arch: "aarch64",
    user: "dev",
    home: "/home/dev",
    tools: { codex: { path: "/usr/bin/codex", version: "0.50" }, tmux: null },
    disk: { path: "/home/dev/.optio", free_bytes: 5e9, total_bytes: 2e12 },
    problems: [],
    orphans,
    ...members,
  };
}

const refusal = (code: string, known_in?: string): unknown => ({
  code,
  detail: "refused",
  host_key: { algorithm: "ssh-ed25519", fingerprint: PRINT, known_in },
});

it("a probe tells what a machine has, what it lacks and what stands in the way", async () => {
  show();
  answer(200, probe([], { problems: ["tmux is missing: \u202etnemni"] }));
  await press("Probe");
  const text = document.body.textContent;
  expect(text).toContain("Debian · Linux 6.1 · aarch64");
  expect(text).toContain("5.0 GB free of 2.0 TB");
  expect(text).toMatch(/tmux\s*missing/);
  expect(text).toContain("tmux is missing: ⟨U+202E⟩");
  expect(text).not.toContain("It has all that sessions need.");
});

describe("a host key", () => {
  it("that nobody vouched for is accepted after it was compared, and then the host is probed", async () => {
    show();
    answer(409, refusal("host_key_unknown"));
    await press("Probe");
    expect(document.body.textContent).toContain(PRINT);
    expect(button("Accept this key").disabled).toBe(true);
    tick("I compared");
    answer(200, {});
    answer(200, probe());
    await press("Accept this key");
    expect(asked.mock.calls[1]?.[0]).toBe("/v1/hosts/box/host-key");
    expect(sent(1)).toEqual({ fingerprint: PRINT });
    expect(document.body.textContent).toContain("It has all that sessions need.");
    expect(buttons()).not.toContain("Accept this key");
  });

  it("in place of a known one is accepted by what the machine itself shows, not by a tick", async () => {
    show();
    answer(409, refusal("host_key_changed", "/home/me/.ssh/known_hosts:3"));
    await press("Probe");
    expect(document.body.textContent).toContain("somebody else answers");
    expect(document.body.textContent).toContain("/home/me/.ssh/known_hosts:3");
    expect(document.querySelector('input[type="checkbox"]')).toBeNull();
    const field = document.querySelector<HTMLInputElement>("input")!;
    const type = (text: string): void => {
      field.value = text;
      field.dispatchEvent(new Event("input", { bubbles: true }));
      flushSync();
    };
    type(PRINT.replace("uNiV", "uNiW"));
    expect(button("Accept the new key").disabled).toBe(true);
    expect(document.body.textContent).toContain("Do not accept it.");
    type(`256 ${PRINT} root@box (ED25519)`);
    expect(button("Accept the new key").disabled).toBe(false);
  });

  it("is not offered for a host that is down for another reason", async () => {
    show();
    answer(502, { code: "host_unreachable", detail: "no route to host" });
    await press("Probe");
    expect(document.querySelector('[role="alert"]')?.textContent).toContain("no route to host");
    expect(buttons().filter((name) => name.startsWith("Accept"))).toEqual([]);
  });
});

describe("what was left on a machine", () => {
  const left = (id: string, members: Partial<Leftover> = {}): Leftover => ({
    id,
    path: `/home/dev/.optio/${id}`,
    age_seconds: 7_200,
    bytes: 1_500_000,
    agent: null,
    mark: null,
    has_login: false,
    ...members,
  });

  async function probed(...orphans: Leftover[]): Promise<void> {
    show();
    answer(200, probe(orphans));
    await press("Probe");
  }

  it("is removed when it was chosen and confirmed, and the answer for each is told", async () => {
    await probed(left("t-1"), left("t-2", { agent: { pid: 42, start_time: 9 } }));
    expect(button("Remove the chosen").disabled).toBe(true);
    tick("Remove t-2");
    button("Remove 1…").click();
    flushSync();
    expect(asked).toHaveBeenCalledTimes(1);
    expect(document.body.textContent).toContain("Remove 1 task directory for good, end 1 agent?");
    answer(200, { data: [{ id: "t-2", outcome: "refused", detail: "another agent lives there now" }] });
    answer(200, probe([left("t-1"), left("t-2", { agent: { pid: 43, start_time: 10 } })]));
    await press("Remove for good");
    expect(sent(1)).toEqual({ tasks: [{ id: "t-2", agent: { pid: 42, start_time: 9 } }] });
    expect(document.body.textContent).toContain("another agent lives there now");
    // The agent that lives there now was not chosen by anybody.
    expect(button("Remove the chosen").disabled).toBe(true);
  });

  it("keeps a login until that has a tick of its own, which goes with the leftover's", async () => {
    await probed(left("t-1", { has_login: true }));
    tick("Remove t-1");
    expect(button("Remove the chosen").disabled).toBe(true);
    expect(document.body.textContent).toContain("it may be the only copy");
    tick("Destroy the login in t-1");
    button("Remove 1…").click();
    flushSync();
    expect(document.body.textContent).toContain("destroy 1 login");
    tick("Remove t-1");
    tick("Remove t-1");
    expect(button("Remove the chosen").disabled).toBe(true);
  });
});

it("who only looks on sees how a host stands, and no button", () => {
  access.viewer = true;
  show({ state: "down", reason: "no route to host", code: "host_unreachable", since: "2026-01-02T03:04:05Z" });
  expect(document.body.textContent).toContain("no route to host");
  expect(buttons()).toEqual([]);
});

it("a host of the configuration file is not removed here, and another one after a question", async () => {
  show({ source: "config" });
  expect(buttons()).toEqual(["Probe"]);
  await unmount(card!);
  show();
  button("Remove…").click();
  flushSync();
  expect(asked).not.toHaveBeenCalled();
  asked.mockResolvedValueOnce(new Response(null, { status: 204 }));
  await press("Forget it");
  expect(asked.mock.calls[0]?.[1]?.method).toBe("DELETE");
});
