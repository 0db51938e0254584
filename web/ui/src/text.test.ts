import { expect, it } from "vitest";
import { age, commandLine, duration, size, span, tailOf, visible, withoutColours } from "./text";

const shown = (text: string): string => visible(text).map((piece) => (piece.control ? `[${piece.text}]` : piece.text)).join("");

it("a control character in a command is seen", () => {
  expect(shown("ls \u001b[2K; rm\r x\u007f\u0085")).toBe("ls [⟨ESC⟩][2K; rm[⟨CR⟩] x[⟨DEL⟩][⟨U+0085⟩]");
});

it("a mark that turns the writing direction around is seen, and so is what has no width", () => {
  expect(shown("a\u202eb\u2066c\u200bd\ufeff")).toBe("a[⟨U+202E⟩]b[⟨U+2066⟩]c[⟨U+200B⟩]d[⟨U+FEFF⟩]");
});

it("ordinary text, its line ends and its letters of any language stay as they are", () => {
  const text = "grüße\n\t日本語 🎉";
  expect(visible(text)).toEqual([{ text, control: false }]);
});

it("an argv shows where its words end", () => {
  expect(commandLine(["rm", "-rf", "a b", "it's", ""])).toBe("rm -rf 'a b' 'it'\\''s' ''");
  expect(commandLine("bash -lc 'x'")).toBe("bash -lc 'x'");
});

it("colours go, everything else a terminal would obey stays", () => {
  expect(withoutColours("\u001b[1;31mred\u001b[0m \u001b[2J")).toBe("red \u001b[2J");
});

it("a long text is cut at its beginning", () => {
  expect(tailOf("abcdef", 2)).toEqual({ left: 4, tail: "ef" });
  expect(tailOf("ab", 2)).toEqual({ left: 0, tail: "ab" });
});

it("an age has the largest unit that fits", () => {
  const now = Date.parse("2026-01-02T00:00:00Z");
  const before = (seconds: number): string => age(new Date(now - seconds * 1000).toISOString(), now);
  expect([1, 59, 60, 3_599, 3_600, 86_400].map(before)).toEqual(["now", "59 s", "1 min", "59 min", "1 h", "1 d"]);
  expect(age(null, now)).toBe("");
});

it("a duration is read at a glance", () => {
  expect([12, 1_449, 125_000].map(duration)).toEqual(["12 ms", "1.4 s", "2 min 5 s"]);
});

it("a span and a size have the largest unit that fits, up to days and terabytes", () => {
  expect([0, 59, 7_199, 864_000, NaN].map(span)).toEqual(["0 s", "59 s", "1 h", "10 d", ""]);
  expect([999, 1_500, 2e12, 5e15].map(size)).toEqual(["999 B", "1.5 kB", "2.0 TB", "5000 TB"]);
});
