import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { SeedLogin } from "./protocol";
import { POLL_MS, follow, isOver } from "./seedLogin";

const asked = vi.fn<typeof fetch>();

beforeEach(() => {
  vi.useFakeTimers();
  asked.mockReset();
  vi.stubGlobal("fetch", asked);
});

afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

function answer(status: number, body: unknown): void {
  const headers = { "content-type": "application/json" };
  asked.mockResolvedValueOnce(new Response(JSON.stringify(body), { status, headers }));
}

function login(state: SeedLogin["state"], seed: string | null = null): SeedLogin {
  return { id: "log_1", state, verification_url: null, user_code: null, expires_at: null, seed, reason: null };
}

it("a login is asked for until it is over", async () => {
  answer(200, login("pending"));
  answer(200, login("done", "seed-1"));
  const shown: unknown[] = [];
  const following = follow(login("pending"), (view) => shown.push(view?.state), new AbortController().signal);
  await vi.advanceTimersByTimeAsync(POLL_MS * 5);
  await following;
  expect(shown).toEqual(["pending", "pending", "done"]);
  expect(asked.mock.calls.map(([url]) => url)).toEqual(["/v1/seeds/login/log_1", "/v1/seeds/login/log_1"]);
});

it("a service that is away is asked again, and says so meanwhile", async () => {
  asked.mockRejectedValueOnce(new TypeError("Failed to fetch"));
  answer(200, login("failed"));
  const shown: unknown[] = [];
  const following = follow(login("pending"), (view, problem) => shown.push([view?.state, problem]), new AbortController().signal);
  await vi.advanceTimersByTimeAsync(POLL_MS * 5);
  await following;
  expect(shown).toEqual([
    ["pending", null],
    ["pending", "The service cannot be reached."],
    ["failed", null],
  ]);
});

it("a login that nobody knows any more is not asked for for ever", async () => {
  answer(404, { detail: "login log_1 does not exist" });
  const shown: unknown[] = [];
  const following = follow(login("pending"), (view) => shown.push(view), new AbortController().signal);
  await vi.advanceTimersByTimeAsync(POLL_MS * 5);
  await following;
  expect(shown.at(-1)).toBeNull();
});

it("a page that is left asks no more", async () => {
  const leave = new AbortController();
  const shown: unknown[] = [];
  const following = follow(login("pending"), (view) => shown.push(view), leave.signal);
  leave.abort();
  await following;
  await vi.advanceTimersByTimeAsync(POLL_MS * 5);
  expect(asked).not.toHaveBeenCalled();
  expect(shown).toHaveLength(1);
});

it("only an end is an end", () => {
  const over = (["starting", "pending", "saving", "done", "failed", "cancelled"] as const).map((state) => isOver(login(state)));
  expect(over).toEqual([false, false, false, true, true, true]);
});
