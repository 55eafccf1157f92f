// Values as people read them. What is not a number is a dash.

const NONE = "–";
const LOCALE = "en-US";
const wholeDollars = new Intl.NumberFormat(LOCALE, { style: "currency", currency: "USD", maximumFractionDigits: 0 });
const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });

/**
 * @param {unknown} value
 * @returns {value is number}
 */
export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** @param {unknown} value */
export function money(value) {
  return isNumber(value) ? wholeDollars.format(value) : NONE;
}

/** @param {unknown} value */
export function count(value) {
  return isNumber(value) ? whole.format(value) : NONE;
}

/**
 * @param {unknown} value
 * @param {number} digits after the point
 */
export function fixed(value, digits) {
  if (!isNumber(value)) return NONE;
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString(LOCALE, options).replace("-", "−");
}

/**
 * A fraction as percent.
 * @param {unknown} value
 * @param {number} [digits] after the point
 * @param {boolean} [signed] whether a gain has a plus
 */
export function percent(value, digits = 2, signed = false) {
  if (!isNumber(value)) return NONE;
  const sign = signed && value > 0 ? "+" : "";
  return `${sign}${fixed(value * 100, digits)}%`;
}

/**
 * A large number in few signs: 12,345 is "12.3K".
 * @param {number} value
 */
export function compact(value) {
  return value.toLocaleString(LOCALE, { notation: "compact", maximumFractionDigits: 1 });
}

/** @param {unknown} value */
export function bytes(value) {
  if (!isNumber(value)) return NONE;
  const power = value < 1024 ? 0 : Math.min(3, Math.floor(Math.log2(value) / 10));
  return `${fixed(value / 1024 ** power, power && value / 1024 ** power < 100 ? 1 : 0)} ${["B", "KiB", "MiB", "GiB"][power]}`;
}

/**
 * A time span in its two greatest units.
 * @param {unknown} seconds
 */
export function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [
    [Math.floor(whole / 86_400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([value]) => value > 0)
    .map(([value, unit]) => `${value} ${unit}`)
    .join(" ");
}

/**
 * Money on an axis: all values in the unit of the largest, with as many digits as its steps need.
 * @param {number} value
 * @param {number} step
 * @param {number} largest of the values on the axis, whatever their signs
 */
export function axisMoney(value, step, largest) {
  const units = [[1e9, "B"], [1e6, "M"], [1e3, "K"], [1, ""]];
  const [unit, letter] = units.find(([each]) => largest >= each && step / each >= 0.0001) ?? units.at(-1);
  return `${value < 0 ? "−" : ""}$${fixed(Math.abs(value) / unit, digitsFor(step / unit))}${letter}`;
}

/**
 * A fraction as percent on an axis, with as many digits as its steps need.
 * @param {number} value
 * @param {number} step
 */
export function axisPercent(value, step) {
  return `${fixed(value * 100, digitsFor(step * 100))}%`;
}

/**
 * A number on an axis, with as many digits as its steps need.
 * @param {number} value
 * @param {number} step
 */
export function axisNumber(value, step) {
  return fixed(value, digitsFor(step));
}

/**
 * A name of a program as words: `value_at_risk` is "value at risk".
 * @param {unknown} name
 */
export function words(name) {
  return typeof name === "string" && name ? name.replaceAll("_", " ") : NONE;
}

/**
 * A moment in local time; the date only where it is not today.
 * @param {Date} moment
 */
export function clock(moment) {
  if (Number.isNaN(moment.getTime())) return NONE;
  const time = moment.toLocaleTimeString("en-GB");
  const today = moment.toDateString() === new Date().toDateString();
  return today ? time : `${moment.toLocaleDateString("en-CA")} ${time}`;
}

function digitsFor(step) {
  return Math.min(4, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)));
}
