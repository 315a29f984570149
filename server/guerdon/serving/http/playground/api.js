// Calls of the server's routes.

// What the server answers when it does not do what it was asked: its own sentence, and the field at fault.
export class Refusal extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.field = error.field ?? "";
  }
}

// The reply of a route, and the seconds until it had come. With a body it is a POST.
export async function call(path, { token = "", body, signal } = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const began = performance.now();
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    cache: "no-store",
    credentials: "omit",
  });
  const text = await response.text();
  const seconds = (performance.now() - began) / 1000;
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
  return { reply, seconds };
}
