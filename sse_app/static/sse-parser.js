// The event stream format, as HTML §9.2.6 has it read.

/**
 * Returns what reads a stream in whatever pieces it comes; its work grows with the length alone. It is given the text of
 * each piece, as a TextDecoder gives it, which drops the byte order mark, and yields what is complete with that. What has no
 * `data` is no event, but may have had an id, a reconnection time or a comment.
 * @param {string} [id] the last event id before this stream
 * @returns {(text: string) => Generator<{type: string, data?: string, own?: string, id?: string, retry?: number}>}
 *   `own` is the id where an event has one itself, `id` the last event id, and `retry` what the stream has named last, in
 *   milliseconds
 */
export function makeParser(id) {
  let pieces = []; // of a line that is not complete
  let afterCR = false; // an LF that follows ends no other line
  let type = "";
  let data = [];
  let own, retry;

  return function* (text) {
    const lineEnd = /\r\n?|\n/g;
    let start = (lineEnd.lastIndex = afterCR && text[0] === "\n" ? 1 : 0);
    if (text) afterCR = text.endsWith("\r");
    for (let end; (end = lineEnd.exec(text)); start = lineEnd.lastIndex) {
      pieces.push(text.slice(start, end.index));
      const line = pieces.join("");
      pieces = [];
      if (line) {
        const [, name, value] = /^([^:]*):? ?([^]*)/.exec(line);
        if (name === "data") data.push(value);
        else if (name === "event") type = value;
        else if (name === "id" && !value.includes("\0")) own = value;
        else if (name === "retry" && /^\d+$/.test(value)) retry = Number(value);
      } else {
        id = own ?? id;
        yield { type: type || "message", data: data.length ? data.join("\n") : undefined, own, id, retry };
        type = "";
        data = [];
        own = undefined;
      }
    }
    pieces.push(text.slice(start));
  };
}
