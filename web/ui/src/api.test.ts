import { afterEach, beforeEach, expect, it, vi } from "vitest";
import * as api from "./api";

const fetched = vi.fn<typeof fetch>();

beforeEach(() => {
  fetched.mockReset();
  vi.stubGlobal("fetch", fetched);
});

afterEach(() => {
  vi.unstubAllGlobals();
  api.whenUnauthenticated(() => {});
});

function answer(status: number, body: unknown, type = "application/json"): void {
  const text = body === undefined ? null : typeof body === "string" ? body : JSON.stringify(body);
  fetched.mockResolvedValueOnce(new Response(text, { status, headers: { "content-type": type } }));
}

async function problemOf(request: Promise<unknown>): Promise<api.Problem> {
  try {
    await request;
  } catch (thrown) {
    if (thrown instanceof api.Problem) return thrown;
    throw thrown;
  }
  throw new Error("the request did not fail");
}

it("a problem carries its detail, code, request id and the fields it names", async () => {
  answer(
    422,
    {
      title: "Not valid",
      detail: "model is unknown",
      code: "validation",
      request_id: "req_1",
      errors: [{ field: "model", detail: "unknown model" }, { detail: "names no field" }, { field: "env" }],
    },
    "application/problem+json",
  );
  const problem = await problemOf(api.createSession({ mode: "conversation", instructions: "" }, "k"));
  expect(problem).toMatchObject({ status: 422, message: "model is unknown", code: "validation", requestId: "req_1" });
  expect([...problem.fields]).toEqual([
    ["model", "unknown model"],
    ["env", "is not valid"],
  ]);
});

it("an error without a problem still says something", async () => {
  answer(502, "<html>bad gateway</html>", "text/html");
  expect((await problemOf(api.getSession("ses_1"))).message).toContain("502");
  answer(500, "{broken", "application/problem+json");
  expect((await problemOf(api.getSession("ses_1"))).message).toContain("500");
});

it("a 401 says where the login link is and tells the page", async () => {
  const listener = vi.fn();
  api.whenUnauthenticated(listener);
  answer(401, { detail: "no cookie" }, "application/problem+json");
  expect((await problemOf(api.listSessions())).message).toBe(api.LOGIN_HINT);
  expect(listener).toHaveBeenCalledTimes(1);
});

it("no answer at all is a problem with status 0", async () => {
  fetched.mockRejectedValueOnce(new TypeError("Failed to fetch"));
  expect(await problemOf(api.getSession("ses_1"))).toMatchObject({ status: 0, message: "The service cannot be reached." });
});

it("a late answer says so", async () => {
  fetched.mockRejectedValueOnce(new DOMException("timed out", "TimeoutError"));
  expect((await problemOf(api.getSession("ses_1"))).message).toContain("30 s");
});

it("a list is read to its end", async () => {
  answer(200, { data: [{ id: "a" }], next_cursor: "c=1&x" });
  answer(200, { data: [{ id: "b" }], next_cursor: null });
  expect((await api.listSessions()).map((session) => session.id)).toEqual(["a", "b"]);
  expect(fetched.mock.calls.map(([url]) => url)).toEqual([
    "/v1/sessions?limit=200",
    "/v1/sessions?limit=200&cursor=c%3D1%26x",
  ]);
});

it("an id cannot leave its place in the path", async () => {
  answer(204, undefined);
  await api.deleteSession("../seeds/x?y");
  expect(fetched.mock.calls[0]?.[0]).toBe("/v1/sessions/..%2Fseeds%2Fx%3Fy");
});

it("a message is sent as JSON with its key, and only to the page's own origin", async () => {
  answer(202, { delivered_as: "steer" });
  await api.sendTurn("ses_1", "go on", "key-1");
  const [url, init] = fetched.mock.calls[0]!;
  expect(url).toBe("/v1/sessions/ses_1/turns");
  expect(init).toMatchObject({
    method: "POST",
    credentials: "same-origin",
    body: '{"text":"go on","mode":"auto"}',
    headers: { "content-type": "application/json", "idempotency-key": "key-1" },
  });
});

it("two keys are never the same", () => {
  const keys = new Set(Array.from({ length: 100 }, () => api.freshKey()));
  expect(keys.size).toBe(100);
  for (const key of keys) expect(key).toMatch(/^[0-9a-f]{32}$/);
});
