// Server-sent events from a response's body. EventSource cannot POST, hence this parser.

/** Yields {event, data} for each event of a stream of bytes; chunks may end anywhere. */
export async function* serverEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let line = ""; // a picture is one line of megabytes: each chunk is searched once, and only joined to what came before
  let event = "";
  let data = [];
  try {
    for (;;) {
      const { value: chunk, done } = await reader.read();
      if (done) return; // an event without its empty line is not whole: it is dropped, as the standard says
      let from = 0;
      for (let end; (end = chunk.indexOf("\n", from)) >= 0; from = end + 1) {
        line += chunk.slice(from, end);
        if (line.endsWith("\r")) line = line.slice(0, -1);
        if (line === "") {
          if (data.length) yield { event: event || "message", data: data.join("\n") };
          event = "";
          data = [];
        } else if (!line.startsWith(":")) {
          const [name, value] = field(line);
          if (name === "event") event = value;
          else if (name === "data") data.push(value);
        }
        line = "";
      }
      line += chunk.slice(from);
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading closes the connection: the server then stops the run
  }
}

function field(line) {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  return [line.slice(0, colon), line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1)];
}
