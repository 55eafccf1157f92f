// Builds dist/ from the one source of the client, ../sse_app/static, which the server serves as it is; and holds the
// core to its size.

import { mkdir, writeFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 4096; // bytes of the core, minified and gzipped

const { outputFiles } = await build({
  entryPoints: ["../sse_app/static/sse-client.js", "../sse_app/static/sse-shared.js", "src/vue.js"],
  absWorkingDir: import.meta.dirname,
  entryNames: "[name]",
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  external: ["./sse-shared.js", "sse-client", "vue"], // loaded when tabs share; a peer; and the page's own
  write: false,
});
await mkdir(new URL("dist/", import.meta.url), { recursive: true });
for (const { path, contents } of outputFiles) {
  await writeFile(path, contents);
  const size = gzipSync(contents, { level: 9 }).length;
  const name = path.slice(path.lastIndexOf("/") + 1);
  console.log(`${name}: ${contents.length} bytes minified, ${size} gzipped`);
  if (name === "sse-client.js" && size > LIMIT) {
    console.error(`${name} is over ${LIMIT} bytes`);
    process.exitCode = 1;
  }
}
