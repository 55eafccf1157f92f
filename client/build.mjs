// Builds dist/ from the one source of the client: ../sse_app/static, which the server serves as it is, and src/; and
// holds the core to its size.

import { copyFile, mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 4096; // bytes of the core, minified and gzipped
const PARTS = ["sse-connection.js", "sse-parser.js"]; // of the core: bundled into sse-client.js

const here = (path) => new URL(path, import.meta.url);
const sources = async (folder, wanted) =>
  (await readdir(here(folder))).filter((name) => wanted.test(name) && !PARTS.includes(name)).map((name) => folder + name);

await rm(here("dist/"), { recursive: true, force: true });
const { outputFiles } = await build({
  entryPoints: [...(await sources("../sse_app/static/", /^sse-.*\.js$/)), ...(await sources("src/", /\.js$/))],
  absWorkingDir: import.meta.dirname,
  entryNames: "[name]",
  outdir: "dist",
  bundle: true,
  minify: true,
  sourcemap: true, // with the source in it
  format: "esm",
  target: "es2022",
  // Parts that are loaded when they are used; this package's other entries; and what belongs to the page.
  external: ["./sse-renewal.js", "./sse-page.js", "./sse-shared.js", "./sse-explain.js", "@sse-app/client", "@sse-app/client/*", "vue", "react", "svelte", "svelte/*"],
  write: false,
});
await mkdir(here("dist/"), { recursive: true });
for (const path of await sources("../sse_app/static/", /^sse-.*\.d\.ts$/)) await copyFile(here(path), here(path.replace(/.*\//, "dist/")));
for (const { path, contents } of outputFiles) {
  await writeFile(path, contents);
  if (path.endsWith(".map")) continue;
  const size = gzipSync(contents, { level: 9 }).length;
  const name = path.slice(path.lastIndexOf("/") + 1);
  console.log(`${name}: ${contents.length} bytes minified, ${size} gzipped`);
  if (name === "sse-client.js" && size > LIMIT) {
    console.error(`${name} is over ${LIMIT} bytes`);
    process.exitCode = 1;
  }
}
