// Calls of the server's routes.

// What the server answers when it does not do what it was asked: its own sentence, and the field at fault.
export class Refusal extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.field = error.field ?? error.param ?? "";
  }
}

// The reply of a route, and the seconds until it had come. With a body it is a POST.
export async function call(path, how = {}) {
  const began = performance.now();
  const reply = await replyOf(await send(path, how));
  return { reply, seconds: (performance.now() - began) / 1000 };
}

// The events of a route that answers with a stream, as they come; `tell` gets its comments.
export async function* events(path, { tell, ...how }) {
  const response = await send(path, how);
  if (!response.ok) await replyOf(response); // which throws
  for await (const line of lines(response.body)) {
    if (line.startsWith(": ")) tell(line.slice(2));
    if (line === "data: [DONE]") return;
    if (line.startsWith("data: ")) {
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Refusal(event.error.code, event.error);
      yield event;
    }
  }
  throw new Refusal(response.status, { message: "The answer broke off before its end." });
}

function send(path, { token = "", body, signal }) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  return fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    cache: "no-store",
    credentials: "omit",
  });
}

async function replyOf(response) {
  const text = await response.text();
  let reply;
  try {
    reply = JSON.parse(text);
  } catch {
    // Not the server itself but something before it, such as a proxy.
    throw new Refusal(response.status, { message: `The answer is no JSON: HTTP ${response.status} ${response.statusText}` });
  }
  if (!response.ok) {
    throw new Refusal(response.status, reply.error ?? { message: `HTTP ${response.status} ${response.statusText}` });
  }
  return reply;
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}
