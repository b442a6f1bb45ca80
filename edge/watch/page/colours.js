// Colours of labels. Okabe and Ito's, which people with any colour vision tell apart, and greys that
// differ in lightness from each other and from the ground, light or dark: a test measures them.

const COLOURS = ["#e69f00", "#56b4e9", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#f0e442", "#9a9a9a"];
// A map, since a label may be called "constructor".
const GREYS = new Map([["unclassified", "#cfcfcf"], ["other", "#6b6b6b"], ["other labels", "#474747"]]);

export function colour(label, labels) {
  const coloured = labels.filter((one) => !GREYS.has(one));
  return GREYS.get(label) || COLOURS[Math.max(0, coloured.indexOf(label)) % COLOURS.length];
}
