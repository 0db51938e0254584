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
  api.whenRole(() => {});
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

it("a host that is refused for its key tells the key", async () => {
  const host_key = { algorithm: "ssh-ed25519", fingerprint: "SHA256:abc", known_in: "/etc/hosts:3" };
  answer(409, { code: "host_key_changed", detail: "another key", host_key }, "application/problem+json");
  const problem = await problemOf(api.probeHost("box"));
  expect(problem).toMatchObject({ code: "host_key_changed", hostKey: host_key });
  answer(409, { code: "host_key_unknown", detail: "no key here" }, "application/problem+json");
  expect((await problemOf(api.probeHost("box"))).hostKey).toBeNull();
});

it("a host's name that looks like an address stays one part of the path", async () => {
  answer(200, { data: [] });
  await api.reapHost("ssh:dev@[::1]:22", [{ id: "t-1", agent: { pid: 7, start_time: 9 } }]);
  const [url, init] = fetched.mock.calls[0]!;
  expect(url).toBe("/v1/hosts/ssh%3Adev%40%5B%3A%3A1%5D%3A22/reap");
  expect(init?.body).toBe('{"tasks":[{"id":"t-1","agent":{"pid":7,"start_time":9}}]}');
});

it("what this browser may do is heard with every answer, a refusal too", async () => {
  const listener = vi.fn();
  api.whenRole(listener);
  const said = (status: number, role: string): Response =>
    new Response("{}", { status, headers: { "content-type": "application/json", "optio-role": role } });
  fetched.mockResolvedValueOnce(said(200, "operator"));
  await api.getSession("ses_1");
  fetched.mockResolvedValueOnce(said(403, "viewer"));
  await problemOf(api.probeHost("box"));
  answer(200, {});
  await api.getSession("ses_1");
  expect(listener.mock.calls).toEqual([["operator"], ["viewer"]]);
});
