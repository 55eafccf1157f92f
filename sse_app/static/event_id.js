// Event ids, `{epoch}-{seq}`: where an event stands in the server's log.

/** @typedef {{epoch: string, seq: number}} Position */

/**
 * Reads an event id.
 * @param {string} text
 * @returns {Position | null} null where it is none
 */
export function parseEventId(text) {
  const dash = text.lastIndexOf("-");
  const digits = text.slice(dash + 1);
  if (dash < 1 || !/^[0-9]{1,15}$/.test(digits)) return null;
  return { epoch: text.slice(0, dash), seq: Number(digits) };
}

/**
 * Tells whether an event has been seen, given the last one seen. Another epoch is another log, where all is new.
 * @param {Position | null} position
 * @param {Position | null} last
 * @returns {boolean}
 */
export function isSeen(position, last) {
  return position !== null && last !== null && position.epoch === last.epoch && position.seq <= last.seq;
}
