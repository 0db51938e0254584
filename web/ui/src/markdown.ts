/**
 * An answer's Markdown, made safe to show. The model's text is not trusted: it may repeat what a web page or a tool
 * told it. Parsing is `marked`'s, cleaning is DOMPurify's; this file only says how little is let through.
 */

import DOMPurify from "dompurify";
import { Marked } from "marked";

/** Longer answers are shown as plain text: parsing a megabyte would freeze the page. */
export const MARKDOWN_LIMIT = 200_000;

const escape = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

const marked = new Marked({
  gfm: true,
  breaks: true,
  async: false,
  renderer: {
    // HTML in an answer is text to be read: taken out, half of a sentence about HTML would be missing.
    html: ({ text }) => escape(text),
    // An image would be a request to a place of the model's choosing; as a link it is the reader's choice.
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
  },
});

// No images, no styles, no forms, no ids that could stand for the page's own.
const ALLOWED_TAGS = [
  "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "del", "code", "pre", "blockquote",
  "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "a",
]; // prettier-ignore

/** Renders Markdown to nodes that hold no script, no style, no image, and no link but to http and https. */
export function render(text: string): DocumentFragment {
  const html = marked.parse(text) as string;
  const fragment = DOMPurify.sanitize(html, {
    ALLOWED_TAGS,
    ALLOWED_ATTR: ["href", "start", "align"],
    ALLOWED_URI_REGEXP: /^https?:\/\//i,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of fragment.querySelectorAll("a")) {
    if (link.hasAttribute("href")) {
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      // The text may name another place than the address.
      link.title = link.href;
    } else {
      link.replaceWith(...link.childNodes);
    }
  }
  return fragment;
}
