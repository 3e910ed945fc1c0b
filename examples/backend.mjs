// A backend's side of the service: the vector of a picture, with time-outs and retries.
//
// Copy `vector` and what it needs; Node 20 or newer has all of it. The environment says whether and
// where to ask:
//
//     USE_LOCAL_CLIP=true
//     LOCAL_CLIP_URL=http://localhost:3000    or https://....amazonaws.com/prod, behind API Gateway
//     LOCAL_CLIP_API_KEY=...                  where the gateway asks for a key
//     LOCAL_CLIP_SIGV4=true                   where it, or a Function URL, asks for AWS's signature
//
// Requests are signed with the credentials in AWS_ACCESS_KEY_ID and so on, where Lambda puts them.
// Elsewhere take them from @aws-sdk/credential-providers. Try it with
//
//     node examples/backend.mjs photo.jpg

import { createHash, createHmac } from "node:crypto";
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const { USE_LOCAL_CLIP, LOCAL_CLIP_API_KEY, LOCAL_CLIP_SIGV4 } = process.env;
const LOCAL_CLIP_URL = process.env.LOCAL_CLIP_URL ?? "http://localhost:3000";
const ATTEMPTS = 3;
const TIMEOUT = 30_000; // ms; API Gateway itself gives up after 29 s

// The service cannot make a vector of this picture, and would not next time either.
export class PictureRefused extends Error {}

// Nothing can be had at this address, or not with this key or signature: see to it.
export class CallerRefused extends Error {}

// The service, or the gateway before it, failed or was too busy. It may work later.
export class Failed extends Error {
  constructor(text, retryAfter) {
    super(text);
    this.retryAfter = retryAfter;
  }
}

// A picture's bytes -> 512 numbers of length 1, and the fingerprint to store beside them.
export async function vector(picture) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask(picture);
    } catch (error) {
      if (!(error instanceof Failed) || attempt === ATTEMPTS) throw error;
      await new Promise((done) => setTimeout(done, pause(attempt, error.retryAfter)));
    }
  }
}

async function ask(picture) {
  const url = new URL(`${LOCAL_CLIP_URL.replace(/\/$/, "")}/encode_image`);
  const form = new FormData();
  form.append("image", new Blob([picture]), "picture");
  const encoded = new Response(form); // the bytes are needed to be signed
  const body = Buffer.from(await encoded.arrayBuffer());
  const headers = { "content-type": encoded.headers.get("content-type") };
  if (LOCAL_CLIP_API_KEY) headers["x-api-key"] = LOCAL_CLIP_API_KEY;
  if (LOCAL_CLIP_SIGV4 === "true") Object.assign(headers, signature(url, body));
  let answer, text;
  try {
    const signal = AbortSignal.timeout(TIMEOUT);
    answer = await fetch(url, { method: "POST", headers, body, signal });
    text = await answer.text();
  } catch (error) { // no connection, or no answer in time
    throw new Failed(`${LOCAL_CLIP_URL}: ${error.cause?.code ?? error.message}`);
  }
  const found = parsed(text);
  const fingerprint = answer.headers.get("x-clip-fingerprint");
  if (answer.ok && Array.isArray(found) && fingerprint) return { vector: found, fingerprint };
  throw failure(answer, found ?? {});
}

// What to make of an answer that holds no vector.
function failure(answer, body) {
  const { status, headers } = answer;
  if (answer.ok) return new CallerRefused(`what answered at ${LOCAL_CLIP_URL} is not the service`);
  // The service's errors are {code, detail}. A gateway's own are {message}, or {Message}. Below its
  // first line API Gateway repeats what was signed, which belongs in no log.
  const said = body.detail ?? body.message ?? body.Message ?? answer.statusText;
  const text = `HTTP ${status}: ${String(said).split("\n")[0]}`;
  const isQuota = headers.get("x-amzn-errortype") === "LimitExceededException";
  if ((status === 408 || status === 429 || status >= 500) && !isQuota)
    return new Failed(text, headers.get("retry-after"));
  // A picture of more than 4.5 MB is refused by the gateway, in its own words.
  if (status === 413 || ([400, 415, 422].includes(status) && body.code))
    return new PictureRefused(text);
  return new CallerRefused(`${text} (${LOCAL_CLIP_URL})`);
}

// Milliseconds to wait: as long as the service asks, or 500, 1000, ..., and by chance some more.
// Without the chance, all who were turned away at once would come back at once.
function pause(attempt, asked) {
  let seconds = 0.5 * 2 ** (attempt - 1);
  if (/^\d+$/.test(asked)) seconds = Number(asked);
  else if (Date.parse(asked)) seconds = (Date.parse(asked) - Date.now()) / 1000;
  return 1000 * Math.max(0, Math.min(seconds, 8)) * (1 + Math.random() / 4);
}

// Some gateways and load balancers answer text or HTML.
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// AWS's Signature Version 4 of a POST without a query: the headers that it adds.
function signature(url, body) {
  const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION } = process.env;
  const own = url.host.match(/\.(execute-api|lambda-url)\.([a-z0-9-]+)\./); // or a domain of yours
  const service = own?.[1] === "lambda-url" ? "lambda" : "execute-api";
  const time = new Date().toISOString().replace(/[-:]|\.\d+/g, "");
  const scope = [time.slice(0, 8), own?.[2] ?? AWS_REGION, service, "aws4_request"];
  const added = { "x-amz-date": time };
  if (AWS_SESSION_TOKEN) added["x-amz-security-token"] = AWS_SESSION_TOKEN;
  const signed = Object.entries({ host: url.host, ...added }); // in the order of their names
  const names = signed.map(([name]) => name).join(";");
  const lines = signed.map(([name, value]) => `${name}:${value}\n`).join("");
  const canonical = ["POST", url.pathname, "", lines, names, sha256(body)].join("\n");
  const text = ["AWS4-HMAC-SHA256", time, scope.join("/"), sha256(canonical)].join("\n");
  const key = scope.reduce(hmac, `AWS4${AWS_SECRET_ACCESS_KEY}`);
  const credential = `${AWS_ACCESS_KEY_ID}/${scope.join("/")}`;
  const proof = hmac(key, text).toString("hex");
  const parts = [`Credential=${credential}`, `SignedHeaders=${names}`, `Signature=${proof}`];
  return { ...added, authorization: `AWS4-HMAC-SHA256 ${parts.join(", ")}` };
}

function sha256(data) {
  return createHash("sha256").update(data).digest("hex");
}

function hmac(key, text) {
  return createHmac("sha256", key).update(text).digest();
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  if (USE_LOCAL_CLIP !== "true")
    throw new Error("USE_LOCAL_CLIP is not true: this backend would ask an API of others");
  const { vector: numbers, fingerprint } = await vector(await readFile(process.argv[2]));
  console.log(numbers.length, fingerprint);
}
