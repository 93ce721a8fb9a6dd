// The filter box: JSON as the API takes it, or short conditions: tags = bird, year >= 2024, owner != "ada".
const BOUNDS = { ">": "gt", ">=": "gte", "<": "lt", "<=": "lte" };
// A key, an operator, and a value that is quoted or ends at the comma; sticky, so that nothing is passed over.
const CONDITION = /\s*([^\s=!<>,"]+)\s*(!=|>=|<=|=|>|<)\s*(?:"([^"]*)"|([^\s,"][^,"]*))\s*(?:,|$)/y;
const DATE_TIME = /^\d{4}-\d{2}-\d{2}T/;

/** The `filter` of a search; null for an empty box. Throws an Error whose message a person can act on. */
export function parseFilter(text) {
  const given = text.trim();
  if (!given) return null;
  return given.startsWith("{") ? fromJson(given) : fromConditions(given);
}

function fromJson(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The filter is no JSON: ${error.message}`);
  }
}

function fromConditions(text) {
  const filter = {};
  CONDITION.lastIndex = 0;
  while (CONDITION.lastIndex < text.length) {
    const rest = text.slice(CONDITION.lastIndex).trim();
    const found = CONDITION.exec(text);
    if (!found) {
      throw new Error(`The filter cannot be read at “${rest}”. Write field = value, as in: tags = bird, year >= 2024`);
    }
    const [, key, operator, quoted, plain] = found;
    const list = operator === "!=" ? "must_not" : "must";
    (filter[list] ??= []).push(condition(key, operator, quoted, plain?.trim()));
  }
  return filter;
}

function condition(key, operator, quoted, plain) {
  const number = plain === undefined ? NaN : Number(plain);
  const bound = BOUNDS[operator];
  if (!bound) return { key, match: { any: quoted === undefined ? readings(plain, number) : [quoted] } };
  const value = quoted ?? plain;
  if (Number.isFinite(number)) return { key, range: { [bound]: number } };
  if (DATE_TIME.test(value)) return { key, range: { [bound]: value } };
  throw new Error(`“${key} ${operator} ${value}” compares with neither a number nor a date-time such as 2026-05-01T00:00:00Z`);
}

/** What a value without quotes may mean: a payload may hold 7 or "7". */
function readings(plain, number) {
  if (plain === "true" || plain === "false") return [plain === "true", plain];
  return Number.isFinite(number) ? [number, plain] : [plain];
}
