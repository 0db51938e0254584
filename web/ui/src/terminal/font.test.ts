import { expect, it } from "vitest";
import { FONT_PX, SMALLEST_PX, fittingFont } from "./font";

/** A pane in px whose cells are 0.6 × 1.2 of the font, the width rounded up as browsers do. */
const pane = (width: number, height: number) => (px: number) => ({
  columns: Math.floor(width / Math.ceil(px * 0.6)),
  rows: Math.floor(height / Math.ceil(px * 1.2)),
});

it("a terminal that fits is not made larger or smaller", () => {
  expect(fittingFont({ columns: 80, rows: 24 }, pane(1280, 800))).toBe(FONT_PX);
});

it("a terminal that is too wide or too high gets the largest font that shows all of it", () => {
  for (const wanted of [{ columns: 120, rows: 30 }, { columns: 40, rows: 90 }, { columns: 170, rows: 50 }]) {
    const fits = pane(360, 640);
    const px = fittingFont(wanted, fits);
    expect(fits(px).columns).toBeGreaterThanOrEqual(wanted.columns);
    expect(fits(px).rows).toBeGreaterThanOrEqual(wanted.rows);
    const larger = fits(px + 0.25);
    expect(larger.columns < wanted.columns || larger.rows < wanted.rows).toBe(true);
  }
});

it("a pane that cannot be measured, or is too small for any font, gets the smallest", () => {
  expect(fittingFont({ columns: 80, rows: 24 }, () => null)).toBe(SMALLEST_PX);
  expect(fittingFont({ columns: 1000, rows: 500 }, pane(100, 100))).toBe(SMALLEST_PX);
});
