// The events of a stream from the server. Not by EventSource, which can send neither a key nor a body.

/** Each event's fields, such as `{ event: "state", data: "{}" }`, until the stream ends. `heard` is called with
 * every piece that comes, comments included. */
export async function* eventsOf(response, heard = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    const events = (text + value).split("\n\n");
    text = events.pop();
    yield* events.map(fieldsOf);
  }
}

function fieldsOf(event) {
  const lines = event.split("\n").filter((line) => !line.startsWith(":"));
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
}
