// @vitest-environment jsdom
import { expect, it } from "vitest";
import { render } from "./markdown";

function html(markdown: string): string {
  const box = document.createElement("div");
  box.append(render(markdown));
  return box.innerHTML;
}

it("Markdown becomes the elements it names", () => {
  expect(html("**a** `b`\n\n- c")).toBe("<p><strong>a</strong> <code>b</code></p>\n<ul>\n<li>c</li>\n</ul>\n");
});

it("HTML is text to be read", () => {
  const out = html("<script>alert(1)</script>\n\nand <img src=x onerror=alert(1)> and <style>*{display:none}</style>");
  expect(out).not.toMatch(/<(script|img|style)/);
  expect(out).toContain("&lt;script&gt;alert(1)&lt;/script&gt;");
  expect(out).toContain("&lt;img src=x onerror=alert(1)&gt;");
});

it("only links to http and https are links", () => {
  for (const address of ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "//evil.test", "/v1/seeds", "JaVaScRiPt:x"]) {
    expect(html(`[text](${address})`)).toBe("<p>text</p>\n");
  }
  const link = html("[text](https://example.test/a)");
  expect(link).toContain('href="https://example.test/a"');
  expect(link).toContain('rel="noopener noreferrer"');
});

it("an image is a link, never a request", () => {
  const out = html('![alt](https://example.test/p.png?"x)');
  expect(out).not.toContain("<img");
  expect(html("![alt](https://example.test/p.png)")).toContain('<a href="https://example.test/p.png"');
});

it("no attribute of the model's choosing gets through", () => {
  expect(html('| a |\n|:-:|\n| <b id="app" style="x" class="y">z</b> |')).not.toMatch(/<[^>]*(id|style|class)=/);
});
