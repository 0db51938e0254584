import { expect, it } from "vitest";
import { KEYS_LIMIT, binary, hello, keys, pause, read, resized, resume, within } from "./wire";

const bytes = (text: string): ArrayBuffer => new TextEncoder().encode(text).buffer;
const text = (message: Uint8Array): string => new TextDecoder().decode(message);

it("the first message has the token and a size that the service takes", () => {
  expect(JSON.parse(hello("t-1", { columns: 80, rows: 24 }))).toEqual({ AuthToken: "t-1", columns: 80, rows: 24 });
  expect(JSON.parse(hello("", { columns: 0, rows: 9999 }))).toEqual({ AuthToken: "", columns: 2, rows: 500 });
  expect(within({ columns: Number.NaN, rows: 24.9 })).toEqual({ columns: 2, rows: 24 });
});

it("keys are UTF-8 behind a 0", () => {
  expect(keys("é€😀").map((message) => [...message])).toEqual([
    [0x30, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80],
  ]);
  expect(keys("")).toEqual([]);
});

it("a long paste goes in several messages and loses no byte", () => {
  const pasted = "aé€".repeat(KEYS_LIMIT / 4);
  const messages = keys(pasted);
  expect(messages.length).toBeGreaterThan(1);
  for (const message of messages) {
    expect(message[0]).toBe(0x30);
    expect(message.length).toBeLessThanOrEqual(KEYS_LIMIT + 1);
  }
  const joined = messages.flatMap((message) => [...message.subarray(1)]);
  expect(text(Uint8Array.from(joined))).toBe(pasted);
});

it("a mouse report of bytes is sent byte by byte, not as UTF-8", () => {
  expect(binary("\x1b[M \xe9\xff").map((message) => [...message])).toEqual([
    [0x30, 0x1b, 0x5b, 0x4d, 0x20, 0xe9, 0xff],
  ]);
});

it("a new size, a pause and its end have a byte each", () => {
  expect(text(resized({ columns: 120, rows: 30 }))).toBe('1{"columns":120,"rows":30}');
  expect([text(pause()), text(resume())]).toEqual(["2", "3"]);
});

it("output stays bytes, also when it cuts a character in two", () => {
  expect(read(new Uint8Array([0x30, 0xe2, 0x82]).buffer)).toEqual({
    kind: "output",
    bytes: new Uint8Array([0xe2, 0x82]),
  });
});

it("a title and a seat are read", () => {
  expect(read(bytes("1tidy é"))).toEqual({ kind: "title", title: "tidy é" });
  expect(read(bytes('2{"optio":{"seat":"guest","columns":200,"rows":50}}'))).toEqual({
    kind: "seat",
    seat: "guest",
    size: { columns: 200, rows: 50 },
  });
});

it("what cannot be read is left alone", () => {
  const strange = ["", "2", "2null", "2[]", '2{"disableLeaveAlert":true}', '2{"optio":{"seat":"king","columns":1,"rows":1}}'];
  for (const message of [...strange, '2{"optio":{"seat":"owner","columns":"80","rows":24}}', "9x"]) {
    expect(read(bytes(message)), message).toEqual({ kind: "other" });
  }
});
