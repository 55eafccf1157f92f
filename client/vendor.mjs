// Copies what the pages use of other people's code, with its licences, to where the server serves it from:
// ../sse_app/static/vendor, and notes there what they are, with their hashes. The versions are those of package-lock.json; run `npm ci && npm run vendor` to renew them.

import { createHash } from "node:crypto";
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";

const TARGET = new URL("../sse_app/static/vendor/", import.meta.url);
const FILES = {
  vue: {
    "dist/vue.runtime.esm-browser.prod.js": "vue.js", // without the compiler, which would need eval
    LICENSE: "vue.LICENSE",
  },
  uplot: {
    "dist/uPlot.esm.js": "uplot.js",
    "dist/uPlot.min.css": "uplot.css",
    LICENSE: "uplot.LICENSE",
  },
};

await rm(TARGET, { recursive: true, force: true });
await mkdir(TARGET, { recursive: true });
const lock = JSON.parse(await readFile(new URL("package-lock.json", import.meta.url), "utf8")).packages;
const vendored = {};
for (const [name, files] of Object.entries(FILES)) {
  const from = new URL(`node_modules/${name}/`, import.meta.url);
  const { version } = JSON.parse(await readFile(new URL("package.json", from), "utf8"));
  const { integrity } = lock[`node_modules/${name}`];
  vendored[name] = { version, source: `the npm package ${name}`, integrity, files: {} };
  for (const [source, copy] of Object.entries(files)) {
    await copyFile(new URL(source, from), new URL(copy, TARGET));
    const sha256 = createHash("sha256").update(await readFile(new URL(copy, TARGET))).digest("hex");
    vendored[name].files[copy] = { source, sha256 };
  }
  console.log(`${name} ${version}`);
}
await writeFile(new URL("versions.json", TARGET), `${JSON.stringify(vendored, null, 2)}\n`);
