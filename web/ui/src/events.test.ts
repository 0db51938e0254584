import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { EventStream, parseEvent, type Connection, type Source, type StreamOptions } from "./events";
import type { ServiceEvent } from "./protocol";

class FakeSource implements Source {
  onopen: Source["onopen"] = null;
  onerror: Source["onerror"] = null;
  closed = false;
  readonly listeners = new Map<string, (event: MessageEvent<string>) => void>();
  readonly url: string;

  constructor(url: string) {
    this.url = url;
  }

  addEventListener(name: string, listener: (event: MessageEvent<string>) => void): void {
    this.listeners.set(name, listener);
  }

  close(): void {
    this.closed = true;
  }

  send(name: string, data: object): void {
    this.listeners.get(name)?.({ data: JSON.stringify(data) } as MessageEvent<string>);
  }
}

const frame = (seq: number, type = "item.delta") => ({ v: 1, seq, ts: "2026-01-02T03:04:05Z", session: "ses_1", type });

describe("a stream", () => {
  let sources: FakeSource[];
  let heard: ServiceEvent[];
  let said: Connection[];

  beforeEach(() => {
    vi.useFakeTimers();
    sources = [];
    heard = [];
    said = [];
  });

  afterEach(() => {
    vi.useRealTimers();
  });

  function stream(more: Partial<StreamOptions> = {}): EventStream {
    return new EventStream({
      url: "/v1/x/events",
      names: ["item.delta", "gap", "reset"],
      onEvent: (event) => heard.push(event),
      onConnection: (connection) => said.push(connection),
      open: (url) => {
        const source = new FakeSource(url);
        sources.push(source);
        return source;
      },
      ...more,
    });
  }

  const open = (): FakeSource => {
    const source = sources.at(-1)!;
    source.onopen?.(new Event("open"));
    return source;
  };

  const fail = (): void => sources.at(-1)!.onerror?.(new Event("error"));

  it("continues after the last event when it reconnects", () => {
    stream({ after: 4 });
    expect(sources[0]?.url).toBe("/v1/x/events?after=4");
    open().send("item.delta", frame(5));
    fail();
    expect(sources[0]?.closed).toBe(true);
    vi.advanceTimersByTime(2_000);
    expect(sources[1]?.url).toBe("/v1/x/events?after=5");
  });

  it("asks for no particular place when it was given none", () => {
    stream();
    expect(sources[0]?.url).toBe("/v1/x/events");
  });

  it("hands out each event once", () => {
    stream({ after: 4 });
    const source = open();
    for (const seq of [3, 4, 5, 5, 6]) source.send("item.delta", frame(seq));
    expect(heard.map((event) => event.seq)).toEqual([5, 6]);
  });

  it("waits longer after each failure, up to half a minute, and starts over once it was open", () => {
    stream();
    const waits: number[] = [];
    for (let failure = 0; failure < 6; failure += 1) {
      fail();
      const last = said.at(-1)!;
      if (last.state !== "reconnecting") throw new Error(`is ${last.state}`);
      waits.push(last.at - Date.now());
      vi.advanceTimersByTime(last.at - Date.now());
    }
    expect(waits).toEqual([2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    open();
    fail();
    expect(said.at(-1)).toEqual({ state: "reconnecting", at: Date.now() + 2_000 });
  });

  it("is replaying until it has the newest event there was at the open", async () => {
    stream({ after: 0, head: () => Promise.resolve(3) });
    const source = open();
    await vi.advanceTimersByTimeAsync(0);
    expect(said.at(-1)).toEqual({ state: "replaying", left: 3 });
    source.send("item.delta", frame(1));
    source.send("item.delta", frame(2));
    expect(said.at(-1)).toEqual({ state: "replaying", left: 1 });
    source.send("item.delta", frame(3));
    expect(said.at(-1)).toEqual({ state: "live" });
  });

  it("is live after a quiet second even if the newest event is one it does not listen to", async () => {
    stream({ after: 0, head: () => Promise.resolve(9) });
    open().send("item.delta", frame(8));
    await vi.advanceTimersByTimeAsync(0);
    expect(said.at(-1)).toEqual({ state: "replaying", left: 1 });
    await vi.advanceTimersByTimeAsync(1_000);
    expect(said.at(-1)).toEqual({ state: "live" });
    expect(sources).toHaveLength(1);
  });

  it("does not let the answer of a former connection say that it replays", async () => {
    let answer: (head: number) => void = () => {};
    stream({ after: 0, head: () => new Promise((resolve) => (answer = resolve)) });
    open();
    fail();
    answer(50);
    await vi.advanceTimersByTimeAsync(0);
    expect(said.at(-1)?.state).toBe("reconnecting");
  });

  it("tells of each failure, so that a 401 is found out", () => {
    const onFailure = vi.fn();
    stream({ onFailure });
    fail();
    expect(onFailure).toHaveBeenCalledTimes(1);
  });

  it("reconnects at once when it is told to, and not twice", () => {
    const it = stream();
    fail();
    it.retryNow();
    expect(sources).toHaveLength(2);
    vi.advanceTimersByTime(60_000);
    expect(sources).toHaveLength(2);
  });

  it("lets the connection go while it is paused and continues after its last event", () => {
    const it = stream();
    open().send("item.delta", frame(7));
    it.pause();
    expect(sources[0]?.closed).toBe(true);
    expect(said.at(-1)).toEqual({ state: "paused" });
    it.resume();
    expect(sources[1]?.url).toBe("/v1/x/events?after=7");
  });

  it("stays closed", () => {
    const it = stream();
    fail();
    it.close();
    vi.advanceTimersByTime(60_000);
    expect(sources).toHaveLength(1);
  });

  it("lets a reset start the numbers anew", () => {
    stream({ after: 100 });
    const source = open();
    source.send("reset", frame(1, "reset"));
    source.send("item.delta", frame(2));
    expect(heard.map((event) => event.type)).toEqual(["reset", "item.delta"]);
  });
});

describe("a frame", () => {
  it("that is not JSON, or has no number, is none", () => {
    expect(parseEvent("item.delta", "{")).toBeNull();
    expect(parseEvent("item.delta", "null")).toBeNull();
    expect(parseEvent("item.delta", '{"type":"item.delta"}')).toBeNull();
  });

  it("of a gap counts as the last event that is gone", () => {
    expect(parseEvent("gap", '{"from":17,"to":911}')).toMatchObject({ seq: 911, type: "gap" });
  });
});
