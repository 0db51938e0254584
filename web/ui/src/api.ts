/** The service's HTTP API: one function a route, and {@link Problem} for everything that goes wrong. */

import type {
  Approval,
  Decision,
  Deliverable,
  Host,
  Message,
  NewSession,
  Page,
  Probe,
  ProblemBody,
  ReapOutcome,
  ReapTask,
  Seed,
  SeedLogin,
  Session,
  ShownKey,
  SshTarget,
  TurnAccepted,
} from "./protocol";

/** What a person does when the cookie is missing or has run out. */
export const LOGIN_HINT = "Open the login link that the service printed (or `make run` prints).";

/** A request that waits longer than this is given up, so that no button stays busy for ever. */
const REQUEST_LIMIT_MS = 30_000;

/** A host far away is connected to, asked in several steps and counted through; the service bounds each of them. */
const HOST_LIMIT_MS = 180_000;

/** A page of a list; the service allows 500. */
const PAGE_SIZE = 200;

/** A list is read up to this many pages (a thousand sessions fit five times over). */
const PAGE_LIMIT = 25;

/** A failed request: the service's problem, or what kept it from answering. */
export class Problem extends Error {
  /** The HTTP status, 0 when there was no answer. */
  readonly status: number;
  /** The service's machine-readable code, empty when there is none. */
  readonly code: string;
  readonly requestId: string;
  /** What is wrong with which field of the request. */
  readonly fields: ReadonlyMap<string, string>;
  /** The key that a host shows, when it is refused for it. */
  readonly hostKey: ShownKey | null;

  constructor(status: number, message: string, body: ProblemBody = {}) {
    super(message);
    this.name = "Problem";
    this.status = status;
    this.code = body.code ?? "";
    this.requestId = body.request_id ?? "";
    this.hostKey = typeof body.host_key?.fingerprint === "string" ? body.host_key : null;
    this.fields = new Map(
      (Array.isArray(body.errors) ? body.errors : [])
        .filter((error) => typeof error.field === "string")
        .map((error) => [String(error.field), error.detail ?? error.message ?? "is not valid"]),
    );
  }
}

/** Turns whatever was thrown into a sentence for a person. */
export function explain(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

let onUnauthenticated: () => void = () => {};
let onRole: (role: string) => void = () => {};

/** Names the function that hears of every 401. */
export function whenUnauthenticated(listener: () => void): void {
  onUnauthenticated = listener;
}

/** Names the function that hears, with every answer, what this browser may do: `operator` or `viewer`. */
export function whenRole(listener: (role: string) => void): void {
  onRole = listener;
}

async function problemOf(response: Response): Promise<Problem> {
  if (response.status === 401) {
    onUnauthenticated();
    return new Problem(401, LOGIN_HINT, { code: "unauthenticated" });
  }
  let body: ProblemBody = {};
  if (response.headers.get("content-type")?.includes("json")) {
    try {
      const parsed: unknown = await response.json();
      if (typeof parsed === "object" && parsed !== null) body = parsed;
    } catch {
      // A body that is not JSON says nothing; the status line below does.
    }
  }
  const what = body.detail ?? body.title ?? `the service answered ${response.status} ${response.statusText}`.trim();
  return new Problem(response.status, what, body);
}

async function request<T>(
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
  limit = REQUEST_LIMIT_MS,
): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      credentials: "same-origin",
      headers: {
        accept: "application/json",
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(limit),
    });
  } catch (thrown) {
    const late = thrown instanceof DOMException && thrown.name === "TimeoutError";
    throw new Problem(
      0,
      late ? `The service did not answer within ${limit / 1000} s.` : "The service cannot be reached.",
    );
  }
  const role = response.headers.get("optio-role");
  if (role !== null) onRole(role);
  if (!response.ok) throw await problemOf(response);
  if (response.status === 204) return undefined as T;
  const text = await response.text();
  if (text === "") return undefined as T;
  try {
    return JSON.parse(text) as T;
  } catch {
    throw new Problem(response.status, "The service's answer is not JSON.");
  }
}

async function all<T>(path: string): Promise<T[]> {
  const found: T[] = [];
  let cursor: string | null = null;
  for (let page = 0; page < PAGE_LIMIT; page += 1) {
    const query = new URLSearchParams({ limit: String(PAGE_SIZE), ...(cursor === null ? {} : { cursor }) });
    const answer: Page<T> = await request<Page<T>>("GET", `${path}?${query}`);
    found.push(...answer.data);
    cursor = answer.next_cursor;
    if (cursor === null) break;
  }
  return found;
}

const session = (id: string): string => `/v1/sessions/${encodeURIComponent(id)}`;

export const listSessions = (): Promise<Session[]> => all<Session>("/v1/sessions");

export const getSession = (id: string): Promise<Session> => request("GET", session(id));

/** Creates and launches a session; the same `key` twice creates one. */
export const createSession = (body: NewSession, key: string): Promise<Session> =>
  request("POST", "/v1/sessions", body, { "idempotency-key": key });

export const deleteSession = (id: string): Promise<void> => request("DELETE", session(id));

export const stopSession = (id: string, mode: "graceful" | "cancel"): Promise<unknown> =>
  request("POST", `${session(id)}/stop`, { mode });

export const resumeSession = (id: string): Promise<unknown> => request("POST", `${session(id)}/resume`, {});

export const interruptSession = (id: string): Promise<unknown> => request("POST", `${session(id)}/interrupt`, {});

/**
 * Gives a session a message; the same `key` twice delivers it once. The service decides whether it joins the running
 * turn or begins one: a turn may end while the message is on its way, and the page would learn of it too late.
 */
export const sendTurn = (id: string, text: string, key: string): Promise<TurnAccepted> =>
  request("POST", `${session(id)}/turns`, { text, mode: "auto" }, { "idempotency-key": key });

/** One page of the folded conversation, newest first. */
export function listMessages(id: string, limit: number, cursor: string | null): Promise<Page<Message>> {
  const query = new URLSearchParams({ limit: String(limit), ...(cursor === null ? {} : { cursor }) });
  return request("GET", `${session(id)}/messages?${query}`);
}

export const listDeliverables = (id: string): Promise<Deliverable[]> => all<Deliverable>(`${session(id)}/deliverables`);

/** Where a file of a session is downloaded from. */
export const fileAddress = (id: string, path: string): string =>
  `${session(id)}/files/${path.split("/").map(encodeURIComponent).join("/")}`;

export const listApprovals = (id: string): Promise<Approval[]> => all<Approval>(`${session(id)}/approvals`);

/** Answers an approval; whoever comes second gets a 409. */
export const answerApproval = (id: string, approval: string, decision: Decision): Promise<Approval | undefined> =>
  request("POST", `${session(id)}/approvals/${encodeURIComponent(approval)}`, { decision });

export const listSeeds = (): Promise<Seed[]> => all<Seed>("/v1/seeds");

/** Stores a login. `auth_json` is the file's text, untouched. */
export const importSeed = (body: { auth_json: string; config_toml?: string; pool?: string }): Promise<Seed> =>
  request("POST", "/v1/seeds", body);

const login = (id: string): string => `/v1/seeds/login/${encodeURIComponent(id)}`;

/** Begins a login by a code. The answer has the code, unless Codex is slow. */
export const startLogin = (body: { pool?: string }): Promise<SeedLogin> => request("POST", "/v1/seeds/login", body);

export const getLogin = (id: string): Promise<SeedLogin> => request("GET", login(id));

/** Gives a login up; one that was finished meanwhile is a seed, and says so. */
export const cancelLogin = (id: string): Promise<SeedLogin> => request("DELETE", login(id));

export const listHosts = (): Promise<Host[]> => all<Host>("/v1/hosts");

const host = (name: string): string => `/v1/hosts/${encodeURIComponent(name)}`;

export const addHost = (body: { name: string } & SshTarget): Promise<Host> => request("POST", "/v1/hosts", body);

export const removeHost = (name: string): Promise<void> => request("DELETE", host(name));

/** Looks at a host anew: what it has, what it lacks and what was left there. */
export const probeHost = (name: string): Promise<Probe> =>
  request("POST", `${host(name)}/probe`, {}, {}, HOST_LIMIT_MS);

/** Accepts the key that a host shows, if it still has this fingerprint. */
export const acceptHostKey = (name: string, fingerprint: string): Promise<Host> =>
  request("POST", `${host(name)}/host-key`, { fingerprint }, {}, HOST_LIMIT_MS);

/** Removes what was left on a host, as it was seen there. */
export const reapHost = async (name: string, tasks: ReapTask[]): Promise<ReapOutcome[]> =>
  (await request<{ data: ReapOutcome[] }>("POST", `${host(name)}/reap`, { tasks }, {}, HOST_LIMIT_MS)).data;

/** Makes a key that no other request has. `randomUUID` is missing on pages served over plain HTTP from another machine. */
export function freshKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
