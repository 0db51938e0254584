import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { LOG_IN } from "./again";
import { HIGH_WATER, Link, type Standing } from "./link";
import { keys, type Size } from "./wire";

class FakeSocket {
  static readonly OPEN = 1;
  static all: FakeSocket[] = [];
  readyState = 1;
  binaryType = "";
  sent: string[] = [];
  onopen: () => void = () => {};
  onmessage: (event: { data: ArrayBuffer }) => void = () => {};
  onclose: (event: { code: number; reason: string }) => void = () => {};
  readonly url: string;
  readonly protocols: string[];

  constructor(url: URL, protocols: string[]) {
    this.url = String(url);
    this.protocols = protocols;
    FakeSocket.all.push(this);
  }

  send(data: string | Uint8Array): void {
    this.sent.push(typeof data === "string" ? data : new TextDecoder().decode(data));
  }

  says(text: string): void {
    this.onmessage({ data: new TextEncoder().encode(text).buffer });
  }

  seat(seat: string): void {
    this.onopen();
    this.says(`2{"optio":{"seat":"${seat}","columns":80,"rows":24}}`);
  }

  closes(code: number, reason = ""): void {
    this.readyState = 3;
    this.onclose({ code, reason });
  }
}

const newest = (): FakeSocket => FakeSocket.all.at(-1) as FakeSocket;

let standings: Standing[];
let undrawn: (() => void)[];
let seats: [string, Size][];
const answers = vi.fn<() => Promise<Response>>();

function begin(): Link {
  const link = new Link({
    size: () => ({ columns: 100, rows: 30 }),
    clear: () => {},
    draw: (_bytes, drawn) => undrawn.push(drawn),
    title: () => {},
    seat: (seat, size) => seats.push([seat, size]),
    standing: (standing) => standings.push(standing),
  });
  link.start();
  return link;
}

const settled = (): Promise<unknown> => vi.advanceTimersByTimeAsync(0);

beforeEach(() => {
  vi.useFakeTimers();
  FakeSocket.all = [];
  standings = [];
  undrawn = [];
  seats = [];
  let tokens = 0;
  answers.mockReset().mockImplementation(() => Promise.resolve(Response.json({ token: `t${++tokens}` })));
  vi.stubGlobal("WebSocket", FakeSocket);
  vi.stubGlobal("fetch", answers);
  vi.stubGlobal("location", { href: "https://box/v1/sessions/ses_1/terminal/" });
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

it("a token goes in the first message, never in the address", async () => {
  begin();
  await settled();
  newest().onopen();
  expect(newest().url).toBe("wss://box/v1/sessions/ses_1/terminal/ws");
  expect(newest().protocols).toEqual(["tty"]);
  expect(newest().sent).toEqual(['{"AuthToken":"t1","columns":100,"rows":30}']);
});

it("an owner types and sizes, a guest types, a viewer does neither", async () => {
  for (const [seat, sent] of [
    ["owner", ["0ls", '1{"columns":90,"rows":20}']],
    ["guest", ["0ls"]],
    ["viewer", []],
  ] as const) {
    const link = begin();
    await settled();
    link.keys(keys("too early"));
    newest().seat(seat);
    link.keys(keys("ls"));
    link.resized({ columns: 90, rows: 20 });
    expect(newest().sent.slice(1), seat).toEqual(sent);
    expect(standings.at(-1)).toEqual({ is: "seated", seat });
    expect(seats.at(-1)).toEqual([seat, { columns: 80, rows: 24 }]);
  }
});

it("a moved seat is taken again at once, with a new token", async () => {
  begin();
  await settled();
  newest().seat("guest");
  newest().closes(4001);
  await settled();
  newest().onopen();
  expect(FakeSocket.all).toHaveLength(2);
  expect(newest().sent[0]).toContain('"t2"');
});

it("a service that went away is asked again after the wait, or when a person says so", async () => {
  const link = begin();
  await settled();
  newest().closes(1006);
  await vi.advanceTimersByTimeAsync(499);
  expect(FakeSocket.all).toHaveLength(1);
  await vi.advanceTimersByTimeAsync(1);
  expect(FakeSocket.all).toHaveLength(2);
  newest().closes(1001);
  expect(standings.at(-1)?.is).toBe("waiting");
  link.now();
  link.now();
  await settled();
  expect(FakeSocket.all).toHaveLength(3);
});

it("an ended terminal, or a second refused token, is the last connection", async () => {
  begin();
  await settled();
  newest().closes(4000, "the terminal has ended");
  await vi.advanceTimersByTimeAsync(60_000);
  expect(FakeSocket.all).toHaveLength(1);
  begin();
  await settled();
  newest().closes(4401);
  await settled();
  newest().closes(4401);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(FakeSocket.all).toHaveLength(3);
  expect(standings.at(-1)).toEqual({ is: "stopped", say: LOG_IN });
});

it("what the service says instead of a token is shown", async () => {
  const problem = Response.json({ detail: "session ses_1 is a conversation" }, { status: 409 });
  answers.mockResolvedValueOnce(problem);
  begin();
  await settled();
  expect(standings.at(-1)).toEqual({ is: "stopped", say: "Session ses_1 is a conversation." });
  answers.mockRejectedValueOnce(new TypeError("no network"));
  begin();
  await settled();
  expect(standings.at(-1)?.is).toBe("waiting");
  await vi.advanceTimersByTimeAsync(500);
  expect(FakeSocket.all).toHaveLength(1);
});

it("a screen that is behind asks for a pause, once, and goes on when it has caught up", async () => {
  begin();
  await settled();
  newest().seat("owner");
  for (let part = 0; part < 4; part += 1) newest().says("0".repeat(HIGH_WATER / 2));
  expect(newest().sent.slice(1)).toEqual(["2"]);
  for (const drawn of undrawn) drawn();
  expect(newest().sent.slice(1)).toEqual(["2", "3"]);
});

it("what an old connection said is not counted for the new one", async () => {
  begin();
  await settled();
  newest().seat("owner");
  newest().says("0".repeat(HIGH_WATER));
  newest().closes(4001);
  await settled();
  newest().seat("owner");
  for (const drawn of undrawn.splice(0)) drawn();
  newest().says("0".repeat(HIGH_WATER + 2));
  expect(newest().sent.slice(1)).toEqual(["2"]);
});
