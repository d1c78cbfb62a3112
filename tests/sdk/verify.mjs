// Verifies what a backend got with GitHub's own SDK, from beside the SDK's modules.
import { readFileSync } from "node:fs";
import { verify } from "@octokit/webhooks-methods";

for (const got of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  const [body, signature] = [Buffer.from(got.body, "base64").toString(), got.headers["x-hub-signature-256"]];
  if (!(await verify(got.secret, body, signature))) throw new Error("refused");
  if (await verify(got.other, body, signature)) throw new Error("another secret is not looked at");
  console.log("verified", got.provider);
}
