/**
 * Lets xterm.js live under `default-src 'self'`.
 *
 * It writes its rules (cell size, colours, cursor, scroll bar) as text into `<style>` elements that it makes, and the
 * 24-bit colour of a cell with `setAttribute("style", …)`. The policy blocks both, and the terminal is then drawn with
 * neither columns nor colours. What a script sets through the CSSOM is not blocked. So on this page a `<style>`
 * is an empty element whose text goes into a constructed style sheet of the document, and a `style` attribute into `style.cssText`. The
 * other way, `style-src 'unsafe-inline'`, would allow every injected style too; hashes do not fit, because the rules
 * hold measured sizes; xterm.js 6 takes no nonce, and its WebGL renderer leaves the scroll bar's `<style>` in place.
 */

/** Must run before the first terminal is opened. Nothing else on the page makes `<style>` elements. */
export function allowStyles(page: Document): void {
  const create = page.createElement.bind(page);
  page.createElement = ((name: string, options?: ElementCreationOptions): HTMLElement => {
    // A `<template>` is never drawn; even an empty `<style>` would be reported as a breach of the policy.
    return name === "style" ? adopt(page, create("template")) : create(name, options);
  }) as typeof page.createElement;

  const setAttribute = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (this: Element, name: string, value: string): void {
    if (name === "style" && this instanceof HTMLElement) this.style.cssText = value;
    else setAttribute.call(this, name, value);
  };
}

/** What is written into the element becomes a style sheet of the document, until the element is removed. */
function adopt(page: Document, element: HTMLElement): HTMLElement {
  const sheet = new CSSStyleSheet();
  let text = "";
  page.adoptedStyleSheets = [...page.adoptedStyleSheets, sheet];
  Object.defineProperty(element, "textContent", {
    configurable: true,
    get: () => text,
    set: (value: string | null) => {
      text = value ?? "";
      sheet.replaceSync(text);
    },
  });
  element.remove = () => {
    page.adoptedStyleSheets = page.adoptedStyleSheets.filter((other) => other !== sheet);
    HTMLElement.prototype.remove.call(element);
  };
  return element;
}
