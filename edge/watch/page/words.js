// Texts in the reader's language, as the server put them into the page.

const given = JSON.parse(document.getElementById("facts").textContent);
const plurals = new Intl.PluralRules(given.language);

export const language = given.language;
export const spans = given.spans;
export const mostOpened = given.mostOpened;

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole));
}

// A text, with what stands in braces put in.
export function t(text, values = {}) {
  return fill(Object.hasOwn(given.words, text) ? given.words[text] : text, values);
}

// A text that counts, in the form of its number.
export function count(text, n, values = {}) {
  const forms = given.words[text];
  return fill(forms[plurals.select(n)] || forms.other, { n: number(n), ...values });
}

const numbers = new Intl.NumberFormat(given.language);
const tenths = new Intl.NumberFormat(given.language, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
export const number = (n) => numbers.format(n);
export const tenth = (n) => tenths.format(n);

// A label is the bundle's; those of the kit's own bundle have a word in each language.
export function name(label) {
  const key = `label ${label}`;
  return Object.hasOwn(given.words, key) ? given.words[key] : label;
}

// The school's zone; a browser that does not know it shows and names UTC.
function known(zone) {
  try {
    return new Intl.DateTimeFormat("en", { timeZone: zone }) && zone;
  } catch {
    return "UTC";
  }
}
export const zone = known(given.zone);
