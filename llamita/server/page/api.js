// Talks to the server, in OpenAI's dialect.

const BROKE_OFF = "The answer broke off: the server closed the connection before its end.";
const UNREACHABLE = "The server does not answer. Is it still running?";

/** A request that failed; `status` is HTTP's, or 0 where there was no answer. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The models that the server has: [{id, max_model_len}]. */
export async function listModels(key) {
  const response = await request("v1/models", key, {});
  return (await response.json()).data;
}

/** The chunks of a streamed chat completion. Throws ApiError, or AbortError after the signal. */
export async function* streamChat(body, key, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const init = { method: "POST", body: JSON.stringify({ ...body, ...options }), signal };
  const response = await request("v1/chat/completions", key, init);
  for await (const data of events(response.body, signal)) {
    if (data.startsWith("[DONE]")) return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, response.status);
    yield chunk;
  }
  throw new ApiError(BROKE_OFF);
}

async function request(path, key, init) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch {
    init.signal?.throwIfAborted();
    throw new ApiError(UNREACHABLE);
  }
  if (!response.ok) throw new ApiError(await messageOf(response), response.status);
  return response;
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

/** The data of server-sent events, one string each. */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } catch (error) {
    signal?.throwIfAborted(); // whatever the browser says of a connection that was closed for it
    throw error instanceof ApiError ? error : new ApiError(BROKE_OFF);
  } finally {
    reader.cancel().catch(() => {});
  }
}
