// @vitest-environment jsdom
import { flushSync, mount, unmount } from "svelte";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import NewSession from "./NewSession.svelte";
import { draft, emptyForm } from "./newSession.svelte";
import type { Host } from "./protocol";

const asked = vi.fn<typeof fetch>();
let page: Record<string, unknown> | undefined;

beforeEach(() => {
  asked.mockReset();
  vi.stubGlobal("fetch", asked);
});

afterEach(async () => {
  if (page) await unmount(page);
  page = undefined;
  draft.form = emptyForm();
  document.body.replaceChildren();
  vi.unstubAllGlobals();
});

const LOCAL: Host = { name: "local", kind: "local", source: "built_in", state: "up", sessions: 0 };

function json(body: unknown, status = 200): Response {
  return new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json" } });
}

async function show(...hosts: Host[]): Promise<void> {
  asked.mockImplementation(async (url) => json({ data: String(url).startsWith("/v1/hosts") ? hosts : [], next_cursor: null }));
  const read = vi.spyOn(Response.prototype, "text");
  page = mount(NewSession, { target: document.body });
  await vi.waitFor(() => expect(read).toHaveBeenCalledTimes(2));
  await Promise.all(read.mock.results.map((answer) => answer.value as Promise<string>));
  // One more turn of the loop: whatever waited for the answers has had them.
  await new Promise((resolve) => setTimeout(resolve));
  flushSync();
}

const choice = (): HTMLSelectElement | null => document.querySelector<HTMLSelectElement>("#host");

function choose(host: string): void {
  choice()!.value = host;
  choice()!.dispatchEvent(new Event("change", { bubbles: true }));
  flushSync();
}

function type(id: string, text: string): void {
  const field = document.querySelector<HTMLInputElement>(`#${id}`)!;
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  flushSync();
}

async function submit(): Promise<void> {
  document.querySelector<HTMLButtonElement>("button.primary")!.click();
  flushSync();
  await vi.waitFor(() => expect(document.querySelector('[aria-busy="true"]')).toBeNull());
  flushSync();
}

const posts = (): [string, unknown][] =>
  asked.mock.calls
    .filter(([, init]) => init?.method === "POST")
    .map(([url, init]) => [String(url), JSON.parse(String(init?.body))]);

it("while there is this machine only, no host is chosen, and another machine is one press away", async () => {
  await show(LOCAL);
  expect(choice()).toBeNull();
  [...document.querySelectorAll("button")].find((each) => each.textContent.includes("another machine"))!.click();
  flushSync();
  expect(choice()?.selectedOptions[0]?.textContent).toBe("another machine…");
  expect(document.querySelector("#ssh-address")).not.toBeNull();
});

it("a host that is down is said to be, with its reason, and can be chosen all the same", async () => {
  await show(LOCAL, { ...LOCAL, name: "box", kind: "ssh", source: "config", state: "down", reason: "no route to host" });
  expect([...choice()!.options].map((option) => option.textContent?.trim())).toEqual([
    "this machine (local)",
    "box (down)",
    "another machine…",
  ]);
  expect(document.body.textContent).not.toContain("no route to host");
  choose("box");
  expect(document.body.textContent).toContain("no route to host");
  asked.mockImplementation(async () => json({ detail: "not now" }, 503));
  await submit();
  expect(posts()).toEqual([["/v1/sessions", expect.objectContaining({ host: "box" })]]);
});

it("what the service finds wrong with another machine stands at its field, under any of the field's names", async () => {
  await show(LOCAL, { ...LOCAL, name: "box", kind: "ssh", source: "config" });
  choose("+another");
  await submit();
  expect(posts()).toEqual([]);
  await vi.waitFor(() => expect(document.activeElement?.id).toBe("ssh-address"));

  type("ssh-address", "box.example");
  type("ssh-key_file", "/nowhere");
  asked.mockImplementation(async () =>
    json({ detail: "no", errors: [{ field: "host.ssh.key_path", detail: "there is no such file" }] }, 422),
  );
  await submit();
  expect(posts()).toEqual([
    ["/v1/sessions", expect.objectContaining({ host: { ssh: { address: "box.example", key_file: "/nowhere" } } })],
  ]);
  expect(document.querySelector("#ssh-key_file-error")?.textContent).toBe("there is no such file");
  expect(document.querySelector("#ssh-key_file")?.getAttribute("aria-invalid")).toBe("true");
  expect(document.querySelector("#ssh-address")?.getAttribute("aria-invalid")).toBe("false");
  // It has a place, so it is not said again beside the button.
  expect(document.querySelector(".problem code")).toBeNull();
});
