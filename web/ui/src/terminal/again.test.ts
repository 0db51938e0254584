import { expect, it } from "vitest";
import {
  AWAY,
  FIRST_MS,
  LOG_IN,
  LONGEST_MS,
  MOVES_LIMIT,
  NO_TROUBLE,
  STEADY_MS,
  afterClose,
  afterNoToken,
  backOff,
  type Trouble,
} from "./again";

const end = (code: number, reason = "", servedMs = 0) => ({ code, reason, servedMs });

it("the wait doubles from half a second to ten and stays there", () => {
  expect([1, 2, 3, 4, 5, 6, 7, 5000].map(backOff)).toEqual([500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]);
  expect([FIRST_MS, LONGEST_MS]).toEqual([500, 10_000]);
});

it("a service that is away is asked again, later each time", () => {
  let trouble: Trouble = NO_TROUBLE;
  const waits: number[] = [];
  for (const code of [1001, 1006, 1011, 1005]) {
    const next = afterClose(trouble, end(code));
    if (next.then !== "again") throw new Error(`${code} must be tried again`);
    expect(next.say).toBe(AWAY);
    waits.push(next.inMs);
    trouble = next.trouble;
  }
  expect(waits).toEqual([500, 1000, 2000, 4000]);
});

it("a connection that lasted forgets what was before it", () => {
  const before = { failures: 5, refusals: 1, moves: 2 };
  expect(afterClose(before, end(1006, "", STEADY_MS))).toMatchObject({ inMs: 500, trouble: { failures: 1, refusals: 0 } });
  expect(afterClose(before, end(1006, "", STEADY_MS - 1))).toMatchObject({ trouble: { failures: 6, refusals: 1 } });
});

it("a moved seat is taken again at once, but two windows do not push each other without end", () => {
  let trouble: Trouble = NO_TROUBLE;
  for (let move = 0; move < MOVES_LIMIT; move += 1) {
    const next = afterClose(trouble, end(4001, "come back"));
    expect(next).toMatchObject({ then: "again", inMs: 0, say: null });
    trouble = next.trouble;
  }
  expect(afterClose(trouble, end(4001))).toMatchObject({ then: "again", inMs: 500 });
});

it("a terminal that has ended is not asked again, and says why", () => {
  expect(afterClose(NO_TROUBLE, end(4000))).toMatchObject({ then: "stop", say: "The terminal has ended." });
  expect(afterClose(NO_TROUBLE, end(4000, "the terminal has ended; the session is stopping"))).toMatchObject({
    say: "The terminal has ended; the session is stopping.",
  });
  expect(afterClose(NO_TROUBLE, end(4000, "ttyd is gone"))).toMatchObject({
    say: "The terminal has ended: ttyd is gone.",
  });
});

it("a terminal that cannot be met now is asked again in a while, and says why", () => {
  const next = afterClose(NO_TROUBLE, end(4002, "the line to the terminal broke"));
  expect(next).toMatchObject({ then: "again", inMs: 500, say: "The line to the terminal broke, trying again." });
  expect(afterClose(next.trouble, end(4002))).toMatchObject({
    inMs: 1000,
    say: "The terminal cannot be met now, trying again.",
  });
});

it("a refused token is replaced once; then a person must log in", () => {
  const once = afterClose(NO_TROUBLE, end(4401));
  expect(once).toMatchObject({ then: "again", inMs: 0 });
  expect(afterClose(once.trouble, end(4401))).toMatchObject({ then: "stop", say: LOG_IN });
});

it("a refused message is named, and does not spin", () => {
  const next = afterClose(NO_TROUBLE, end(1008, "a size must be whole"));
  expect(next).toMatchObject({ then: "again", inMs: 500 });
  expect(next.say).toContain("a size must be whole");
});

it("without a token the answer decides", () => {
  for (const status of [0, 429, 500, 503]) {
    expect(afterNoToken(NO_TROUBLE, status, "x"), String(status)).toMatchObject({ then: "again", say: AWAY, inMs: 500 });
  }
  expect(afterNoToken(NO_TROUBLE, 401, "no")).toMatchObject({ then: "stop", say: LOG_IN });
  expect(afterNoToken(NO_TROUBLE, 409, "the session has ended")).toMatchObject({
    then: "stop",
    say: "The session has ended.",
  });
  expect(afterNoToken(NO_TROUBLE, 404, "")).toMatchObject({ then: "stop", say: "The service answered 404." });
});
