// The arithmetic of charts: scales, round numbers for an axis, paths.

/**
 * Returns a function that carries [from, to] over to [start, end]; a range without extent goes to the end.
 * @param {number} from
 * @param {number} to
 * @param {number} start
 * @param {number} end
 * @returns {(value: number) => number}
 */
export function scale(from, to, start, end) {
  if (from === to) return () => end;
  return (value) => start + ((value - from) / (to - from)) * (end - start);
}

/**
 * Finds round numbers for an axis that has to hold the values.
 * @param {number[]} values
 * @param {number} wanted about how many numbers
 * @returns {{low: number, high: number, step: number, values: number[]}} `low` and `high` are the ends of the axis
 */
export function niceTicks(values, wanted) {
  let low = values.reduce((least, value) => Math.min(least, value), Infinity);
  let high = values.reduce((most, value) => Math.max(most, value), -Infinity);
  if (!values.length) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - Math.abs(low) * 0.01 - 1e-3, high + Math.abs(high) * 0.01 + 1e-3];
  const step = niceStep((high - low) / wanted);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  const ticks = Array.from({ length: Math.max(0, last - first + 1) }, (_, number) => (first + number) * step);
  const air = (high - low) * 0.04;
  const isTick = (value) => ticks.some((tick) => Math.abs(tick - value) < step * 1e-6);
  return { low: isTick(low) ? low : low - air, high: isTick(high) ? high : high + air, step, values: ticks };
}

/**
 * Writes the path through points; where y is null the line is broken. With `base` it is an area down to there.
 * @param {[number, number | null][]} places
 * @param {number} [base]
 * @returns {string}
 */
export function linePath(places, base) {
  return runs(places)
    .map((run) => {
      if (base === undefined) return lineThrough(run);
      return `${lineThrough([[run[0][0], base], ...run, [run[run.length - 1][0], base]])}Z`;
    })
    .join("");
}

function lineThrough(run) {
  return `M${run.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const ratio = rough / power;
  return (ratio < 1.5 ? 1 : ratio < 3.2 ? 2 : ratio < 7 ? 5 : 10) * power;
}

function runs(places) {
  const found = [];
  let run = [];
  for (const place of places) {
    if (place[1] !== null) run.push(place);
    else if (run.length) {
      found.push(run);
      run = [];
    }
  }
  if (run.length) found.push(run);
  return found;
}
