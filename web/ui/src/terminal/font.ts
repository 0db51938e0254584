/** The font size with which a terminal of somebody else's size fits this pane. */

import type { Size } from "./wire";

/** In px; what an owner sees, and the most that a guest sees. */
export const FONT_PX = 14;

/** In px. Nobody reads it, but the picture is whole; smaller is not drawn. */
export const SMALLEST_PX = 1;

/** A step that the eye does not see, in px. */
const STEP_PX = 0.25;

/**
 * The largest size, in px, at which `wanted` fits. `fits` says how many cells the pane holds at a size; it is asked
 * because cells are rounded to whole pixels, and a calculated size may then be one column too wide.
 */
export function fittingFont(wanted: Size, fits: (px: number) => Size | null): number {
  let low = SMALLEST_PX / STEP_PX;
  let high = FONT_PX / STEP_PX;
  // Halved until one is left: six questions.
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    const held = fits(middle * STEP_PX);
    if (held !== null && held.columns >= wanted.columns && held.rows >= wanted.rows) low = middle;
    else high = middle - 1;
  }
  return low * STEP_PX;
}
