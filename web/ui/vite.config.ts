import process from "node:process";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

// The Rust package asks for its own output directory, so that a build never writes into the source tree.
const outDir = process.env.OPTIO_UI_OUT || "dist";

export default defineConfig({
  plugins: [svelte()],
  // Tests mount components, which Svelte's build for servers cannot.
  resolve: process.env.VITEST ? { conditions: ["browser"] } : {},
  build: {
    outDir,
    emptyOutDir: true,
    rollupOptions: { input: { index: "index.html", terminal: "terminal.html" } },
    target: "es2022",
    // The page is served under `default-src 'self'`: a `data:` image or an inline script would be refused.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: {
    // `npm run dev` beside a running service; the cookie of its login link is kept by the proxy's origin.
    proxy: { "/v1": "http://127.0.0.1:7340", "/login": "http://127.0.0.1:7340" },
  },
  test: {
    include: ["src/**/*.test.ts"],
    restoreMocks: true,
  },
});
