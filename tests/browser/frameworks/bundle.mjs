// Prints the bundle of one of the pages here, with the frameworks and the client as npm and the build have put them there.
// node bundle.mjs PAGE [SVELTE], where SVELTE is the package of the Svelte to take.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const [page, svelte = "svelte"] = process.argv.slice(2);
const here = dirname(fileURLToPath(import.meta.url));
const client = join(here, "../../../client");
const load = createRequire(join(client, "build.mjs"));
const { build } = load("esbuild");

const components = {
  name: "svelte components",
  setup({ onLoad }) {
    onLoad({ filter: /\.svelte$/ }, async ({ path }) => {
      const { compile } = load(`${svelte}/compiler`);
      return { contents: compile(await readFile(path, "utf8"), { filename: path }).js.code };
    });
  },
};
const dist = (name) => join(client, "dist", `${name}.js`);
const { outputFiles } = await build({
  entryPoints: [resolve(here, page)],
  bundle: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  conditions: ["browser", "svelte"],
  define: { "process.env.NODE_ENV": '"development"' }, // so that StrictMode does all twice
  nodePaths: [join(client, "node_modules")],
  plugins: [components],
  alias: {
    ...(svelte !== "svelte" && { svelte }),
    "@sse-app/client": dist("sse-client"),
    "@sse-app/client/react": dist("react"),
    "@sse-app/client/svelte": dist("svelte"),
  },
  write: false,
});
process.stdout.write(outputFiles[0].text);
